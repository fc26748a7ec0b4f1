# Copyright 2026 The glip_hf authors. MIT licence.
"""The stock pipeline on GLIP, and GLIP's own: the same numbers as model and processor by hand."""

import base64
import threading
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from packaging import version
from PIL import Image
from random_glip import PHOTO, load_photo, random_model, random_processor
from torch.utils.data import DataLoader, Dataset
from transformers import pipeline

from glip_hf import GlipProcessor, GlipZeroShotObjectDetectionPipeline
from glip_hf.inference import READER_THREAD as READER

NAMES = ["cat", "remote control", "sofa"]
CAPTION = "two cats on a pink sofa"
SIZE = {"shortest_edge": 96, "longest_edge": 160}


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def processor():
    made = random_processor()
    made.image_processor.size = SIZE
    return made


@pytest.fixture(scope="module")
def stock(model, processor, tmp_path_factory):
    directory = tmp_path_factory.mktemp("pipeline")
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return pipeline("zero-shot-object-detection", model=str(directory), device="cpu")


@pytest.fixture
def detector(model, processor):
    return GlipZeroShotObjectDetectionPipeline(model=model, processor=processor, device="cpu")


@pytest.fixture
def calls(model, monkeypatch) -> Counter:
    """How many pictures and captions were encoded, and how often the head ran."""
    counts: Counter = Counter()

    def counting(name: str):
        original = getattr(model.model, name)

        def wrapper(*args, **kwargs):
            first = args[0] if args else next(iter(kwargs.values()))
            counts[name] += len(first) if isinstance(first, torch.Tensor) else 1
            return original(*args, **kwargs)

        monkeypatch.setattr(model.model, name, wrapper)

    for name in ("get_image_features", "get_text_features", "forward"):
        counting(name)
    return counts


@pytest.fixture(scope="module")
def photo():
    return load_photo()


@pytest.fixture(scope="module")
def photos(photo):
    """Landscape, portrait and small: padded differently when they share a batch."""
    return [photo, photo.rotate(90, expand=True), photo.crop((100, 100, 300, 260))]


def by_hand(model, processor, images, text, threshold=0.1, options=None, **prompt):
    """Model and processor without pipeline, in the pipeline's form."""
    inputs = processor(images=images, text=text, return_tensors="pt", **prompt)
    with torch.inference_mode():
        outputs = model(**inputs)
    results = processor.post_process_grounded_object_detection(outputs, inputs, threshold=threshold, **(options or {}))
    keys = ("xmin", "ymin", "xmax", "ymax")
    return [
        [
            {"score": score.item(), "label": name, "box": dict(zip(keys, box.int().tolist()))}
            for score, name, box in zip(r["scores"], r["text_labels"], r["boxes"])
        ]
        for r in results
    ]


def assert_same(found: list[dict], expected: list[dict]) -> None:
    """Equal labels in order, scores to 1e-5 and boxes to a pixel (they are cut to whole ones)."""
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert all(abs(one["box"][side] - other["box"][side]) <= 1 for side in other["box"])


# -- the stock pipeline ------------------------------------------------------------------------------


def test_stock_asks_for_each_label_alone(stock, model, processor, photo) -> None:
    found = stock(photo, candidate_labels=NAMES, threshold=0.2)
    for name in NAMES:
        alone = by_hand(model, processor, photo, name, 0.2, phrases=[name])[0]
        assert_same([f for f in found if f["label"] == name], alone)
    scores = [f["score"] for f in found]
    assert scores == sorted(scores, reverse=True) and min(scores) > 0.2
    assert stock(photo, candidate_labels=NAMES, threshold=0.2, top_k=3) == found[:3]
    assert stock(photo, candidate_labels="cat,remote control,sofa", threshold=0.2) == found
    assert stock(photo, candidate_labels=NAMES, threshold=0.999) == []


