"""Values as other tools write them: converted where they mean one thing, otherwise named, left out and counted."""

import copy
import json

import numpy as np
import pytest

from glip_hf.data.columns import Columns, DamagedData, Tally
from glip_hf.data.fields import Ids, id_order, read_id, read_name, read_spans
from glip_hf.data.sources import read_coco
from glip_hf.data.sources.coco import number_categories, read_annotations
from glip_hf.values_glip import (
    quote,
    read_box,
    read_flag,
    read_number,
    shown,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("read", "given", "expected"),
    [
        (read_id, 7, 7), (read_id, 7.0, 7), (read_id, "7", "7"), (read_id, "a" * 999, "a" * 999), (read_id, -3, -3),
        (read_id, 2**80, 2**80), (read_id, 1e20, 10**20), (read_id, np.int64(4), 4), (read_id, "写真", "写真"),
        (read_number, "12.5", 12.5), (read_number, " 3 ", 3.0), (read_number, 4, 4.0), (read_number, "1e3", 1000.0),
        (read_box, [1, 2.5, 3, 4], [1, 2.5, 3, 4]), (read_box, ["1", "2", "3.5", 4], [1, 2, 3.5, 4]),
        (read_box, (1, 2, 3, 4), [1, 2, 3, 4]), (read_box, "[1, 2, 3, 4]", [1, 2, 3, 4]),
        (read_flag, None, False), (read_flag, 0, False), (read_flag, "0", False), (read_flag, "1", True),
        (read_flag, True, True), (read_flag, "True", True), (read_flag, 1.0, True), (read_flag, NAN, False),
        (read_spans, None, []), (read_spans, [[0, 5], [7, 9]], [0, 5, 7, 9]), (read_spans, [0, 5], [0, 5]),
        (read_spans, [[0.0, "5"]], [0, 5]), (read_name, "cat", "cat"), (read_name, 7, "7"), (read_name, 7.0, "7"),
        (read_name, 7.5, "7.5"),
    ],
)  # fmt: skip
def test_one_meaning(read, given, expected):
    arguments = ("area",) if read is read_number else ()
    found = read(given, *arguments)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("read", "given"),
    [
        *[(read_id, value) for value in (None, True, 1.5, NAN, INF, "", "  ", [1], {"a": 1}, "\ud800")],
        *[(read_number, value) for value in (None, True, "", "abc", "1,5", "1_0", [1], "٣")],
        *[(read_box, value) for value in (None, [], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, None], [1, 2, 3, True], 7)],
        *[(read_box, value) for value in ("1 2 3 4", "[1, 2", {"x": 1}, [[1, 2, 3, 4]], [1, 2, 3, "wide"])],
        *[(read_flag, value) for value in (2, -1, 0.5, "", "maybe", [], {})],
        *[(read_spans, value) for value in (5, "0 5", [[0]], [[0, 1, 2]], [["a", 4]], [None, 3], [[0, 2**40]])],
        *[(read_name, value) for value in (None, True, [], {}, "\udc00")],
    ],
)
def test_no_single_meaning(read, given):
    with pytest.raises(ValueError):
        read(given, "area") if read is read_number else read(given)


def test_messages_stay_short():
    deep = []
    for _ in range(10**5):
        deep = [deep, deep]
    for value in (deep, "x" * 10**6, [9] * 10**6, [[["y" * 10**6]]], {"z" * 10**6: 1}, 10**5000, [10**5000], None):
        assert len(quote(value)) <= 110 and len(shown(value)) <= 110
    assert "\n" not in shown("a\nb\x1b[31m") and "\x1b" not in quote("a\x1b") and shown("a b") == "a b"
    with pytest.raises(ValueError, match=r"^no image_id$"):
        read_id(None, "image_id")


