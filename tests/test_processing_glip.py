# Copyright 2026 The glip_hf authors. MIT licence.
"""GlipProcessor: every form of text input, chunks, targets, and labelled detections."""

import copy
import json
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import make_processor
from transformers.utils import ModelOutput

import glip_hf.processing_glip as processing
from glip_hf.processing_glip import GlipProcessor

TEXT_KEYS = {"input_ids", "attention_mask", "token_type_ids", "positive_map", "label_ids"}
IMAGE_KEYS = {"pixel_values", "pixel_mask", "original_sizes"}
IMAGE = Image.new("RGB", (60, 40), (90, 120, 30))


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def bert_processor(request):
    shared = request.getfixturevalue("shared")
    return make_processor(shared / "data" / "tokenizer" / "vocab.txt")


def words(processor, inputs, caption=0):
    """For each row of a caption: its label and the words its tokens spell."""
    ids, rows = inputs["input_ids"][caption], inputs["positive_map"][caption]
    labels = inputs["label_ids"][caption].tolist()
    return [(n, processor.tokenizer.decode(ids[row])) for n, row in zip(labels, rows) if n >= 0]


# -- the forms of text -------------------------------------------------------------------------


def test_class_names_for_one_image(processor):
    inputs = processor(images=IMAGE, text=["cat", "remote_control"], return_tensors="pt")
    assert set(inputs) == TEXT_KEYS | IMAGE_KEYS
    assert processor.decode(inputs["input_ids"][0]) == "[CLS] cat. remote control [SEP]"
    assert inputs["positive_map"].dtype == torch.bool
    assert inputs["positive_map"].int().tolist() == [[[0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0]]]
    assert inputs["label_ids"].tolist() == [[0, 1]]
    assert inputs["original_sizes"].tolist() == [[40, 60]]
    assert inputs.text_labels == [["cat", "remote_control"]]


@pytest.mark.parametrize("name", ["[SEP]", "[MASK] [CLS]", "cat [PAD]"])
def test_names_of_special_tokens_are_text(processor, name):
    """A class name cannot end the caption or hide a token of it."""
    inputs = processor(text=["cat", name], return_tensors="pt")
    special = torch.tensor(processor.tokenizer.all_special_ids)
    assert torch.isin(inputs["input_ids"][0, 1:-1], special[special != processor.tokenizer.unk_token_id]).sum() == 0
    assert inputs["positive_map"][0, 1].sum() > 2


def test_class_names_per_image_are_padded_to_the_longest(processor):
    text = [["cat"], ["dog", "hot dog"]]
    inputs = processor(images=[IMAGE, IMAGE], text=text, return_tensors="pt")
    assert inputs["input_ids"].shape == (2, 6)
    assert inputs["attention_mask"].sum(-1).tolist() == [3, 6]
    assert inputs["label_ids"].tolist() == [[0, -1], [0, 1]]
    assert not inputs["positive_map"][0, 1].any()
    assert words(processor, inputs, 1) == [(0, "dog"), (1, "hot dog")]
    assert inputs.text_labels == text and "image_indices" not in inputs


def test_one_list_of_class_names_serves_every_image(processor):
    inputs = processor(images=[IMAGE] * 3, text=("cat", "dog"), return_tensors="np")
    assert inputs["input_ids"].shape == (3, 5) and len(inputs.text_labels) == 3


def test_caption_with_phrases(processor):
    caption = "a red car next to a cart and a blue car"
    phrases = ["red car", ("car", 2), "a red car next"]
    inputs = processor(images=IMAGE, text=caption, phrases=phrases, return_tensors="pt")
    assert words(processor, inputs) == [(0, "red car"), (1, "car"), (2, "a red car next")]
    assert inputs["positive_map"][0, 1].nonzero().flatten().tolist() == [11]
    assert inputs.text_labels == [["red car", "car", "a red car next"]]


def test_caption_with_spans(processor):
    spans = [[2, 5], [[0, 5], (10, 13)], np.array([10, 13])]
    inputs = processor(text="a cat and dogs", spans=spans, return_tensors="pt")
    assert words(processor, inputs) == [(0, "cat"), (1, "a cat dogs"), (2, "dogs")]
    assert inputs.text_labels == [["cat", "a cat dog", "dog"]]


