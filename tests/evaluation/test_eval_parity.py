# Copyright 2026 The glip_hf authors. MIT licence.
"""The driver reproduces recorded detections of the original: alone, as a chunk of a vocabulary, in a padded batch."""

import json

import pytest
import torch
from eval_cases import FIXTURES
from parity.harness import build_model, load_case, match_detections
from transformers import BertTokenizer

from glip_hf import GlipImageProcessorPil, GlipProcessor
from glip_hf.evaluation.run import predictions
from glip_hf.evaluation.tasks import Sentence, Task, TaskImage
from glip_hf.inference import GroundingEngine, GroundingOptions

OTHERS = ["zebra", "traffic light", "wine glass", "skis", "oven", "kite"]  # names of a second caption


@pytest.fixture
def vocab(shared):
    return shared / "data" / "tokenizer" / "vocab.txt"


def prepare(name, root, vocab):
    """A recorded case, its model and processor, and its images: file, original and resized (height, width)."""
    case = load_case(name, root)
    about = case.description
    size = {"shortest_edge": about["input"]["min_size"], "longest_edge": about["input"]["max_size"]}
    processor = GlipProcessor(GlipImageProcessorPil(size=size), BertTokenizer(str(vocab)))
    photos = about["images"] if "images" in about else [{**about, "file": about["image"]}]
    return case, build_model(case.architecture, about["weights_seed"]), processor, photos


def task_image(number, photo, *sentences):
    return TaskImage(number, str(FIXTURES / "images" / photo["file"]), sentences)


def assert_recorded(found, case, prefix, photo, score_tolerance, share):
    """Found detections (`boxes`, `scores`, `labels` from 1) against those recorded under `prefix`.

    The original's boxes are in pixels of the resized image.
    """
    (height, width), (new_height, new_width) = photo["original_size_hw"], photo["resized_size_hw"]
    scale = torch.tensor([new_width / width, new_height / height] * 2)
    ours = {key: torch.tensor(found[key]) for key in ("boxes", "scores", "labels")}
    ours["boxes"] = ours["boxes"] * scale
    recorded = {key: case.tensors[f"{prefix}.{key}"] for key in ("boxes", "scores", "labels")}
    missed, surplus, _ = match_detections(ours, recorded, score_tolerance)
    allowed = (1 - share) * len(recorded["labels"])
    assert missed <= allowed and surplus <= allowed, f"{missed} of {len(recorded['labels'])} missed, {surplus} more"


def check(name, root, vocab, aggregation, score_tolerance, share, chunked):
    """One caption alone, or as the first of two of a vocabulary that begins with its names."""
    case, model, processor, (photo,) = prepare(name, root, vocab)
    classes = case.description["classes"]
    names = classes[0] if isinstance(classes[0], list) else classes
    options = GroundingOptions(aggregation=aggregation)
    vocabulary = names
    if chunked:
        vocabulary = [*names, *OTHERS[: len(names)]]
        options = GroundingOptions(aggregation=aggregation, chunk_size=len(names), merged_limit=None, pairs=2)
    task = Task("recorded", [task_image(0, photo)], vocabulary, list(range(1, len(vocabulary) + 1)))
    detector = GroundingEngine(model, processor, options)
    assert len(detector.encode(vocabulary)) == 1 + chunked
    (found,) = predictions(detector, task)
    own = [row for row, label in enumerate(found["labels"]) if label <= len(names)]
    assert chunked or len(own) == len(found["labels"])
    found = {key: [found[key][row] for row in own] for key in ("boxes", "scores", "labels")}
    prefix = next(
        f"det.{path}.{aggregation.upper()}{image}"
        for path in ("plain", "mdetr")
        for image in (".img0", "")
        if f"det.{path}.{aggregation.upper()}{image}.boxes" in case.tensors
    )
    assert_recorded(found, case, prefix, photo, score_tolerance, share)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("aggregation", ["mean", "max", "power"])
@pytest.mark.parametrize("name", ["b1", "b1_no_fusion"])
def test_small_case(vocab, name, aggregation, chunked):
    check(f"small_inference/{name}", FIXTURES / "parity", vocab, aggregation, 1e-4, 1.0, chunked)


@pytest.mark.parametrize("aggregation", ["mean", "max", "power"])
def test_small_case_in_a_padded_batch(vocab, aggregation):
    """Two images of different sizes, each with its own caption, in one pass as the original ran them."""
    case, model, processor, photos = prepare("small_inference/b2", FIXTURES / "parity", vocab)
    images = []
    for number, (photo, caption, names) in enumerate(
        zip(photos, case.description["captions"], case.description["classes"])
    ):
        begins = [caption.index(name) for name in names]
        spans = [[(begin, begin + len(name))] for begin, name in zip(begins, names)]
        images.append(task_image(number, photo, Sentence(0, caption, spans)))
    options = GroundingOptions(aggregation=aggregation, batch_size=2, pairs=2, allow_padding=True)
    results = {
        one["image_id"]: one["sentences"][0]
        for one in predictions(GroundingEngine(model, processor, options), Task("b2", images))
    }
    for number, prefix in enumerate(("det", "det_map1")):  # the second map belongs to the second image
        found = {"boxes": [], "scores": [], "labels": []}
        for label, (boxes, scores) in enumerate(zip(results[number]["boxes"], results[number]["scores"]), start=1):
            found["boxes"] += boxes[: len(scores)]  # without the zero box at the end
            found["scores"] += scores
            found["labels"] += [label] * len(scores)
        path = f"{prefix}.mdetr.{aggregation.upper()}.img{number}"
        assert_recorded(found, case, path, photos[number], 1e-4, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "chunked"),
    [
        ("glip_t_goldg_short", False),
        ("glip_t_goldg_short", True),
        ("glip_t_goldg_coco80", False),
        ("glip_t_goldg_coco80", True),
        ("glip_t_a_coco80", False),
    ],
)
def test_full_size_case(shared, vocab, name, chunked):
    """COCO's 80 names in one caption at 800 x 1066, among others; and as the first chunk of 86 names."""
    check(f"full/{name}", shared / "parity", vocab, "mean", 1e-4, 0.99, chunked)


@pytest.mark.parametrize("file", ["lvis_v1_chunk40.json", "objects365_v2_chunk40.json", "coco80_one_query.json"])
def test_recorded_captions(shared, vocab, file):
    """The driver asks what the original asks: every caption of a vocabulary, and the tokens of every name."""
    case = json.loads((shared / "data" / "captions" / file).read_text())
    model = build_model("small", 0)
    processor = GlipProcessor(GlipImageProcessorPil(), BertTokenizer(str(vocab)))
    chunk_size = None if case["chunk_size"] < 0 else case["chunk_size"]
    captions = GroundingEngine(model, processor, GroundingOptions(chunk_size=chunk_size)).encode(case["class_names"])
    assert len(captions) == case["num_queries"]
    for caption, query in zip(captions, case["queries"], strict=True):
        assert len(caption.input_ids) == int(query["num_tokens_untruncated"]) == len(caption.hidden)
        ids = processor.tokenizer(query["query"])["input_ids"]
        assert caption.input_ids.tolist() == ids
        labels = [str(case["class_ids"][label]) for label in caption.label_ids.tolist()]
        tokens = [tokens.nonzero().flatten().tolist() for tokens in caption.positive_map]
        assert dict(zip(labels, tokens)) == query["label_to_token"]