def test_ids_are_found_where_one_alone_has_the_number():
    ids = Ids([7, "8", "x", 2**60 + 1])
    assert [ids.find(value) for value in (7, "7", "7.0", "8", 8, "x", 2**60 + 1, str(2**60 + 1), 2**60)] == [
        0, 0, 0, 1, 1, 2, 3, 3, -1
    ]  # fmt: skip
    assert [ids.find(value) for value in ("07", "y", 9, "9")] == [-1] * 4
    both = Ids([7, "7", "7.0"])
    assert [both.find(value) for value in (7, "7", "7.0")] == [0, 1, 2]
    assert Ids(["7", "7.0"]).find(7) == -1  # which?
    assert sorted([10, "9", "a", 8, "B", 2**70], key=id_order) == [8, "9", 10, 2**70, "B", "a"]


def document(annotations, **more):
    images = [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in range(1, 5)]
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories, **more}


def box(image=1, category=3, bbox=(1, 2, 10, 12), **more):
    return {"id": 1, "image_id": image, "category_id": category, "bbox": list(bbox), **more}


def read_document(source):
    found = read_annotations(source)
    return {"images": found.images, "annotations": found.boxes, "categories": found.categories}, found.tally


@pytest.fixture
def both(tmp_path):
    """Reads a document as training does and as evaluators do: (source, document, tally)."""

    def read(content):
        file = tmp_path / "a.json"
        file.write_text(json.dumps(content))
        before = copy.deepcopy(content)
        found, tally = read_document(content)
        # null where a NaN is: json tells two documents with NaN apart no better than they are
        assert json.dumps(content) == json.dumps(before), "the caller's document is left as it was"
        assert json.dumps(read_document(file)[0]) == json.dumps(found)
        source = read_coco(file, tmp_path, drop_empty=False, cache_dir=tmp_path / "cache")
        assert source.tally.dropped == tally.dropped and source.tally.crowd == tally.crowd
        assert sum(len(record.boxes) for record in source) == source.tally.kept
        assert (
            source.tally.kept + source.tally.thin == tally.kept == sum(not a["iscrowd"] for a in found["annotations"])
        )
        return source, found, tally

    return read


IDS = [
    (str, lambda n: n), (float, lambda n: n), (lambda n: n, str), (lambda n: n, float), (str, str), (float, str),
    (lambda n: n + 2**53, lambda n: n + 2**53), (lambda n: n + 10**20, lambda n: str(n + 10**20)),
    (lambda n: f"img-{n}" + "é" * 300, lambda n: f"img-{n}" + "é" * 300), (lambda n: -n, lambda n: -n),
]  # fmt: skip


@pytest.mark.parametrize(("listed", "named"), IDS)
def test_ids_of_any_kind_match_and_come_back_as_they_were(both, listed, named):
    content = document([box(named(n), named(c), (n, 2, 10, 12)) for n, c in [(1, 3), (2, 7), (2, 3), (4, 7)]])
    for entry in content["images"] + content["categories"]:
        entry["id"] = listed(entry["id"])
    source, found, tally = both(content)
    assert tally.kept == 4 and tally.dropped == {}
    expected = [listed(n) for n in range(1, 5)]
    assert [image["id"] for image in found["images"]] == sorted(expected, key=id_order)
    assert [a["image_id"] for a in found["annotations"]] == [listed(n) for n in (1, 2, 2, 4)]
    order = sorted(zip(expected, (1, 2, 0, 1)), key=lambda pair: id_order(pair[0]))
    assert [(r.image_id, len(r.boxes)) for r in source] == order
    assert source.image_ids().tolist() == [key for key, _ in order]
    assert sorted(source.category_ids.values(), key=str) == sorted((listed(3), listed(7)), key=str)
    assert {source.category_ids[label]: name for label, name in source.names.items()} == {
        listed(3): "cat", listed(7): "dog"
    }  # fmt: skip