def test_free_text_finds_its_noun_phrases(processor):
    inputs = processor(text="two cats sitting on a pink sofa", return_tensors="pt")
    assert words(processor, inputs) == [(0, "two cats"), (1, "a pink sofa")]
    inputs = processor(text=" running ", return_tensors="pt")  # no noun in it: all of it
    assert inputs.text_labels == [["running"]] and inputs["positive_map"].sum() > 0


def test_captions_for_several_images(processor):
    text = ["a cat and a dog", "a bird"]
    inputs = processor(text=text, phrases=[["dog"], None], return_tensors="pt")
    assert inputs.text_labels == [["dog"], ["a bird"]]
    inputs = processor(text=text, spans=[[[2, 5]], [[2, 6], [0, 1]]], return_tensors="pt")
    assert inputs.text_labels == [["cat"], ["bird", "a"]]
    inputs = processor(text=["a bird on a tree", ["cat", "dog"]], return_tensors="pt")
    assert inputs.text_labels == [["a bird", "a tree"], ["cat", "dog"]]


def test_images_alone_and_text_alone(processor):
    inputs = processor(images=[IMAGE], return_tensors="pt")
    assert set(inputs) == IMAGE_KEYS and inputs.text_labels is None
    assert set(processor(text=["cat"], return_tensors="pt")) == TEXT_KEYS
    assert set(processor(text=["cat"])) == TEXT_KEYS
    assert set(processor.model_input_names) == TEXT_KEYS | IMAGE_KEYS


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "Nothing to process"),
        ({"text": ""}, ValueError, "text is empty"),
        ({"text": " \n"}, ValueError, "give a caption with words"),
        ({"text": []}, ValueError, "text is empty"),
        ({"text": [["cat"], []]}, ValueError, r"text\[1\] is an empty list"),
        ({"text": ["cat", 3]}, TypeError, r"text\[1\] is 3, a int"),
        ({"text": ["cat", None]}, TypeError, r"text\[1\] is None"),
        ({"text": [["cat", b"dog"]]}, TypeError, "name 1 is b'dog', a bytes"),
        ({"text": {"name": "cat"}}, TypeError, "text is a dict"),
        ({"text": 7}, TypeError, "text is a int"),
        ({"text": [""]}, ValueError, "None of the names '' for image 0 has a token"),
        ({"text": [["cat"], ["\0", " "]]}, ValueError, "for image 1 has a token"),
        ({"text": "a cat", "phrases": ["dog"]}, ValueError, "'dog' is not in the caption 'a cat'"),
        ({"text": "a cat a", "phrases": ["a"]}, ValueError, "occurs 3 times.*0: character 0.*'a c"),
        ({"text": "a cat", "phrases": "cat"}, TypeError, "give a list"),
        ({"text": "a cat", "phrases": []}, ValueError, "phrases of text is empty"),
        ({"text": "a cat", "phrases": [5]}, TypeError, "5 is not a phrase"),
        ({"text": "a cat", "phrases": [("cat", "0")]}, TypeError, "is not a phrase"),
        ({"text": "a cat", "spans": [[2, 6]]}, ValueError, r"\[2, 6\) does not lie in the caption"),
        ({"text": "a cat", "spans": [[3, 3]]}, ValueError, "does not lie"),
        ({"text": "a cat", "spans": [2, 5]}, ValueError, "2 is not a span"),
        ({"text": "a", "spans": [[0, 1]], "phrases": ["a"]}, ValueError, "give one of them"),
        ({"text": [["cat"]], "phrases": [["cat"]]}, TypeError, "give a caption"),
        ({"text": ["a", "b"], "phrases": [["a"]]}, ValueError, "for 2 texts"),
        ({"images": IMAGE, "phrases": ["cat"]}, ValueError, "belong to a caption"),
        ({"images": IMAGE, "text": [["cat"], ["dog"]]}, ValueError, "2 texts for 1 images"),
        ({"images": [IMAGE] * 2, "text": [["cat"]]}, ValueError, "1 texts for 2 images"),
        ({"text": ["cat"], "annotations": []}, ValueError, "give images as well"),
        ({"text": ["cat"], "chunk_size": 0}, ValueError, "chunk_size=0"),
        ({"text": ["dog " * 300]}, ValueError, "the name 'dog dog .* has 300 tokens"),
        ({"text": ["cat", "dog"], "prefix": ["a "]}, ValueError, "prefix has 1 entries for 2"),
        ({"text": ["cat"], "seperator": ", "}, TypeError, "'seperator': did you mean 'separator'"),
        ({"text": ["cat"], "image": IMAGE}, TypeError, "'image': did you mean 'images'"),
        ({"text": ["cat"], "text_pair": ["a dog"]}, TypeError, "unexpected keyword argument 'text_pair'"),
        ({"text": ["cat"], "text_target": ["a dog"]}, TypeError, "unexpected keyword argument 'text_target'"),
        ({"text": ["cat"], "text_kwargs": {"is_split_into_words": True}}, TypeError, "'is_split_into_words'"),
        ({"text": ["cat"], "text_kwargs": {"paddin": 1}}, TypeError, "text_kwargs .*'paddin': did you mean 'padding'"),
        ({"images": IMAGE, "size_diviser": 8}, TypeError, "'size_diviser': did you mean 'size_divisor'"),
    ],
)
def test_invalid_arguments_are_refused(processor, arguments, error, message):
    with pytest.raises(error, match=message):
        processor(**arguments, return_tensors="pt")


