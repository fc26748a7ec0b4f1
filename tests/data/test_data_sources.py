"""Every reader on a small set in its original format; the recorded targets of the original where they are at hand."""

import base64
import json
import pickle
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from glip_hf.data import check_data
from glip_hf.data.cache import convert_once, fingerprint
from glip_hf.data.columns import Columns, DamagedData
from glip_hf.data.sources import (
    CATALOGUE,
    HubStream,
    base,
    build_source,
    coco,
    find_path,
    read_coco,
    read_hub,
    resolve_spec,
    tsv,
)
from glip_hf.data.sources.base import few_shot_indices
from glip_hf.data.sources.odinw import load_task
from glip_hf.prompts_glip import positive_map
from tests.data.original_formats import SIZES, coco_content, encoded_image, save_images, write_tsv

pytest.importorskip("datasets")


@pytest.fixture
def build(tmp_path):
    return lambda spec, **more: build_source({**spec, **more}, cache_dir=tmp_path / "cache")


# -- COCO ---------------------------------------------------------------------------------------------------------


def test_coco(build, coco_set):
    source = build(coco_set)
    # Images 13 (crowd only) and 15 (no box) are left out, the others in order of id; categories by id are 1, 2, 3.
    assert [record.image_id for record in source] == [10, 11, 12, 14]
    assert source.names == {1: "cat", 2: "dog", 3: "car"} and source.category_ids == {1: 3, 2: 7, 3: 90}
    first = source[0]
    np.testing.assert_array_equal(first.boxes, np.float32([[2, 3, 11, 14], [20, 5, 29.5, 24.25]]))
    assert first.labels.tolist() == [1, 3] and first.boxes.dtype == np.float32
    np.testing.assert_allclose(first.areas, [120, 10.5 * 20.25])
    assert (first.width, first.height, first.caption, source.captions) == (40, 30, None, "all")
    assert first.image.load().getpixel((0, 0)) == (0, 0, 0) and source[3].image.load().getpixel((0, 0)) == (4, 0, 0)
    assert source[2].labels.tolist() == [1]  # the box of one pixel's width is gone
    np.testing.assert_array_equal(source.sizes(), [[30, 40], [40, 30], [48, 64], [60, 36]])
    assert source.dropped == {}


def test_coco_keeps_empty_images_when_asked(build, coco_set):
    source = build(coco_set, drop_empty=False)
    assert [len(record.boxes) for record in source] == [2, 1, 1, 0, 1, 0]
    assert source[3].boxes.shape == (0, 4) and source[3].labels.dtype == np.int64


def test_coco_without_any_box(build, coco_set, tmp_path):
    content = coco_content() | {"annotations": []}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    assert len(build(coco_set, drop_empty=False)) == 6
    with pytest.raises(ValueError, match="no usable image is left"):
        build(coco_set)


def test_coco_annotations_before_images_and_text_ids(build, coco_set, tmp_path):
    content = coco_content()
    for image in content["images"]:
        image["id"] = f"n{image['id']}"
    for annotation in content["annotations"]:
        annotation["image_id"] = f"n{annotation['image_id']}"
    reordered = {key: content[key] for key in ("categories", "annotations", "images")}
    (tmp_path / "instances.json").write_text(json.dumps(reordered))
    source = build(coco_set)
    assert [record.image_id for record in source] == ["n10", "n11", "n12", "n14"]
    assert source[0].labels.tolist() == [1, 3]


def test_coco_background_is_no_class(build, coco_set, tmp_path):
    content = coco_content()
    content["categories"].append({"id": 0, "name": "__background__"})
    (tmp_path / "instances.json").write_text(json.dumps(content))
    assert build(coco_set).names == {1: "cat", 2: "dog", 3: "car"}


def test_coco_damage_is_left_out_and_counted_or_refused(build, coco_set, tmp_path):
    content = coco_content()
    content["annotations"] += [
        {"id": 900, "image_id": 10, "category_id": 3, "bbox": [float("nan"), 0, 3, 3]},
        {"id": 901, "image_id": 10, "category_id": 3, "bbox": [0, 0, -3, 3]},
        {"id": 902, "image_id": 10, "category_id": 4, "bbox": [0, 0, 3, 3]},
        {"id": 903, "image_id": 999, "category_id": 3, "bbox": [0, 0, 3, 3]},
        {"id": 904, "image_id": 10, "category_id": 3, "bbox": [0, 0, 3]},
        {"id": 905, "image_id": 10, "category_id": 3, "bbox": None},
    ]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    source = build(coco_set)
    assert source.dropped == {
        "nan_box": 1, "empty_box": 1, "unknown_category": 1, "unknown_image": 1, "malformed": 2
    }  # fmt: skip
    assert len(source[0].boxes) == 2
    with pytest.raises(ValueError, match=r"instances\.json: annotation .* Repair it"):
        build(coco_set, strict=True)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_reader_gives_pages_of_its_table_back(build, coco_set, monkeypatch):
    """Else a loader worker would come to hold all of a table of gigabytes."""
    monkeypatch.setattr(base, "READS_PER_RELEASE", 4)
    source = build(coco_set)
    [file] = source.table.cache_files

    def resident():
        maps = Path("/proc/self/smaps").read_text().split(f"{file['filename']}\n")[1:]
        return sum(int(re.search(r"Rss: +(\d+) kB", one)[1]) for one in maps)

    first = [repr(source[index]) for index in range(3)]
    assert resident() > 0
    source[3]
    assert resident() == 0
    assert [repr(source[index]) for index in range(3)] == first and resident() > 0
    source.digest()
    assert resident() == 0


