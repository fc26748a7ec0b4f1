# Copyright 2026 The glip_hf authors. MIT licence.
"""End to end, predictions are the same at any batch size and on any number of processes, for each chunk size.

Once on the small model that the package ships, once at full size. Another chunk size is another question, as in the
original: a name stands among others then, and BERT and the fusion read the caption as a whole.
"""

import pytest
from parity.harness import build_model
from scene_sets import (
    CHUNKS,
    IDS,
    NAMES,
    assert_each_once,
    assert_same_predictions,
    command,
    image_sizes,
    in_processes,
    launch,
    stored,
    write_scenes,
)

from glip_hf import GlipImageProcessorPil, GlipProcessor
from glip_hf.demo import demo_model, demo_processor
from glip_hf.evaluation.run import predict, predictions
from glip_hf.evaluation.tasks import detection_task, flickr_task
from glip_hf.inference import GroundingEngine, GroundingOptions

IDENTITY = {"model": "small", "data": "scenes"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def task(scenes):
    return detection_task("coco", scenes / "annotations.json", scenes)


@pytest.fixture(scope="module")
def detector():
    """Makes a detector of the shipped small model; a low threshold, so that there is much to compare."""
    model, processor = demo_model(), demo_processor(shortest_edge=96)
    return lambda **options: GroundingEngine(model, processor, GroundingOptions(score_threshold=0.01, **options))


@pytest.fixture(scope="module")
def single(detector, task):
    """Image by image and pair by pair, for each chunk size."""
    return {size: list(predictions(detector(chunk_size=size, batch_size=1, pairs=1), task)) for size in CHUNKS}


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize(("batch_size", "pairs"), [(3, None), (8, 5)])
def test_batch_size(detector, task, scenes, single, chunk_size, batch_size, pairs):
    found = list(predictions(detector(chunk_size=chunk_size, batch_size=batch_size, pairs=pairs), task))
    assert [one["image_id"] for one in found] != IDS  # grouped by shape indeed
    assert_same_predictions(found, single[chunk_size], image_sizes(scenes))


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_two_processes(detector, task, scenes, single, chunk_size, tmp_path):
    def run():
        return len(list(predict(detector(chunk_size=chunk_size, batch_size=3), task, tmp_path, IDENTITY).own()))

    assert in_processes(2, run) == [4, 3]
    assert_each_once(tmp_path, IDS, 2)
    found = [one for share in stored(tmp_path) for one in share]
    assert_same_predictions(found, single[chunk_size], image_sizes(scenes))


@pytest.mark.parametrize("benchmark", ["coco", "flickr"])
def test_batch_size_with_several_views(detector, scenes, task, benchmark):
    """Sizes and mirrored images, joined by voting, of a vocabulary and of sentences."""
    sentences = scenes / "final_flickr_separateGT_test.json"
    asked = task if benchmark == "coco" else flickr_task(sentences, scenes)
    views = {"scales": (96, 128), "flip": True, "chunk_size": 20}
    alone = list(predictions(detector(**views), asked))
    together = list(predictions(detector(**views, batch_size=3, pairs=4, workers=3), asked))
    assert_same_predictions(together, alone, image_sizes(scenes))


def test_another_chunk_size_is_another_question(detector, single):
    """In numbers: the same name scores differently among 4 and among 45 others. One caption is one, however asked."""
    assert [len(detector(chunk_size=size).encode(NAMES)) for size in (*CHUNKS, 200)] == [10, 2, 1, 1]
    best = [{one["image_id"]: max(one["scores"]) for one in single[size]} for size in (5, None)]
    assert max(abs(best[0][image_id] - best[1][image_id]) for image_id in IDS) > 1e-3


# -- full size -------------------------------------------------------------------------------------

NUM_IMAGES = 4


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """GLIP-T with the weights of the recorded cases and images of 256 pixels, and its folder."""
    model = build_model("glip_tiny_model_o365_goldg", 0)
    images = GlipImageProcessorPil(size={"shortest_edge": 256, "longest_edge": 427})
    processor = GlipProcessor(images, demo_processor().tokenizer)
    folder = tmp_path_factory.mktemp("full_size")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor, folder


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_full_size(full_size, task, scenes, chunk_size, tmp_path):
    """Batch 1, 3 and 8 in one process; then two processes of `accelerate launch examples/evaluate.py`."""
    model, processor, folder = full_size
    few, sizes = task.limited(NUM_IMAGES), image_sizes(scenes)

    def run(batch_size, pairs):
        detector = GroundingEngine(
            model, processor, GroundingOptions(chunk_size=chunk_size, batch_size=batch_size, pairs=pairs)
        )
        return list(predictions(detector, few))

    one_by_one = run(1, 1)
    for batch_size, pairs in ((3, 1), (8, 4)):
        assert_same_predictions(run(batch_size, pairs), one_by_one, sizes)
    more = ["--limit", f"{NUM_IMAGES}", "--batch-size", "3"]
    more += [] if chunk_size is None else ["--chunk-size", f"{chunk_size}"]
    launch(2, command("coco", scenes, str(folder), tmp_path, *more))
    assert_each_once(tmp_path, IDS[:NUM_IMAGES], 2)
    assert_same_predictions([one for share in stored(tmp_path) for one in share], one_by_one, sizes)