@pytest.mark.parametrize("text", [["🐶", "cat"], ["cat\0", "do\0g"], ["!", "..."], ["日本"]])
def test_odd_characters_never_take_the_tokens_of_a_neighbour(processor, text):
    inputs = processor(text=text, return_tensors="pt")
    for row, name in zip(inputs["positive_map"][0], text, strict=True):
        alone = processor.tokenizer(name, add_special_tokens=False)["input_ids"]
        assert inputs["input_ids"][0][row].tolist() == alone


# -- warnings ----------------------------------------------------------------------------------


def test_a_class_name_without_tokens_warns_and_scores_zero(processor):
    with pytest.warns(UserWarning, match=r"no token stands for '_\(only\)'"):
        inputs = processor(text=["cat", "_(only)"], return_tensors="pt")
    assert inputs["positive_map"].sum(-1).tolist() == [[1, 0]]
    assert inputs["label_ids"].tolist() == [[0, 1]]


def test_phrases_beyond_the_caption_warn(processor):
    caption = "cat " * 253 + "hot dog and a bird"
    phrases = ["hot dog", "bird", ("cat", 0)]
    with pytest.warns(UserWarning) as told:
        inputs = processor(text=caption, phrases=phrases, return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 256)
    assert inputs["positive_map"].sum(-1).tolist() == [[1, 0, 1]]
    assert not inputs["positive_map"][..., [0, -1]].any()
    messages = " / ".join(str(entry.message) for entry in told)
    assert "'bird' lie beyond the end" in messages and "first part of 'hot dog'" in messages


def test_a_caption_is_tokenised_once(processor, monkeypatch):
    seen = []
    encode = type(processor.tokenizer)._encode_plus

    def record(self, text, *args, **kwargs):
        seen.extend([text] if isinstance(text, str) else text)
        return encode(self, text, *args, **kwargs)

    monkeypatch.setattr(type(processor.tokenizer), "_encode_plus", record)
    processor(text="two cats on a pink sofa", return_tensors="pt")
    assert seen == ["two cats on a pink sofa"]


# -- prompt options ----------------------------------------------------------------------------


def test_prompt_options_are_saved_and_overridden(tmp_path):
    options = {"separator": " . ", "prefix": "a ", "chunk_size": 2}
    first = make_processor(prompt_options=options)
    first.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["prompt_options"] == processing.PROMPT_OPTIONS | options
    again = GlipProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == first.to_dict()
    changed = GlipProcessor.from_pretrained(tmp_path, prompt_options={"separator": ", "})
    assert changed.prompt_options["separator"] == ", "
    for each in (first, again):
        inputs = each(text=["cat", "dog", "bird"], return_tensors="pt")
        assert inputs["image_indices"].tolist() == [0, 0]
        assert each.decode(inputs["input_ids"][0], skip_special_tokens=True) == "a cat. a dog"
        call = {"separator": ". ", "prefix": None, "chunk_size": None, "negative_names": ["sky"]}
        inputs = each(text=["cat", "dog", "bird"], return_tensors="pt", **call)
        assert words(each, inputs) == [(0, "cat"), (1, "dog"), (2, "bird")]
        assert each.decode(inputs["input_ids"][0]) == "[CLS] cat. dog. bird. sky [SEP]"
    with pytest.raises(ValueError, match="unknown entries .'seperator'"):
        make_processor(prompt_options={"seperator": " "})