@pytest.mark.skipif(
    version.parse(transformers.__version__) < version.parse("5.23"),
    reason="Transformers' own pipeline takes each label for a list of images before 5.23",
)
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_stock_takes_lists_and_batches(stock, photo, batch_size) -> None:
    other = photo.transpose(0)
    images = [photo, other, photo]
    found = stock(images, candidate_labels=NAMES, batch_size=batch_size)
    for results, image in zip(found, images):
        assert_same(results, stock(image, candidate_labels=NAMES))
    asked = [{"image": photo, "candidate_labels": ["cat"]}, {"image": other, "candidate_labels": NAMES}]
    found = stock(asked, batch_size=batch_size)
    assert_same(found[0], stock(photo, candidate_labels=["cat"]))
    assert_same(found[1], stock(other, candidate_labels=NAMES))


# -- GLIP's own ------------------------------------------------------------------------------------


def test_all_names_in_one_caption(detector, model, processor, photo) -> None:
    found = detector(photo, candidate_labels=NAMES)
    assert_same(found, by_hand(model, processor, photo, NAMES)[0])
    assert detector(photo, candidate_labels="cat, remote control ,sofa") == found
    assert detector(str(PHOTO), candidate_labels=NAMES) == found
    assert detector(PHOTO, candidate_labels=tuple(NAMES)) == found
    assert detector(np.asarray(photo), candidate_labels=NAMES) == found
    assert detector({"image": photo, "candidate_labels": NAMES}) == found
    assert set(found[0]) == {"score", "label", "box"}


def test_through_the_pipeline_function(stock, photo, detector) -> None:
    made = pipeline(
        "zero-shot-object-detection",
        model=stock.model.name_or_path,
        pipeline_class=GlipZeroShotObjectDetectionPipeline,
        device="cpu",
        threshold=0.3,
    )
    assert type(made) is GlipZeroShotObjectDetectionPipeline
    found = detector(photo, candidate_labels=NAMES, threshold=0.3)
    assert_same(made(photo, candidate_labels=NAMES), found)


def test_made_of_tokenizer_and_image_processor(model, processor, photo, detector) -> None:
    made = GlipZeroShotObjectDetectionPipeline(
        model=model,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
        device="cpu",
    )
    found = made(photo, candidate_labels=NAMES)
    assert found == detector(photo, candidate_labels=NAMES)
    with pytest.raises(ValueError, match="no processor"):
        GlipZeroShotObjectDetectionPipeline(model=model, device="cpu")


@pytest.mark.parametrize("chunk_size", [1, 2, None])
def test_chunks_are_merged_as_the_processor_does(detector, model, processor, photo, chunk_size) -> None:
    names = [*NAMES, "dog", "table"]
    options = {"max_detections": 7}
    expected = by_hand(model, processor, photo, names, options=options, chunk_size=chunk_size)[0]
    found = detector(photo, candidate_labels=names, chunk_size=chunk_size, **options)
    assert_same(found, expected)
    assert len(found) == 7


def test_options_reach_the_post_processing(detector, model, processor, photo) -> None:
    options = {
        "aggregation": "max",
        "nms_threshold": 0.2,
        "max_detections": 11,
        "score_threshold": 0.01,
    }
    prompt = {"prefix": "a ", "separator": " . ", "negative_names": ["dog"]}
    expected = by_hand(model, processor, photo, NAMES, 0.05, options, **prompt)[0]
    found = detector(photo, candidate_labels=NAMES, threshold=0.05, **options, **prompt)
    assert_same(found, expected)
    assert found != detector(photo, candidate_labels=NAMES)
    top = detector(photo, candidate_labels=NAMES, threshold=0.05, top_k=2, **options, **prompt)
    assert top == found[:2]


def test_vocabulary_of_any_size(detector, model, processor, photo, calls) -> None:
    names = [f"{colour} {thing}" for colour in ("red", "blue", "black") for thing in NAMES * 25]
    expected = by_hand(model, processor, photo, names)[0]
    calls.clear()
    assert_same(detector(photo, candidate_labels=names), expected)
    assert calls["get_image_features"] == 1
    assert calls["get_text_features"] == calls["forward"] > 1