def test_cache_is_used_until_the_file_changes(build, coco_set, tmp_path, monkeypatch):
    first = build(coco_set)
    monkeypatch.setattr("glip_hf.data.sources.coco.parse_coco", None)  # would fail if it were called
    again = build(coco_set)
    assert [r.image_id for r in again] == [r.image_id for r in first]
    assert again.table.cache_files == first.table.cache_files
    monkeypatch.undo()
    content = coco_content()
    content["annotations"] = content["annotations"][:2]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    assert [r.image_id for r in build(coco_set)] == [10]


def test_interrupted_conversion_leaves_nothing(tmp_path):
    (tmp_path / "a.json").write_text("{}")

    def build(writer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_once("x", [tmp_path / "a.json"], {}, build, tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock")] == []


def test_processes_that_start_together_convert_once(tmp_path, coco_set, monkeypatch):
    calls = []
    parse = coco.parse_coco

    def slow(*arguments):
        calls.append(1)
        time.sleep(0.2)
        return parse(*arguments)

    monkeypatch.setattr(coco, "parse_coco", slow)
    with ThreadPoolExecutor(4) as pool:
        sources = list(pool.map(lambda _: build_source(coco_set, cache_dir=tmp_path / "cache"), range(4)))
    assert len(calls) == 1 and {len(source) for source in sources} == {4}


def test_fingerprint(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 100)
    one = fingerprint([path], {"a": 1})
    assert one == fingerprint([path], {"a": 1}) != fingerprint([path], {"a": 2})
    path.write_bytes(b"y" * 100)
    assert fingerprint([path], {"a": 1}) != one


def test_sources_pickle_and_select(build, coco_set):
    source = pickle.loads(pickle.dumps(build(coco_set)))
    part = source.select([2, 0, 0])
    assert [r.image_id for r in part] == [12, 10, 10] and [r.image_id for r in part.select([1])] == [10]
    with pytest.raises(IndexError, match="4 samples, 4 was asked for"):
        source[4]


def test_few_shot_by_hand():
    # Class 1 is satisfied by images 0 and 1; image 2 has only class 1; image 3 brings class 2.
    sets = [{1}, {1, 3}, {1}, {2, 1}, set(), {3}, {2}]
    assert few_shot_indices(sets, 1) == [0, 1, 3]
    assert few_shot_indices(sets, 2) == [0, 1, 3, 5, 6]
    assert few_shot_indices(sets, 1, shuffle_seed=0) == [0, 1, 3]  # 0 means no shuffling
    shuffled = few_shot_indices(sets, 1, shuffle_seed=3)
    assert shuffled == few_shot_indices(sets, 1, shuffle_seed=3)
    assert {label for index in shuffled for label in sets[index]} == {1, 2, 3}


def test_few_shot_source(build, coco_set):
    assert [r.image_id for r in build(coco_set, shots=1)] == [10, 11]


# -- LVIS, MDETR, ODinW ---------------------------------------------------------------------------------------------


def test_lvis(build, tmp_path):
    content = coco_content()
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
        image |= {"neg_category_ids": [7], "not_exhaustive_category_ids": []}
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    save_images(tmp_path / "coco" / "val2017", SIZES)
    source = build({"format": "lvis", "annotations": tmp_path / "lvis.json", "images": tmp_path / "coco"})
    assert source.captions == "sampled" and source[1].image.path.endswith("coco/val2017/1.png")
    assert source[1].image.load().size == (30, 40)
    assert source[0].extra == {"neg_category_ids": [7], "not_exhaustive_category_ids": []}


def test_mdetr(build, mdetr_set):
    source = build(mdetr_set)
    first, second = source
    assert first.image.path.endswith("vg/0.png") and second.image.path.endswith("coco/1.png")
    assert first.spans == [[(0, 5), (37, 42)], [(14, 22)]] and (first.width, first.height) == (40, 30)
    assert first.eval_spans == [[(0, 5)], [(14, 22), (23, 34)]]
    assert first.extra == {"sentence_id": 4, "original_id": "77", "data_source": "vg"}
    assert source.captions == "given" and first.names == {} and first.labels.tolist() == [1, 1]
    np.testing.assert_array_equal(first.boxes[0], [1, 2, 10, 11])


def test_a_detection_set_is_no_grounding_set(build, coco_set):
    """It was read as captions of nothing, whose boxes teach nothing."""
    message = "none of the 5 boxes has a phrase .*: is it a detection set, of the format coco"
    with pytest.raises(ValueError, match=message):
        build(coco_set, format="mdetr")
    assert "is it a detection set" in check_data(coco_set | {"format": "mdetr"}).refusal


def test_mdetr_one_folder_and_missing_folder(build, mdetr_set, tmp_path):
    assert build(mdetr_set, images=str(tmp_path / "vg"))[1].image.path.endswith("vg/1.png")
    source = build(mdetr_set, images={"vg": str(tmp_path / "vg")})
    assert len(source) == 1 and source.dropped["malformed"] == 1
    assert source.dropped["unknown_image"] == 1


TASK = """
DATASETS:
  GENERAL_COPY: 16
  CAPTION_PROMPT: '[{"prefix": " ", "name": "cat", "suffix": " which is small"},
    {"prefix": "", "name": "dog", "suffix": ""}, {"prefix": "a red ", "name": "car", "suffix": ""}]'
  OVERRIDE_CATEGORY: '[{"id": 3, "name": "pet cat", "supercategory": ""}, {"id": 7, "name": "dog"}, {"id": 90, "name": "car"}]'
  REGISTER:
    train: {ann_file: instances.json, img_dir: photos}
    train_1_3: {ann_file: few.json, img_dir: photos}
  TRAIN: ("train",)
  TEST: ("val",)
"""  # noqa: E501


def test_odinw(coco_set, tmp_path):
    (tmp_path / "Pets.yaml").write_text(TASK)
    few = coco_content()
    few["annotations"] = few["annotations"][:1]
    (tmp_path / "few.json").write_text(json.dumps(few))
    options = {"data_root": tmp_path, "cache_dir": tmp_path / "cache"}
    spec = {"format": "odinw", "task": "Pets.yaml"}
    source = build_source(spec, **options)
    assert source.name == "Pets/train" and len(source) == 4 and source.names[1] == "pet cat"
    assert source.prompts[1].full_text == " cat which is small" and source.prompts[3].text == "car"
    assert build_source(spec | {"use_prompts": False}, **options).prompts is None
    assert len(build_source(spec | {"shots": 1, "seed": 3}, **options)) == 1
    with pytest.raises(ValueError, match="no split 'train_5_3' in REGISTER; it has train, train_1_3"):
        build_source(spec | {"shots": 5}, **options)
    task = load_task(tmp_path / "Pets.yaml")
    assert task["GENERAL_COPY"] == 16 and task["TRAIN"] == ("train",)
    (tmp_path / "not.yaml").write_text("a: 1")
    with pytest.raises(ValueError, match="DATASETS.REGISTER"):
        load_task(tmp_path / "not.yaml")


# -- TSV ------------------------------------------------------------------------------------------------------------


def test_tsv(build, tsv_set):
    source = build({"format": "tsv", "yaml_file": str(tsv_set / "all.yaml")})
    assert [r.image_id for r in source] == [20, 21, 22, 23, 24, 25] and source.names == {1: "cat", 2: "dog"}
    np.testing.assert_array_equal(source.sizes(), [(h, w) for w, h in SIZES])
    np.testing.assert_array_equal(source[0].boxes, np.float32([[2, 3, 12, 15], [5.5, 6, 39.9, 29]]))
    assert source[0].labels.tolist() == [1, 2] and len(source[1].boxes) == 0 and source.captions == "sampled"
    assert [r.image.load().size for r in source] == SIZES
    assert source[4].image.load().getpixel((0, 0)) == (4, 0, 0)


def test_tsv_boxes_at_once_are_those_taken_one_by_one(tsv_set, monkeypatch):
    rows = [
        [[1, 2, 30.5, 20], [0.1, 0.2, 17.3, 11.9], [1e300, 0, 1e308, 9]],
        [[1, 1, 9, 9], [True, 1, 9, 9]],
        [[1, 1, 9, 9], "[2, 2, 8, 8]"],
        [[1, 1, 9, 9], [1, 1, 10**400, 9]],
        [[float("nan"), 1, 9, 9], [1, 1, 9]],
        [None, [3, 3, 9, 9]],
    ]
    lines = []
    for number, boxes in enumerate(rows):
        objects = [{"class": "dog" if index else "cat", "rect": box} for index, box in enumerate(boxes)]
        lines.append(f"{20 + number}\t{json.dumps(objects)}\n")
    (tsv_set / "label.tsv").write_text("".join(lines))
    parts = tsv.load_tsv_yaml(tsv_set / "all.yaml")

    def read():
        [(columns, numbers)] = tsv.parse_tsv(parts, {"cat": 2, "dog": 1})
        names = ("ann_ids", "ann_images", "categories", "boxes", "areas", "crowd", "span_ends")
        found = {name: columns.array(name).tolist() for name in names}
        return repr((found, columns.category_ids.values, columns.problems, columns.lost, numbers))

    at_once, add, taken = read(), Columns.add_boxes, []
    monkeypatch.setattr(Columns, "add_boxes", lambda *given: taken.append(add(*given)) or taken[-1])
    assert read() == at_once and taken == [True, False, False, False, False, False]
    monkeypatch.setattr(Columns, "add_boxes", lambda *given: False)
    assert read() == at_once


def test_tsv_line_list(build, tsv_set):
    source = build({"format": "tsv", "yaml_file": str(tsv_set / "train.yaml")})
    assert [r.image_id for r in source] == [20, 22, 22, 25]
    (tsv_set / "lines.tsv").write_text("0\t1\t2\n")
    with pytest.raises(ValueError, match="a line list has one or two integers per line"):
        build({"format": "tsv", "yaml_file": str(tsv_set / "train.yaml")})
    (tsv_set / "lines.tsv").write_text("0\n9\n")
    with pytest.raises(ValueError, match="row 9 was asked for, there are 6"):
        build({"format": "tsv", "yaml_file": str(tsv_set / "train.yaml")})


def test_tsv_drop_empty(build, tsv_set):
    source = build({"format": "tsv", "yaml_file": str(tsv_set / "all.yaml"), "drop_empty": True})
    assert [r.image_id for r in source] == [20, 22, 23, 24, 25]


def test_tsv_needs_the_image_index(build, tsv_set):
    (tsv_set / "img.lineidx").unlink()
    with pytest.raises(FileNotFoundError, match="img.lineidx"):
        build({"format": "tsv", "yaml_file": str(tsv_set / "all.yaml")})
    (tsv_set / "img.lineidx").write_text("0\nx\n")
    with pytest.raises(ValueError, match="img.lineidx is not a list of byte offsets"):
        build({"format": "tsv", "yaml_file": str(tsv_set / "all.yaml")})


def test_tsv_damaged_rows_are_left_out(build, tsv_set):
    lines = (tsv_set / "label.tsv").read_text().splitlines()
    lines[2] = "22\t[{oops"
    lines[3] = "no tab"
    lines[5] = '25\t[{"class": "bird", "rect": [1, 1, 4, 4]}, {"class": "cat", "rect": [9, 9, 2, 12]}]'
    (tsv_set / "label.tsv").write_text("\n".join(lines) + "\n")
    source = build({"format": "tsv", "yaml_file": str(tsv_set / "train.yaml")})
    assert [r.image_id for r in source] == [20, 25]
    assert source.dropped == {"unreadable": 2, "unknown_category": 1, "empty_box": 1}


def test_tsv_sizes_with_imageid2idx(build, tsv_set):
    """Labels in another order than images: the size is that of the image, not height = width."""
    rows = [f'{i}\t{{"objects": [{{"class": "cat", "rect": [1, 1, 9, 9]}}], "img_id": "p{i}"}}' for i in (4, 1)]
    (tsv_set / "label.tsv").write_text("\n".join(rows) + "\n")
    (tsv_set / "map.json").write_text(json.dumps({f"p{i}": i for i in range(6)}))
    common = "img: img.tsv\nlabel: label.tsv\nlabelmap: class2ind.json\nimageid2idx: map.json\n"
    for extra in ("", "hw: hw.tsv\n"):
        (tsv_set / "mapped.yaml").write_text(common + extra)
        source = build({"format": "tsv", "yaml_file": str(tsv_set / "mapped.yaml")})
        np.testing.assert_array_equal(source.sizes(), [(60, 36), (40, 30)])
        assert [r.image.load().size for r in source] == [(36, 60), (30, 40)]


def test_tsv_composite(build, tsv_set):
    """Two files of each part; the line list says which file and which row in it."""
    image = base64.b64encode(encoded_image(33, 22)).decode()
    write_tsv(tsv_set / "img2.tsv", [("20", image)])
    write_tsv(tsv_set / "label2.tsv", [("20", '[{"class": "dog", "rect": [1, 1, 4, 4]}]')])
    write_tsv(tsv_set / "hw2.tsv", [("20", "22 33")])
    (tsv_set / "labels.txt").write_text("label.tsv\nlabel2.tsv\n")
    (tsv_set / "seq.tsv").write_text("1\t0\n0\t4\n1\t0\n")
    (tsv_set / "both.yaml").write_text(
        "composite: true\nimg: [img.tsv, img2.tsv]\nlabel: labels.txt\nhw: [hw.tsv, hw2.tsv]\n"
        "labelmap: class2ind.json\nlinelist: seq.tsv\n"
    )
    source = build({"format": "tsv", "yaml_file": str(tsv_set / "both.yaml")})
    assert [r.image.load().size for r in source] == [(33, 22), (36, 60), (33, 22)]
    assert [r.image_id for r in source] == [6, 4, 6]  # keys of several files may collide: row numbers


# -- datasets -------------------------------------------------------------------------------------------------------


def hub_dataset(grounded=False, sizes=True):
    datasets = pytest.importorskip("datasets")
    objects = [
        {"bbox": [[2.0, 3, 10, 12], [20, 5, 10, 20]], "category": [0, 2]},
        {"bbox": [[1.0, 1, 20, 30]], "category": [1]},
        {"bbox": [], "category": []},
    ]
    category = datasets.ClassLabel(names=["cat", "dog", "car"])
    features = {"bbox": datasets.List(datasets.List(datasets.Value("float32"))), "category": datasets.List(category)}
    rows = {"image": [{"bytes": encoded_image(w, h), "path": None} for w, h in SIZES[:3]], "objects": objects}
    if grounded:
        rows["objects"] = [
            {"bbox": [[2.0, 3, 10, 12], [20, 5, 10, 20]], "phrase": ["a cat", "two dogs"]},
            {"bbox": [[1.0, 1, 20, 30]], "phrase": ["a car"]},
            {"bbox": [[1.0, 1, 20, 30]], "phrase": ["cat"]},
        ]
        features = {"bbox": features["bbox"], "phrase": datasets.List(datasets.Value("string"))}
        rows["caption"] = ["a cat and two dogs", "a car", "cat on cat"]
    schema = {"image": datasets.Image(decode=False), "objects": features}
    if grounded:
        schema["caption"] = datasets.Value("string")
    if sizes:
        rows |= {"width": [w for w, _ in SIZES[:3]], "height": [h for _, h in SIZES[:3]]}
        schema |= {"width": datasets.Value("int32"), "height": datasets.Value("int32")}
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(schema))
    return made.cast_column("image", datasets.Image())


@pytest.mark.parametrize("sizes", [True, False])
def test_hub(tmp_path, sizes):
    source = read_hub(hub_dataset(sizes=sizes), "pets", cache_dir=tmp_path, drop_empty=False)
    assert source.names == {1: "cat", 2: "dog", 3: "car"} and source.category_ids[1] == 0
    assert [len(r.boxes) for r in source] == [2, 1, 0] and source[0].labels.tolist() == [1, 3]
    np.testing.assert_array_equal(source[0].boxes[0], [2, 3, 11, 14])
    assert [r.image.load().size for r in source] == SIZES[:3] and source[0].image_id == 0
    np.testing.assert_array_equal(source.sizes(), [(h, w) for w, h in SIZES[:3]])
    assert len(pickle.loads(pickle.dumps(source))[0].image.encoded()) > 0
    assert len(read_hub(hub_dataset(sizes=sizes), "pets", cache_dir=tmp_path)) == 2


def test_hub_grounding(tmp_path):
    source = read_hub(hub_dataset(grounded=True), "said", cache_dir=tmp_path)
    assert source.captions == "given" and source[0].spans == [[(0, 5)], [(10, 18)]]
    assert len(source) == 2 and source.dropped == {"malformed": 1}  # "cat" is there twice: which one?


def test_hub_box_formats_and_text_categories(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {
        "photo": [{"bytes": encoded_image(40, 20), "path": None}],
        "things": [[{"corners": [0.25, 0.5, 0.5, 1.0], "kind": "dog"}, {"corners": [0, 0, 0.5, 0.5], "kind": "ant"}]],
    }
    dataset = datasets.Dataset.from_dict(rows).cast_column("photo", datasets.Image())
    columns = {"image": "photo", "objects": "things", "box": "corners", "category": "kind"}
    source = read_hub(dataset, cache_dir=tmp_path, columns=columns | {"box_format": "xyxy_relative"})
    assert source.names == {1: "ant", 2: "dog"} and source[0].labels.tolist() == [2, 1]
    np.testing.assert_array_equal(source[0].boxes, [[10, 10, 19, 19], [0, 0, 19, 9]])
    with pytest.raises(ValueError, match="no column 'image' but photo, things"):
        read_hub(dataset, cache_dir=tmp_path)


@pytest.mark.parametrize("grounded", [True, False])
def test_hub_stream_gives_the_stored_records(tmp_path, grounded):
    dataset = hub_dataset(grounded)
    stored = list(read_hub(dataset, "x", cache_dir=tmp_path))
    streamed = list(HubStream(dataset.to_iterable_dataset(), "x"))
    assert len(stored) == len(streamed)
    for a, b in zip(stored, streamed, strict=True):
        np.testing.assert_array_equal(a.boxes, b.boxes)
        assert (a.image_id, a.labels.tolist(), a.caption, a.spans) == (
            b.image_id,
            b.labels.tolist(),
            b.caption,
            b.spans,
        )
        assert a.image.encoded() == b.image.encoded()


@pytest.mark.parametrize("format", ["numpy", "torch", "arrow"])
def test_hub_rows_in_any_format(tmp_path, format):
    """Of rows as arrays no object was found, in silence."""
    dataset = hub_dataset()
    expected = [record.boxes.tolist() for record in read_hub(dataset, cache_dir=tmp_path)]
    formatted = dataset.with_format(format)
    assert [record.boxes.tolist() for record in read_hub(formatted, cache_dir=tmp_path)] == expected
    stream = HubStream(dataset.to_iterable_dataset().with_format(format), "x")
    assert [record.boxes.tolist() for record in stream] == expected


# -- specs ----------------------------------------------------------------------------------------------------------


def test_specs_name_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="no data set 'flickr30k_trian' .did you mean 'flickr30k_train'"):
        build_source("flickr30k_trian")
    with pytest.raises(ValueError, match="no format 'cocoo' .did you mean 'coco'"):
        build_source({"format": "cocoo"})
    with pytest.raises(ValueError, match="read_coco knows no 'imagess' .did you mean 'images'"):
        build_source({"format": "coco", "annotations": "a", "imagess": "b"})
    with pytest.raises(FileNotFoundError, match="Give data_root"):
        read_coco("nowhere.json", "images", data_root=tmp_path)


def test_hub_data_that_datasets_cannot_load(build, tmp_path):
    """`datasets` says that an error occurred, and not which."""
    (tmp_path / "a.jsonl").write_text('{"image": "a"\n')
    spec = {"format": "hub", "dataset": "json", "data_files": str(tmp_path / "a.jsonl")}
    with pytest.raises(ValueError, match="json: datasets cannot load it: .*Missing a comma"):
        build(spec)
    with pytest.raises(ValueError, match="json: datasets cannot load it: .*unexpected keyword argument 'namess'"):
        build(spec, namess=["cat"])


def test_values_as_yaml_has_them(build, coco_set):
    """A name of digits is a number there, and `shots: null` is all images."""
    assert len(build(coco_set | {"name": 2017, "shots": None})) == len(build(coco_set))
    assert build(coco_set | {"name": 2017})[0].source == "2017"


def test_catalogue_specs_can_be_changed():
    spec = resolve_spec({"name": "coco_2017_train", "captions": "sampled"})
    assert spec["format"] == "coco" and spec["captions"] == "sampled"
    assert {spec["format"] for spec in CATALOGUE.values()} == {"coco", "lvis", "tsv", "mdetr"}


def test_find_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATASET", raising=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.json").write_text("{}")
    assert find_path("x.json") == tmp_path / "data" / "x.json"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.json").write_text("{}")
    monkeypatch.setenv("DATASET", str(tmp_path / "elsewhere"))
    assert find_path("x.json") == tmp_path / "elsewhere" / "x.json"
    assert find_path("x.json", "data") == tmp_path / "data" / "x.json"


