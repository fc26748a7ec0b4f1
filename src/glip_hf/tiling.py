# Copyright 2026 The glip_hf authors. MIT licence.
"""Large images in tiles: where the tiles lie, and how their detections become those of the image.

Every tile shares a strip with its neighbours. An object that a tile border cuts is whole in the neighbour if it is
smaller than that strip, and in the view of the whole image if it is large; what is whole nowhere is put together from
its pieces. So each object comes out once.

Letters: K detections. Boxes are xyxy in pixels, both corners inside, as in `boxes_glip`; a `Region` of the image
excludes its right and bottom.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .boxes_glip import PIXEL, box_area

Region = tuple[int, int, int, int]  # left, top, right, bottom

SMALLEST_TILE = 32  # pixels

# Share of a tile's side within which a box counts as cut by the tile's border. A whole object that is taken for cut
# loses nothing: it is joined with what agrees with it, or stands alone. A piece taken for whole hides the rest.
BORDER = 0.02


def make_tiles(width: int, height: int, tile: int, overlap: float = 0.2) -> list[Region]:
    """Tiles of an image, row by row: as few as cover it, spread evenly. None for an image that fits into one.

    Args:
        width, height: of the image in pixels.
        tile: side of the tiles in pixels; a shorter side of the image is taken whole.
        overlap: least share of its side that a tile has in common with the next, below 1.
    """

    def starts(length: int) -> list[int]:
        count = 1 + math.ceil(max(length - tile, 0) / max(tile * (1 - overlap), 1))
        return [round(k * (length - tile) / (count - 1)) for k in range(count)] if count > 1 else [0]

    tiles = [
        (left, top, min(left + tile, width), min(top + tile, height))
        for top in starts(height)
        for left in starts(width)
    ]
    return tiles if len(tiles) > 1 else []


def merge_tiles(
    parts: Sequence[dict[str, Tensor]], regions: Sequence[Region], size: tuple[int, int], threshold: float
) -> dict[str, Tensor]:
    """One detection per object, of the detections in overlapping regions of an image.

    Whole boxes come first, by descending score: each stands for all detections of its label in other regions that
    show what it would show there (IoU with the box, clipped to that region), and for pieces cut by a border that lie
    within it. Pieces that are left and agree where their regions overlap become one box around all of them. The score
    is the best of those that were joined; everything else is that of the whole box or of the best piece.

    Args:
        parts: detections in each region after NMS: `scores` [K], `boxes` [K, 4] in pixels of the region, `labels` [K],
            and whatever else has K rows.
        regions: of each part, in pixels of the image.
        size: (width, height) of the image: its own borders cut nothing.
        threshold: IoU from which two detections are of one object, or share of a piece that lies within a whole box.

    Returns:
        the detections, boxes in pixels of the image, in no particular order.
    """
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    owner = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part["scores"]) for part in parts]))
    # The best first; equal ones in the order of their regions.
    order = found["scores"].argsort(descending=True, stable=True)
    found, owner = {name: value[order] for name, value in found.items()}, owner[order]
    scores, labels = found["scores"], found["labels"]
    region = scores.new_tensor(regions)[owner] - scores.new_tensor([0, 0, PIXEL, PIXEL])  # both corners inside, too
    boxes = found["boxes"] + region[:, [0, 1, 0, 1]]
    cut = _is_cut(boxes, region, size)
    left = torch.ones_like(cut)
    rows, best, joined = [], [scores[:0]], [boxes[:0]]
    for row in (~cut).nonzero().flatten().tolist() + cut.nonzero().flatten().tolist():
        if not left[row]:
            continue
        group, box = left & (labels == labels[row]), boxes[row]
        if cut[row]:
            group = _connected(row, group, boxes, region, owner, threshold)
            box = torch.cat([boxes[group, :2].amin(0), boxes[group, 2:].amax(0)])
        else:  # others of the same region are others: NMS has told them apart
            within = cut & (_common(box, boxes) >= threshold * box_area(boxes))
            group &= (owner != owner[row]) & (within | (_iou(_clip(box, region), boxes) >= threshold))
            group[row] = True
        left &= ~group
        rows.append(row)
        best.append(scores[group].max()[None])
        joined.append(box[None])
    return {
        **{name: value[rows] for name, value in found.items()},
        "scores": torch.cat(best),
        "boxes": torch.cat(joined),
    }


def _is_cut(boxes: Tensor, regions: Tensor, size: tuple[int, int]) -> Tensor:
    """[K] bool: whether a box reaches a border of its region that is not a border of the image."""
    margin = BORDER * (regions[:, 2:] - regions[:, :2] + PIXEL)
    inner = torch.cat([regions[:, :2] > 0, regions[:, 2:] < boxes.new_tensor(size) - PIXEL], dim=-1)
    near = torch.cat([boxes[:, :2] - regions[:, :2] < margin, regions[:, 2:] - boxes[:, 2:] < margin], dim=-1)
    return (inner & near).any(-1)


def _connected(row: int, free: Tensor, boxes: Tensor, region: Tensor, owner: Tensor, threshold: float) -> Tensor:
    """[K] bool: the free pieces that agree with a piece, or with each other, where their regions overlap."""
    group, coming = torch.zeros_like(free), [row]
    group[row] = True
    while coming:
        piece = coming.pop()
        agree = _iou(_clip(boxes[piece], region), _clip(boxes, region[piece])) >= threshold
        agree &= free & ~group & (owner != owner[piece])
        group |= agree
        coming += agree.nonzero().flatten().tolist()
    return group


def _clip(boxes: Tensor, region: Tensor) -> Tensor:
    """The parts of boxes in regions, either of them one or [K]; a box outside becomes empty."""
    return torch.cat(
        [torch.maximum(boxes[..., :2], region[..., :2]), torch.minimum(boxes[..., 2:], region[..., 2:])], dim=-1
    )


def _common(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Area that boxes have in common, row by row."""
    return box_area(_clip(boxes1, boxes2))


def _iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of boxes, row by row; 0 where either is empty."""
    common = _common(boxes1, boxes2)
    return common / (box_area(boxes1) + box_area(boxes2) - common).clamp(min=torch.finfo(common.dtype).tiny)
