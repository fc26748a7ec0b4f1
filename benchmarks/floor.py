# Copyright 2026 The glip_hf authors. MIT licence.
"""The minimum of work in a GLIP forward pass: operations of matrix products, and bytes.

Operations are those of matrix products and convolutions on real feature-map cells and tokens (no padding to windows or
to 256 tokens); a multiplication and an addition count as two, a deformable convolution as a plain one. Of the two exact
forms of the fusion, the textbook's and the one with absorbed projections, the one with fewer operations counts.

Bytes: each layer reads its input and its weights once and writes its output once. Layers are the halves of a
transformer layer, a convolution, a fusion; what can stay within a layer (attention scores, sampled columns, normalised
copies) does not count. Activation functions, normalisation and softmax count through their bytes alone, so the floor is
an underestimate rather than an overestimate.

`Work.seconds` divides operations by the rate of a plain matrix product and bytes by that of a plain copy, and adds the
two. A training step counts as three forward passes (each product has two in the backward pass) and the optimizer.

Letters: A locations (visual tokens), T text tokens, D channels of the head, E width of the text encoder.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Rates
from glip_hf import GlipConfig
from glip_hf.configuration_glip import PYRAMID_STRIDES

POINTS = 9  # sampling points of a 3x3 convolution


@dataclass(frozen=True)
class Work:
    """Operations, and bytes read and written."""

    operations: float = 0
    bytes: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.operations + other.operations, self.bytes + other.bytes)

    def __mul__(self, count: float) -> "Work":
        return Work(self.operations * count, self.bytes * count)

    def seconds(self, rates: Rates) -> float:
        return self.operations / rates.gemm + self.bytes / rates.copy


def total(works: Sequence[Work]) -> Work:
    return sum(works, Work())


def work(products: Sequence[tuple[int, int, int]], values: float, size: int) -> Work:
    """Matrix products of [m, k] and [k, n], given as (m, k, n), and `values` of `size` bytes each read or written."""
    return Work(sum(2.0 * m * k * n for m, k, n in products), values * size)


def _halved(side: int) -> int:
    return (side + 1) // 2


def level_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Cells (rows, columns) of P3 to P7 for a padded image of height x width pixels."""
    return [(math.ceil(height / stride), math.ceil(width / stride)) for stride in PYRAMID_STRIDES]


def swin_floor(config: Any, height: int, width: int, size: int = 4) -> Work:
    """The backbone on one padded image; 0 for backbones other than Swin, which are not counted."""
    if config.model_type != "swin":
        return Work()
    rows, columns, channels = math.ceil(height / 4), math.ceil(width / 4), config.embed_dim
    cells, patch = rows * columns, 3 * 16
    works = [work([(cells, patch, channels)], cells * (patch + channels) + patch * channels, size)]
    for stage, depth in enumerate(config.depths):
        window, hidden = config.window_size**2, int(config.mlp_ratio * channels)
        attention = [(cells, channels, 4 * channels), (cells, channels, 2 * window)]
        mlp = [(cells, channels, 2 * hidden)]
        works.append(work(attention, 2 * cells * channels + 4 * channels**2, size) * depth)
        works.append(work(mlp, 2 * cells * channels + 2 * channels * hidden, size) * depth)
        if stage > 0:
            works.append(work([], 2 * cells * channels, size))  # the output's own norm
        if stage < len(config.depths) - 1:
            rows, columns = _halved(rows), _halved(columns)
            merged = rows * columns
            values = cells * channels + merged * 2 * channels + 8 * channels**2
            works.append(work([(merged, 4 * channels, 2 * channels)], values, size))
            cells, channels = merged, 2 * channels
    return total(works)


def fpn_floor(config: GlipConfig, shapes: Sequence[tuple[int, int]], channels: Sequence[int], size: int = 4) -> Work:
    """The pyramid over three feature maps with these numbers of channels."""
    width, cells = config.d_model, [height * width for height, width in shapes]
    works = [
        work([(n, c, width)], n * (c + width) + c * width, size) for n, c in zip(cells, channels)
    ]  # 1x1, and 3x3 on P3 to P5
    works += [work([(n, POINTS * width, width)], 2 * n * width + POINTS * width**2, size) for n in cells[:3]]
    works += [
        work([(n, POINTS * width, width)], (before + n) * width + POINTS * width**2, size)
        for before, n in zip(cells[2:], cells[3:])
    ]
    return total(works)