# -- recorded targets of the original ----------------------------------------------------------------------------------


def dense(sparse, shape):
    out = np.zeros(shape, dtype=np.float32)
    for row, column, value in sparse:
        out[row, column] = value
    return out


@pytest.mark.parametrize("which", ["flickr", "mixed"])
def test_grounding_targets_of_the_original(build, shared, real_tokenizer, which):
    real = shared / "data" / "real"
    expected = json.loads((real / "grounding_mini" / "expected_targets.json").read_text())[which]
    photos = str(real / "coco_mini" / "images")
    images = photos if which == "flickr" else {"vg": photos, "coco": photos}
    source = build(
        {"format": "mdetr", "annotations": str(real / "grounding_mini" / expected["source"]), "images": images}
    )
    assert len(source) == expected["num_items"]
    for record, item in zip(source, expected["items"], strict=True):
        assert (record.image_id, record.caption) == (item["image_id"], item["caption"])
        np.testing.assert_allclose(record.boxes, item["boxes_xyxy"], rtol=1e-5)
        np.testing.assert_allclose(record.areas, item["area"], rtol=1e-5)
        assert record.labels.tolist() == item["labels"]
        assert [record.height, record.width] == item["orig_size_hw"]
        offsets = real_tokenizer(record.caption).encodings[0].offsets
        maps = dense(item["positive_map"], item["positive_map_shape"])
        np.testing.assert_allclose(positive_map(offsets, record.spans, 256), maps, rtol=1e-5)
        if which == "flickr":
            maps = dense(item["positive_map_eval"], (item["nb_eval"], 256))
            np.testing.assert_allclose(positive_map(offsets, record.eval_spans, 256), maps, rtol=1e-5)


