"""Files as other tools write and break them: check-data, training and evaluation keep the same boxes, which are exactly
those that the generator knows to be good.

The count is independent of the readers: every entry is made with its fate. Fates are kinds of damage, "kept", "crowd",
"thin" (a side of one pixel) and "absent" (`null` is no annotation).
"""

import base64
import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glip_hf.data import build_mixture, check_data
from glip_hf.data.columns import DamagedData
from glip_hf.data.sources import build_source
from glip_hf.data.sources.coco import read_annotations
from glip_hf.evaluation.coco import CocoEvaluator
from glip_hf.evaluation.lvis import LvisEvaluator
from tests.data.original_formats import encoded_image, save_images, write_tsv

datasets = pytest.importorskip("datasets")

NAN, INF = float("nan"), float("inf")
WIDTH, HEIGHT, IMAGES = 40, 30, 4
CAPTION = "a cat and a dog"
CLASSES = {3: "cat", 7: "dog"}

# What an annotation becomes: changes of its fields (None takes the field away) and its fate.
GONE = object()
BOXES = [
    ({}, "kept"), ({}, "kept"), ({}, "kept"), ({}, "kept"),
    ({"bbox": ["1.5", "2", "20", "9"]}, "kept"), ({"bbox": [30, 20, 30, 30]}, "kept"),
    ({"bbox": [-5, -5, 20, 20]}, "kept"),
    ({"bbox": GONE}, "malformed"), ({"bbox": None}, "malformed"), ({"bbox": []}, "malformed"),
    ({"bbox": [1, 2, 3]}, "malformed"), ({"bbox": [1, 2, 3, 4, 5]}, "malformed"),
    ({"bbox": [1, None, 3, 4]}, "malformed"),
    ({"bbox": ["left", 2, 3, 4]}, "malformed"), ({"bbox": 7}, "malformed"), ({"bbox": {"x": 1, "y": 2}}, "malformed"),
    ({"bbox": [[1, 2, 3, 4]]}, "malformed"), ({"bbox": GONE, "segmentation": [[1, 1, 9, 1, 9, 9]]}, "malformed"),
    ({"bbox": [1, 2, True, 4]}, "malformed"),
    ({"bbox": [NAN, 2, 3, 4]}, "nan_box"), ({"bbox": [1, 2, 3, "NaN"]}, "nan_box"),
    ({"bbox": [1, INF, 3, 4]}, "infinite_box"), ({"bbox": [-INF, 2, 3, 4]}, "infinite_box"),
    ({"bbox": [1, 2, 1e300, 4]}, "infinite_box"),
    ({"bbox": [1, 2, 0, 4]}, "empty_box"), ({"bbox": [1, 2, 3, 0]}, "empty_box"),
    ({"bbox": [9, 2, -3, 4]}, "empty_box"),
    ({"bbox": [0.1, 0.2, 0.5, 0.6]}, "normalised_box"), ({"bbox": [0, 0, 1, 1]}, "normalised_box"),
    ({"bbox": [WIDTH, 2, 3, 4]}, "box_outside"), ({"bbox": [1, HEIGHT + 9, 3, 4]}, "box_outside"),
    ({"bbox": [-9, 2, 9, 4]}, "box_outside"), ({"bbox": [1, -30, 3, 4]}, "box_outside"),
    ({"bbox": [5, 5, 1, 9]}, "thin"), ({"bbox": [5, 5, 9, 0.5]}, "thin"),
]  # fmt: skip
FIELDS = [
    *[({"area": value}, "kept") for value in (GONE, None, NAN, -4, "12", "large", INF, [])],
    *[({"iscrowd": value}, "kept") for value in (GONE, None, "0", False, 0.0, "false", NAN)],
    *[({"iscrowd": value}, "crowd") for value in (1, "1", True, 1.0, "True")],
    *[({"iscrowd": value}, "malformed") for value in (2, "maybe", [], "")],
    *[({"id": value}, "kept") for value in (GONE, None, 0, "x", -1, 10**20, [1], 0.5)],
    *[({"image_id": value}, "malformed") for value in (GONE, None, [], {}, True, 1.5, "", NAN)],
    *[({"image_id": value}, "unknown_image") for value in (99, "99", "img", 10**30, -1)],
]
CATEGORY = [
    *[({"category_id": value}, "malformed") for value in (GONE, None, [], True, 3.5, "")],
    *[({"category_id": value}, "unknown_category") for value in (99, "99", "cat", 10**30)],
]
SPANS = [
    *[({"tokens_positive": value}, "kept") for value in (GONE, None, [], [0, 5], [[0, 5], [10, 15]], [["0", 5.0]])],
    *[({"tokens_positive": value}, "malformed") for value in (7, "0 5", [[0]], [["a", "b"]], [[0, None]], {})],
    *[({"tokens_positive": value}, "span_empty") for value in ([[5, 5]], [[9, 4]])],
    *[({"tokens_positive": value}, "span_outside") for value in ([[0, 99]], [[-1, 4]], [[90, 99]])],
]
WHOLE = [
    (None, "absent"),
    ("what", "malformed"),
    (5, "malformed"),
    ([1, 2], "malformed"),
    ("twice", "duplicate_annotation"),
]

