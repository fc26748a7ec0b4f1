# Copyright 2026 The glip_hf authors. MIT licence.
"""The inference engine: one result however images, captions and pairs are grouped; nothing encoded twice."""

import copy
import json
import re
import threading
import time
import types
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_cases import NAMES, SIZES
from PIL import ExifTags, Image, ImageOps

from glip_hf.data.records import ImageRef
from glip_hf.evaluation.run import predictions
from glip_hf.evaluation.tasks import Sentence, Task, TaskImage, detection_task
from glip_hf.inference import (
    READER_THREAD,
    GroundingEngine,
    GroundingOptions,
    PairBudget,
    Request,
    make_views,
    pad_captions,
    unflip,
    vote,
)
from glip_hf.postprocess_glip import merge_detections

CHUNKS = [5, 40, None]


@pytest.fixture
def photo_of():
    return lambda width, height: Image.new("RGB", (width, height), (90, 120, 200))


@pytest.fixture(scope="module")
def task(image_folder):
    return detection_task("coco", image_folder / "annotations.json", image_folder)


@pytest.fixture(scope="module")
def detect(model, processor, task):
    def run(which=None, **options):
        options = {"threshold": 0.2, **options}
        found = list(predictions(GroundingEngine(model, processor, GroundingOptions(**options)), which or task))
        by_image = {prediction["image_id"]: prediction for prediction in found}
        assert len(by_image) == len(found), "an image came twice"
        return by_image

    return run


@pytest.fixture(scope="module")
def expected(detect):
    """Image by image, pair by pair, for each chunk size."""
    return {size: detect(chunk_size=size, batch_size=1, pairs=1) for size in CHUNKS}


@contextmanager
def counting(module):
    """How often, and with how many rows in all, a module runs."""
    rows = []

    def note(_, args, kwargs):
        value = args[0] if args else next(iter(kwargs.values()))
        rows.append(len(value))

    hook = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()


def assert_same(found, expected, tolerance=1e-4):
    assert set(found) == set(expected)
    for image_id, one in expected.items():
        other = found[image_id]
        assert one["scores"], "a test without detections shows nothing"
        assert other["scores"] == pytest.approx(one["scores"], abs=tolerance)
        # Detections of (almost) equal score may come in either order.
        ours, theirs = (sorted(zip(p["labels"], p["boxes"], p["scores"])) for p in (other, one))
        assert [label for label, _, _ in ours] == [label for label, _, _ in theirs]
        for (_, box, _), (_, wanted, _) in zip(ours, theirs):
            assert box == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize(("batch_size", "pairs"), [(3, None), (8, 4)])
def test_grouping_changes_nothing(detect, expected, chunk_size, batch_size, pairs):
    found = detect(chunk_size=chunk_size, batch_size=batch_size, pairs=pairs)
    assert_same(found, expected[chunk_size])


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_filled_up_captions_change_nothing(model, processor, detect, expected, chunk_size):
    """Captions of a multiple of 8 tokens each, for compiled models."""
    lengths = []

    def note(module, args, kwargs):
        lengths.append(kwargs["text_features"].last_hidden_state.shape[1])

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        assert_same(detect(chunk_size=chunk_size, batch_size=3, caption_multiple=8), expected[chunk_size])
    finally:
        hook.remove()
    assert lengths and not any(length % 8 for length in lengths)


def test_every_image_and_caption_is_encoded_once(model, processor, task):
    detector = GroundingEngine(model, processor, GroundingOptions(chunk_size=5, batch_size=2, pairs=4))
    with counting(model.model.backbone) as images, counting(model.model.text_model) as captions:
        found = list(predictions(detector, task))
    assert len(found) == len(SIZES) == sum(images)
    # One batch holds the two first of a shape; the others have shapes of their own but the fifth.
    assert max(images) == 2
    assert sum(captions) == 3  # 12 names in fives
    assert {label for p in found for label in p["labels"]} <= set(range(1, 13))