def test_coco_targets_of_the_original(build, shared):
    real = shared / "data" / "real"
    expected = json.loads((real / "grounding_mini" / "expected_targets.json").read_text())["coco_grounding"]
    file = real / "coco_mini" / expected["source"]
    source = build({"format": "coco", "annotations": str(file), "images": str(real / "coco_mini" / "images")})
    assert len(source) == expected["num_items"]
    for record, item in zip(source, expected["items"], strict=True):
        assert record.image_id == item["image_id"] and record.labels.tolist() == item["labels"]
        np.testing.assert_allclose(record.boxes, item["boxes_xyxy"], rtol=1e-5)


@pytest.mark.parametrize("which", ["train", "train_all"])
def test_tsv_targets_of_the_original(build, shared, which):
    folder = shared / "data" / "real" / "tsv_mini"
    expected = json.loads((folder / "expected.json").read_text())[f"{which}.yaml"]
    source = build({"format": "tsv", "yaml_file": str(folder / f"{which}.yaml")})
    assert len(source) == expected["len"] and len(source.names) + 1 == expected["num_classes_with_background"]
    for record, item in zip(source, expected["items"], strict=True):
        assert str(record.image_id) == item["key"] and record.labels.tolist() == item["labels"]
        assert list(record.image.load().size) == item["size_wh"] == [record.width, record.height]
        limits = np.float32([record.width - 1, record.height - 1] * 2)
        np.testing.assert_allclose(np.clip(record.boxes, 0, limits), item["boxes_xyxy_clipped"], rtol=1e-5)