# What an image becomes, and whether it is one (else its annotations are of an unknown image).
IMAGE = [
    *[({}, True)] * 6, ({"width": None}, True), ({"height": 0}, True), ({"width": -1, "height": GONE}, True),
    ({"width": "40", "height": 30.0}, True), ({"coco_url": None}, True), ({"license": NAN, "caption": CAPTION}, True),
    ({"id": None}, False), ({"id": GONE}, False), ({"file_name": GONE}, False), ({"file_name": None}, False),
    ({"file_name": [5]}, False), ({"width": "wide"}, False), ({"id": [1]}, False), ("what", False),
]  # fmt: skip


def numbered(value, form):
    """A value in a tool's dialect."""
    if isinstance(value, dict):
        return {key: numbered(item, form) for key, item in value.items()}
    if isinstance(value, list):
        return [numbered(item, form) for item in value]
    return form(value) if type(value) is int else value


DIALECTS = {
    "integers": lambda document: document,
    "data frame": lambda document: numbered(document, float),  # every number is a float
    "text": lambda document: numbered(document, str),
}


def changed(entry, changes):
    return {key: value for key, value in (entry | changes).items() if value is not GONE}


@st.composite
def damaged(draw, grounded):
    """A document, and the fates of its annotations and images: Counter, Counter."""
    root = {"id": 1, "name": "animal", "supercategory": "none"}
    classes = [{"id": key, "name": name, "supercategory": "animal"} for key, name in CLASSES.items()]
    document = {"images": [], "annotations": [], "categories": [root, *classes]}
    fates, images, number = Counter(), Counter(), 100
    table = BOXES + FIELDS + (SPANS if grounded else CATEGORY) + WHOLE
    for index in range(draw(st.integers(1, IMAGES))):
        image = {"id": index + 1, "file_name": f"{index}.png", "width": WIDTH, "height": HEIGHT, "caption": CAPTION}
        changes, good = draw(st.sampled_from(IMAGE))
        document["images"].append(changed(image, changes) if isinstance(changes, dict) else changes)
        images["malformed"] += not good
        if good and draw(st.integers(0, 9)) == 0:
            document["images"].append(dict(image))
            images["duplicate_image"] += 1
        for place in range(draw(st.integers(0, 4))):
            annotation = {
                "id": number, "image_id": index + 1, "category_id": draw(st.sampled_from(list(CLASSES))),
                "bbox": [2 + 3 * place, 1 + 2 * place, 10 + place, 8.5], "area": 100, "iscrowd": 0,
                "tokens_positive": [[0, 5]],
            }  # fmt: skip
            changes, fate = draw(st.sampled_from(table))
            if isinstance(changes, dict):
                if isinstance(changes.get("bbox"), list) and fate in ("kept", "thin"):  # of equal boxes one is kept
                    changes = {"bbox": [*changes["bbox"][:3], float(changes["bbox"][3]) - place / 16]}
                document["annotations"].append(changed(annotation, changes))
            elif changes == "twice":
                document["annotations"] += [annotation, annotation | {"id": number, "area": None}]
            else:
                document["annotations"].append(changes)
            number += 1
            listed = ["kept", fate] if changes == "twice" else [fate]
            for fate in listed:
                lost = not good and fate not in ("malformed", "nan_box", "infinite_box", "absent")
                fates["unknown_image" if lost else fate] += 1
    if draw(st.booleans()):
        document = dict(reversed(document.items()))  # annotations before their images
    dialect = draw(st.sampled_from(list(DIALECTS)))
    return dialect, DIALECTS[dialect](document), +fates, +images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    save_images(folder / "photos", [(WIDTH, HEIGHT)] * IMAGES)
    return folder