def test_captions_and_phrases(detector, model, processor, photo) -> None:
    found = detector(photo, caption=CAPTION)
    assert_same(found, by_hand(model, processor, photo, CAPTION)[0])
    assert {f["label"] for f in found} <= {"two cats", "a pink sofa"}
    phrases = ["cats", ("sofa", 0)]
    found = detector(photo, caption=CAPTION, phrases=phrases)
    assert_same(found, by_hand(model, processor, photo, CAPTION, phrases=phrases)[0])
    assert detector([photo], caption=CAPTION, phrases=phrases) == [found]
    its = {"image": photo, "caption": CAPTION, "phrases": phrases}
    assert detector([its]) == [found]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batches_of_pictures_of_any_size(detector, model, processor, photos, batch_size) -> None:
    found = detector(photos, candidate_labels=NAMES, batch_size=batch_size)
    expected = []
    for start in range(0, len(photos), batch_size):
        expected += by_hand(model, processor, photos[start : start + batch_size], NAMES)
    assert len(found) == len(photos)
    for one, other in zip(found, expected):
        assert_same(one, other)


def test_each_picture_its_own_text(detector, photos) -> None:
    texts = [["cat"], ["sofa", "remote control"], ["cat"]]
    found = detector(photos, candidate_labels=texts)
    for one, photo, names in zip(found, photos, texts):
        assert_same(one, detector(photo, candidate_labels=names))
    together = detector([photos[0]] * 3, candidate_labels=texts, batch_size=3)
    assert_same(together[0], found[0])
    assert_same(together[1], detector(photos[0], candidate_labels=texts[1]))
    captions = [CAPTION, "a remote control", CAPTION]
    phrases = [["two cats"], None, ["pink sofa"]]
    found = detector(photos, caption=captions, phrases=phrases)
    for one, photo, caption, its in zip(found, photos, captions, phrases):
        assert_same(one, detector(photo, caption=caption, phrases=its))


def test_pictures_and_captions_are_encoded_once(detector, model, photos, calls) -> None:
    detector(photos, candidate_labels=NAMES, chunk_size=1, batch_size=2)
    assert calls["get_image_features"] == 3
    assert calls["get_text_features"] == 3  # one a name
    assert calls["forward"] == 6  # two batches, three captions


def test_text_features_kept_are_bounded(detector, photo, calls) -> None:
    """Within a call; between calls nothing is kept, as anything may happen to the model."""
    detector.max_kept_captions = 2
    names = [*NAMES, "dog"]
    detector([photo] * 3, candidate_labels=names, chunk_size=1)
    assert calls["get_text_features"] == 2 + 3 * 2  # the two beyond the limit for every batch
    calls.clear()
    each = [[NAMES[0]], [NAMES[1]], [NAMES[2]], [NAMES[2]], [NAMES[0]]]
    detector([photo] * 5, candidate_labels=each)
    assert calls["get_text_features"] == 4  # the first has gone when it is asked for again
    calls.clear()
    for _ in range(2):
        detector(photo, candidate_labels=NAMES)
    assert calls["get_text_features"] == 2


def test_new_weights_void_what_was_kept(processor, photo) -> None:
    model = random_model()
    detector = GlipZeroShotObjectDetectionPipeline(model=model, processor=processor, device="cpu")
    before = detector(photo, candidate_labels=NAMES)
    with torch.no_grad():
        model.model.text_model.encoder.layer[0].output.dense.weight.mul_(3)
    after = detector(photo, candidate_labels=NAMES)
    assert before != after
    assert_same(after, by_hand(model, processor, photo, NAMES)[0])


def in_place(model) -> None:
    model.model.text_model.encoder.layer[0].output.dense.weight.data.mul_(3)


def by_a_hook(model) -> None:
    model.model.text_model.encoder.register_forward_hook(lambda _, __, out: type(out)(out.last_hidden_state * 2))