def test_odinw_and_lvis_samples(build, shared, tmp_path):
    real = shared / "data" / "real"
    (tmp_path / "BCCD.yaml").write_text(
        "DATASETS:\n  REGISTER:\n    train: {ann_file: odinw_mini/BCCD/train/annotations_without_background.json,"
        " img_dir: odinw_mini/BCCD/train}\n"
    )
    source = build_source(
        {"format": "odinw", "task": str(tmp_path / "BCCD.yaml")}, data_root=real, cache_dir=tmp_path / "cache"
    )
    assert len(source) == 8 and source.names == {1: "Platelets", 2: "RBC", 3: "WBC"}
    assert source[0].image.load().size == (source[0].width, source[0].height)
    np.testing.assert_array_equal(source[0].boxes[0], [260, 177, 490, 375])

    file = real / "lvis_v05_sample" / "lvis_v0.5_val_sample.json"
    content = json.loads(file.read_text())
    lvis = build({"format": "lvis", "annotations": str(file), "images": "/coco", "drop_empty": False})
    assert len(lvis) == len(content["images"]) == 60
    assert sum(len(r.boxes) for r in lvis) == sum(min(a["bbox"][2:]) > 1 for a in content["annotations"])


# -- damaged rows of the Hub ------------------------------------------------------------------------------------------


