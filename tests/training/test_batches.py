"""What a recipe's `data` section means: mixtures by copies and by weight, streams, limits, broken images."""

import itertools
from pathlib import Path

import pytest
import torch
from random_glip import random_config, random_processor
from training.coco_images import write_rectangles

from glip_hf.data import GroundingDataset, StreamingBatches, TooManyBrokenImages
from glip_hf.data.scenes import make_scene
from glip_hf.demo import demo_processor, scenes_config
from glip_hf.training.batches import build_dataset, recipe_batches
from glip_hf.training.recipe import RecipeError, load_recipe

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIP_DATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # seconds, at the end of every epoch


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    write_rectangles(tmp_path / "photos")
    return tmp_path / "photos"


def recipe(sources: str, *overrides: str, root: Path):
    given = [f"data.sources={sources}", f"data.root={root}", "data.batch_size=2", "data.workers=0"]
    return load_recipe(None, [*given, "data.short_sides=[64]", "data.long_side=96", *overrides])


def made(*arguments, rank: int = 0, processes: int = 1, config=None, **options):
    return recipe_batches(recipe(*arguments, **options), random_processor(), config or random_config(), rank, processes)


COCO = "{format: coco, annotations: annotations.json, images: .%s}"


def test_weights_share_out_an_epoch(photos: Path) -> None:
    first, second = (COCO % f", name: {name}, weight: {weight}" for name, weight in (("a", 3), ("b", 1)))
    whole = recipe(f"[{first}, {second}]", "data.epoch_samples=40", root=photos)
    dataset = build_dataset(whole, random_processor(), random_config())
    assert dataset.mixture.lengths == [30, 10]
    copies = recipe(f"[{COCO % ', copies: 2'}]", root=photos)
    assert len(build_dataset(copies, random_processor(), random_config())) % 2 == 0


def test_captions_obey_the_models_length(photos: Path) -> None:
    config = random_config()
    config.max_text_length = 8
    batches = made(f"[{COCO % ', captions: sampled'}]", root=photos, config=config)
    assert isinstance(batches.dataset, GroundingDataset)
    for batch in itertools.islice(batches.batches(0), 4):
        assert batch["input_ids"].shape[1] <= 8 and len(batch["sample_ids"]) == 2


def test_a_prompt_table_has_one_caption(photos: Path) -> None:
    made(f"[{COCO % ''}, {COCO % ', name: again'}]", "tuning.mode=prompt", root=photos)
    for sources in (f"[{COCO % ', captions: sampled'}]", f"[{COCO % ''}, {{format: scenes, length: 4}}]", "[]"):
        with pytest.raises(RecipeError, match="tuning.mode=prompt: a prompt table belongs to one caption"):
            made(sources, "tuning.mode=prompt", root=photos)
    write_stream(photos)
    with pytest.raises(RecipeError, match="tuning.mode=prompt: a prompt table belongs to one caption"):
        made(streamed(photos), "tuning.mode=prompt", "schedule.max_steps=5", root=photos)


def test_greenlight_map_comes_with_the_models_loss(photos: Path) -> None:
    config = random_config()
    assert "greenlight_map" not in next(made(f"[{COCO % ''}]", root=photos, config=config).batches(0))["labels"][0]
    config.mlm_loss_weight = 1.0
    assert "greenlight_map" in next(made(f"[{COCO % ''}]", root=photos, config=config).batches(0))["labels"][0]


def write_stream(folder: Path, count: int = 8, broken: tuple[int, ...] = ()) -> None:
    image = next(path for path in folder.iterdir() if path.suffix in (".png", ".jpg")).read_bytes()
    things = [{"bbox": [2.0, 2.0, 20.0, 20.0], "tokens_positive": [[0, 5]]}]
    rows = [
        {
            "image": {"bytes": b"broken" if number in broken else image, "path": None},
            "image_id": f"p{number}",
            "caption": "a cat on a sofa",
            "objects": things,
        }
        for number in range(count)
    ]
    for part in range(2):
        datasets.Dataset.from_list(rows[part::2]).to_parquet(folder / f"part{part}.parquet")


def streamed(folder: Path) -> str:
    return f"[{{format: hub, streaming: true, name: pairs, dataset: parquet, data_files: {folder}/part*.parquet}}]"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_where_it_was(photos: Path, workers: int) -> None:
    write_stream(photos)
    options = ["schedule.max_steps=5", f"data.workers={workers}"]

    def names(start: int, count: int) -> list[list[str]]:
        batches = made(streamed(photos), *options, root=photos)
        assert isinstance(batches.dataset, StreamingBatches)
        return [batch["sample_ids"] for batch in itertools.islice(batches.batches(start), count)]

    whole = names(0, 6)
    assert {name.split()[0] for name in itertools.chain(*whole[:4])} == {f"pairs/p{i}" for i in range(8)}
    assert names(2, 4) == whole[2:]
    with pytest.raises(RecipeError, match="set schedule.max_steps"):
        made(streamed(photos), root=photos).steps_per_epoch()
    # as many workers as the stream has shards, not more
    assert made(streamed(photos), "schedule.max_steps=5", "data.workers=9", root=photos).workers == 2