def test_chunks_merge_as_post_processing_does(model, processor, task, expected):
    """The driver against the processor's public way, all captions in one call."""
    image = Image.open(task.images[0].path)
    inputs = processor(images=image, text=NAMES, chunk_size=5, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    (result,) = processor.post_process_grounded_object_detection(outputs, inputs, threshold=0.2)
    mine = expected[5][task.images[0].image_id]
    assert mine["scores"] == pytest.approx(result["scores"].tolist(), abs=1e-4)
    assert sorted(mine["labels"]) == sorted((result["labels"] + 1).tolist())


def test_limits(detect):
    """A limit per caption, and one per image after merging."""
    options = {"chunk_size": 5, "max_detections": 3, "threshold": 0.0}
    chunks, merged = detect(**options, merged_limit=None), detect(**options, merged_limit=3)
    for image_id, prediction in chunks.items():
        assert 3 < len(prediction["scores"]) <= 9
        assert merged[image_id]["scores"] == prediction["scores"][:3]


def test_padding_on_request(detect, expected):
    """Every image is there, and its boxes lie inside it, though the results differ a little."""
    found = detect(batch_size=3, allow_padding=True)
    assert set(found) == set(expected[None])
    for (width, height), prediction in zip(SIZES, (found[10 + index] for index in range(len(SIZES)))):
        boxes = torch.tensor(prediction["boxes"])
        assert boxes.min() >= 0 and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height


def test_out_of_memory_halves_until_it_fits(model, processor, task, expected, monkeypatch):
    detector = GroundingEngine(model, processor, GroundingOptions(chunk_size=5, batch_size=8, pairs=8, threshold=0.2))
    forward, seen = type(model).forward, []

    def limited(self, *args, **kwargs):
        seen.append(len(kwargs["label_ids"]))
        if seen[-1] > 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", limited)
    found = {p["image_id"]: p for p in predictions(detector, task)}
    assert_same(found, expected[5])
    assert max(seen) > 2 and seen.count(max(seen)) == 1  # what did not fit is not tried again


def test_backbone_out_of_memory_splits_the_batch(model, processor, task, expected, monkeypatch):
    detector = GroundingEngine(model, processor, GroundingOptions(batch_size=8, threshold=0.2))
    encode = type(model).get_image_features

    def limited(self, pixels, mask, **options):
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return encode(self, pixels, mask, **options)

    monkeypatch.setattr(type(model), "get_image_features", limited)
    assert_same({p["image_id"]: p for p in predictions(detector, task)}, expected[None])


def test_other_errors_are_not_swallowed(model, processor, task, monkeypatch):
    def broken(self, **kwargs):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(type(model), "forward", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        list(predictions(GroundingEngine(model, processor), task))


def test_budget_grows_from_one_pair_to_what_fits():
    memory = {"used": 1000, "peak": 1000}

    def probe():
        return 100_000 - memory["used"], memory["peak"], memory["used"]

    budget, sizes = PairBudget(torch.device("cpu"), probe=probe), []
    for _ in range(7):
        size = budget.size(100)
        sizes.append(size)
        with budget.measured(size, 100):
            memory["peak"] = memory["used"] + size * 3000  # 3,000 bytes a pair of 100 locations
    assert sizes == [1, 2, 4, 8, 16, 26, 26]  # 0.8 * 99,000 / 3,000
    assert budget.size(200) == 13 and budget.size(100_000) == 1
    assert budget.halve(26, 100) == 13 and budget.size(100) == 13
    assert budget.halve(1, 100_000) == 0


def test_budget_of_a_cpu_is_one_pair():
    assert PairBudget(torch.device("cpu")).size(1000) == 1
    assert PairBudget(torch.device("cpu"), fixed=5).size(1000) == 5
    with pytest.raises(ValueError, match="pairs=0"):
        PairBudget(torch.device("cpu"), fixed=0)


# -- sentences -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentences(task):
    texts = [("a cat on a sofa", [[(0, 5)], [(9, 15)]]), ("a dog", [[(0, 5)]]), ("nothing", [])]
    images = []
    for index, image in enumerate(task.images):
        own = tuple(Sentence(n, text, spans) for n, (text, spans) in enumerate(texts[: index % 3]) if spans)
        images.append(TaskImage(image.image_id, image.path, own))
    return Task("flickr", images)


def test_sentences_of_each_image(detect, sentences):
    single = detect(sentences, threshold=0.0)
    batched = detect(sentences, threshold=0.0, batch_size=8, pairs=3)
    assert [len(single[10 + index]["sentences"]) for index in range(5)] == [0, 1, 2, 0, 1]
    for image_id, prediction in single.items():
        for one, other in zip(prediction["sentences"], batched[image_id]["sentences"], strict=True):
            assert one["sentence_id"] == other["sentence_id"]
            assert [len(boxes) for boxes in one["boxes"]] == [len(boxes) for boxes in other["boxes"]]
            assert all(boxes[-1] == [0, 0, 0, 0] for boxes in one["boxes"])
            for scores, others in zip(one["scores"], other["scores"]):
                assert scores == sorted(scores, reverse=True)
                assert scores == pytest.approx(others, abs=1e-4)


# -- several views ---------------------------------------------------------------------------------


def test_views():
    assert [(view.short_side, view.flip) for view in make_views()] == [(None, False)]
    views = make_views([64, 96], flip=True)
    assert [(view.short_side, view.flip) for view in views] == [(64, False), (64, True), (96, False), (96, True)]
    assert make_views([64, 96, 64]) == make_views([64, 96])  # an image waits for as many as there are


@pytest.mark.parametrize("options", [{}, {"scales": [64, 96], "flip": True}, {"tile": 48}])
def test_a_result_keeps_its_image_if_asked(model, processor, task, tmp_path, options):
    """Decoded, turned upright, and whole, whatever views of it the model was shown."""
    stored = Image.open(task.images[0].path).convert("RGB")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored.save(tmp_path / "turned.png", exif=exif)
    engine = GroundingEngine(model, processor, GroundingOptions(**options))
    kept, other = (Request(tmp_path / "turned.png", ["cat"], keep_image=keep) for keep in (True, False))
    kept, other = engine.ground([kept, other], in_order=True)
    assert other.image is None and kept.image.size == stored.size[::-1] == (kept.width, kept.height)
    assert np.array_equal(kept.image, stored.transpose(Image.Transpose.ROTATE_270))


def test_a_scale_given_twice_loses_no_image(model, processor, task):
    asked = [Request(image.path, task.names) for image in task.images[:2]]
    once, twice = (
        list(GroundingEngine(model, processor, GroundingOptions(scales=scales)).ground(asked))
        for scales in ([64], [64, 64])
    )
    assert [found.index for found in twice] == [0, 1]
    for one, other in zip(once, twice):
        assert torch.equal(one.detections[0]["boxes"], other.detections[0]["boxes"])


def test_mirrored_view_comes_back(model, processor, task, tmp_path):
    """A mirrored image seen mirrored is the image: same detections, mirrored."""
    plain = Image.open(task.images[0].path)
    ImageOps.mirror(plain).save(tmp_path / "mirrored.png")
    mirrored = Task("coco", [TaskImage(1, str(tmp_path / "mirrored.png"))], task.names, task.category_ids)
    options = GroundingOptions(threshold=0.2, vote_threshold=2.0)  # no voting: nothing overlaps that much
    detector = GroundingEngine(model, processor, options)
    detector.views = make_views(flip=True)[1:]
    (of_mirrored,) = predictions(detector, mirrored)
    (of_plain,) = predictions(GroundingEngine(model, processor, options), task.limited(1))
    assert of_mirrored["scores"] == pytest.approx(of_plain["scores"], abs=1e-4)
    for (x1, y1, x2, y2), wanted in zip(of_mirrored["boxes"], of_plain["boxes"]):
        assert [plain.width - 1 - x2, y1, plain.width - 1 - x1, y2] == pytest.approx(wanted, abs=0.01)


def test_scales_and_flip_together(detect, task):
    found = detect(task.limited(3), scales=(48, 64), flip=True, batch_size=3)
    assert all(len(p["scores"]) <= 100 and p["scores"] == sorted(p["scores"], reverse=True) for p in found.values())


def detections(*rows):
    scores, boxes, labels = zip(*rows)
    return {
        "scores": torch.tensor(scores),
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.tensor(labels),
    }


def test_vote_by_hand():
    found = vote(
        detections((0.2, [0, 0, 12, 9], 1), (0.6, [0, 0, 9, 9], 1), (0.5, [0, 0, 9, 9], 2), (0.4, [50, 50, 60, 60], 1)),
        threshold=0.6,
    )
    order = found["scores"].argsort(descending=True)
    assert found["scores"][order].tolist() == pytest.approx([0.6, 0.5, 0.4])
    assert found["boxes"][order][0].tolist() == pytest.approx([0, 0, (0.6 * 9 + 0.2 * 12) / 0.8, 9])
    assert found["labels"][order].tolist() == [1, 2, 1]


def test_join_keeps_ties_at_the_limit():
    parts = [detections((0.5, [0, 0, 1, 1], 1)), detections((0.5, [0, 0, 2, 2], 2), (0.7, [0, 0, 3, 3], 3))]
    found = merge_detections(parts, 2)
    assert found["labels"].tolist() == [3, 1, 2]
    empty = {name: value[:0] for name, value in found.items()}
    assert len(merge_detections([empty], 5)["scores"]) == len(vote(empty, 0.6)["scores"]) == 0


def test_unflip_by_hand():
    assert unflip(detections((1.0, [2, 3, 5, 7], 0)), 10)["boxes"].tolist() == [[4, 3, 7, 7]]


# -- words -----------------------------------------------------------------------------------------


def test_prompt_options_reach_the_caption(model, processor):
    plain = GroundingEngine(model, processor).encode(["cat", "dog"])
    options = GroundingOptions(prefix="a ", suffix=" here", negative_names=["sofa"], separator=" . ")
    full = GroundingEngine(model, processor, options).encode(["cat", "dog"])
    text = processor.tokenizer.decode(full[0].input_ids)
    assert text == "[CLS] a cat here. a dog here. sofa [SEP]"
    assert len(plain) == len(full) == 1
    assert len(plain[0].positive_map) == len(full[0].positive_map) == 2


def test_captions_hold_no_padding(model, processor):
    """Each is as long as it is; taken together they are padded to the longest."""
    captions = GroundingEngine(model, processor, GroundingOptions(chunk_size=2)).encode(
        ["cat", "dog", "remote control"]
    )
    first, second = captions
    longer, shorter = len(first.input_ids), len(second.input_ids)
    words = pad_captions([second, first, second])
    assert [len(caption.hidden) for caption in captions] == [longer, shorter]
    assert first.hidden.untyped_storage().nbytes() == 4 * (longer + shorter) * first.hidden.shape[1]
    assert words["text_features"].last_hidden_state.shape[:2] == (3, longer)
    assert words["text_features"].attention_mask.sum(1).tolist() == [shorter, longer, shorter]
    assert words["label_ids"].tolist() == [[2, -1], [0, 1], [2, -1]]
    assert words["positive_map"].sum((1, 2)).tolist() == [2, 2, 2]


def test_last_vocabulary_is_kept(model, processor, task):
    """BERT reads a vocabulary again after another one, other words around it, or new weights; not for a second run."""
    model = copy.deepcopy(model)  # its weights change
    detector = GroundingEngine(model, processor, GroundingOptions(chunk_size=5, threshold=0.2))
    with counting(model.model.text_model) as captions:
        first = list(predictions(detector, task.limited(1)))
        assert len(captions) == 3
        assert list(predictions(detector, task.limited(1))) == first
        assert len(captions) == 3
        detector.options.prefix = "a "
        assert list(predictions(detector, task.limited(1))) != first
        assert len(captions) == 6
        detector.options.prefix = None
        with torch.no_grad():
            model.model.text_model.encoder.layer[0].output.dense.weight.mul_(2)
        changed = list(predictions(detector, task.limited(1)))
        assert changed != first and len(captions) == 9
        detector.encode(["cat"])
        detector.encode(NAMES)
        assert len(captions) == 13


# -- reading ahead ---------------------------------------------------------------------------------


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith(READER_THREAD)]


def test_images_are_read_while_the_model_works(model, processor, task, monkeypatch):
    """The first forward ends only when the second image is ready; without reading ahead it would wait in vain."""
    ready, encode = threading.Event(), type(model).get_image_features
    show = GroundingEngine._show

    def showing(self, index, *job):
        shown = show(self, index, *job)
        if index == 1:
            ready.set()
        return shown

    def waiting(self, *args, **options):
        assert ready.wait(60), "the second image is not read before the first is done"
        return encode(self, *args, **options)

    monkeypatch.setattr(GroundingEngine, "_show", showing)
    monkeypatch.setattr(type(model), "get_image_features", waiting)
    found = list(predictions(GroundingEngine(model, processor, GroundingOptions(workers=1)), task.limited(2)))
    assert [one["image_id"] for one in found] == [10, 11]
    assert not readers()


def test_images_for_a_gpu_are_staged_by_the_readers(model, processor, task, monkeypatch):
    """In pinned memory, by a reading thread. No GPU needed: pinning is counted, the model's device pretended."""
    pinned, detector = [], GroundingEngine(model, processor)

    def pin(tensor):
        pinned.append(threading.current_thread().name)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    requests = [Request(image.path) for image in task.images]
    list(detector._load(requests))
    assert not pinned
    detector.model = types.SimpleNamespace(device=torch.device("cuda"))
    shown = list(detector._load(requests))
    assert len(pinned) == 2 * len(shown) and all(name.startswith(READER_THREAD) for name in pinned)


def test_order_is_that_of_the_images(model, processor, task, monkeypatch):
    """However long an image takes to read."""
    show = GroundingEngine._show

    def slow(self, index, *job):
        time.sleep(0.05 if index % 2 == 0 else 0)
        return show(self, index, *job)

    monkeypatch.setattr(GroundingEngine, "_show", slow)
    found = predictions(GroundingEngine(model, processor, GroundingOptions(workers=4)), task)
    assert [one["image_id"] for one in found] == [10, 11, 12, 13, 14]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_results_in_order_whatever_the_batches(model, processor, task, batch_size):
    """Also where an image cannot be read. As they come, those of a full batch are first."""
    paths = [image.path for image in task.images]  # the first, second and last are of one shape
    paths = [paths[0], paths[2], paths[1], "nowhere.jpg", paths[3], paths[4]]
    engine = GroundingEngine(model, processor, GroundingOptions(batch_size=batch_size))
    asked = [Request(path, ["cat"]) for path in paths]
    found = list(engine.ground(asked, skip_broken=True, in_order=True))
    assert [one.index for one in found] == list(range(6))
    assert [one.error is not None for one in found] == [False, False, False, True, False, False]
    as_they_come = [one.index for one in engine.ground(asked, skip_broken=True)]
    assert sorted(as_they_come) == list(range(6)) and (as_they_come == list(range(6))) == (batch_size == 1)
    next(engine.ground(asked, skip_broken=True, in_order=True))
    assert not readers()


def test_an_image_of_a_rare_shape_does_not_wait_for_ever(model, processor, photo_of):
    """Each result comes after at most 4 batches of later images."""
    requests = (Request(photo_of(40, 64) if turn else photo_of(64, 40), ["cat"]) for turn in range(14))
    engine = GroundingEngine(model, processor, GroundingOptions(batch_size=2, workers=1))
    order = [one.index for one in engine.ground(requests)]
    assert sorted(order) == list(range(14)) and order.index(0) <= 8


def test_an_image_that_cannot_be_read_is_named(model, processor, task, tmp_path):
    """Those before it are done, no thread is left behind."""
    paths = [tmp_path / "cut.jpg", tmp_path / "gone.jpg"]
    paths[0].write_bytes(b"\xff\xd8\xff\xe0")
    for path, error in zip(paths, (ValueError, FileNotFoundError)):
        damaged = Task("coco", [*task.images[:2], TaskImage(9, str(path)), *task.images[2:]], ["cat"], [1])
        done = []
        with pytest.raises(error, match=path.name):
            for one in predictions(GroundingEngine(model, processor), damaged):
                done.append(one["image_id"])
        assert done == [10, 11] and not readers()


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (ValueError("no such resize"), None, r"0\.png: no such resize"),
        (RuntimeError("no such resize"), RuntimeError, r"0\.png: no such resize"),
        (TypeError("no such option"), RuntimeError, r"0\.png: no such option"),
        (MemoryError("full"), MemoryError, "full"),
    ],
)
def test_only_what_cannot_be_read_is_a_broken_image(model, processor, task, monkeypatch, raised, expected, message):
    def broken(self, *args, **kwargs):
        raise raised

    monkeypatch.setattr(type(processor.image_processor), "__call__", broken)
    requests = [Request(image.path, ["cat"]) for image in task.images[:1]]
    if expected is None:
        (found,) = GroundingEngine(model, processor).ground(requests, skip_broken=True)
        assert re.search(message, str(found.error))
    else:
        with pytest.raises(expected, match=message):
            list(GroundingEngine(model, processor).ground(requests, skip_broken=True))