def damaged_rows():
    """A data set with one object per kind of damage, and the count of each."""
    objects = [
        ([2, 3, 10, 12], "cat", "kept"), ([1, 1, 20, 9], "0", "kept"), ([1, 2, 20, 9], "1.0", "kept"),
        ([3, 2, 20, 9], "dog", "kept"), ([4, 2, 20, 9], "dog", "kept"), ([5, 2, 20, 9], "dog", "kept"),
        ([5, 2, 20, 8], "dog", "kept"), (None, "cat", "malformed"), ([], "cat", "malformed"),
        ([1, 2, 3], "cat", "malformed"), ([1, None, 3, 4], "cat", "malformed"), ([1, 2, 3, 4], None, "malformed"),
        ([1, 2, 3, 4], "bird", "unknown_category"), ([1, 2, 3, 4], "7", "unknown_category"),
        ([float("nan"), 2, 3, 4], "cat", "nan_box"), ([1, 2, float("inf"), 4], "cat", "infinite_box"),
        ([90, 2, 3, 4], "cat", "box_outside"), ([0.1, 0.2, 0.3, 0.4], "cat", "normalised_box"),
        ([2, 3, 10, 12], "cat", "duplicate_annotation"), ([9, 9, 1, 5], "cat", "thin"),
    ]  # fmt: skip
    image = {"bytes": encoded_image(40, 30), "path": None}
    rows = {
        "image": [image, image],
        "image_id": [None, "b"],
        "objects": [[{"bbox": box, "category": name, "iscrowd": None} for box, name, _ in objects], []],
    }
    datasets = pytest.importorskip("datasets")
    counts = {}
    for _, _, fate in objects:
        counts[fate] = counts.get(fate, 0) + 1
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False)), counts


