# Copyright 2026 The glip_hf authors. MIT licence.
"""Image and text features in place of pixels and ids: the same results, however often used."""

import pytest
import torch
from random_glip import load_photo, random_model, random_processor
from tiny import tiny_inputs, tiny_model

from glip_hf.outputs_glip import select

CAPTIONS = [["cat", "remote control"], ["sofa"], ["dog", "table", "window"]]
TOLERANCE = 1e-4  # on logits of some 10; other batch sizes sum in another order


@pytest.fixture(scope="module", params=[True, False], ids=["fusion", "no fusion"])
def model(request):
    model = random_model()
    if not request.param:
        config = model.config
        config.use_fusion = False
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = type(model)(config).eval()
    return model


@pytest.fixture(scope="module")
def processor():
    made = random_processor()
    made.image_processor.size = {"shortest_edge": 96, "longest_edge": 160}
    return made


@pytest.fixture(scope="module")
def images():
    photo = load_photo()
    return [photo, photo.transpose(0), photo.crop((0, 0, 320, 240))]


def text_only(inputs) -> dict:
    keys = ("input_ids", "attention_mask", "token_type_ids")
    return {key: inputs[key] for key in keys}


def rest(inputs) -> dict:
    keys = ("positive_map", "label_ids", "original_sizes")
    return {key: inputs[key] for key in keys if key in inputs}


def assert_same(outputs, expected) -> None:
    assert outputs.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(outputs[key], value, rtol=0, atol=TOLERANCE)


@torch.inference_mode()
def test_features_equal_pixels_and_ids(model, processor, images) -> None:
    inputs = processor(images=images, text=CAPTIONS, return_tensors="pt")
    expected = model(**inputs)
    image_features = model.get_image_features(inputs["pixel_values"], inputs["pixel_mask"])
    text_features = model.get_text_features(**text_only(inputs))
    pixels = {key: inputs[key] for key in ("pixel_values", "pixel_mask")}
    both = {"image_features": image_features, "text_features": text_features}
    assert_same(model(**both, **rest(inputs)), expected)
    assert_same(model(image_features=image_features, **text_only(inputs), **rest(inputs)), expected)
    assert_same(model(text_features=text_features, **pixels, **rest(inputs)), expected)
    base = model.model(**text_only(inputs), **pixels)
    assert_same(model.model(**both), base)


@torch.inference_mode()
def test_one_image_for_many_captions(model, processor, images) -> None:
    pixels = processor(images=images[0], return_tensors="pt")
    features = model.get_image_features(pixels["pixel_values"], pixels["pixel_mask"])
    words = processor(text=CAPTIONS, return_tensors="pt")
    several = model(image_features=features, **text_only(words), positive_map=words["positive_map"])
    assert several.image_indices.tolist() == [0, 0, 0]
    for index, names in enumerate(CAPTIONS):
        inputs = processor(images=images[0], text=names, return_tensors="pt")
        alone = model(**inputs)
        length = inputs["input_ids"].shape[1]
        torch.testing.assert_close(several.logits[index, :, :length], alone.logits[0], rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(several.pred_boxes[index], alone.pred_boxes[0], rtol=0, atol=TOLERANCE)
        assert_same(model(image_features=features, **text_only(inputs), **rest(inputs)), alone)


@torch.inference_mode()
def test_one_caption_for_many_images(model, processor, images) -> None:
    words = processor(text=CAPTIONS[0], return_tensors="pt")
    features = model.get_text_features(**text_only(words))
    pixels = processor(images=images, return_tensors="pt")
    maps = {key: words[key] for key in ("positive_map", "label_ids")}
    together = model(text_features=features, **pixels, **maps)
    expected = model(**processor(images=images, text=CAPTIONS[0], return_tensors="pt"))
    for key in ("logits", "pred_boxes", "centerness_logits", "image_sizes", "original_sizes"):
        torch.testing.assert_close(together[key], expected[key], rtol=0, atol=TOLERANCE)
    found = processor.post_process_grounded_object_detection(together, words, 0.2, text_labels=CAPTIONS[0])
    assert len(found) == 3
    for image in images:
        inputs = processor(images=image, text=CAPTIONS[0], return_tensors="pt")
        own = {key: inputs[key] for key in ("pixel_values", "pixel_mask")}
        assert_same(model(text_features=features, **own, **rest(inputs)), model(**inputs))


@torch.inference_mode()
def test_pairs_by_index(model, processor, images) -> None:
    """Captions 0 and 2 on image 1, caption 1 on image 0."""
    inputs = processor(images=images[:2], return_tensors="pt")
    features = model.get_image_features(inputs["pixel_values"], inputs["pixel_mask"])
    words = processor(text=CAPTIONS, return_tensors="pt")
    indices = torch.tensor([1, 0, 1])
    outputs = model(image_features=features, image_indices=indices, **text_only(words))
    for caption, image in enumerate(indices.tolist()):
        one = {key: value[caption : caption + 1] for key, value in text_only(words).items()}
        pixels = {key: inputs[key][image : image + 1] for key in ("pixel_values", "pixel_mask")}
        alone = model(**pixels, **one)
        torch.testing.assert_close(outputs.logits[caption], alone.logits[0], rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(outputs.pred_boxes[caption], alone.pred_boxes[0], rtol=0, atol=TOLERANCE)


@torch.inference_mode()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attentions_of_the_backbone_follow_their_image(implementation) -> None:
    model = tiny_model()
    model.set_attn_implementation(implementation)
    inputs = tiny_inputs(2, 4)
    features = model.get_image_features(inputs["pixel_values"], output_attentions=True)
    chosen = select(features, torch.tensor([1, 0, 1]))
    single = select(features, torch.tensor([1]))
    for whole, some, one in zip(features.attentions, chosen.attentions, single.attentions):
        if implementation == "sdpa":
            assert whole is some is one is None
        else:
            assert torch.equal(some[: len(one)], one) and torch.equal(one, whole[len(whole) // 2 :])
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    indices = torch.tensor([0, 0, 1, 1])
    assert len(model(image_features=features, image_indices=indices, **text).logits) == 4