def test_class_names_are_saved(tmp_path):
    make_processor(class_names=["red cat", "dog"]).save_pretrained(tmp_path)
    assert GlipProcessor.from_pretrained(tmp_path).class_names == ["red cat", "dog"]
    assert make_processor().class_names is None
    for wrong in ("cat", ["cat", 1], {"cat": 1}):
        with pytest.raises(ValueError, match="class_names=.* must be a list of class names"):
            make_processor(class_names=wrong)


def test_caption_prompts_of_odinw(processor):
    names = [
        {"prefix": " ", "name": "fish", "suffix": ""},
        {"name": "penguin", "suffix": " , which is black and white"},
    ]
    inputs = processor(text=names, return_tensors="pt")
    assert words(processor, inputs) == [(0, "fish"), (1, "penguin")]
    assert inputs["attention_mask"].sum() == 2 + 1 + 1 + 1 + 6
    assert inputs.text_labels == [["fish", "penguin"]]


def test_tokenizer_options(processor):
    padded = processor(text=["cat"], padding="max_length", max_length=20, return_tensors="pt")
    assert padded["positive_map"].shape == (1, 1, 20)
    ragged = processor(text=[["cat"], ["hot dog"]], padding=False)
    assert [row.shape[-1] for row in ragged["positive_map"]] == [3, 4]
    short = processor(text=["cat"] * 20, max_length=12, return_tensors="pt")
    assert short["input_ids"].shape == (4, 11) and short["image_indices"].tolist() == [0] * 4


def test_left_padding_shifts_the_positive_maps():
    left = make_processor()
    left.tokenizer.padding_side = "left"
    inputs = left(text=[["cat"], ["hot dog"]], return_tensors="pt")
    assert [words(left, inputs, n) for n in (0, 1)] == [[(0, "cat")], [(0, "hot dog")]]


# -- long vocabularies -------------------------------------------------------------------------


def test_a_long_vocabulary_is_split_and_keeps_its_labels(processor):
    names = [f"{i % 10} cat" for i in range(5000)]
    names[1234] = "hot dog"
    inputs = processor(images=[IMAGE], text=names, return_tensors="pt")
    assert inputs["input_ids"].shape[1] <= 256
    assert inputs["image_indices"].tolist() == [0] * len(inputs["input_ids"])
    labels = inputs["label_ids"]
    assert labels[labels >= 0].tolist() == list(range(5000))
    n, row = (labels == 1234).nonzero()[0].tolist()
    assert words(processor, inputs, n)[row] == (1234, "hot dog")
    assert inputs.text_labels == [names]


def test_images_with_different_numbers_of_captions(processor):
    text = [["cat"], ["cat", "dog", "bird"], ["horse"]]
    inputs = processor(images=[IMAGE] * 3, text=text, chunk_size=2, return_tensors="pt")
    assert inputs["image_indices"].tolist() == [0, 1, 1, 2]
    assert inputs["label_ids"].tolist() == [[0, -1], [0, 1], [2, -1], [0, -1]]


def test_duplicate_class_names_keep_their_own_labels(processor):
    inputs = processor(text=["cat", "dog", "cat"], return_tensors="pt")
    assert words(processor, inputs) == [(0, "cat"), (1, "dog"), (2, "cat")]
    assert inputs["positive_map"].sum(1).max() == 1


NAMES = st.lists(st.text(max_size=20), min_size=1, max_size=8).filter(
    lambda names: any(c.isascii() and c.isalnum() for name in names for c in name.split("(")[0])
)