def test_inputs_stay_where_the_caller_has_them(model, processor, task):
    inputs = processor(images=task.images[0].path, text=["cat"], return_tensors="pt")
    data, before = inputs.data, dict(inputs)
    (found,) = GroundingEngine(model, processor).ground_inputs(inputs)
    assert inputs.data is data and all(inputs[name] is value for name, value in before.items())
    assert set(found["text_labels"]) <= {"cat"}


def test_a_run_that_is_given_up_leaves_no_thread(model, processor, task):
    found = predictions(GroundingEngine(model, processor), task)
    next(found)
    assert readers()
    found.close()
    assert not readers()


def test_images_of_every_kind(model, processor, task):
    """A path, encoded bytes, a PIL image, an array and a record's image are one image; no text is no detection."""
    path = Path(task.images[0].path)
    kinds = [str(path), path, path.read_bytes(), Image.open(path), np.asarray(Image.open(path)), ImageRef(str(path))]
    engine = GroundingEngine(model, processor, GroundingOptions(threshold=0.2))
    first, *others = engine.ground(Request(image, NAMES) for image in kinds)
    assert (first.width, first.height) == SIZES[0] and len(first.detections[0]["scores"])
    assert first.detections[0]["text_labels"] == [NAMES[label] for label in first.detections[0]["labels"]]
    for other in others:
        assert torch.equal(other.detections[0]["boxes"], first.detections[0]["boxes"])
    assert [one.detections for one in engine.ground([Request(path)])] == [[]]


