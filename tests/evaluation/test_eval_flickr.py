# Copyright 2026 The glip_hf authors. MIT licence.
"""FlickrEvaluator against the recorded results of the original, its errors included."""

import copy

import pytest

from glip_hf.evaluation import FlickrEvaluator
from glip_hf.evaluation.flickr import boxes_by_phrase, enclosing_box, parse_sentence, read_boxes, read_sentences

CASES = {
    "test_separate": {"protocol": "any"},
    "test_merged": {"protocol": "merged"},
    "val_separate": {"subset": "val", "protocol": "separate"},
    "val_merged": {"subset": "val", "protocol": "merged"},
    "test_separate_iou0.7": {"iou_threshold": 0.7},
    "test_separate_topk_1_3": {"top_k": (1, 3)},
}


@pytest.mark.filterwarnings("ignore:multiple predictions")
@pytest.mark.parametrize("name", CASES)
def test_recorded_results(flickr_case, name):
    case, folder = flickr_case
    evaluator = FlickrEvaluator(folder, **CASES[name])
    evaluator.update(case[f"predictions_{CASES[name].get('subset', 'test')}"])
    expected = case["expected"][name]
    assert evaluator.summarize() == pytest.approx(expected["scores"], abs=1e-6)
    assert (len(evaluator.truth), evaluator.num_phrases) == (expected["sentences"], expected["phrases"])


def test_second_prediction_of_a_sentence_is_ignored(flickr_case):
    case, folder = flickr_case
    evaluator = FlickrEvaluator(folder)
    with pytest.warns(UserWarning, match="multiple predictions for sentence 0 of image 22237372"):
        evaluator.update(case["predictions_test"])


@pytest.mark.filterwarnings("ignore:multiple predictions")
def test_missing_sentence(flickr_case):
    case, folder = flickr_case
    image_id, sentence_id = case["expected"]["error_missing_sentence"]["removed"]
    evaluator = FlickrEvaluator(folder)
    left = [
        p for p in case["predictions_test"]
        if (str(p["image_id"]), int(p["sentence_id"])) != (image_id, sentence_id)
    ]  # fmt: skip
    evaluator.update(left)
    with pytest.raises(RuntimeError, match="Missing predictions for 1 of 82 sentences"):
        evaluator.summarize()


def test_wrong_number_of_phrases(flickr_case):
    case, folder = flickr_case
    error = case["expected"]["error_wrong_phrase_count"]
    predictions = copy.deepcopy(case["predictions_test"][: error["changed_index"] + 1])
    predictions[-1]["boxes"].pop()
    with pytest.raises(RuntimeError) as raised:
        FlickrEvaluator(folder).update(predictions)
    # "Error, got 3 predictions, expected 4 for sentence 2 in image 21327638"
    assert error["message"].removeprefix("Error, ") in str(raised.value)