@pytest.mark.parametrize("change", [in_place, by_a_hook])
def test_what_happens_to_the_model_between_calls_is_seen(processor, photo, change) -> None:
    model = random_model()
    detector = GlipZeroShotObjectDetectionPipeline(model=model, processor=processor, device="cpu")
    before = detector(photo, candidate_labels=NAMES)
    change(model)
    after = detector(photo, candidate_labels=NAMES)
    assert before != after
    assert_same(after, by_hand(model, processor, photo, NAMES)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_honoured(processor, photo, dtype) -> None:
    model = random_model().to(dtype)
    detector = GlipZeroShotObjectDetectionPipeline(model=model, processor=processor, device="cpu")
    assert detector.dtype is dtype
    found = detector(photo, candidate_labels=NAMES, threshold=0.2)
    expected = by_hand(random_model(), processor, photo, NAMES, 0.2)[0]
    assert found[0]["score"] == pytest.approx(expected[0]["score"], abs=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device_is_honoured(processor, photo) -> None:
    detector = GlipZeroShotObjectDetectionPipeline(model=random_model(), processor=processor, device="cuda")
    found = detector([photo, photo], candidate_labels=NAMES, chunk_size=2, batch_size=2)[1]
    assert detector.model.device.type == "cuda"
    expected = by_hand(random_model(), processor, photo, NAMES, chunk_size=2)[0]
    assert found[0]["score"] == pytest.approx(expected[0]["score"], abs=1e-3)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_for_a_gpu_come_in_pinned_memory(detector, monkeypatch, device) -> None:
    """No GPU needed: what the loader is asked for."""
    asked = []
    monkeypatch.setattr("glip_hf.pipeline.DataLoader", lambda *_, **options: asked.append(options) or [])
    detector.device = torch.device(device)
    assert list(detector.get_iterator([], 0, 1, {}, {}, {})) == []
    assert [options["pin_memory"] for options in asked] == [device == "cuda"]


class Photos(Dataset):
    def __init__(self, photos):
        self.photos = photos

    def __len__(self):
        return len(self.photos)

    def __getitem__(self, index):
        return self.photos[index]


def test_datasets_and_generators_come_one_by_one(detector, photos) -> None:
    expected = detector(photos, candidate_labels=NAMES)
    results = detector(Photos(photos), candidate_labels=NAMES)
    assert len(results) == 3 and next(results) == expected[0]
    assert list(results) == expected[1:]
    served = []

    def stream():
        for photo in photos:
            served.append(photo)
            yield photo

    results = detector(stream(), candidate_labels=NAMES)
    assert next(results) == expected[0] and len(served) < 3
    assert list(results) == expected[1:]
    dictionaries = ({"image": photo, "candidate_labels": ["cat"]} for photo in photos)
    found = list(detector(dictionaries, batch_size=2))
    assert [{f["label"] for f in one} for one in found] == [{"cat"}] * 3


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(READER)]


def test_the_next_batch_is_prepared_while_the_model_works(detector, photos, monkeypatch) -> None:
    """The first forward ends only when the second picture is being read; it would wait in vain otherwise."""
    reading, preprocess, forward = threading.Event(), detector.preprocess, detector._forward
    seen: list[int] = []

    def preparing(inputs, **options):
        seen.append(len(seen))
        if len(seen) == 2:
            reading.set()
        return preprocess(inputs, **options)

    def working(inputs, **options):
        assert reading.wait(60), "the second picture is not read before the first is done"
        return forward(inputs, **options)

    expected = [detector(photo, candidate_labels=NAMES) for photo in photos]
    monkeypatch.setattr(detector, "preprocess", preparing)
    monkeypatch.setattr(detector, "_forward", working)
    assert detector(photos, candidate_labels=NAMES) == expected
    assert not readers()


@pytest.mark.parametrize("method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_images_read_by_a_process(detector, photos, monkeypatch, method) -> None:
    """Without the model: its 301 tensors would be more than a fork server, Python 3.14's way, can be sent."""
    expected = detector(photos, candidate_labels=NAMES)
    loader = partial(DataLoader, multiprocessing_context=method)
    monkeypatch.setattr("glip_hf.pipeline.DataLoader", loader)
    assert detector(photos, candidate_labels=NAMES, num_workers=1) == expected


def test_pictures_that_fail_are_named_in_their_turn(detector, photos, tmp_path) -> None:
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"no picture")
    for bad, error in ((damaged, ValueError), (tmp_path / "gone.jpg", FileNotFoundError)):
        stream = (photo for photo in [photos[0], photos[1], str(bad), photos[2]])
        results = detector(stream, candidate_labels=NAMES)
        assert [len(next(results)) > 0 for _ in range(2)] == [True, True]
        with pytest.raises(error, match=bad.name):
            next(results)
        assert not readers()


def test_pictures_that_cannot_be_resized_are_named(detector, monkeypatch) -> None:
    def broken(*args, **kwargs):
        raise ValueError("no such size")

    monkeypatch.setattr(detector, "image_processor", broken)
    with pytest.raises(ValueError, match=r"photo\.jpg: no such size"):
        detector._collate([detector_item(PHOTO), detector_item(None)])
    with pytest.raises(ValueError, match="^no such size"):
        detector._collate([detector_item(None)])


def detector_item(name) -> dict:
    return {"image": None, "name": name and str(name), "text": "cat", "phrases": None}


@pytest.mark.parametrize("kind", ["list", "generator"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_broken_images_are_skipped_if_asked(detector, photo, tmp_path, caplog, kind, batch_size) -> None:
    photo.save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:2000])
    names = ["good.png", "cut.png", "none.png", "good.png"]
    images = [str(tmp_path / name) for name in names] + [Image.open(tmp_path / "cut.png"), photo]
    given = images if kind == "list" else (image for image in images)
    results = list(detector(given, candidate_labels=NAMES, on_broken="skip", batch_size=batch_size, threshold=0))
    (good,) = detector([photo], candidate_labels=NAMES, threshold=0)
    assert [result is None for result in results] == [False, True, True, False, True, False]
    assert len(results[0]) == len(results[3]) == len(results[5]) == len(good) > 0
    assert "cut.png" in caplog.text and "none.png" in caplog.text and caplog.text.count("It is skipped.") == 3
    assert detector(images[1], candidate_labels=NAMES, on_broken="skip") is None
    with pytest.raises(ValueError, match="cut.png"):
        list(detector(images[:2], candidate_labels=NAMES))
    with pytest.raises(ValueError, match="on_broken='maybe' must be 'fail' or 'skip'"):
        detector(photo, candidate_labels=NAMES, on_broken="maybe")


def test_results_that_nobody_takes_leave_no_thread(detector, photos) -> None:
    results = detector((photo for photo in photos), candidate_labels=NAMES)
    next(results)
    assert len(readers()) == 1
    del results
    assert not readers()


def test_through_the_pipeline_function_with_a_model_of_ones_own(model, processor, photo, detector) -> None:
    task, own = "zero-shot-object-detection", {"pipeline_class": GlipZeroShotObjectDetectionPipeline, "device": "cpu"}
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    expected = detector(photo, candidate_labels=NAMES)
    for given in (parts, {"processor": processor}, {"processor": processor, "tokenizer": processor.tokenizer}):
        assert pipeline(task, model=model, **given, **own)(photo, candidate_labels=NAMES) == expected
    with pytest.raises(ValueError, match="there is no processor: give a GlipProcessor"):
        pipeline(task, model=model, tokenizer=processor.tokenizer, **own)


def test_prompt_options_are_saved(model, processor, photo, tmp_path) -> None:
    prompted = GlipProcessor(processor.image_processor, processor.tokenizer, prompt_options={"suffix": " thing"})
    made = GlipZeroShotObjectDetectionPipeline(model=model, processor=prompted, device="cpu")
    made.save_pretrained(tmp_path)
    loaded = pipeline(
        "zero-shot-object-detection",
        model=str(tmp_path),
        pipeline_class=GlipZeroShotObjectDetectionPipeline,
        device="cpu",
    )
    assert loaded.processor.prompt_options == prompted.prompt_options
    found = loaded(photo, candidate_labels=NAMES)
    assert_same(found, made(photo, candidate_labels=NAMES))


def test_the_class_names_of_a_tuned_model_are_looked_for(model, processor, photo) -> None:
    """Where nothing else is asked for; without them the error stays."""
    tuned = GlipProcessor(processor.image_processor, processor.tokenizer, class_names=list(NAMES))
    detector = GlipZeroShotObjectDetectionPipeline(model=model, processor=tuned, device="cpu")
    assert_same(detector(photo), detector(photo, candidate_labels=NAMES))
    assert_same(detector([photo, {"image": photo, "caption": "a cat"}])[1], detector(photo, caption="a cat"))
    with pytest.raises(ValueError, match="either candidate_labels or a caption"):
        GlipZeroShotObjectDetectionPipeline(model=model, processor=processor, device="cpu")(photo)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": -1}, "top_k=-1 must not be negative"),
        ({"top_k": 2.5}, "top_k=2.5 must be one whole number"),
        ({"max_detections": -1}, "max_detections=-1 must not be negative"),
        ({"max_detections": None}, "max_detections=None must be one whole number"),
        ({"threshold": float("nan")}, "threshold=nan must be a number"),
        ({"threshold": [0.1, 0.2]}, r"threshold=\[0.1, 0.2\] must be one number"),
        ({"nms_threshold": float("nan")}, "nms_threshold=nan must be a number"),
        ({"box_threshold": 0.3}, "'box_threshold': here it is 'threshold'"),
    ],
)
def test_options_that_make_no_sense_stop_before_anything_runs(detector, photo, calls, options, words, many) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        detector([photo] if many else photo, candidate_labels=NAMES, **options)
    assert not calls