BAD = {
    "malformed": [
        {"bbox": []}, {"bbox": None}, {"bbox": [1, 2, None, 4]}, {"bbox": "box"}, {"bbox": [1, 2, 3]}, {"bbox": {}},
        {"category_id": None}, {"image_id": None}, {"image_id": [1]}, {"category_id": True}, {"image_id": 1.5},
        {"iscrowd": "maybe"}, {"iscrowd": 2}, {"bbox": [1, 2, 3, 10**400]},
    ],
    "nan_box": [{"bbox": [NAN, 1, 2, 3]}, {"bbox": ["nan", 1, 2, 3]}],
    "infinite_box": [{"bbox": [1, 1, INF, 3]}, {"bbox": [1, 1, 1e300, 3]}, {"bbox": [-INF, 1, 2, 3]}],
    "empty_box": [{"bbox": [1, 1, 0, 3]}, {"bbox": [1, 1, 5, -3]}, {"bbox": [0, 0, 0, 0]}],
    "normalised_box": [{"bbox": [0.1, 0.2, 0.5, 0.3]}, {"bbox": [0, 0, 1, 1]}, {"bbox": ["0.1", "0.1", "0.9", "0.9"]}],
    "box_outside": [{"bbox": [40, 1, 5, 5]}, {"bbox": [-9, 1, 9, 9]}, {"bbox": [1, 300, 5, 5]}],
    "unknown_category": [{"category_id": 4}, {"category_id": "cat"}, {"category_id": 10**20}],
    "unknown_image": [{"image_id": 99}, {"image_id": "01"}, {"image_id": -1}],
    "duplicate_annotation": [{"id": 55}, {"image_id": "1", "category_id": 3.0, "iscrowd": "0", "area": 3}],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "change"), [(kind, change) for kind, changes in BAD.items() for change in changes])
def test_damage_is_left_out_by_both_and_counted_once(both, kind, change):
    source, found, tally = both(document([box(), box(2, 7), box() | change]))
    assert tally.dropped == {kind: 1} and tally.listed == 3 and tally.kept == 2 and len(found["annotations"]) == 2
    assert "a.json" in source.tally.examples[kind] and "annotation" in source.tally.examples[kind]
    assert all(np.isfinite(a["bbox"] + [a["area"]]).all() for a in found["annotations"])


def test_polygons_without_boxes_are_named(both):
    source, _, _ = both(
        document([box(n, bbox=()) | {"bbox": None, "segmentation": [[1, 1, 9, 9, 1, 9]]} for n in (1, 2)])
    )
    with pytest.raises(
        DamagedData, match="0 of 2 boxes .*2 malformed .*a segmentation but no bbox: write the box around"
    ):
        source.require_boxes()


def test_kept_values(both):
    """Ids that all are 0, areas and crowds in any form: nothing is lost."""
    content = document([
        box(1, 3, (0, 0, 10, 10), area=None, iscrowd=None) | {"id": 0},
        box(1, 3, (0, 0, 11, 10), area="121", iscrowd="0") | {"id": 0},
        box(2, 7, ("1.25", 2, 10, 12), area="big", iscrowd=False) | {"id": 0},
        box(2, 7, (3, 2, 10, 12), area=NAN, iscrowd=1.0) | {"id": None},
        box(3, 7, (3, 2, 10, 1), iscrowd=0.0) | {"id": "x"},
    ])  # fmt: skip
    source, found, tally = both(content)
    assert (tally.kept, tally.crowd, tally.dropped) == (4, 1, {}) and (source.tally.kept, source.tally.thin) == (3, 1)
    assert [a["area"] for a in found["annotations"]] == [100, 121, 120, 120, 10]
    assert [a["iscrowd"] for a in found["annotations"]] == [0, 0, 0, 1, 0]
    assert found["annotations"][2]["bbox"] == [1.25, 2, 10, 12]


def test_images_and_lists_that_are_not_there(both):
    content = document([box()], images=[
        {"id": 1, "file_name": "a.png", "width": "40", "height": 30.0}, None, 5,
        {"id": 1, "file_name": "b.png", "width": 4, "height": 4},
        {"id": None, "file_name": "c.png", "width": 4, "height": 4},
    ])  # fmt: skip
    content["annotations"] += [None, "what", 5]
    _, found, tally = both(content)
    assert tally.dropped == {"malformed": 4, "duplicate_image": 1} and tally.listed == 3
    assert found["images"] == [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}]
    empty, tally = read_document({"images": [{"id": 1}], "annotations": None, "categories": [{"id": 1, "name": "a"}]})
    assert empty["images"] == [{"id": 1, "width": None, "height": None}] and not empty["annotations"]
    tally.require_boxes("a.json")  # nothing was listed, nothing is lost
    with pytest.raises(ValueError, match="not a JSON object"):
        read_document([1, 2])