def test_damaged_hub_rows(tmp_path, caplog):
    dataset, counts = damaged_rows()
    kept, thin = counts.pop("kept"), counts.pop("thin")
    options = {"names": ["cat", "dog"], "drop_empty": False}
    source = read_hub(dataset, "rows", cache_dir=tmp_path, **options)
    assert source.dropped == counts and (source.tally.kept, source.tally.thin) == (kept, thin)
    assert source.tally.listed == kept + thin + sum(counts.values())
    assert [record.image_id for record in source] == [0, "b"] and len(source[0].boxes) == kept
    with pytest.raises(DamagedData, match="7 of 20 boxes are used"):
        source.require_boxes()
    report = check_data({"format": "hub", "dataset": dataset, "name": "rows", **options}, images="none")
    assert report.tallies["rows"] == source.tally and "7 of 20 boxes" in report.refusal

    stream = HubStream(dataset.to_iterable_dataset(), "rows", **options)
    with pytest.raises(DamagedData, match="rows, first 64 rows: nothing was started: 7 of 20 boxes"):
        stream.check()
    caplog.clear()
    assert [len(record.boxes) for record in stream] == [kept, 0] and stream.dropped == counts
    told = [record.message for record in caplog.records]
    assert len(told) == len(counts) and all(
        "rows: what is damaged like this is left out" in message for message in told
    )


def test_hub_objects_that_cannot_be_told_apart(tmp_path):
    """Lists of different lengths, and numbers for which there are no names."""
    datasets = pytest.importorskip("datasets")
    boxes = [[1.0, 2, 20, 9], [3.0, 2, 20, 9]]
    rows = {
        "image": [{"bytes": encoded_image(40, 30), "path": None}] * 3,
        "objects": [{"bbox": boxes, "category": kinds} for kinds in ([0, 1], [1, 0], [1])],
    }
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))
    with pytest.raises(ValueError, match=r"are numbers \(0, ...\) without names: .*names="):
        read_hub(dataset, "rows", cache_dir=tmp_path)
    tally = read_hub(dataset, "rows", names=["cat", "dog"], cache_dir=tmp_path).tally
    assert (tally.listed, tally.kept, tally.dropped) == (6, 4, {"malformed": 1})
    assert tally.examples["malformed"] == "rows: row 2: the lists of its objects differ in length: 2 bbox, 1 category"
    tally = read_hub(dataset, "rows", names=["cat"], cache_dir=tmp_path).tally
    assert tally.kept == 2 and "category 1, and there are 1 names" in tally.examples["unknown_category"]