@pytest.mark.parametrize("streaming", ["true", "false"])
@pytest.mark.parametrize("flag", ["drop_empty", "allow_outside", "allow_urls"])
def test_text_is_not_true(photos: Path, flag: str, streaming: str) -> None:
    source = f"[{{format: hub, streaming: {streaming}, dataset: parquet, data_files: a.parquet, {flag}: 'no'}}]"
    with pytest.raises(ValueError, match=f"{flag}='no' must be true or false"):
        made(source, "schedule.max_steps=5", root=photos)


def test_processes_share_a_stream(photos: Path) -> None:
    write_stream(photos)
    parts = [made(streamed(photos), "schedule.max_steps=5", root=photos, rank=r, processes=2) for r in (0, 1)]
    seen = [name.split()[0] for part in parts for b in itertools.islice(part.batches(0), 4) for name in b["sample_ids"]]
    assert len(seen) == len(set(seen)) == 8


def test_broken_images_of_a_stream(photos: Path) -> None:
    write_stream(photos, broken=(1, 4))

    def read(*overrides: str) -> None:
        for _ in itertools.islice(
            made(streamed(photos), "schedule.max_steps=5", *overrides, root=photos).batches(0), 4
        ):
            pass

    read()
    with pytest.raises(ValueError, match="pairs: row"):
        read("data.on_broken=fail")
    with pytest.raises(TooManyBrokenImages, match="more than max_replaced=0"):
        read("data.max_broken=0")


# -- generated scenes ------------------------------------------------------------------------------


def scenes(*overrides: str, rank: int = 0, processes: int = 1):
    run = load_recipe(None, ["data.batch_size=4", "data.scenes=12", "data.workers=0", "run.seed=3", *overrides])
    return recipe_batches(run, demo_processor(), scenes_config(), rank, processes)


def test_scenes_are_samples_like_any_other() -> None:
    """The batch is what the processor makes of the same images, captions, spans and boxes."""
    processor, samples = demo_processor(), [make_scene("train", 3, index) for index in range(4, 8)]
    expected = processor(
        images=[sample.image for sample in samples],
        text=[sample.caption for sample in samples],
        spans=[[list(row) for row in sample.prompt.spans] for sample in samples],
        annotations=[sample.annotation() for sample in samples],
        size={"shortest_edge": 160},
        return_tensors="pt",
    )
    batch = next(scenes().batches(1))
    for name in ("pixel_values", "pixel_mask", "original_sizes", "input_ids", "attention_mask"):
        assert torch.equal(batch[name], expected[name]), name
    for ours, theirs in zip(batch["labels"], expected["labels"], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ("boxes", "positive_map"))


def test_scenes_do_not_depend_on_processes_workers_or_resumption() -> None:
    def read(start: int, count: int, **options) -> list[str]:
        made = scenes(f"data.workers={options.pop('workers', 0)}", **options)
        return [name for batch in itertools.islice(made.batches(start), count) for name in batch["sample_ids"]]

    whole = read(0, 3)
    assert [name.split()[0] for name in whole] == [f"scenes/{index}" for index in range(12)]
    assert read(1, 2) == whole[4:] and read(0, 3, workers=2) == whole
    first, second = (read(0, 3, rank=rank, processes=2) for rank in (0, 1))
    assert [name for i in (0, 2, 4) for name in first[i : i + 2] + second[i : i + 2]] == whole
    assert scenes().steps_per_epoch() == 3 and scenes("data.scenes=1").steps_per_epoch() == 1


def test_scenes_mix_with_other_sources(photos: Path) -> None:
    mixed = recipe(f"[{{format: scenes, length: 5, seed: 1}}, {COCO % ''}]", root=photos)
    dataset = build_dataset(mixed, random_processor(), random_config())
    assert dataset.mixture.lengths[0] == 5 and dataset.record(4).caption == make_scene("train", 1, 4).caption
    assert len(dataset.groups()) == len(dataset) and dataset[0]["original_size"] == (160, 160)
    with pytest.raises(ValueError, match="knows no 'lenght'.*'length'"):
        build_dataset(recipe("[{format: scenes, lenght: 5}]", root=photos), random_processor(), random_config())