def test_other_questions_are_told_before_the_answers(flickr_case):
    evaluator = FlickrEvaluator(flickr_case[1], sentences=[(21327638, 0), (21327638, 1)])
    asked = {key: len(phrases) for key, phrases in evaluator.truth.items()}
    evaluator.check_asked(asked | {(5, 0): 3})  # one more is no harm
    with pytest.raises(ValueError, match=r"sentence 1 of image 21327638 has \d phrases .* and 0 in the annotations"):
        evaluator.check_asked({(21327638, 0): asked["21327638", 0]})
    with pytest.raises(ValueError, match="and 9 in the annotations: --subset"):
        evaluator.check_asked(asked | {("21327638", 1): 9})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentence_id": "first"}, "sentence_id 'first' of image '21327638' is not an integer"),
        ({"boxes": [[[1, 2, 3]]]}, r"sentence 0 of image 21327638: box \[1, 2, 3\] is not a list of 4 finite numbers"),
        ({"boxes": [[[1, 2, 3, float("nan")]]]}, "box .*nan"),
    ],
)
def test_predictions_that_are_none(flickr_case, change, message):
    evaluator = FlickrEvaluator(flickr_case[1])
    number = len(evaluator.truth["21327638", 0])
    good = {"image_id": "21327638", "sentence_id": 0, "boxes": [[]]}
    with pytest.raises(ValueError, match=message):
        evaluator.update([{**good, **change} | {"boxes": change.get("boxes", [[]]) * number}])
    for change, message in (
        ({"boxes": None}, "sentence 0 of image 21327638: boxes None are not a list of lists"),
        ({"sentence_id": float("inf")}, "sentence_id inf of image '21327638' is not an integer"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluator.load_results([good | change])
    with pytest.raises(ValueError, match="entry 0 has no sentence_id, boxes"):
        evaluator.load_results([{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1}])


def test_parsing(flickr_case):
    case, folder = flickr_case
    example = case["expected"]["parse_example"]
    sentences = read_sentences(folder / "Sentences" / f"{example['image_id']}.txt")
    assert len(sentences) >= len(example["sentences"])
    for (text, phrases), expected in zip(sentences, example["sentences"]):
        assert text == expected["sentence"]
        assert [
            {"first_word_index": p.first_word, "phrase": p.text, "phrase_id": p.chain, "phrase_type": p.types}
            for p in phrases
        ] == expected["phrases"]
    image, expected = read_boxes(folder / "Annotations" / f"{example['image_id']}.xml"), example["annotations"]
    assert [image.width, image.height, image.depth] == [expected[n] for n in ("width", "height", "depth")]
    assert image.boxes == expected["boxes"]
    assert (image.no_box, image.scene) == (expected["nobox"], expected["scene"])


def test_sentences_without_phrases():
    assert parse_sentence("no phrase here .") == ("no phrase here .", [])
    assert parse_sentence("")[1] == []


def test_enclosing_box(flickr_case):
    for example in flickr_case[0]["expected"]["merge_boxes"]:
        assert [enclosing_box(example["boxes"])] == example["merged"]


def test_detections_grouped_by_phrase(flickr_case):
    for example in flickr_case[0]["post_process"]:
        (height, width), (network_width, network_height) = example["orig_size_hw"], example["image_size_wh"]
        scale = [width / network_width, height / network_height] * 2
        boxes = [[v * s for v, s in zip(box, scale)] for box in example["boxes"]]
        labels = [label - example["label_offset"] for label in example["labels"]]
        grouped, scores = boxes_by_phrase(boxes, example["scores"], labels, example["num_phrases"])
        expected = example["output"]
        assert [len(phrase) for phrase in grouped] == [len(phrase) for phrase in expected["boxes"]]
        for ours, theirs in zip(grouped, expected["boxes"]):
            for box, other in zip(ours, theirs):
                assert box == pytest.approx(other, abs=1e-3)
        for ours, theirs in zip(scores, expected["scores"]):
            assert ours == pytest.approx(theirs, abs=1e-6)


def test_folder_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="test.txt"):
        FlickrEvaluator(tmp_path)
    with pytest.raises(ValueError, match="protocol='both'"):
        FlickrEvaluator(tmp_path, protocol="both")
    for name in ("Sentences", "Annotations"):
        (tmp_path / name).mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
    (tmp_path / "Annotations" / "7.xml").write_text(f"<annotation><object><name>1</name>{box}</object></annotation>")
    (tmp_path / "test.txt").write_text("\ufeff7\n")  # as some editors save text
    (tmp_path / "Sentences" / "7.txt").write_text("\ufeff[/EN#1/people A man] sits .", encoding="utf-8")
    (((phrase, _),),) = FlickrEvaluator(tmp_path).truth.values()
    assert (phrase.text, phrase.begin) == ("A man", 0)
    (tmp_path / "Sentences" / "7.txt").write_bytes(b"[/EN#1/other A caf\xe9] .")
    with pytest.raises(ValueError, match="7.txt is not valid UTF-8"):
        FlickrEvaluator(tmp_path)


@pytest.mark.filterwarnings("ignore:multiple predictions")
def test_some_sentences_only(flickr_case):
    case, folder = flickr_case
    evaluator = FlickrEvaluator(folder, sentences=[(21327638, 0), ("21327638", 1)])
    evaluator.update(case["predictions_test"])
    assert len(evaluator.truth) == 2
    assert 0 <= evaluator.summarize()["Recall@1_all"] <= 1
    assert [exhibit.image_id for exhibit in evaluator.gallery_items()] == ["21327638"] * 2
