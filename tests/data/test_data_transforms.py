"""Resizing and flipping of images and boxes, against the original's numbers."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from glip_hf import GlipImageProcessorPil
from glip_hf.data.transforms import (
    ImageTransform,
    box_areas,
    flip_boxes,
    jitter_colors,
    random_crop,
    stack_padded,
)
from glip_hf.image_processing_pil_glip import clip_and_drop, resize_boxes


def test_no_boxes():
    none = np.zeros((0, 4), dtype=np.float32)
    assert flip_boxes(none, 10).shape == resize_boxes(none, (1, 1), (2, 2)).shape == (0, 4)
    clipped, keep = clip_and_drop(none, 5, 5)
    assert clipped.shape == (0, 4) and keep.shape == (0,)


def test_boxes_by_hand():
    boxes = np.float32([[0, 0, 9, 9], [5, 2, 7, 8]])  # in an image 20 wide, 10 high
    np.testing.assert_array_equal(flip_boxes(boxes, 20), [[10, 0, 19, 9], [12, 2, 14, 8]])
    np.testing.assert_array_equal(flip_boxes(flip_boxes(boxes, 20), 20), boxes)
    np.testing.assert_array_equal(flip_boxes(boxes, 10, axis=-2), [[0, 0, 9, 9], [5, 1, 7, 7]])
    np.testing.assert_array_equal(resize_boxes(boxes, (10, 20), (20, 60)), [[0, 0, 27, 18], [15, 4, 21, 16]])
    np.testing.assert_array_equal(box_areas(boxes), [100, 21])
    outside = np.float32([[-5, -5, 3, 4], [18, 2, 30, 40], [25, 3, 30, 5], [4, 4, 4, 8]])
    clipped, keep = clip_and_drop(outside, 10, 20)
    np.testing.assert_array_equal(keep, [True, True, False, False])
    np.testing.assert_array_equal(clipped[keep], [[0, 0, 3, 4], [18, 2, 19, 9]])


def test_boxes_of_the_original(shared):
    for case in json.loads((shared / "data" / "transforms" / "boxlist_ops.json").read_text()):
        (width, height), boxes = case["size_wh"], np.float32(case["boxes"])
        new_width, new_height = case["resize_to_wh"]
        np.testing.assert_allclose(flip_boxes(boxes, width), case["flipped"], rtol=1e-5, atol=1e-4)
        resized = resize_boxes(boxes, (height, width), (new_height, new_width))
        np.testing.assert_allclose(resized, case["resized"], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(box_areas(boxes), case["area_xyxy"], rtol=1e-4)
        clipped, keep = clip_and_drop(boxes - np.float32(20), height, width)
        expected = case["clipped_after_shift_minus20"]
        np.testing.assert_allclose(clipped[keep], expected, rtol=1e-5, atol=1e-4)


def photo(width, height):
    ramp = np.add.outer(np.arange(height) * 2, np.arange(width) * 3) % 256
    return Image.fromarray(np.stack([ramp, 255 - ramp, ramp // 2], axis=-1).astype(np.uint8))


def test_sizes_of_the_original_at_every_scale(shared):
    processor = GlipImageProcessorPil()
    rows = json.loads((shared / "data" / "transforms" / "resize_sizes.json").read_text())["rows"]
    for width, height, short, longest, new_width, new_height in rows[::9]:
        transform = ImageTransform((short,), longest, flip=0)
        pixels, size, flipped = transform(photo(width, height), processor, np.random.default_rng(0))
        assert tuple(pixels.shape) == (3, new_height, new_width) and size == (height, width) and not flipped


def test_flip_is_of_the_resized_image_and_scales_are_all_used():
    processor, image = GlipImageProcessorPil(), photo(60, 40)
    plain, _, _ = ImageTransform((48,), 100, flip=0)(image, processor, np.random.default_rng(0))
    turned, _, flipped = ImageTransform((48,), 100, flip=1)(image, processor, np.random.default_rng(0))
    assert flipped == (-1,) and torch.equal(turned, plain.flip(-1))
    upend = ImageTransform((48,), 100, flip=0, vertical_flip=1)
    upended, _, flipped = upend(image, processor, np.random.default_rng(0))
    assert flipped == (-2,) and torch.equal(upended, plain.flip(-2))
    expected = processor(images=image, size={"shortest_edge": 48, "longest_edge": 100}, return_tensors="pt")
    assert torch.equal(plain, expected["pixel_values"][0][:, : plain.shape[1], : plain.shape[2]])

    transform, seen = ImageTransform((32, 48, 64), 200), []
    for seed in range(60):
        pixels, _, flipped = transform(image, processor, np.random.default_rng(seed))
        seen.append((pixels.shape[1], bool(flipped)))
    assert set(seen) == {(side, flip) for side in (32, 48, 64) for flip in (False, True)}


def test_a_crop_shows_its_boxes_where_they_are():
    """A white rectangle is found again under its box in every crop, and boxes that a crop hardly shows are left out."""
    pixels = torch.zeros(3, 60, 90)
    pixels[:, 20:40, 30:60] = 1
    boxes = np.float32([[30, 20, 59, 39], [0, 0, 4, 4], [80, 50, 89, 59]])
    seen = []
    for seed in range(40):
        part, moved, visible = random_crop(pixels, boxes, 30, np.random.default_rng(seed))
        assert part.shape == (3, 30, 45)
        rows, columns = (part[0] > 0).nonzero(as_tuple=True)
        if visible[0]:
            assert moved[0].tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]
            assert len(rows) >= 0.3 * 600
        elif visible.any():
            assert len(rows) < 0.3 * 600
        seen.append(tuple(visible))
    assert {True, False} == {row[0] for row in seen} and sum(any(row) for row in seen) > 36
    whole, same, visible = random_crop(pixels, boxes, 60, np.random.default_rng(0))
    assert torch.equal(whole, pixels) and (same == boxes).all() and visible.all()
    assert len(random_crop(pixels, boxes[:0], 30, np.random.default_rng(0))[1]) == 0


def test_colors_change_within_their_strength():
    pixels = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(jitter_colors(pixels, 0.0, np.random.default_rng(0)), pixels, atol=1e-6)
    shifts = [jitter_colors(pixels, 0.2, np.random.default_rng(seed)) - pixels for seed in range(20)]
    assert max(shift.mean().abs() for shift in shifts) <= 0.2 and min(shift.abs().max() for shift in shifts) > 0.01


def test_stack_padded():
    pixels, mask = stack_padded([torch.ones(3, 2, 5), torch.ones(3, 4, 1)], (4, 6))
    assert pixels.shape == (2, 3, 4, 6) and pixels.sum() == 3 * (10 + 4) and mask.dtype == torch.int64
    assert mask.sum((1, 2)).tolist() == [10, 4] and torch.equal(pixels[:, 0] != 0, mask == 1)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="sizes are pixels"):
        ImageTransform(())
    with pytest.raises(ValueError, match="probabilities"):
        ImageTransform(flip=2)
    with pytest.raises(ValueError, match="probabilities"):
        ImageTransform(vertical_flip=-0.5)
    assert ImageTransform.evaluation() == ImageTransform([800], 1333, 0.0)