@pytest.mark.parametrize(
    ("categories", "used", "names", "left_out"),
    [
        ([(0, "helmet", "none"), (1, "helmet", "helmet"), (2, "head", "helmet")], [1, 2], ["helmet", "head"], 1),
        ([(0, "helmet", "none"), (1, "helmet", "helmet"), (2, "head", "helmet")], [], ["helmet", "head"], 1),
        ([(0, "helmet", None), (1, "helmet", "helmet"), (2, "head", "helmet")], [0, 2], ["helmet", "head"], 1),
        ([(1, "person", "person"), (2, "bus", "vehicle")], [2], ["person", "bus"], 0),
        ([(1, "animal", "none"), (2, "cat", "animal")], ["1"], ["animal", "cat"], 0),
        ([(1, "animal", "living"), (2, "cat", "animal")], [], ["animal", "cat"], 0),
        ([(0, "background", None), (1, "cat", None)], [1], ["cat"], 1),
        ([(0, "Background", None), (1, "cat", None)], [0], ["Background", "cat"], 0),
        ([(0, "__background__", None), (1, "cat", None)], [0, 1], ["cat"], 0),
        ([(2, 5, None), (1.0, 7.0, None), ("3", "cat", None)], [], ["7", "5", "cat"], 0),
        ([(2, "dog", None), (2, "dog", None), (1, "cat", None)], [], ["cat", "dog"], 0),
    ],
)
def test_categories(categories, used, names, left_out):
    entries = [{"id": key, "name": name, "supercategory": above} for key, name, above in categories]
    columns = Columns("a.json")
    for category in used:
        columns.add_annotation(1, 1, category, [1, 1, 5, 5])
    labels, found, removed = number_categories(None, entries, "a.json", columns)
    assert not number_categories(entries, [], "a.json", columns)[2]
    assert list(found.values()) == names and list(found) == list(labels.values()) == list(range(1, len(names) + 1))
    assert len(removed) == left_out and all("no annotation has it" in note for note in removed)


@pytest.mark.parametrize(
    "change", [{"id": None}, {"id": 1.5}, {"name": None}, {"name": []}, {"name": "\ud800"}, {"id": 7}]
)
def test_categories_that_mean_nothing_are_named(change):
    content = document([box()])
    content["categories"][0] |= change
    with pytest.raises(ValueError, match=r"the annotations: the category .*(7|cat|None|800|\[\])"):
        read_document(content)


GUARD = [(0, 0.5, True), (2, 0.5, True), (3, 0.5, False), (3, 0.75, True), (1, 0.0, False), (4, 1.0, False)]


@pytest.mark.parametrize(("lost", "allowed", "starts"), GUARD)
def test_the_guard(lost, allowed, starts):
    bad = [box(99) for _ in range(lost)]
    _, tally = read_document(document([box(n, 3, (n, 1, 5, 5)) for n in range(1, 5 - lost)] + bad))
    if starts:
        tally.require_boxes("a.json", allowed)
        return
    with pytest.raises(
        DamagedData, match=rf"a\.json: nothing was started: {4 - lost} of 4 boxes .* {lost} unknown_image"
    ):
        tally.require_boxes("a.json", allowed)
    assert Tally().lost == 0


@pytest.mark.parametrize(
    "change", [{"iscrowd": 1}, {"iscrowd": "1"}, {"bbox": [0.1, 0.1, 0.2, 0.2]}, {"image_id": None}]
)
def test_nothing_is_left(both, change):
    source, _, _ = both(document([box(n) | change for n in range(1, 5)]))
    with pytest.raises(DamagedData, match="0 of 4 boxes are used; left out: 4 ") as error:
        source.tally.require_boxes("a.json", 1.0)
    assert "Repair the file" in str(error.value) and "allow-damage" not in str(error.value)
