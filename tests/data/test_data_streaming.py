"""Streamed batches: every image once an epoch, whoever reads it; broken ones replaced; resumed exactly."""

import itertools
from functools import partial

import pytest

from glip_hf import GlipImageProcessorPil
from glip_hf.data import (
    GroundingCollator,
    HubStream,
    ImageTransform,
    SampleMaker,
    StreamingBatches,
    TooManyBrokenImages,
)
from glip_hf.data.sources import read_hub
from tests.data.original_formats import encoded_image

datasets = pytest.importorskip("datasets")


def generate(broken, sizes, numbers):
    for i in itertools.chain(*numbers):
        data = encoded_image(40 + i, 30, (i, 0, 0)) if i not in broken else b"broken"
        yield {
            "image": {"bytes": data, "path": None}, "image_id": i, "width": 40 + i if sizes else None, "height": 30,
            "caption": "a cat and two dogs", "objects": [{"bbox": [1.0, 2, 20, 20], "phrase": "two dogs"}],
        }  # fmt: skip


def stream(count=12, shards=4, broken=(), sizes=True):
    numbers = [list(range(shard, count, shards)) for shard in range(shards)]
    phrase = {"bbox": datasets.List(datasets.Value("float32")), "phrase": datasets.Value("string")}
    features = datasets.Features(
        {
            "image": datasets.Image(), "image_id": datasets.Value("int64"), "width": datasets.Value("int64"),
            "height": datasets.Value("int64"), "caption": datasets.Value("string"), "objects": datasets.List(phrase),
        }
    )  # fmt: skip
    made = datasets.IterableDataset.from_generator(
        partial(generate, broken, sizes), gen_kwargs={"numbers": numbers}, features=features
    )
    return HubStream(made, "streamed")


@pytest.fixture
def batches(tokenizer):
    maker = SampleMaker(tokenizer, GlipImageProcessorPil(), ImageTransform((32, 48), 80))

    def make(source, batch_size=2, **options):
        return StreamingBatches(source, maker, GroundingCollator(with_info=True), batch_size, **options)

    return make


def ids(made, count):
    return [[info["image_id"] for info in batch["info"]] for batch in itertools.islice(iter(made), count)]


def test_every_image_once_an_epoch_in_new_orders(batches):
    got = ids(batches(stream(), shuffle_buffer=4), 12)
    assert sorted(itertools.chain(*got[:6])) == sorted(itertools.chain(*got[6:])) == list(range(12))
    assert got[:6] != got[6:] and got == ids(batches(stream(), shuffle_buffer=4), 12)


def test_processes_share_the_stream(batches):
    parts = [ids(batches(stream(), rank=rank, world_size=2), 3) for rank in range(2)]
    assert sorted(itertools.chain(*parts[0], *parts[1])) == list(range(12))


def test_a_sample_is_the_same_for_one_process_and_two(batches):
    def samples(made, count):
        return {
            info["image_id"]: (tuple(label["boxes"].flatten().tolist()))
            for batch in itertools.islice(iter(made), count)
            for info, label in zip(batch["info"], batch["labels"], strict=True)
        }

    one = samples(batches(stream()), 6)
    two = samples(batches(stream(), rank=0, world_size=2), 3) | samples(batches(stream(), rank=1, world_size=2), 3)
    assert one == two and len(one) == 12


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_equals_uninterrupted(batches, workers):
    def read(skip, count):
        made = batches(stream(), shuffle_buffer=4, skip_batches=skip)
        batches_read = itertools.islice(made.loader(workers), count)
        return [[info["image_id"] for info in batch["info"]] for batch in batches_read]

    whole = read(0, 10)
    assert read(3, 7) == whole[3:] and read(8, 2) == whole[8:]


def test_broken_images(batches):
    made = batches(stream(broken={1, 4}), batch_size=4, shuffle_buffer=0)
    seen = [info for batch in itertools.islice(iter(made), 3) for info in batch["info"]]
    assert len(seen) == 12 and made.num_replaced == 2 and not {1, 4} & {info["image_id"] for info in seen}
    assert sum("streamed" in text for info in seen for text in info["replaced"]) >= 2
    with pytest.raises(ValueError, match="streamed, image"):
        ids(batches(stream(broken={1}), on_error="raise"), 6)
    with pytest.raises(TooManyBrokenImages, match="max_replaced=1"):
        ids(batches(stream(broken={1, 4}), batch_size=4, max_replaced=1), 3)


def test_a_batch_without_an_image_is_replaced_by_the_next(batches):
    def read(skip):
        return ids(batches(stream(broken={4, 8}), batch_size=1, shuffle_buffer=0, skip_batches=skip), 12 - skip)

    whole = read(0)  # the order is 0, 4, 8, 1, 5, ...
    assert whole[:5] == [[0], [1], [1], [1], [5]]
    assert read(1) == whole[1:] and read(2) == whole[2:] and read(3) == whole[3:]


def test_images_whose_size_cannot_be_read_are_reported_too(batches, caplog):
    made = batches(stream(broken={1, 4}, sizes=False), shuffle_buffer=0)
    assert not {1, 4} & set(itertools.chain(*ids(made, 5)))
    assert made.num_replaced == 2 and made.stream.dropped == {"broken_image": 2} and "streamed: row" in caplog.text
    with pytest.raises(ValueError, match="streamed: row"):
        ids(batches(stream(broken={1}, sizes=False), on_error="raise"), 6)
    with pytest.raises(TooManyBrokenImages, match="max_replaced=1"):
        ids(batches(stream(broken={1, 4}, sizes=False), max_replaced=1), 6)


def test_rows_without_an_image(batches, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded_image(40, 30))
    paths = [str(tmp_path / "a.png"), str(tmp_path / "missing.png"), None]
    rows = {
        "image": [{"bytes": None, "path": path} if path else None for path in paths],
        "width": [40] * 3,
        "height": [30] * 3,
        "objects": [[{"bbox": [0.0, 0, 20, 20], "category": 0}]] * 3,
    }
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    made = batches(HubStream(table.to_iterable_dataset(), "x", names=["cat"]), batch_size=1, shuffle_buffer=0)
    assert len(ids(made, 2)) == 2 and made.stream.dropped == {"broken_image": 2} == {"broken_image": made.num_replaced}
    with pytest.raises(ValueError, match="is a stream: read it with HubStream"):
        read_hub(table.to_iterable_dataset())


def test_too_many_workers_for_the_shards(batches):
    with pytest.raises(ValueError, match="has 1 shards for this process, not enough for 2 workers"):
        batches(stream(shards=1)).loader(2)


def test_names_are_needed_for_streamed_classes():
    rows = {
        "image": [{"bytes": encoded_image(4, 4), "path": None}],
        "objects": [[{"bbox": [0.0, 0, 3, 3], "category": 0}]],
    }
    made = datasets.Dataset.from_dict(rows).to_iterable_dataset()
    with pytest.raises(ValueError, match="needs names="):
        HubStream(made, "x")
    assert HubStream(made, "x", names=["cat"]).names == {1: "cat"}


def test_a_stream_of_nothing(batches):
    with pytest.raises(ValueError, match="nothing usable came from the stream for process 0 of 1"):
        ids(batches(stream(count=0, shards=1)), 1)
