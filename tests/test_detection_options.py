# Copyright 2026 The glip_hf authors. MIT licence.
"""What detections can be asked for: thresholds of classes, several prompts for a label, NMS over all classes, locations
and features. Of each the invariances: chunked = whole, batched = single, and nothing changes with the options off."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_postprocess_glip import LOCATIONS, ONE_TOKEN_EACH, SIZE, at, far_apart, outputs
from tiny import make_processor
from torch import Tensor

from glip_hf import GlipProcessor, GlipZeroShotObjectDetectionPipeline
from glip_hf.boxes_glip import box_iou
from glip_hf.cli import main
from glip_hf.cli.ground import read_prompts
from glip_hf.demo import demo_model, demo_processor, load_demo_image
from glip_hf.inference import GroundingEngine, GroundingOptions, Request
from glip_hf.postprocess_glip import post_process_grounding

NAMES = ["cat", "dog", "bird", "fish"]
FEW = settings(max_examples=15, deadline=None)


@pytest.fixture(scope="module")
def processor() -> GlipProcessor:
    return make_processor()


def test_class_names_are_split_into_captions_that_the_model_reads() -> None:
    names, encoded = [f"blue fish {number}" for number in range(10)], []
    for longest in (256, 32):
        model = demo_model()
        model.config.max_text_length = longest
        encoded.append(GroundingEngine(model, demo_processor()).encode(names))
    assert len(encoded[0]) == 1 < len(encoded[1])
    assert all(len(caption.input_ids) <= 32 for caption in encoded[1])
    labels = torch.cat([caption.label_ids for caption in encoded[1]])
    assert encoded[0][0].label_ids.tolist() == labels.tolist()


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def alike(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """The same detections; numbers may be rounded differently, as sums over other numbers of prompts are."""
    return first.keys() == second.keys() and all(
        first[key].shape == second[key].shape and torch.allclose(first[key], second[key], rtol=1e-5) for key in first
    )


def found(made, **options) -> dict[str, Tensor]:
    return post_process_grounding(made, text_labels=NAMES, target_sizes=[SIZE], **options)[0]


def random_outputs(seed: int, captions: list[list[int]], labels: list[int]):
    """One image: boxes around five centres, a probability for each (location, prompt); prompt p has token p, stands in
    one of the captions, and is of label `labels[p]`."""
    generator = torch.Generator().manual_seed(seed)
    prompts = len(labels)
    centres = torch.rand(5, 2, generator=generator)[torch.randint(5, (LOCATIONS,), generator=generator)]
    jitter, size = torch.rand(2, LOCATIONS, 2, generator=generator)
    corner = centres + 0.05 * jitter
    boxes = torch.cat([corner, corner + 0.2 + 0.1 * size], 1)
    probabilities = torch.rand(1, LOCATIONS, prompts, generator=generator) ** 2
    width = max(map(len, captions))
    maps = torch.zeros(len(captions), width, prompts, dtype=torch.bool)
    label_ids = torch.full((len(captions), width), -1)
    for n, own in enumerate(captions):
        for row, prompt in enumerate(own):
            maps[n, row, prompt], label_ids[n, row] = True, labels[prompt]
    return outputs(
        probabilities.expand(len(captions), -1, -1),
        maps,
        boxes,
        centerness_logits=torch.randn(1, LOCATIONS, generator=generator).expand(len(captions), -1),
        hidden_states=(torch.randn(1, LOCATIONS, 6, generator=generator).expand(len(captions), -1, -1),),
        label_ids=label_ids,
        image_indices=torch.zeros(len(captions), dtype=torch.int64),
    )


# --- by hand


def test_a_threshold_for_each_class() -> None:
    made = outputs(at((0, 0, 0.81), (1, 1, 0.49), (2, 2, 0.16), (3, 3, 0.04), (4, 0, 0.25)), ONE_TOKEN_EACH)
    options = {"score_threshold": 0.01}
    assert found(made, **options)["labels"].tolist() == [0, 1, 0, 2, 3]
    assert found(made, threshold={"cat": 0.6}, **options)["labels"].tolist() == [0, 1, 2, 3]
    assert found(made, threshold={"cat": 0.6, None: 0.3}, **options)["labels"].tolist() == [0, 1, 2]
    assert found(made, threshold={"cat": 0.6, "fish": 0.1, None: 1}, **options)["labels"].tolist() == [0, 3]
    assert found(made, threshold={}, **options)["labels"].tolist() == [0, 1, 0, 2, 3]


def test_a_class_with_a_high_threshold_takes_no_room_from_the_others() -> None:
    hits = [(i, 0, 0.8 - i / 100) for i in range(5)] + [(7, 1, 0.3)]
    made = outputs(at(*hits), ONE_TOKEN_EACH)
    assert found(made, threshold={"cat": 0.95}, max_detections=2)["labels"].tolist() == [1]


def test_nms_over_all_classes() -> None:
    boxes = far_apart()
    boxes[1] = boxes[2] = boxes[0] + torch.tensor([0.0, 0, 0.01, 0])
    made = outputs(at((0, 0, 0.64), (1, 1, 0.81), (2, 2, 0.36), (5, 2, 0.25)), ONE_TOKEN_EACH, boxes)
    assert found(made)["labels"].tolist() == [1, 0, 2, 2]
    assert found(made, class_agnostic_nms=True)["labels"].tolist() == [1, 2]
    # What its threshold refuses suppresses nothing, and the limit counts what is left.
    assert found(made, class_agnostic_nms=True, threshold={"dog": 0.95})["labels"].tolist() == [0, 2]
    assert found(made, class_agnostic_nms=True, max_detections=2)["labels"].tolist() == [1, 2]
    relative = post_process_grounding(made, class_agnostic_nms=True)[0]  # in no unit: the same
    assert relative["labels"].tolist() == [1, 2] and relative["boxes"].max() <= 1


def test_prompts_of_one_label() -> None:
    boxes = far_apart()
    boxes[1] = boxes[0]
    made = outputs(at((0, 0, 0.64), (1, 1, 0.81), (2, 2, 0.36)), ONE_TOKEN_EACH, boxes)
    made.label_ids = torch.tensor([[0, 0, 1, -1]])
    assert found(made)["labels"].tolist() == [0, 1]
    assert found(made)["scores"].tolist() == pytest.approx([0.9, 0.6])


def test_locations_and_features() -> None:
    states = torch.arange(LOCATIONS * 3).view(1, LOCATIONS, 3).to(torch.bfloat16)
    made = outputs(at((3, 1, 0.25), (26, 2, 0.81)), ONE_TOKEN_EACH, hidden_states=(None, states))
    plain = found(made)
    assert plain["locations"].tolist() == [26, 3] and "features" not in plain
    with_features = found(made, features=True)
    assert with_features["features"].dtype == torch.float32
    assert torch.equal(with_features.pop("features"), states[0, [26, 3]].float()) and equal(plain, with_features)
    nothing = found(made, features=True, threshold=1.0)
    assert nothing["locations"].shape == (0,) and nothing["features"].shape == (0, 3)
    made.image_indices = torch.tensor([1])  # the first image has no caption
    none, _ = post_process_grounding(made, features=True)
    assert {key: value.shape for key, value in none.items()} == {key: value.shape for key, value in nothing.items()}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"threshold": {"cot": 0.3}}, ValueError, "threshold has 'cot', which is not asked for: did you mean 'cat'?"),
        ({"threshold": {"sofa": 0.3}}, ValueError, "the names are 'cat', 'dog', 'bird', 'fish'"),
        ({"threshold": {"cat": "0.3"}}, TypeError, "threshold of 'cat'='0.3' must be one number"),
        ({"threshold": {"cat": float("nan")}}, ValueError, "threshold of 'cat'=nan must be a number"),
        ({"threshold": {0: 0.3}}, TypeError, "must have class names as its keys"),
        ({"class_agnostic_nms": 1}, TypeError, "class_agnostic_nms=1 must be True or False"),
        ({"features": "yes"}, TypeError, "features='yes' must be True or False"),
        ({"features": True}, ValueError, r"output_hidden_states=\[-1\]"),
    ],
)
def test_options_that_make_no_sense(options, error, words) -> None:
    with pytest.raises(error, match=words):
        found(outputs(at((0, 0, 0.9)), ONE_TOKEN_EACH), **options)


def test_thresholds_of_names_need_names() -> None:
    with pytest.raises(ValueError, match="thresholds of class names need these: give text_labels"):
        post_process_grounding(outputs(at((0, 0, 0.9)), ONE_TOKEN_EACH), threshold={"cat": 0.5})


# --- several prompts for a label


PROMPTS = {"helmet": ["hard hat", "safety helmet"], "person": "person", "vest": [{"prefix": "a ", "name": "vest"}]}


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_prompts_carry_the_label_of_their_name(processor, chunk_size) -> None:
    made = processor(text=PROMPTS, chunk_size=chunk_size, return_tensors="pt")
    assert made.text_labels == [["helmet", "person", "vest"]]
    labels, maps = made["label_ids"], made["positive_map"]
    assert labels[labels >= 0].tolist() == [0, 0, 1, 2]
    ids = made["input_ids"]
    texts = [processor.tokenizer.decode(ids[n][maps[n, row]]) for n, row in (labels >= 0).nonzero().tolist()]
    assert texts == ["hard hat", "safety helmet", "person", "vest"]


def test_prompts_for_each_image_and_single_ones_as_names(processor) -> None:
    each = processor(text=[PROMPTS, ["person", "vest"], {"hat": ["hat"]}], return_tensors="pt")
    assert each.text_labels == [["helmet", "person", "vest"], ["person", "vest"], ["hat"]]
    assert each["label_ids"].tolist() == [[0, 0, 1, 2], [0, 1, -1, -1], [0, -1, -1, -1]]
    names, prompts = (
        processor(text=text, return_tensors="pt") for text in (["hat", "vest"], {"hat": "hat", "vest": ["vest"]})
    )
    assert names.keys() == prompts.keys() and all(torch.equal(names[key], prompts[key]) for key in names)
    assert names.text_labels == prompts.text_labels


def test_a_box_belongs_to_all_prompts_of_its_name(processor) -> None:
    record = {"image_id": 0, "annotations": [{"bbox": [2, 2, 20, 20], "category_id": label} for label in (0, 1)]}
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    made = processor(images=[image], text=PROMPTS, annotations=[record], return_tensors="pt")
    target, rows = made["labels"][0], made["positive_map"][0]
    assert target["class_labels"].tolist() == [0, 1]
    assert torch.equal(target["positive_map"].bool(), torch.stack([rows[0] | rows[1], rows[2]]))


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ({}, ValueError, "text is empty"),
        ({"helmet": []}, TypeError, r"text has \[\] for the name 'helmet': give a list of its prompts"),
        ({"helmet": None}, TypeError, "text has None for the name 'helmet'"),
        ({"helmet": {"hat"}}, TypeError, "give a list of its prompts"),
        ({"helmet": [3]}, TypeError, "name 0 is 3, a int"),
        ({1: ["hat"]}, TypeError, "text\\[0\\] is 1, a int"),
        ([{"nme": "cat"}], TypeError, "the keys 'prefix', 'name' and 'suffix'"),
        ([["hat"], {"name": "vest"}], TypeError, "text\\[1\\] is an object with the keys"),
    ],
)
def test_prompts_that_make_no_sense(processor, text, error, words) -> None:
    with pytest.raises(error, match=words):
        processor(text=text)


def test_prompts_without_tokens_are_told_with_their_name(processor) -> None:
    with pytest.warns(UserWarning, match="cannot spell 'helmet: 写真'"):
        processor(text={"helmet": ["hat", "写真"]})


# --- invariances

options = st.fixed_dictionaries(
    {
        "threshold": st.sampled_from([0.0, 0.3, {"cat": 0.5}, {"dog": 0.2, "bird": 0.6, None: 0.4}]),
        "class_agnostic_nms": st.booleans(),
        "features": st.booleans(),
        "max_detections": st.sampled_from([1, 4, 100]),
        "nms_threshold": st.sampled_from([0.3, 0.6]),
    }
)
several_prompts = st.sampled_from([[0, 1, 2, 3, 3, 3], [0, 1, 2, 3, 0, 1], [2, 2, 2, 0, 0, 1], [0, 1, 2, 3]])


@FEW
@given(seed=st.integers(0, 2**16), labels=several_prompts, options=options, data=st.data())
def test_chunked_equals_whole(seed, labels, options, data) -> None:
    prompts = list(range(len(labels)))
    cuts = data.draw(st.lists(st.booleans(), min_size=len(prompts) - 1, max_size=len(prompts) - 1))
    captions: list[list[int]] = [[0]]
    for prompt, cut in zip(prompts[1:], cuts):
        captions.append([prompt]) if cut else captions[-1].append(prompt)
    assert alike(
        found(random_outputs(seed, [prompts], labels), **options),
        found(random_outputs(seed, captions, labels), **options),
    )


@FEW
@given(seeds=st.lists(st.integers(0, 2**16), min_size=2, max_size=3), labels=several_prompts, options=options)
def test_batched_equals_single(seeds, labels, options) -> None:
    prompts = [list(range(len(labels)))]
    singles = [random_outputs(seed, prompts, labels) for seed in seeds]
    batch = random_outputs(0, prompts * len(seeds), labels)
    for name in ("logits", "centerness_logits", "pred_boxes"):
        setattr(batch, name, torch.cat([getattr(one, name) for one in singles]))
    batch.hidden_states = (torch.cat([one.hidden_states[-1] for one in singles]),)
    batch.image_indices = torch.arange(len(seeds))
    together = post_process_grounding(batch, text_labels=NAMES, target_sizes=[SIZE] * len(seeds), **options)
    assert all(alike(own, found(one, **options)) for own, one in zip(together, singles))


@FEW
@given(seed=st.integers(0, 2**16), threshold=st.floats(0, 1), options=options)
def test_the_same_threshold_for_all_is_one_threshold(seed, threshold, options) -> None:
    made = random_outputs(seed, [[0, 1, 2, 3]], [0, 1, 2, 3])
    one = found(made, **{**options, "threshold": threshold})
    for same in ({None: threshold}, dict.fromkeys(NAMES, threshold), {"cat": threshold, None: threshold}):
        assert equal(one, found(made, **{**options, "threshold": same}))


@FEW
@given(seed=st.integers(0, 2**16), labels=several_prompts, nms=st.sampled_from([0.3, 0.6]), agnostic=st.booleans())
def test_what_nms_leaves(seed, labels, nms, agnostic) -> None:
    """Within a label (or all of them) no two overlap, and what is gone of the single prompts overlaps a better one."""
    prompts = list(range(len(labels)))
    left = found(random_outputs(seed, [prompts], labels), nms_threshold=nms, class_agnostic_nms=agnostic)
    each = [found(random_outputs(seed, [[p]], labels), nms_threshold=nms) for p in prompts]
    everything = {key: torch.cat([one[key] for one in each]) for key in left}

    def rivals(first: dict[str, Tensor], second: dict[str, Tensor]) -> Tensor:
        big = 2**14  # the inclusive pixel does not count
        overlap = box_iou(first["boxes"] * big, second["boxes"] * big) > nms
        return overlap if agnostic else overlap & (first["labels"][:, None] == second["labels"])

    assert not rivals(left, left).fill_diagonal_(False).any()
    better = left["scores"] >= everything["scores"][:, None] - 1e-6  # rounding
    assert (rivals(everything, left) & better).any(1).all()


# --- through engine and pipeline


@pytest.fixture(scope="module")
def shipped() -> tuple:
    return demo_model(), demo_processor(), load_demo_image()


PAIRS = ["cross", "yellow cross", "fish", "circle"]
ASKED = {"cross": ["cross", "yellow cross"], "fish": "fish", "round": ["circle", "ring"]}


def grounded(shipped, text, **options):
    model, processor, image = shipped
    engine = GroundingEngine(model, processor, GroundingOptions(workers=1, **options))
    (result,) = engine.ground([Request(image, text)])
    return result.detections[0]


@pytest.mark.parametrize("text", [PAIRS, ASKED])
@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.2},
        {"threshold": {"fish": 0.5, None: 0.1}},
        {"threshold": 0.1, "class_agnostic_nms": True, "features": True},
        {"threshold": {"fish": 0.5, None: 0.1}, "class_agnostic_nms": True, "max_detections": 2},
    ],
)
def test_the_engine_is_the_processor(shipped, text, options) -> None:
    model, processor, image = shipped
    inputs = processor(images=image, text=text, return_tensors="pt")
    states = {"output_hidden_states": [-1]} if options.get("features") else {}
    with torch.inference_mode():
        outputs = model(**inputs, **states)
    expected = processor.post_process_grounded_object_detection(outputs, inputs, **options)[0]
    result = grounded(shipped, text, **options)
    assert result.pop("text_labels") == expected.pop("text_labels") != []
    assert result.keys() == expected.keys() and alike(result, expected)
    chunked = grounded(shipped, text, chunk_size=1, **options)
    assert set(chunked["text_labels"]) <= set(text)


def test_views_keep_what_belongs_to_a_detection(shipped) -> None:
    result = grounded(shipped, PAIRS, flip=True, features=True, class_agnostic_nms=True, threshold={None: 0.2})
    count = len(result["scores"])
    assert count and len(result["features"]) == count and "locations" not in result
    overlaps = box_iou(result["boxes"], result["boxes"]).fill_diagonal_(0)
    assert (overlaps <= 0.6).all()


def test_a_threshold_of_no_name_is_told(shipped) -> None:
    with pytest.warns(UserWarning, match="threshold has 'fsh'.*did you mean 'fish'"):
        grounded(shipped, PAIRS, threshold={"fsh": 0.5})


def test_text_of_a_label_without_its_name_is_that_of_all_its_prompts(shipped) -> None:
    """Of the first alone it would be wrong for what another prompt found."""
    model, processor, image = shipped
    inputs = processor(images=image, text={"thing": ["fish", "yellow cross"]}, return_tensors="pt")
    with torch.inference_mode():
        result = processor.post_process_grounded_object_detection(model(**inputs), inputs["input_ids"])[0]
    assert set(result["text_labels"]) == {"fish|yellow cross"}


@pytest.mark.parametrize(
    ("options", "words"),
    [({"size": 100}, "size=100.*size is a dictionary"), ({"scales": 600}, "scales=600.*scales a list of sides")],
)
def test_sizes_of_another_form_are_named(options, words) -> None:
    with pytest.raises(TypeError, match=words):
        GroundingOptions(**options)


def test_what_is_no_image_is_named(shipped) -> None:
    model, processor, image = shipped
    with pytest.raises(ValueError, match="is not an image: give a path, a URL, bytes"):
        list(GroundingEngine(model, processor).ground([Request([image, image], ["fish"])]))


def test_order_of_prompts_counts(shipped) -> None:
    model, processor, _ = shipped
    engine = GroundingEngine(model, processor)
    assert engine.encode({"a": ["fish"], "b": ["cross"]}).text_labels == [["a", "b"]]
    assert engine.encode({"b": ["cross"], "a": ["fish"]}).text_labels == [["b", "a"]]


def test_pipeline(shipped) -> None:
    model, processor, image = shipped
    detector = GlipZeroShotObjectDetectionPipeline(model=model, processor=processor)
    options = {"threshold": {"fish": 0.5, None: 0.2}, "class_agnostic_nms": True}
    found = detector(image, candidate_labels=ASKED, features=True, **options)
    expected = grounded(shipped, ASKED, **options)
    assert [one["label"] for one in found] == expected["text_labels"] != []
    assert [one["location"] for one in found] == expected["locations"].tolist()
    assert {len(one["feature"]) for one in found} == {model.config.d_model}
    plain = detector(image, candidate_labels=ASKED, **options)
    assert plain == [{key: one[key] for key in ("score", "label", "box")} for one in found]
    assert detector([image, image], candidate_labels=[ASKED, PAIRS], **options)[0] == plain
    with pytest.raises(ValueError, match="did you mean 'fish'"):
        detector(image, candidate_labels=PAIRS, threshold={"fsh": 0.5})


def test_command(shipped, tmp_path, capsys) -> None:
    path = tmp_path / "photo.png"
    shipped[2].save(path)
    line = ["ground", str(path), "--names", "cross=cross|yellow cross", "fish", "--model", "demo", "--json"]
    options = ["--threshold", "0.2", "--threshold", "fish=0.5", "--class-agnostic-nms", "--features"]
    assert main([*line, *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["names"] == ["cross", "fish"] and document["prompts"]["cross"] == ["cross", "yellow cross"]
    found = document["photos"][0]["detections"]
    thresholds = {"fish": 0.5, None: 0.2}
    text = {"cross": ["cross", "yellow cross"], "fish": ["fish"]}
    expected = grounded(shipped, text, threshold=thresholds, class_agnostic_nms=True)
    assert [one["text_label"] for one in found] == expected["text_labels"] != []
    assert all(len(one["features"]) == shipped[0].config.d_model for one in found)
    assert main([*line, "--threshold", "fsh=0.5"]) == 2
    assert "did you mean 'fish'" in capsys.readouterr().err
    assert main([*line[:-1], "--features"]) == 2
    assert "--features are written with --json" in capsys.readouterr().err
    assert main([*line[:3], "cross=", "--model", "demo"]) == 2
    assert "write prompts of a class name as helmet=hard hat|safety helmet" in capsys.readouterr().err
    for value in ("fish=2", "fish="):
        with pytest.raises(SystemExit):
            main([*line, "--threshold", value])


def test_names_with_signs_of_their_own_keep_their_meaning() -> None:
    assert read_prompts(["E=mc2 poster", "black|white"]) is None
    assert read_prompts(["E=mc2 poster", "helmet=hard hat|cap", "a|b"]) == {
        "E=mc2 poster": ["E=mc2 poster"],
        "helmet": ["hard hat", "cap"],
        "a|b": ["a|b"],
    }


def test_requests_that_are_none_and_texts_of_other_types() -> None:
    engine, photo = GroundingEngine(demo_model(), demo_processor()), load_demo_image()
    with pytest.raises(TypeError, match="is not a Request: give Request"):
        list(engine.ground([photo]))
    with pytest.raises(TypeError, match="text is a set: give a caption"):
        list(engine.ground([Request(photo, {"cat"})]))
    listed, array = (
        next(engine.ground([Request(photo, "a fish and a heart", phrases)])).detections[0]["text_labels"]
        for phrases in (["fish"], np.array(["fish"]))
    )
    assert listed == array and set(listed) == {"fish"}