def test_a_stream_stops_when_too_much_is_lost():
    dataset, _ = damaged_rows()
    stream = HubStream(dataset.repeat(9).to_iterable_dataset(), "rows", names=["cat", "dog"])
    with pytest.raises(DamagedData, match="35 of 100 boxes"):
        list(stream)
    allowed = HubStream(dataset.repeat(9).to_iterable_dataset(), "rows", names=["cat", "dog"], allow_damage=0.65)
    assert len(list(allowed)) == 9


def test_hub_sizes_that_are_missing_are_those_of_the_images(tmp_path):
    """Also where there are columns for them; they were taken for broken images."""
    dataset = hub_dataset()
    expected = read_hub(dataset, cache_dir=tmp_path).sizes()
    for missing in (0, None):
        empty = dataset.remove_columns(["width", "height"]).add_column("width", [missing, 30, 64])
        source = read_hub(empty.add_column("height", [30, missing, 48]), cache_dir=tmp_path)
        assert source.dropped == {} and source.sizes().tolist() == expected.tolist()


def test_hub_options_as_users_write_them(tmp_path):
    dataset = damaged_rows()[0]
    names = read_hub(dataset, names={"1": "dog", 0: "cat"}, cache_dir=tmp_path).names
    assert names == {1: "cat", 2: "dog"}
    for wrong in ("cat", {"cat": 0}, {0: "cat", 2: "dog"}, [], ["cat", None], {0: "cat", "0": "dog"}):
        with pytest.raises(ValueError, match=r"dataset: names .* is not a list of class names, such as \[cat, dog\]"):
            read_hub(dataset, names=wrong, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="dataset: columns has no 'boxes', but image, objects, .*box_format"):
        read_hub(dataset, names=["cat", "dog"], columns={"boxes": "bbox"}, cache_dir=tmp_path)


def test_flat_spans_of_hub_rows_are_pairs(tmp_path):
    datasets = pytest.importorskip("datasets")
    image = {"bytes": encoded_image(40, 30), "path": None}
    for spans in ([2, 5], [[2, 5]]):
        objects = [[{"bbox": [1.0, 2, 9, 9], "tokens_positive": spans}]]
        rows = {"image": [image], "caption": ["a cat"], "objects": objects}
        dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        assert read_hub(dataset, cache_dir=tmp_path)[0].spans == [[(2, 5)]]


@pytest.mark.parametrize(("digits", "kept"), [(400, 2), (5000, 1)])
def test_a_key_of_many_digits_costs_its_row_at_most(tmp_path, digits, kept):
    image = base64.b64encode(encoded_image(40, 30)).decode()
    write_tsv(tmp_path / "images.tsv", [("1", image)] * 2)
    things = json.dumps([{"class": "cat", "rect": [1, 1, 20, 20]}])
    write_tsv(tmp_path / "labels.tsv", [("1", things), ("7" * digits, things)])
    (tmp_path / "labels.json").write_text('{"cat": 1}')
    (tmp_path / "set.yaml").write_text("img: images.tsv\nlabel: labels.tsv\nlabelmap: labels.json\n")
    assert len(tsv.read_tsv(tmp_path / "set.yaml", cache_dir=tmp_path / "cache")) == kept


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.json", '["cat"]', "labels.json is not a JSON object of numbers by class name"),
        ("labels.json", "{", "labels.json is not a JSON object of numbers by class name"),
        ("labels.json", '{"cat": "one"}', "labels.json is not a JSON object of numbers by class name"),
        ("list.tsv", "7\t0\n", "list.tsv: file 7 was asked for, there are 1, counted from 0"),
        ("set.yaml", "img: [", "set.yaml is not valid YAML: while parsing"),
        ("set.yaml", "img: a.tsv\nimg: b.tsv", "set.yaml is not valid YAML: it has 'img' twice in one section"),
    ],
)
def test_damaged_files_of_a_tsv_set_are_named(tmp_path, name, text, message):
    image = base64.b64encode(encoded_image(40, 30)).decode()
    write_tsv(tmp_path / "images.tsv", [("1", image)])
    write_tsv(tmp_path / "labels.tsv", [("1", json.dumps([{"class": "cat", "rect": [1, 1, 20, 20]}]))])
    (tmp_path / "labels.json").write_text('{"cat": 1}')
    (tmp_path / "list.tsv").write_text("0\t0\n")
    (tmp_path / "set.yaml").write_text(
        "img: images.tsv\nlabel: labels.tsv\nlabelmap: labels.json\nlinelist: list.tsv\n"
    )
    assert len(tsv.read_tsv(tmp_path / "set.yaml", cache_dir=tmp_path / "cache")) == 1
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        tsv.read_tsv(tmp_path / "set.yaml", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"split": "nope"}, "scenes: split='nope' is unknown: choose one of train, detection"),
        ({"length": "x"}, "scenes: length='x' must be a whole number of at least 1"),
        ({"length": 0}, "scenes: length=0 must be a whole number of at least 1"),
        ({"seed": -1}, "scenes: seed=-1 must be a whole number of at least 0"),
        ({"seed": 2**32}, "scenes: seed=4294967296 must be a whole number of at least 0, below 2^32"),
    ],
)
def test_options_of_scenes_are_checked_before_a_run(option, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build_source({"format": "scenes", **option})