def test_broken_images_can_be_skipped(model, processor, task):
    """In their turn, with the error; several captions of an image are answered apart."""
    good = Request(task.images[0].path, ["a cat", "a dog and a cup"], spans=[[(2, 5)], [(2, 5), (12, 15)]])
    options = GroundingOptions(threshold=0.2, batch_size=2, allow_padding=True)
    engine = GroundingEngine(model, processor, options)
    found = list(engine.ground([good, Request(b"not an image", ["cat"]), good], skip_broken=True))
    assert [one.index for one in found] == [0, 1, 2]
    assert [len(one.detections) for one in found] == [2, 0, 2]
    assert "is not an image" in str(found[1].error) and found[0].error is None
    with pytest.raises(ValueError, match="is not an image"):
        list(engine.ground([Request(b"not an image", ["cat"])]))


def test_options_are_checked():
    with pytest.raises(ValueError, match="batch_size=0"):
        GroundingOptions(batch_size=0)


def test_category_ids_not_places(detect, image_folder, tmp_path):
    document = json.loads((image_folder / "annotations.json").read_text())
    document["categories"] = [{"id": 70 - index, "name": name} for index, name in enumerate(NAMES)]
    task = detection_task("coco", document, image_folder)
    assert task.names == NAMES[::-1]
    labels = {label for p in detect(task.limited(2)).values() for label in p["labels"]}
    assert labels and labels <= set(range(59, 71))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"batch_size": 1.5}, "batch_size=1.5 must be one whole number"),
        ({"workers": -1}, "workers=-1 must be at least 1"),
        ({"pairs": 0}, "pairs=0 must be at least 1"),
        ({"max_detections": -1}, "max_detections=-1 must not be negative"),
        ({"merged_limit": -1}, "merged_limit=-1 must not be negative"),
        ({"threshold": float("nan")}, "threshold=nan must be a number"),
        ({"threshold": [0.1]}, "threshold=.* must be one number"),
        ({"nms_threshold": None}, "nms_threshold=None must be one number"),
        ({"vote_threshold": float("nan")}, "vote_threshold=nan must be a number"),
        ({"aggregation": "sum"}, "aggregation='sum' is not known"),
        ({"scales": (0,)}, "scales=0 must be at least 1"),
        ({"scales": (800, 100_000)}, "scales=100000: no memory holds such images, 10,000 is the largest scale"),
        ({"max_size": 0}, "max_size=0 must be at least 1"),
        ({"size": {"shortest_edge": -5}}, "size=-5 must be at least 1"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        GroundingOptions(**options)