@settings(deadline=None, max_examples=40)
@given(st.lists(NAMES, min_size=1, max_size=4), st.sampled_from([None, 1, 3]))
def test_batched_equals_single_and_maps_cover_real_tokens_only(batch, chunk_size):
    processor = make_processor()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = processor(text=batch, chunk_size=chunk_size, return_tensors="pt")
        alone = [processor(text=[n], chunk_size=chunk_size, return_tensors="pt") for n in batch]
    n = 0
    for image, single in enumerate(alone):
        for caption in range(len(single["input_ids"])):
            if "image_indices" in together:
                assert together["image_indices"][n] == image
            classes, tokens = single["positive_map"].shape[1:]
            for key in ("input_ids", "attention_mask"):
                assert together[key][n, :tokens].equal(single[key][caption])
                assert not together[key][n, tokens:].any()
            assert together["positive_map"][n, :classes, :tokens].equal(single["positive_map"][caption])
            assert together["label_ids"][n, :classes].equal(single["label_ids"][caption])
            covered = together["positive_map"][n].any(0)
            assert not covered[together["attention_mask"][n] == 0].any()
            special = [processor.tokenizer.cls_token_id, processor.tokenizer.sep_token_id]
            last = int(together["attention_mask"][n].sum()) - 1
            assert together["input_ids"][n, [0, last]].tolist() == special
            assert not covered[[0, last]].any()
            n += 1
    assert n == len(together["input_ids"])


# -- text labels --------------------------------------------------------------------------------


def test_text_labels_are_an_attribute_not_an_entry(processor):
    inputs = processor(images=IMAGE, text=["cat"], return_tensors="pt")
    assert "text_labels" not in inputs and "text_labels" not in dict(**inputs)
    for same in (inputs.to("cpu"), inputs.to(torch.float16), copy.deepcopy(inputs), inputs.copy()):
        assert same.text_labels == [["cat"]]
    assert pickle.loads(pickle.dumps(inputs)).text_labels == [["cat"]]
    assert inputs["pixel_values"].dtype == torch.float16
    assert inputs["positive_map"].dtype == torch.bool


# -- targets -----------------------------------------------------------------------------------


def record(*boxes):
    return {"image_id": 7, "annotations": list(boxes)}


def test_coco_targets_by_index_and_by_category_id(processor):
    boxes = [
        {"bbox": [0, 0, 10, 10], "category_id": 1},
        {"bbox": [0, 0, 9, 9], "category_id": 0, "iscrowd": 1},
        {"bbox": [200, 0, 10, 10], "category_id": 0},
        {"bbox": [10, 10, 31, 21], "category_id": 0},
    ]
    names = ["cat", "hot dog"]
    inputs = processor(IMAGE, names, annotations=record(*boxes), return_tensors="pt")
    (target,) = inputs["labels"]
    assert target["class_labels"].tolist() == [1, 0]
    assert target["positive_map"].dtype == torch.float32
    assert target["positive_map"].tolist() == [[0, 0, 0, 1, 1, 0], [0, 1, 0, 0, 0, 0]]
    torch.testing.assert_close(target["boxes"][1], torch.tensor([10.0, 10, 40, 30]) * 0.8)
    assert target["image_id"].tolist() == [7]
    for box in boxes:
        box["category_id"] = {0: 17, 1: 5}[box["category_id"]]
    again = processor(IMAGE, names, annotations=record(*boxes), category_ids=[17, 5], return_tensors="pt")
    assert again["labels"][0]["positive_map"].equal(target["positive_map"])
    with pytest.raises(ValueError, match="category_id 5 is not an index of its 2 names.*category_ids"):
        processor(IMAGE, names, annotations=record(*boxes))
    with pytest.raises(ValueError, match="category_id 5 is not in category_ids"):
        processor(IMAGE, names, annotations=record(*boxes), category_ids=[17, 18])
    with pytest.raises(ValueError, match="category_ids has 1 entries for the 2 names"):
        processor(IMAGE, names, annotations=record(*boxes), category_ids=[17])


def test_grounding_targets(processor):
    boxes = [
        {"bbox": [0, 0, 10, 10], "tokens_positive": [[0, 5], [17, 22]], "category_id": 1},
        {"bbox": [5, 5, 10, 10], "tokens_positive": []},
    ]
    inputs = processor(
        [IMAGE, IMAGE],
        ["a cat next to a small dog", ["bird"]],
        annotations=[record(*boxes), record()],
        return_tensors="pt",
    )
    first, second = inputs["labels"]
    assert first["positive_map"].nonzero().tolist() == [[0, 1], [0, 2], [0, 6]]
    assert second["positive_map"].shape == (0, inputs["input_ids"].shape[1])
    assert second["boxes"].shape == (0, 4)
    moved = inputs.to("cpu", torch.float64)["labels"][0]
    assert moved["positive_map"].dtype == torch.float64
    assert moved["class_labels"].dtype == torch.int64