def text_layer_floor(config: Any, tokens: int, size: int = 4) -> Work:
    """One BERT layer on one caption."""
    width, inner = config.hidden_size, config.intermediate_size
    products = [(tokens, width, 4 * width), (tokens, width, 2 * tokens), (tokens, width, 2 * inner)]
    return work(products, 4 * tokens * width + 4 * width**2 + 2 * width * inner, size)


def text_floor(config: Any, tokens: int, size: int = 4) -> Work:
    """The text encoder on one caption."""
    embeddings = work([], 2 * tokens * config.hidden_size, size)
    return embeddings + text_layer_floor(config, tokens, size) * config.num_hidden_layers


def fusion_floor(config: GlipConfig, locations: int, tokens: int, size: int = 4) -> Work:
    """One fusion of one (image, caption) pair: the cheaper of its two exact forms."""
    width, text_width, inner = config.d_model, config.text_config.hidden_size, config.fusion_hidden_size
    columns = config.fusion_heads * tokens
    text_side = [(tokens, text_width, 3 * inner)]
    absorbed = [(tokens, inner, 3 * width), (locations, width, 3 * columns)]
    textbook = [(locations, width, 3 * inner), (locations, inner, 3 * tokens)]
    values = 2 * locations * width + 2 * tokens * text_width + 3 * inner * (width + text_width)
    return min(
        (work(text_side + products, values, size) for products in (absorbed, textbook)),
        key=lambda counted: counted.operations,
    )


def dyconv_floor(config: GlipConfig, shapes: Sequence[tuple[int, int]], size: int = 4) -> Work:
    """One DyConv block on one pyramid."""
    width, cells = config.d_model, [height * width for height, width in shapes]
    works = [work([], 3 * POINTS * width**2, size)]
    for i, n in enumerate(cells):
        offsets = work([(n, POINTS * width, 3 * POINTS)], n * (width + 3 * POINTS) + 3 * POINTS * POINTS * width, size)
        works.append(offsets)
        # (input cells, output cells) of each convolution
        candidates = [(n, n)]
        if i > 0:
            candidates.append((cells[i - 1], n))
        if i < len(cells) - 1:
            candidates.append((cells[i + 1], cells[i + 1]))
        for cells_in, cells_out in candidates:
            values = cells_in * width + 3 * POINTS * cells_out + 2 * cells_out * width  # written, and read for the mean
            works.append(work([(cells_out, POINTS * width, width)], values, size))
        works.append(work([], n * width, size))
    return total(works)


def head_floor(config: GlipConfig, locations: int, tokens: int, size: int = 4) -> Work:
    """Logits, boxes and centerness of one pair, and the logits read once more by post-processing."""
    width, text_width = config.d_model, config.text_config.hidden_size
    products = [(locations, width, tokens + 5), (tokens, text_width, width)]
    values = locations * (width + 2 * tokens + 10) + tokens * text_width + text_width * width
    return work(products, values, size)


def parts_floor(config: GlipConfig, height: int, width: int, captions: Sequence[int], size: int = 4) -> dict[str, Work]:
    """Each part for one padded image and several captions, where the image and each caption are encoded once.

    Args:
        height, width: pixels; captions: tokens of each caption; size: bytes per value.
    """
    shapes = level_shapes(height, width)
    locations = sum(rows * columns for rows, columns in shapes)
    text, blocks = config.text_config, config.num_blocks
    backbone = config.backbone_config
    channels = [getattr(backbone, "embed_dim", 0) * 2**stage for stage in (1, 2, 3)]
    parts = {
        "swin": swin_floor(backbone, height, width, size),
        "fpn": fpn_floor(config, shapes, channels, size),
        "text": total([text_floor(text, tokens, size) for tokens in captions]),
        "dyconv": dyconv_floor(config, shapes, size) * (blocks * len(captions)),
        "head": total([head_floor(config, locations, tokens, size) for tokens in captions]),
    }
    if config.use_fusion:
        parts["fusion"] = total([fusion_floor(config, locations, t, size) for t in captions]) * blocks
        parts["text layer"] = total([text_layer_floor(text, t, size) for t in captions]) * blocks
    return parts


def optimizer_floor(parameters: int, size: int = 4) -> Work:
    """A step of AdamW: reads parameter, gradient and two moments, writes all but the gradient."""
    return Work(0, 7 * parameters * size)


__all__ = ["Work", "fusion_floor", "level_shapes", "optimizer_floor", "parts_floor", "total", "work"]