@pytest.mark.parametrize("option", ["top_k", "max_detections"])
def test_limits_of_zero_give_nothing(detector, photo, option) -> None:
    assert detector(photo, candidate_labels=NAMES, **{option: 0}) == []
    assert detector([photo], candidate_labels=NAMES, **{option: 0}) == [[]]


def test_images_as_base64(detector, photo) -> None:
    text = base64.b64encode(PHOTO.read_bytes()).decode()
    expected = detector(str(PHOTO), candidate_labels=NAMES)
    assert detector(text, candidate_labels=NAMES) == expected
    assert detector(f"data:image/jpeg;base64,{text}", candidate_labels=NAMES) == expected
    with pytest.raises(ValueError, match="Cannot read the image") as error:
        detector(text[: len(text) // 2], candidate_labels=NAMES)
    assert len(str(error.value)) < 400


def test_nothing_to_do(detector, photo) -> None:
    assert detector([], candidate_labels=NAMES) == []
    assert detector(photo, candidate_labels=NAMES, threshold=0.999) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "either candidate_labels or a caption"),
        ({"candidate_labels": ["cat"], "caption": "a cat"}, ValueError, "either"),
        ({"candidate_labels": ["cat"], "phrases": ["cat"]}, ValueError, "belong to a caption"),
        ({"candidate_labels": []}, ValueError, "empty"),
        ({"candidate_labels": " , "}, ValueError, "empty"),
        ({"candidate_labels": ["cat"], "treshold": 0.2}, TypeError, "treshold"),
        ({"candidate_labels": [["cat"], ["dog"]]}, ValueError, "2 entries for 1 images"),
        ({"caption": "a cat", "phrases": ["dog"]}, ValueError, "not in the caption"),
        ({"candidate_labels": ["cat"], "aggregation": "sum"}, ValueError, "sum"),
        ({"caption": "a cat", "phrases": "cat"}, TypeError, "phrases of text is 'cat': give a list"),
    ],
)
def test_wrong_use_says_so(detector, photo, arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        detector([photo], **arguments)


def test_texts_per_image_of_a_single_image(detector, photo) -> None:
    """Of more texts than images the results would be those of the first."""
    for several in ({"candidate_labels": [["cat"], ["dog"]]}, {"caption": ["a cat", "a dog"]}):
        with pytest.raises(ValueError, match="2 entries for 1 images: give one each"):
            detector(photo, **several)
    for stream in (Photos([photo, photo]), iter([photo, photo])):
        with pytest.raises(ValueError, match=r"have it give \{'image', 'candidate_labels'\}"):
            detector(stream, candidate_labels=[["cat"], ["dog"]])
    assert detector(photo, [["cat"]], threshold=0.0) == detector(photo, ["cat"], threshold=0.0)
    assert detector(photo, caption=["a cat"], threshold=0.0) == detector(photo, caption="a cat", threshold=0.0)


def test_misspelt_defaults_are_refused(detector) -> None:
    with pytest.raises(TypeError, match="'treshold': did you mean 'threshold'"):
        GlipZeroShotObjectDetectionPipeline(model=detector.model, processor=detector.processor, treshold=0.9)


def test_options_of_loading_are_none_of_the_pipeline(detector) -> None:
    """`transformers.pipeline` hands `local_files_only` on to the class."""
    own = {"processor": detector.processor, "pipeline_class": type(detector), "local_files_only": True}
    assert pipeline("zero-shot-object-detection", model=detector.model, **own).model is detector.model


def test_wrong_pictures_say_so(detector) -> None:
    with pytest.raises(FileNotFoundError):
        detector("nowhere.jpg", candidate_labels=NAMES)
    with pytest.raises(ValueError, match="'image' is missing"):
        detector({"picture": 1, "candidate_labels": NAMES})
    with pytest.raises(ValueError, match="'threshold', an option for all images: give it to the call"):
        detector({"image": PHOTO, "candidate_labels": NAMES, "threshold": 0.9})


@pytest.mark.parametrize("several", [np.zeros((2, 40, 40, 3), np.uint8), ["a.png", "b.png"], []])
def test_an_input_is_one_image(detector, photo, several, monkeypatch) -> None:
    """Of more than one the results would be those of the first, and go to other images of the batch."""
    monkeypatch.setattr(detector.image_processor, "fetch_images", lambda images: images)
    if isinstance(several, list):
        several = [photo for _ in several]
    with pytest.raises(ValueError, match=f"an input holds {len(several)} images: give all images in one flat list"):
        detector([several, photo], candidate_labels=NAMES, batch_size=2)
    assert_same(detector(np.asarray(photo)[None], candidate_labels=NAMES), detector(photo, candidate_labels=NAMES))


def test_class_names_and_images_of_any_iterable(detector, photo) -> None:
    expected = detector(photo, candidate_labels=NAMES)
    for names in (np.array(NAMES), iter(NAMES), dict.fromkeys(NAMES).keys()):
        assert_same(detector(photo, candidate_labels=names), expected)
    for images in (iter([photo, photo]), map(lambda image: image, [photo, photo])):
        found = list(detector(images, candidate_labels=NAMES))
        assert len(found) == 2
        assert_same(found[1], expected)


def test_threads_with_other_options_do_not_disturb_each_other(detector, photo) -> None:
    thresholds = (0.0, 0.9)
    alone = [len(detector(photo, candidate_labels=NAMES, threshold=threshold)) for threshold in thresholds]
    assert alone[0] > alone[1]
    found: list[set[int]] = [set(), set()]

    def ask(which: int) -> None:
        for _ in range(4):
            found[which].add(len(detector(photo, candidate_labels=NAMES, threshold=thresholds[which])))

    threads = [threading.Thread(target=ask, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{alone[0]}, {alone[1]}]


def test_a_replaced_model_is_the_one_that_runs(processor, photo) -> None:
    pipe = GlipZeroShotObjectDetectionPipeline(model=random_model(), processor=processor, device="cpu")
    before = pipe(photo, candidate_labels=NAMES, threshold=0.0)
    other = random_model()
    with torch.no_grad():
        other.head.bias0.add_(3)
    pipe.model = other
    expected = GlipZeroShotObjectDetectionPipeline(model=other, processor=processor, device="cpu")
    after = pipe(photo, candidate_labels=NAMES, threshold=0.0)
    assert after != before and after == expected(photo, candidate_labels=NAMES, threshold=0.0)