def test_targets_as_other_tools_write_them(processor):
    """Ids as text, tensors or with a fraction of zero; one span without a list around it; no image id."""
    names, box = ["cat", "dog"], {"bbox": [0, 0, 10, 10], "area": None, "iscrowd": None}
    for ids, categories in (
        (None, ("1", 1.0, torch.tensor(1))),
        (["7", 8.0], ("8", 8, np.int64(8))),
        (["a", "b"], "b"),
    ):
        for category in categories:
            annotations = {"image_id": None, "annotations": [box | {"category_id": category}]}
            inputs = processor(IMAGE, names, annotations=annotations, category_ids=ids, return_tensors="pt")
            (target,) = inputs["labels"]
            assert target["class_labels"].tolist() == [1] and target["area"].isfinite().all()
    for spans in ([2, 5], (2, 5), [[2, 5]], torch.tensor([2, 5]), np.array([[2, 5]])):
        annotations = record(box | {"tokens_positive": spans, "category_id": "3"})
        (target,) = processor(IMAGE, "a cat here", annotations=annotations, return_tensors="pt")["labels"]
        assert target["positive_map"].nonzero().tolist() == [[0, 2]] and target["class_labels"].tolist() == [3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"category_id": "cat"}, "category_id 'cat' is not an index of its 1 names"),
        ({"category_id": 0.5}, "category_id 0.5 is not an index"),
        ({"category_id": -1}, "category_id -1 is not an index"),
        ({"category_id": False}, "category_id False is not an index"),
        ({"category_id": [0]}, r"category_id \[0\] is not an index"),
        ({"tokens_positive": 5}, "tokens_positive=5 must be a list of spans"),
        ({"tokens_positive": "2:5"}, "tokens_positive='2:5' must be a list"),
        ({"tokens_positive": [[2, 50]]}, "does not lie in the caption"),
        ({"tokens_positive": [["a", "b"]]}, "is not a span"),
    ],
)
def test_targets_that_make_no_sense(processor, change, words):
    boxes = record({"bbox": [0, 0, 10, 10], **change})
    with pytest.raises(ValueError, match=words):
        processor(IMAGE, ["cat"], annotations=boxes, return_tensors="pt")


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ([0.1, 0.2, 0.5, 0.5], "between 0 and 1"),
        ([500, 500, 20, 20], "outside"),
        ([15, 15, -10, 20], "outside"),
        ([5, 5, 1, 20], "one pixel"),
    ],
)
def test_boxes_that_are_left_out_are_told(processor, monkeypatch, box, words):
    told = []
    monkeypatch.setattr("glip_hf.image_processing_pil_glip.logger.warning_once", told.append)
    for bbox in ([5, 5, 20, 20], box):
        assert not told
        processor(IMAGE, ["cat"], annotations=record({"bbox": bbox, "category_id": 0}), return_tensors="pt")
    assert words in told[0] and "pixels" in told[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"annotations": 5}, "annotations=5 must be a dictionary per image"),
        ({"annotations": {"annotations": None}}, "COCO detection format"),
        ({"annotations": {"annotations": []}, "category_ids": 5}, "category_ids=5 must be a list"),
        ({"annotations": []}, "0 annotations for 1 images"),
    ],
)
def test_annotations_of_another_kind(processor, given, words):
    with pytest.raises((TypeError, ValueError), match=words):
        processor(IMAGE, ["cat"], **given)
    if "category_ids" not in given:
        with pytest.raises((TypeError, ValueError), match="annotations"):
            processor(IMAGE, **given)


def test_targets_need_all_class_names_in_one_caption(processor):
    boxes = record({"bbox": [0, 0, 10, 10], "category_id": 1})
    with pytest.raises(ValueError, match="3 names of image 0 fill 3 captions"):
        processor(IMAGE, ["cat", "dog", "bird"], annotations=boxes, chunk_size=1)
    nameless = record({"bbox": [0, 0, 10, 10]})
    with pytest.raises(ValueError, match="neither 'category_id' nor 'tokens_positive'"):
        processor(IMAGE, ["cat"], annotations=nameless)
    with pytest.raises(ValueError, match="COCO detection format"):
        processor(IMAGE, ["cat"], annotations={"boxes": []})