def agree(spec, folder, fates, images):
    """Check-data and training keep and count what the generator made; returns the source, None if there is none."""
    damage = fates + images
    special = {key: damage.pop(key, 0) for key in ("kept", "crowd", "thin", "absent")}
    listed = fates.total() - special["absent"]
    lost = listed - special["kept"] - special["thin"]
    starts = special["kept"] > 0 and lost <= listed / 2
    spec = spec | {"drop_empty": False, "cache_dir": str(folder / "cache")}
    report = check_data(spec, images="none", start=lambda _: build_mixture([spec]))
    (tally,) = report.tallies.values()
    assert (tally.listed, tally.kept, tally.crowd, tally.thin) == (
        listed, special["kept"], special["crowd"], special["thin"]
    )  # fmt: skip
    assert tally.dropped == damage
    assert (not report.refusal) == starts, report.refusal
    assert "\n" not in report.refusal and len(report.refusal) < 4000
    try:
        source = build_source(spec)
    except ValueError as error:
        assert "no usable image" in str(error) and not starts
        return None
    assert source.tally == tally and sum(len(record.boxes) for record in source) == special["kept"]
    if starts:
        source.require_boxes()
    else:
        with pytest.raises(DamagedData):
            source.require_boxes(needed=True)
    return source


def check_document(folder, case, form):
    dialect, document, fates, images = case
    path = folder / f"{form}.json"
    path.write_text(json.dumps(document))
    spec = {"format": form, "annotations": str(path), "images": str(folder / "photos")}
    source = agree(spec, folder, fates, images)
    if form == "mdetr" or source is None or images["malformed"]:
        return  # an image without a file name is one for evaluators, which say that it is missing
    found = read_annotations(path, image_path=lambda image: str(folder / "photos" / image["file_name"]))
    tally = found.tally
    assert tally.kept == fates["kept"] + fates["thin"] == sum(not box["iscrowd"] for box in found.boxes)
    assert tally.crowd == fates["crowd"] and found.image_ids
    expected = sorted(map(str, source.image_ids().tolist()))
    assert sorted(map(str, found.image_ids)) == expected
    evaluator = (CocoEvaluator if form == "coco" else LvisEvaluator)(found)
    # LVIS has no crowd regions: there they are boxes that its evaluator ignores.
    assert sum(evaluator.objects_by_category().values()) == tally.kept + (form == "lvis") * tally.crowd


def examples(number):
    health = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=number, deadline=None, suppress_health_check=health, derandomize=True, database=None)


@pytest.fixture(autouse=True)
def quiet(caplog):
    """Thousands of warnings are expected here."""
    caplog.set_level("ERROR", logger="glip_hf")


@st.composite
def damaged_rows(draw, form):
    """Rows of images with their objects, as TSV sets ("tsv") and data sets of the Hub ("hub") have them, and fates.

    Boxes are corners, classes names (in "hub" also numbers).
    """
    rows, fates = [], Counter()
    corners = [
        *[(lambda a, b, c, d: [a, b, c, d], "kept")] * 4, (lambda a, b, c, d: [str(a), b, str(c), d], "kept"),
        (lambda a, b, c, d: [a, b, c + 40, d + 40], "kept"), (lambda *box: [*box[:3], NAN], "nan_box"),
        (lambda *box: [*box[:3], INF], "infinite_box"), (lambda a, b, c, d: [c, b, a, d], "empty_box"),
        (lambda a, b, c, d: [a / 50, b / 50, c / 50, d / 50], "normalised_box"),
        (lambda a, b, c, d: [a + 40, b, c + 40, d], "box_outside"), (lambda *box: box[:3], "malformed"),
        (lambda *box: [*box, 1], "malformed"), (lambda *box: None, "malformed"), (lambda *box: "box", "malformed"),
        (lambda *box: [None, *box[1:]], "malformed"),
    ]  # fmt: skip
    classes = [
        *[("cat", "kept"), ("dog", "kept")] * 4, ("bird", "unknown_category"),
        *[(value, "unknown_category" if form == "tsv" else "malformed") for value in (None, [], 1.5, {})],
        *([(0, "kept"), (1.0, "kept"), ("1", "kept"), (2, "unknown_category")] if form == "hub" else []),
    ]  # fmt: skip
    for _ in range(draw(st.integers(1, IMAGES))):
        objects = []
        for place in range(draw(st.integers(0, 4))):
            (make, fate), (name, named) = draw(st.sampled_from(corners)), draw(st.sampled_from(classes))
            objects.append({"rect": make(2 + place, 1, 12 + place, 9.5), "class": name})
            # A TSV set's classes are looked up first; of the Hub's, those that are no number of a class at the end.
            first = named if named == "malformed" or isinstance(name, str) or form == "tsv" else "kept"
            order = [first, fate, named] if fate in ("nan_box", "infinite_box", "malformed") else [first, named, fate]
            if form == "hub" and fate == "malformed" and len(objects[-1]["rect"] or ()) != 4:
                order = [fate]
            fates[next((one for one in order if one != "kept"), "kept")] += 1
        rows.append(objects)
    return rows, +fates


