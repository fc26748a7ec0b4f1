"""Samples and batches: what the model is given, the same whoever makes it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from glip_hf import GlipImageProcessorPil
from glip_hf.data import (
    GroundingCollator,
    GroundingDataset,
    GroupedBatchSampler,
    ImageTransform,
    Mixture,
    NegativeSampling,
    SampleMaker,
    TooManyBrokenImages,
    build_mixture,
    build_source,
)
from glip_hf.data.columns import DamagedData
from tests.data.original_formats import SIZES, coco_content

pytest.importorskip("datasets")

SMALL = ImageTransform((32, 48), 80, 0.5)
PLAIN = ImageTransform((48,), 80, 0.0)


@pytest.fixture
def maker(tokenizer):
    return lambda **more: SampleMaker(tokenizer, GlipImageProcessorPil(), **({"transform": SMALL} | more))


@pytest.fixture
def coco(coco_set, tmp_path):
    return lambda **more: build_source(coco_set | more, cache_dir=tmp_path / "cache")


@pytest.fixture
def grounded(mdetr_set, tmp_path):
    return build_source(mdetr_set, cache_dir=tmp_path / "cache")


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        if isinstance(a[key], torch.Tensor):
            assert torch.equal(a[key], b[key]), key
        elif isinstance(a[key], np.ndarray):
            np.testing.assert_array_equal(a[key], b[key])
        elif isinstance(a[key], list) and a[key] and isinstance(a[key][0], dict):
            for x, y in zip(a[key], b[key], strict=True):
                same(x, y)
        else:
            assert a[key] == b[key], key


# -- mixture --------------------------------------------------------------------------------------------------------


def test_mixture_by_hand(coco, grounded):
    mixture = Mixture([coco(), grounded], [1, 3])  # 4 and 3 * 2 samples
    assert len(mixture) == 10
    assert [mixture.locate(0, i) for i in range(10)] == [
        (0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 0), (1, 1), (1, 0), (1, 1),
    ]  # fmt: skip
    assert mixture.groups().tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    with pytest.raises(IndexError, match="10 samples, 10 was asked"):
        mixture.locate(0, 10)


def test_mixture_of_shares(coco, grounded):
    mixture = Mixture([coco(), grounded], [0.5, 1.5], seed=1)
    assert len(mixture) == 2 + 3
    seen = {epoch: [mixture.locate(epoch, i) for i in range(5)] for epoch in range(6)}
    for epoch, places in seen.items():
        assert len(set(places[:2])) == 2 and {s for s, _ in places[:2]} == {0}
        assert places[2:4] == [(1, 0), (1, 1)]
        groups = [0, 1, 0, 1], [0, 1]
        assert mixture.groups(epoch).tolist() == [groups[s][row] for s, row in places]
    assert len({tuple(places) for places in seen.values()}) > 1
    again = Mixture([coco(), grounded], [0.5, 1.5], seed=1)
    assert [again.locate(3, i) for i in range(5)] == seen[3]
    weighted = Mixture.from_weights([coco(), grounded], [1, 3], 8)
    assert weighted.lengths == [2, 6]
    with pytest.raises(ValueError, match="positive number of copies"):
        Mixture([coco()], [0])
    with pytest.raises(ValueError, match="0.1 copies of 4 images are none in an epoch: give it a larger share"):
        Mixture([grounded, coco()], [1, 0.1])


def test_build_mixture(coco_set, mdetr_set, tmp_path):
    mixture = build_mixture([coco_set | {"copies": 2}, mdetr_set], cache_dir=tmp_path / "cache")
    assert mixture.lengths == [8, 2]
    mixture = build_mixture(
        [coco_set | {"weight": 1}, mdetr_set | {"weight": 1}], cache_dir=tmp_path / "cache", length=10
    )
    assert mixture.lengths == [5, 5]
    with pytest.raises(ValueError, match="every data set a weight"):
        build_mixture([coco_set | {"weight": 1}, mdetr_set], cache_dir=tmp_path / "cache", length=10)


# -- samples --------------------------------------------------------------------------------------------------------


def test_detection_sample_by_hand(coco, maker):
    sample = GroundingDataset(coco(), maker(transform=PLAIN))[0]
    # Image 0 is 40 x 30 and becomes 64 x 48; its boxes are (2, 3, 11, 14) a cat and (20, 5, 29.5, 24.25) a car.
    assert tuple(sample["pixel_values"].shape) == (3, 48, 64) and sample["original_size"] == (30, 40)
    np.testing.assert_allclose(sample["boxes"], np.float32([[2, 3, 11, 14], [20, 5, 29.5, 24.25]]) * 1.6, rtol=1e-6)
    # [CLS] cat . dog . car [SEP]
    assert len(sample["input_ids"]) == 7
    assert np.argwhere(sample["positive_map"]).tolist() == [[0, 1], [1, 5]]
    assert sample["info"] == {
        "source": "instances", "image_id": 10, "image": sample["info"]["image"], "epoch": 0, "index": 0, "replaced": []
    }  # fmt: skip
    assert sample["info"]["image"].endswith("photos/0.png")


def test_flipped_boxes_cover_the_same_pixels(coco_set, tmp_path, tokenizer):
    """A white rectangle on black, found again under the box after every resize and flip."""
    image = np.zeros((30, 40, 3), dtype=np.uint8)
    image[3:15, 2:12] = 255
    Image.fromarray(image).save(tmp_path / "photos" / "0.png")
    source = build_source(coco_set, cache_dir=tmp_path / "cache").select([0])
    transform = ImageTransform((60,), 80, vertical_flip=0.5)
    dataset = GroundingDataset(source, SampleMaker(tokenizer, GlipImageProcessorPil(), transform))
    turned = set()
    for epoch in range(12):
        sample = dataset[epoch, 0]
        rows, columns = np.nonzero((sample["pixel_values"][0] > 1).numpy())
        x1, y1, x2, y2 = sample["boxes"][0]
        np.testing.assert_allclose([columns.min(), rows.min()], [x1, y1], atol=1.01)
        np.testing.assert_allclose([columns.max(), rows.max()], [x2, y2], atol=1.01)
        turned.add((x1 > 30, y1 > 20))
    assert len(turned) == 4


def test_cropped_samples_keep_boxes_and_tokens_together(coco, grounded, maker):
    dataset, sizes = GroundingDataset(coco(), maker(transform=PLAIN, crop_side=24, color=0.1)), set()
    for epoch in range(12):
        sample = dataset[epoch, 0]
        assert tuple(sample["pixel_values"].shape) == (3, 24, 32)
        assert len(sample["boxes"]) == len(sample["positive_map"]) and (sample["boxes"] >= 0).all()
        assert (sample["boxes"] <= np.float32([31, 23, 31, 23])).all()
        same(sample, dataset[epoch, 0])
        sizes.add(len(sample["boxes"]))
    assert sizes == {1, 2}
    whole = GroundingDataset(grounded, maker(transform=PLAIN, crop_side=24))[0]  # its caption may name every part of it
    assert whole["pixel_values"].shape[1] == 48


def test_grounding_sample_and_greenlight(grounded, maker):
    sample = GroundingDataset(grounded, maker(transform=PLAIN, greenlight=True))[0]
    # [CLS] a cat next to two dogs on the sofa . a cat . [SEP]: spans "a cat" twice, "two dogs".
    assert np.argwhere(sample["positive_map"]).tolist() == [[0, 1], [0, 2], [0, 11], [0, 12], [1, 5], [1, 6]]
    assert sample["greenlight_map"].tolist() == [0] + [1] * 13 + [0]


def test_detection_greenlight_is_the_names_of_the_boxes(coco, maker):
    sample = GroundingDataset(coco(), maker(transform=PLAIN, greenlight=True))[0]
    assert sample["greenlight_map"].tolist() == [0, 1, 0, 0, 0, 1, 0]


def test_no_boxes(coco, maker):
    dataset = GroundingDataset(coco(drop_empty=False), maker())
    sample = dataset[5]
    assert sample["boxes"].shape == (0, 4) and sample["positive_map"].shape == (0, len(sample["input_ids"]))
    batch = GroundingCollator()([sample, dataset[0]])
    assert batch["labels"][0]["boxes"].shape == (0, 4) and batch["labels"][0]["positive_map"].shape[0] == 0


def test_captions_are_cut_at_the_limit_and_phrases_with_them(mdetr_set, tmp_path, maker):
    content = json.loads((tmp_path / "final_mixed.json").read_text())
    caption = "cat " * 300
    content["images"][0] |= {"caption": caption, "tokens_positive_eval": []}
    content["annotations"][0]["tokens_positive"] = [[0, 3], [1196, 1199]]
    content["annotations"][1]["tokens_positive"] = [[1196, 1199]]
    (tmp_path / "final_mixed.json").write_text(json.dumps(content))
    dataset = GroundingDataset(build_source(mdetr_set, cache_dir=tmp_path / "cache"), maker())
    sample = dataset[0]
    assert len(sample["input_ids"]) == 256
    assert np.argwhere(sample["positive_map"]).tolist() == [[0, 1]] and len(sample["boxes"]) == 2
    short = GroundingDataset(dataset.mixture, maker(max_text_length=10))[0]
    assert len(short["input_ids"]) == 10


def test_classes_that_found_no_room_go_with_their_boxes(coco, maker):
    sampling = NegativeSampling(max_tokens=3)  # room for one name
    dataset = GroundingDataset(coco(captions="sampled"), maker(sampling=sampling, transform=PLAIN))
    counts = {len(dataset[epoch, 0]["boxes"]) for epoch in range(20)}
    assert counts == {1}


def test_a_sample_depends_on_its_key_alone(coco, maker):
    one = GroundingDataset(coco(captions="sampled"), maker(), seed=5)
    two = GroundingDataset(coco(captions="sampled"), maker(), seed=5)
    keys = [(epoch, index) for epoch in range(3) for index in range(4)]
    forwards = {key: one[key] for key in keys}
    backwards = {key: two[key] for key in reversed(keys)}
    for key in keys:
        same(forwards[key], backwards[key])
    drawn = {(str(s["input_ids"]), s["pixel_values"].shape, float(s["boxes"].sum())) for s in forwards.values()}
    assert len(drawn) > 6
    assert len(list(two)) == len(two)
    two.set_epoch(2)
    same(two[1], forwards[2, 1])
    other = GroundingDataset(coco(captions="sampled"), maker(), seed=6)
    assert any(other[k]["input_ids"] != forwards[k]["input_ids"] for k in keys)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_resume_change_nothing(coco, grounded, maker, tokenizer, workers):
    mixture = Mixture([coco(captions="sampled"), grounded], [1, 2], seed=1)
    dataset = GroundingDataset(mixture, maker(), seed=1)
    collator = GroundingCollator(tokenizer.pad_token_id, with_info=True)

    def batches(start, stop, num_workers):
        sampler = GroupedBatchSampler(dataset.groups, 2, seed=1, num_batches=stop)
        sampler.advance(start)
        return list(DataLoader(dataset, batch_sampler=sampler, collate_fn=collator, num_workers=num_workers))

    expected = batches(0, 7, 0)
    for got, wanted in zip(batches(3, 7, workers), expected[3:], strict=True):
        same(got, wanted)


# -- batches --------------------------------------------------------------------------------------------------------


def test_batch(coco, grounded, maker):
    mixture = Mixture([coco(), grounded])
    dataset = GroundingDataset(mixture, maker(transform=PLAIN))
    samples = [dataset[0], dataset[4]]
    batch = GroundingCollator(with_info=True)(samples)
    assert batch["pixel_values"].shape == (2, 3, 64, 64) and batch["pixel_mask"].sum((1, 2)).tolist() == [48 * 64] * 2
    lengths = [len(s["input_ids"]) for s in samples]
    assert batch["input_ids"].shape == (2, max(lengths)) and batch["attention_mask"].sum(1).tolist() == lengths
    assert batch["original_sizes"].tolist() == [[30, 40], [30, 40]]
    for label, sample in zip(batch["labels"], samples, strict=True):
        assert label["positive_map"].shape == (len(sample["boxes"]), max(lengths))
        assert set(label["positive_map"].unique().tolist()) <= {0.0, 1.0}
        assert label["boxes"].dtype == label["positive_map"].dtype == torch.float32
    assert [i["source"] for i in batch["info"]] == ["instances", "final_mixed"]


def test_the_model_takes_it(coco, grounded, maker):
    from glip_hf import GlipConfig, GlipForGrounding

    config = GlipConfig(
        backbone_config={
            "model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4,
            "out_features": ["stage2", "stage3", "stage4"],
        },
        text_config={
            "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "vocab_size": 400,
        },
        d_model=16, num_blocks=1, fusion_hidden_size=16, fusion_heads=2,
    )  # fmt: skip
    model = GlipForGrounding(config)
    dataset = GroundingDataset(Mixture([coco(drop_empty=False), grounded]), maker())
    batch = GroundingCollator()([dataset[i] for i in (0, 5, 6)])
    output = model(**batch)
    assert torch.isfinite(output.loss) and output.loss > 0


# -- broken images ------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(coco, tmp_path):
    source = coco()
    (tmp_path / "photos" / "1.png").unlink()
    data = (tmp_path / "photos" / "2.png").read_bytes()
    (tmp_path / "photos" / "2.png").write_bytes(data[: len(data) // 2])
    return source


def test_broken_images_are_replaced_by_the_next_and_reported(damaged, maker, caplog):
    dataset = GroundingDataset(damaged, maker())
    sample = dataset[1]
    assert sample["info"]["index"] == 3 and dataset.num_replaced == 2
    assert "1.png" in sample["info"]["replaced"][0] and "2.png" in sample["info"]["replaced"][1]
    expected = GroundingDataset(damaged, maker())[3]
    expected["info"]["replaced"] = sample["info"]["replaced"]
    same(sample, expected)


def test_broken_images_fail_at_once_when_asked(damaged, maker):
    dataset = GroundingDataset(damaged, maker(), on_error="raise")
    with pytest.raises(FileNotFoundError, match=r"instances, sample 1: .*1\.png"):
        dataset[1]
    with pytest.raises(ValueError, match=r"2\.png"):
        dataset[2]
    with pytest.raises(ValueError, match="'raise' or 'replace'"):
        GroundingDataset(damaged, maker(), on_error="ignore")


def test_too_many_broken_images(damaged, maker):
    dataset = GroundingDataset(damaged, maker(), max_replaced=1)
    with pytest.raises(TooManyBrokenImages, match=r"2 images .* more than max_replaced=1.*2\.png"):
        dataset[1]


def test_replacements_are_counted_over_workers(damaged, maker):
    dataset = GroundingDataset(damaged, maker())
    loader = DataLoader(dataset, batch_sampler=[[(0, 1)], [(0, 2)]], collate_fn=list, num_workers=2)
    assert [s["info"]["index"] for batch in loader for s in batch] == [3, 3]
    assert dataset.num_replaced == 3


def test_nothing_can_be_read(coco, maker, tmp_path):
    source = coco()
    for path in (tmp_path / "photos").iterdir():
        path.unlink()
    with pytest.raises(TooManyBrokenImages, match="No image of the whole mixture"):
        GroundingDataset(source, maker())[0]


def test_two_sets_of_one_name(coco, maker, tmp_path, coco_set):
    content = coco_content()
    content["categories"][0]["name"] = "bus"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "instances.json").write_text(json.dumps(content))
    other = coco(annotations=str(tmp_path / "b" / "instances.json"))
    with pytest.raises(ValueError, match="called 'instances': rename one"):
        GroundingDataset([coco(), other], maker())
    assert len(SIZES) == 6


def test_damaged_sources_are_refused(coco_set, mdetr_set, tmp_path):
    content = json.loads(Path(coco_set["annotations"]).read_text())
    damaged, empty = tmp_path / "damaged.json", tmp_path / "empty.json"
    damaged.write_text(json.dumps(content | {"annotations": [a | {"image_id": 0} for a in content["annotations"]]}))
    empty.write_text(json.dumps(content | {"annotations": []}))
    options = {"cache_dir": tmp_path / "cache"}
    spec = {"drop_empty": False, "annotations": str(damaged)}
    with pytest.raises(DamagedData, match=r"damaged\.json: .* 0 of 7 boxes are used; left out: 7 unknown_image"):
        build_mixture([mdetr_set, coco_set | spec], **options)
    negatives = coco_set | spec | {"annotations": str(empty)}
    assert len(build_mixture([mdetr_set, negatives], **options)) == 8  # images without any box are negatives
    with pytest.raises(DamagedData, match="no annotations"):
        build_mixture([negatives], **options)