# -- outputs to labelled boxes --------------------------------------------------------------------


def outputs_of(inputs, found):
    """Model output with one confident location a (caption, row) of `found`, on boxes apart."""
    captions, classes, tokens = inputs["positive_map"].shape
    logits = torch.full((captions, 4, tokens), -20.0)
    for location, (caption, row) in enumerate(found):
        logits[caption, location, inputs["positive_map"][caption, row]] = 3.0 - location
    boxes = torch.tensor([[0.0, 0, 0.2, 0.2], [0.3, 0, 0.5, 0.2], [0.6, 0, 0.8, 0.2], [0, 0.5, 1, 1]])
    sizes = inputs["original_sizes"]
    indices = inputs.get("image_indices")
    return ModelOutput(
        logits=logits,
        centerness_logits=torch.full((captions, 4), 8.0),
        pred_boxes=boxes.expand(captions, 4, 4),
        spatial_shapes=torch.tensor([[[2, 2]]]).expand(captions, 1, 2),
        image_sizes=sizes[indices if indices is not None else slice(None)],
        original_sizes=sizes[indices if indices is not None else slice(None)],
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        positive_map=inputs["positive_map"],
        label_ids=inputs["label_ids"],
        image_indices=indices,
    )


def test_the_last_image_without_a_caption_has_no_detections(processor):
    inputs = processor([IMAGE] * 3, [["cat"], ["dog"], ["fox"]], return_tensors="pt")
    names, kept = inputs.text_labels[:2] + [[]], torch.tensor([0, 1])
    text = ("input_ids", "attention_mask", "token_type_ids", "positive_map", "label_ids")
    inputs.update({name: inputs[name][kept] for name in text} | {"image_indices": kept})
    outputs = outputs_of(inputs, [(0, 0), (1, 0)])
    post = processor.post_process_grounded_object_detection
    for sizes in ({"inputs": inputs}, {"inputs": dict(inputs)}, {"target_sizes": [(40, 60)] * 3}):
        results = post(outputs, text_labels=names, **sizes)
        assert [result["text_labels"] for result in results] == [["cat"], ["dog"], []]
    assert len(post(outputs)) == 2  # nothing tells of the third
    with pytest.raises(ValueError, match="2 lists of names for 3 images"):
        post(outputs, inputs, text_labels=names[:2])
    with pytest.raises(ValueError, match="target_sizes has 1 entries for 2 images"):
        post(outputs, target_sizes=[(40, 60)])


def test_post_processing_returns_text_labels(processor):
    names = ["cat", "Hot Dog", "dog"]
    inputs = processor(IMAGE, names, return_tensors="pt")
    outputs = outputs_of(inputs, [(0, 1), (0, 0)])
    post = processor.post_process_grounded_object_detection
    (result,) = post(outputs, inputs, threshold=0.3)
    assert result["labels"].tolist() == [1, 0] and result["text_labels"] == ["Hot Dog", "cat"]
    torch.testing.assert_close(result["boxes"][0], torch.tensor([0.0, 0, 12, 8]))
    assert post(outputs)[0]["text_labels"] == ["hot dog", "cat"]  # decoded
    assert post(outputs, inputs["input_ids"])[0]["text_labels"] == ["hot dog", "cat"]
    assert post(outputs, text_labels=["a", "b", "c"])[0]["text_labels"] == ["b", "a"]
    assert post(outputs, text_labels=[["a", "b", "c"]])[0]["text_labels"] == ["b", "a"]
    (scaled,) = post(outputs, inputs, target_sizes=[(80, 120)])
    torch.testing.assert_close(scaled["boxes"], result["boxes"] * 2)
    assert post(outputs, inputs, threshold=0.99999)[0]["text_labels"] == []
    assert len(post(outputs, inputs, max_detections=1)[0]["scores"]) == 1
    with pytest.raises(ValueError, match="label 1, but text_labels has 1 names"):
        post(outputs, text_labels=["a"])
    with pytest.raises(ValueError, match="2 lists of names for 1 images"):
        post(outputs, text_labels=[["a"], ["b"]])
    with pytest.raises(TypeError, match=r"text_labels=\[1, 2\] must be a list of class names"):
        post(outputs, text_labels=[1, 2])
    for other in (0.3, names, inputs["input_ids"].tolist()):  # OWLv2 takes the threshold there
        with pytest.raises(TypeError, match="inputs=.* must be what the processor returned"):
            post(outputs, other)
    assert post(outputs, inputs, max_detections=0)[0]["text_labels"] == []
    with pytest.raises(ValueError, match="max_detections=-1 must not be negative"):
        post(outputs, inputs, max_detections=-1)
    with pytest.raises(TypeError, match="'max_detection': did you mean 'max_detections'"):
        post(outputs, inputs, max_detection=1)