def check_tsv(folder, case):
    rows, fates = case
    image = base64.b64encode(encoded_image(WIDTH, HEIGHT)).decode()
    write_tsv(folder / "img.tsv", [(str(number), image) for number in range(len(rows))])
    write_tsv(folder / "label.tsv", [(str(number), json.dumps(row)) for number, row in enumerate(rows)], index=False)
    write_tsv(folder / "hw.tsv", [(str(number), f"{HEIGHT} {WIDTH}") for number in range(len(rows))])
    (folder / "names.json").write_text(json.dumps({"cat": 1, "dog": 2}))
    (folder / "set.yaml").write_text("img: img.tsv\nlabel: label.tsv\nhw: hw.tsv\nlabelmap: names.json\n")
    agree({"format": "tsv", "yaml_file": str(folder / "set.yaml")}, folder, fates, Counter())


RESULTS = [
    *[({}, True)] * 5, *[({"image_id": value}, True) for value in (1.0, "1")], ({"score": "0.5"}, True),
    ({"category_id": 3.0}, True), ({"category_id": "3"}, True), ({"bbox": ["1", 2, 3, 4]}, True),
    *[({"image_id": value}, False) for value in (GONE, None, 99, "x", [], {}, True)],
    *[({"category_id": value}, False) for value in (GONE, None, 99, "cat", [], 10**30, True)],
    *[({"bbox": value}, False) for value in (GONE, None, [], [1, 2, 3], [1, 2, 3, NAN], [1, 2, 3, INF], "box")],
    ({"bbox": [[1, 2, 3, 4]]}, False),
    *[({"score": value}, False) for value in (GONE, None, NAN, INF, "high", [], {})], ("what", False), (None, False),
]  # fmt: skip
TRUTH = {
    "images": [{"id": key, "file_name": f"{key}.png", "width": WIDTH, "height": HEIGHT} for key in (1, 2)],
    "annotations": [{"image_id": key, "category_id": 3, "bbox": [1, 1, 9, 9]} for key in (1, 2)],
    "categories": [{"id": key, "name": name} for key, name in CLASSES.items()],
}  # fmt: skip


def check_results(entries, evaluator):
    """A result file is taken whole or refused in one line."""
    result = {"image_id": 1, "category_id": 3, "bbox": [1, 1, 9, 9], "score": 0.5}
    content = [changed(result, change) if isinstance(change, dict) else change for change, _ in entries]
    before = json.dumps(content)
    found = evaluator(TRUTH)
    try:
        found.load_results(content)
        assert all(good for _, good in entries) and found.num_detections == len(entries)
        found.summarize()
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
        assert not all(good for _, good in entries) or "1.0" in before or '"' in str(error) or "'" in str(error)
    assert json.dumps(content) == before


def run_all(folder, number):
    """`number` examples: half of them COCO, the rest LVIS, MDETR, TSV and result files."""

    @examples(number // 2)
    @given(case=damaged(grounded=False))
    def coco(case):
        check_document(folder, case, "coco")

    @examples(number // 10)
    @given(case=damaged(grounded=False))
    def lvis(case):
        check_document(folder, case, "lvis")

    @examples(number // 5)
    @given(case=damaged(grounded=True))
    def mdetr(case):
        check_document(folder, case, "mdetr")

    @examples(number // 10)
    @given(case=damaged_rows("tsv"))
    def tsv(case):
        check_tsv(folder, case)

    @examples(number // 10)
    @given(st.lists(st.sampled_from(RESULTS), max_size=3), st.sampled_from([CocoEvaluator, LvisEvaluator]))
    def results(entries, evaluator):
        check_results(entries, evaluator)

    for test in (coco, lvis, mdetr, tsv, results):
        test()


def test_a_hundred_damaged_files(folder):
    run_all(folder, 100)


@pytest.mark.slow  # a minute of one core
def test_two_thousand_damaged_files(folder):
    run_all(folder, 2000)
