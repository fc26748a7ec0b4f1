"""`check_data` names what is wrong, all of it, with file and id."""

import json
from pathlib import Path

import pytest
from PIL import Image

from glip_hf.cli import main
from glip_hf.data import KINDS, check_data
from tests.data.original_formats import SIZES, coco_content, write_tsv


def of_kind(report, kind):
    return [problem for problem in report.problems if problem.kind == kind]


def test_sound_sets_have_no_findings(coco_set, mdetr_set, tsv_set, tokenizer):
    specs = [coco_set | {"copies": 2}, mdetr_set, {"format": "tsv", "yaml_file": str(tsv_set / "train.yaml")}]
    report = check_data(specs, tokenizer=tokenizer)
    assert report.ok and not report.problems and report.errors == 0
    assert list(report.sources) == [coco_set["annotations"], mdetr_set["annotations"], str(tsv_set / "train.yaml")]
    assert report.sources[coco_set["annotations"]] == {"images": 6, "annotations": 7, "images_without_boxes": 1}
    assert str(report).endswith("0 errors, 0 warnings")


def damaged_detection(tmp_path):
    content = coco_content()
    images, annotations = content["images"], content["annotations"]
    images.append({"id": 10, "file_name": "0.png", "width": 40, "height": 30})  # once more
    images.append({"id": 50, "file_name": "gone.png", "width": 40, "height": 30})
    images.append({"id": 51, "file_name": "half.png", "width": 400, "height": 300})
    images.append({"id": 52, "file_name": "1.png", "width": 40, "height": 30})  # it is 30 x 40
    images.append({"id": 53, "file_name": "1.png", "width": "wide", "height": 30})
    boxes = {
        200: [float("nan"), 1, 5, 5],
        201: [1, 1, float("inf"), 5],
        202: [1, 1, 5, -5],
        203: [1, 1, 0, 5],
        204: [100, 100, 5, 5],
        205: [30, 1, 20, 5],  # 10 pixels over the edge
    }
    new = [{"id": key, "image_id": 10, "category_id": 3, "bbox": box} for key, box in boxes.items()]
    new += [
        {"id": 206, "image_id": 10, "category_id": 4, "bbox": [1, 1, 5, 5]},
        {"id": 207, "image_id": 999, "category_id": 3, "bbox": [1, 1, 5, 5]},
        {"id": 209, "image_id": 10, "category_id": 3, "bbox": [2, 3, 10, 12]},  # the box of annotation 100
        {"id": 100, "image_id": 10, "category_id": 3, "bbox": [1, 1, 6, 6]},  # 100 was there, which matters to nobody
        {"id": 208, "image_id": 10, "category_id": 3, "bbox": [1, 1, 5]},
        "what?",
    ]
    photo = Image.effect_noise((400, 300), 90).convert("RGB")
    photo.save(tmp_path / "photos" / "half.png")
    data = (tmp_path / "photos" / "half.png").read_bytes()
    (tmp_path / "photos" / "half.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "instances.json").write_text(json.dumps(content | {"annotations": annotations + new}))


def test_every_damage_of_a_detection_set_is_named(coco_set, tmp_path):
    damaged_detection(tmp_path)
    report = check_data(coco_set)
    assert report.counts == {
        "nan_box": 1, "infinite_box": 1, "empty_box": 2, "box_outside": 1, "box_overhang": 1, "unknown_category": 1,
        "unknown_image": 1, "duplicate_image": 1, "duplicate_annotation": 1, "malformed": 3, "missing_image": 1,
        "broken_image": 1, "wrong_size": 1,
    }  # fmt: skip
    where = {kind: of_kind(report, kind)[0] for kind in report.counts}
    assert where["nan_box"].where == "annotation 200 of image 10"
    assert where["infinite_box"].where == "annotation 201 of image 10"
    assert [p.where for p in of_kind(report, "empty_box")] == [
        "annotation 202 of image 10",
        "annotation 203 of image 10",
    ]
    assert where["box_outside"].detail == "box [100.0, 100.0, 5.0, 5.0] in 40 x 30"
    assert where["box_overhang"].where == "annotation 205 of image 10"
    assert where["unknown_category"].detail == "category 4"
    assert where["unknown_image"].where == "annotation 207" and "999" in where["unknown_image"].detail
    assert where["duplicate_annotation"].where == "annotation 209 of image 10"
    assert "gone.png" in where["missing_image"].where and "half.png" in where["broken_image"].where
    assert where["wrong_size"].detail == "it has 30 x 40 pixels, annotated are 40 x 30"
    assert all(p.file == str(tmp_path / "instances.json") for p in report.problems)
    assert not report.ok and report.errors == 15
    text = str(report)
    assert all(f"{kind}: " in text for kind in report.counts) and "15 errors, 1 warning" in text
    assert json.loads(json.dumps(report.to_dict()))["counts"] == dict(report.counts)


def test_images_can_be_left_out_or_looked_at_briefly(coco_set, tmp_path):
    damaged_detection(tmp_path)
    header = check_data(coco_set, images="header").counts
    assert header["missing_image"] == 1 and header["wrong_size"] == 1 and header["broken_image"] == 0
    none = check_data(coco_set, images="none").counts
    assert none["missing_image"] == none["wrong_size"] == none["broken_image"] == 0


def test_every_damage_of_a_grounding_set_is_named(mdetr_set, tmp_path, tokenizer):
    content = json.loads((tmp_path / "final_mixed.json").read_text())
    box = {"image_id": 0, "bbox": [1, 2, 10, 10], "area": 100, "category_id": 1, "iscrowd": 0}
    content["annotations"] += [
        box | {"id": 10, "tokens_positive": [[0, 5], [40, 99]]},
        box | {"id": 11, "tokens_positive": [[5, 5]]},
        box | {"id": 12, "tokens_positive": [[9, 4]]},
        box | {"id": 13, "tokens_positive": [[-1, 4]]},
        box | {"id": 14, "tokens_positive": [["a", 4]]},
        box | {"id": 15, "image_id": 2, "tokens_positive": [[0, 3]]},
        box | {"id": 16, "image_id": 2, "tokens_positive": [[1196, 1199]]},
        box | {"id": 17, "tokens_positive": []},  # a box without a phrase is allowed, and told
    ]
    content["images"].append(content["images"][0] | {"id": 2, "caption": "cat " * 300})
    content["images"].append(content["images"][0] | {"id": 3, "data_source": "web"})
    (tmp_path / "final_mixed.json").write_text(json.dumps(content))
    report = check_data(mdetr_set, tokenizer=tokenizer)
    assert report.counts == {
        "span_outside": 2, "span_empty": 2, "malformed": 2, "caption_too_long": 1, "phrase_truncated": 1, "no_phrase": 1
    }  # fmt: skip
    assert [p.where for p in of_kind(report, "span_outside")] == [
        "annotation 10 of image 0",
        "annotation 13 of image 0",
    ]
    assert "caption of 44 characters" in of_kind(report, "span_outside")[0].detail
    assert [p.where for p in of_kind(report, "span_empty")] == ["annotation 11 of image 0", "annotation 12 of image 0"]
    assert of_kind(report, "caption_too_long")[0].detail.startswith("302 tokens, 256 fit")
    assert of_kind(report, "phrase_truncated")[0].where == "annotation 16 of image 2"
    assert "data_source 'web' has no folder" in of_kind(report, "malformed")[0].detail


def test_what_training_copes_with_is_a_warning(coco_set, tmp_path):
    content = coco_content()
    free = max(entry["id"] for entry in content["categories"]) + 1
    content["categories"] += [{"id": free, "name": "(_)"}, {"id": free + 1, "name": content["categories"][0]["name"]}]
    box = {"image_id": 10, "category_id": content["categories"][0]["id"], "bbox": [1, 1, 5, 5]}
    content["annotations"] = [
        box | {"id": 1, "area": float("nan")},
        box | {"id": 2, "area": -3, "image_id": 11},
        box | {"id": 3, "image_id": 12},
    ]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    report = check_data(coco_set)
    assert report.ok and report.counts == {"empty_name": 1, "duplicate_name": 1, "bad_area": 2}
    assert of_kind(report, "bad_area")[1].detail == "area -3"
    assert of_kind(report, "empty_name")[0].where == f"category {free}"
    content["annotations"] = [box | {"id": 1, "iscrowd": "maybe"}]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    assert of_kind(check_data(coco_set), "malformed")[0].detail == "iscrowd 'maybe'"


def test_a_recipe_is_checked_where_it_says(coco_set, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    names = f"annotations: {Path(coco_set['annotations']).name}, images: {Path(coco_set['images']).name}"
    text = f"data: {{root: {tmp_path}, epoch_samples: 9, sources: [{{format: coco, {names}, weight: 2}}]}}"
    recipe.write_text(text)
    assert main(["check-data", "--recipe", str(recipe)]) == 0
    assert "0 errors" in capsys.readouterr().out


def test_unreadable_files(coco_set, tmp_path):
    text = json.dumps(coco_content())
    (tmp_path / "instances.json").write_text(text[: text.index('"annotations"') + 150])
    report = check_data(coco_set)
    assert report.counts == {"unreadable": 1} and "character" in report.problems[0].detail
    assert report.sources[coco_set["annotations"]]["images"] == 6
    (tmp_path / "instances.json").unlink()
    report = check_data(coco_set)
    assert report.counts == {"unreadable": 1} and "Give data_root" in report.problems[0].detail
    (tmp_path / "instances.json").write_text(json.dumps(coco_content() | {"categories": []}))
    assert of_kind(check_data(coco_set), "malformed")[0].where == "categories"


def test_every_damage_of_a_tsv_set_is_named(tsv_set):
    lines = (tsv_set / "label.tsv").read_text().splitlines()
    lines[1] = "21\t[{oops"
    lines[2] = "99\t" + lines[2].split("\t")[1]
    lines[5] = "20\t" + json.dumps([{"class": "cat", "rect": [1, 1, 2, 2]}])
    objects = [
        {"class": "bird", "rect": [1, 1, 4, 4]},
        {"class": "cat", "rect": [9, 9, 2, 12]},
        {"class": "cat", "rect": [1, 1, 500, 20]},
        {"class": "cat"},
    ]
    lines[3] = "23\t" + json.dumps(objects)
    lines.append("26\t[]")
    (tsv_set / "label.tsv").write_text("\n".join(lines) + "\n")
    rows = [row.split("\t") for row in (tsv_set / "img.tsv").read_text().splitlines()]
    rows[4][-1] = rows[4][-1][:40] + "!" + rows[4][-1][41:]
    write_tsv(tsv_set / "img.tsv", rows)
    hw = (tsv_set / "hw.tsv").read_text().splitlines()
    hw[0] = "20\t31 40"
    (tsv_set / "hw.tsv").write_text("\n".join(hw) + "\n")
    (tsv_set / "lines.tsv").write_text("0\n70\n")
    report = check_data({"format": "tsv", "yaml_file": str(tsv_set / "train.yaml")})
    assert report.counts == {
        "unreadable": 2, "key_mismatch": 2, "duplicate_image": 1, "unknown_category": 1, "empty_box": 1,
        "box_overhang": 1, "malformed": 1, "unknown_image": 1, "broken_image": 1, "wrong_size": 1,
    }  # fmt: skip
    assert (
        of_kind(report, "unreadable")[0].where == "line 2" and "row 70 of 7" in of_kind(report, "unreadable")[0].detail
    )
    assert of_kind(report, "unknown_category")[0].detail == "'bird'"
    assert "byte" in of_kind(report, "broken_image")[0].where


def test_many_findings_are_counted_and_few_kept(coco_set, tmp_path):
    content = coco_content()
    content["annotations"] = [{"id": i, "image_id": 10, "category_id": 3, "bbox": [1, 1, -1, 1]} for i in range(50)]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    report = check_data(coco_set, max_per_kind=7)
    assert report.counts["empty_box"] == 50 and len(report.problems) == 7
    assert "and 43 more" in str(report) and "and 48 more" in "\n".join(report.lines(2))


def test_a_data_set_of_the_hub(tmp_path):
    datasets = pytest.importorskip("datasets")
    from tests.data.original_formats import encoded_image

    good = encoded_image(*SIZES[0])
    rows = {
        "image": [{"bytes": b, "path": None} for b in (good, good[: len(good) // 2], b"no image")],
        "width": [40, 40, 40],
        "height": [30, 30, 30],
        "objects": [[{"bbox": [1.0, 1, 500, 4], "category": "cat"}], [{"bbox": [1.0, 1, 0, 4], "category": "cat"}], []],
    }
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))
    report = check_data({"format": "hub", "dataset": dataset, "name": "mine"})
    assert report.counts == {"box_overhang": 1, "empty_box": 1, "broken_image": 2}
    assert set(report.counts) <= set(KINDS)


# -- whether a run would start ----------------------------------------------------------------------


def code_of(capsys, *arguments):
    code = main(["check-data", *map(str, arguments)])
    return code, capsys.readouterr().out


def test_the_exit_code_says_whether_a_run_would_start(coco_set, tmp_path, capsys, caplog):
    given = [coco_set["annotations"], "--images", coco_set["images"]]
    assert code_of(capsys, *given)[0] == 0
    assert main(["check-data", *map(str, given), "--pictures", "none"]) == 0
    assert "--pictures is --check-images now" in capsys.readouterr().err
    content = coco_content()
    content["annotations"][0]["bbox"] = None
    (tmp_path / "instances.json").write_text(json.dumps(content))
    code, out = code_of(capsys, *given)
    assert code == 0 and "4 of 7 boxes are used; left out: 1 malformed; 1 crowd; 1 thin_box" in out
    assert "A run would start." in out and out.endswith("1 error, 0 warnings\n")
    assert "names each of them" not in caplog.text  # that is this command
    code, out = code_of(capsys, *given, "--allow-damage", "0.2")
    assert code == 2 and "No run would start: " in out and "--allow-damage 0.29" in out
    assert code_of(capsys, *given, "--allow-damage", "0.29")[0] == 0
    content["annotations"] = [a | {"iscrowd": 1} for a in content["annotations"]]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    code, out = code_of(capsys, *given, "--json")
    report = json.loads(out)
    assert code == 2 and not report["starts"] and "0 of 7 boxes" in report["refusal"]
    assert report["tallies"][coco_set["annotations"]]["crowd"] == 6


WRONG = [
    ("imagess: x", "knows no 'imagess'"), ("captions: sometimes", "captions='sometimes'"), ("captions: given", "given"),
    ("drop_empty: maybe", "drop_empty='maybe' must be true or false"),
    ("shots: 0", "shots=0"), ("copies: 0", "copies"), ("categories: []", None), ("strict: true", None),
    ("copies: two", "'two'"), ("shots: many", "shots='many'"), ("images: [a]", "not a path"),
    ("format: tsv", "read_tsv knows no"), ("categories: [cat]", "category None"), ("prompts: [cat]", "'name'"),
    ("name: {a: 1}", None), ("format: [coco]", "no format"), ("format: odinw", "read_odinw knows no"),
    ("prompts: [{name: a}]", "1 caption prompts for 3 classes"), ("annotations: nowhere.json", "nowhere.json"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "message"), WRONG)
def test_a_recipe_that_a_run_refuses(coco_set, tmp_path, capsys, entry, message):
    recipe = tmp_path / "recipe.yaml"
    changes = dict([entry.split(": ", 1)])
    spec = ", ".join(f"{key}: {value}" for key, value in (coco_set | changes).items())
    recipe.write_text(f"data: {{sources: [{{{spec}}}]}}")
    code = main(["check-data", "--recipe", str(recipe)])
    out, told = capsys.readouterr()
    assert code == (2 if message else 0) and (message or "A run would start.") in out + told


def test_a_recipe_of_scenes_needs_no_check(tmp_path, capsys):
    for text in ("{}", "data: {sources: [{format: scenes, length: 8}]}"):
        (tmp_path / "recipe.yaml").write_text(text)
        code, out = code_of(capsys, "--recipe", tmp_path / "recipe.yaml")
        assert code == 0 and "A run would start." in out


def test_corners_in_place_of_sizes_are_suspected(coco_set, tmp_path):
    content = coco_content()
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x, y, x + width, y + height]
    content["annotations"].append({"image_id": 11, "category_id": 7, "bbox": [15, 20, 29, 38]})
    (tmp_path / "instances.json").write_text(json.dumps(content))
    assert "corners x1, y1, x2, y2" in str(check_data(coco_set))
    content["annotations"][0]["bbox"] = [-5, 1, 50, 20]  # leaves the image on the left as well
    (tmp_path / "instances.json").write_text(json.dumps(content))
    assert "corners x1" not in str(check_data(coco_set))


def test_hub_rows_from_the_command_line(tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    from tests.data.original_formats import encoded_image

    boxes = [[10.0, 5, 35, 28], [20, 10, 38, 25], [5, 5, 20, 20]]
    rows = {
        "image": [{"bytes": encoded_image(40, 30), "path": None}] * 3,
        "objects": [[{"bbox": box, "category": name}] for box, name in zip(boxes, ("cat", "dog", "cat"), strict=True)],
    }
    file = tmp_path / "rows.parquet"
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(str(file))
    given = ["parquet", "--format", "hub", "--set", f"data_files={file}", f"cache_dir={tmp_path}"]
    code, out = code_of(capsys, *given)
    assert code == 0 and "corners x1, y1, x2, y2" in out and "3 of 3 boxes are used" in out
    code, out = code_of(capsys, *given, "columns={box_format: xyxy}")
    assert code == 0 and "corners" not in out
    code, out = code_of(capsys, *given, "columns={box_format: xyxy_relative}")
    assert code == 2 and "0 of 3 boxes are used" in out
    code, out = code_of(capsys, *given, "columns={box_format: yolo}")
    assert code == 2 and "box_format='yolo' must be one of xywh, xyxy, xyxy_relative" in out
    assert main(["check-data", *given, "split"]) == 2