def test_post_processing_merges_the_chunks_of_an_image(processor):
    text = [["cat", "dog", "bird"], ["horse"]]
    inputs = processor([IMAGE] * 2, text, chunk_size=1, return_tensors="pt")
    outputs = outputs_of(inputs, [(2, 0), (0, 0), (3, 0)])
    for source in (inputs, None):
        first, second = processor.post_process_grounded_object_detection(outputs, source)
        assert (first["labels"].tolist(), first["text_labels"]) == ([2, 0], ["bird", "cat"])
        assert (second["labels"].tolist(), second["text_labels"]) == ([0], ["horse"])


# -- the reference's own results ---------------------------------------------------------------


def test_reference_captions_and_spans(shared, bert_processor):
    cases = json.loads((shared / "parity" / "preprocessing" / "cases.json").read_text())
    for case in cases["class_list_to_caption"]:
        # The original removes any parentheses, we only those of LVIS.
        classes = [{"name": "Person "} if name == "Person (standing)" else name for name in case["classes"]]
        inputs = bert_processor(text=classes, return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == case["input_ids"]
        rows = [row.nonzero().flatten().tolist() for row in inputs["positive_map"][0]]
        assert {str(n): row for n, row in enumerate(rows, start=1)} == case["label_to_token"]
    for case in cases["char_spans_to_token_map"]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inputs = bert_processor(text=case["caption"], spans=case["char_spans"])
        assert [np.flatnonzero(row).tolist() for row in inputs["positive_map"][0]] == (case["token_indices"])


@pytest.mark.parametrize("file", ["lvis_v1_chunk40.json", "objects365_v2_chunk80.json"])
def test_reference_chunks(shared, bert_processor, file):
    case = json.loads((shared / "data" / "captions" / file).read_text())
    inputs = bert_processor(text=case["class_names"], chunk_size=case["chunk_size"])
    assert len(inputs["input_ids"]) == case["num_queries"]
    for n, query in enumerate(case["queries"]):
        labels = {
            str(case["class_ids"][label]): np.flatnonzero(row).tolist()
            for label, row in zip(inputs["label_ids"][n], inputs["positive_map"][n], strict=True)
            if label >= 0
        }
        assert labels == query["label_to_token"]


def test_reference_grounding_targets(shared, bert_processor):
    """MDETR-style records on real images: the positive maps of boxes equal those the original trains with."""
    folder = shared / "data" / "real" / "grounding_mini"
    expected = json.loads((folder / "expected_targets.json").read_text())
    for kind in ("flickr", "mixed"):
        content = json.loads((folder / expected[kind]["source"]).read_text())
        for image, target in zip(content["images"], expected[kind]["items"], strict=True):
            things = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            size = (int(image["width"]), int(image["height"]))
            inputs = bert_processor(
                Image.new("RGB", size),
                image["caption"],
                annotations={"image_id": image["id"], "annotations": things},
                return_tensors="pt",
            )
            found = inputs["labels"][0]["positive_map"].nonzero().tolist()
            assert found == sorted([row, column] for row, column, _ in target["positive_map"])


def test_class_names_the_vocabulary_cannot_spell_warn(processor) -> None:
    with pytest.warns(UserWarning, match="cannot spell '\N{GRINNING FACE}'"):
        processor(text=["cat", "\N{GRINNING FACE}"], return_tensors="pt")


def test_threads_share_a_processor(processor) -> None:
    """With Transformers 5.13 a tokenizer without a lock raises "Already borrowed" in most of these calls."""
    lists = [[f"cat {number}" for number in range(count)] for count in (300, 2, 200)] * 5
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda names: processor(text=names, return_tensors="pt")["input_ids"], lists))
    for ids, names in zip(found, lists):
        assert torch.equal(ids, processor(text=names, return_tensors="pt")["input_ids"])
