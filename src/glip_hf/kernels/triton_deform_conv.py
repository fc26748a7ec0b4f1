# Copyright 2026 The glip_hf authors. MIT licence.
"""Triton kernels for CUDA: modulated deformable 3x3 convolution that never writes its columns to memory.

Not measured on a GPU yet: results and gradients are checked in Triton's interpreter (TRITON_INTERPRET=1, on CPU), and
every configuration is compiled for compute capabilities 8.0 and 9.0. Nothing here says how fast they are.

The plain version writes [M, 9 C] columns and multiplies. Here a program gathers the four corners of a tile of columns,
blends them in registers and hands the tile to the matrix unit; the backward kernels sample again in place of keeping
columns. Coordinates and sums are float32, whatever the maps are.

There is no kernel for the fusion. Both softmax directions from one matrix of scores would save one of four products,
but the sums of the text side, 8 heads x 256 tokens x 256 float32, are 2 MiB and a multiprocessor has 256 KiB of
registers. So CUDA stays with two calls of `scaled_dot_product_attention`: an argument from sizes, not a measurement.

Letters: B maps, C channels in, D channels out, H x W map, h x w output positions, P = h * w, M = B * P, K = 9 taps.
"""

import os
import re
from typing import Any

import torch
from torch import Tensor
from transformers.utils import is_triton_available

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # of features, weight and bias

# Whether this process runs the kernels in Triton's interpreter; Triton decides it where a kernel is defined
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")

# Of the operators below: a copy of this file from the Hub registers its own beside those of an installed package
NAMESPACE = re.sub(r"\W", "_", __name__)


if is_triton_available():
    import triton
    import triton.language as tl

    # Values that change with the image size: kernels are not compiled anew for each of their divisors.
    VARYING = ["offset_stride", "mask_stride", "height", "width", "out_width", "positions", "total", "bucket"]

    # What the choice of blocks depends on, beside the dtypes, which Triton adds.
    KEY = ["bucket", "channels", "filters", "STRIDE", "PRECISION"]

    def _configs(choices: list[tuple[int, int, int, int, int]], **fixed: int) -> list:
        """Candidates from (BLOCK_M, BLOCK_C, BLOCK_D, warps, stages).

        The interpreter has no clock to choose by: it takes one, small, so that small maps already have several blocks.
        """
        if INTERPRETED:
            choices = [(16, 16, 16, 1, 1)]
        return [
            triton.Config({"BLOCK_M": m, "BLOCK_C": c, "BLOCK_D": d, **fixed}, num_warps=warps, num_stages=stages)
            for m, c, d, warps, stages in choices
        ]

    # The interpreter multiplies the bit patterns of bfloat16; float32 holds the same values.
    WIDEN = tl.constexpr(INTERPRETED)

    @triton.jit
    def _multiply(a, b, sums, PRECISION: tl.constexpr):
        """sums + a @ b, sums in float32."""
        if WIDEN:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        return tl.dot(a, b, sums, input_precision=PRECISION)

    @triton.jit
    def _locate(offset_at, mask_at, p, live, point, height, width, out_width, positions, STRIDE: tl.constexpr):
        """Where one sampling point of the output positions `p` [BLOCK_M] is read.

        offset_at, mask_at: pointers to these positions in the planes of point 0.

        Returns the cell of the upper left corner (it may lie outside: the rows and columns that follow say what may be
        read), the distance from it to the point in y and x, 0..1, the modulation, and whether the upper and lower row
        and the left and right column exist.
        """
        offsets = offset_at + 2 * point * positions
        y = tl.load(offsets, mask=live, other=0.0).to(tl.float32) + (p // out_width * STRIDE + point // 3 - 1)
        x = tl.load(offsets + positions, mask=live, other=0.0).to(tl.float32) + (p % out_width * STRIDE + point % 3 - 1)
        modulation = tl.load(mask_at + point * positions, mask=live, other=0.0).to(tl.float32)
        # Two cells away nothing is read any more, so int32 holds what is left. NaN passes both comparisons, reads
        # nothing, and reaches the result through the weights.
        y = tl.where(y < -2, -2.0, tl.where(y > height + 1, height + 1.0, y))
        x = tl.where(x < -2, -2.0, tl.where(x > width + 1, width + 1.0, x))
        top = tl.floor(y)
        left = tl.floor(x)
        row = tl.where(top == top, top, 0.0).to(tl.int32).to(tl.int64)
        column = tl.where(left == left, left, 0.0).to(tl.int32)
        return (
            row * width + column,
            y - top,
            x - left,
            modulation,
            live & (top >= 0) & (top < height),
            live & (y > -1) & (top < height - 1),
            (left >= 0) & (left < width),
            (x > -1) & (left < width - 1),
        )

    @triton.jit
    def _gather(at, width, channels, in_c, upper, lower, left, right):
        """The four corners [BLOCK_M, BLOCK_C] in float32, zero outside the map; `at` points to the upper left ones."""
        return (
            tl.load(at, mask=(upper & left)[:, None] & in_c, other=0.0).to(tl.float32),
            tl.load(at + channels, mask=(upper & right)[:, None] & in_c, other=0.0).to(tl.float32),
            tl.load(at + width * channels, mask=(lower & left)[:, None] & in_c, other=0.0).to(tl.float32),
            tl.load(at + (width + 1) * channels, mask=(lower & right)[:, None] & in_c, other=0.0).to(tl.float32),
        )

    @triton.jit
    def _blend(v00, v01, v10, v11, fy, fx, modulation):
        """Columns [BLOCK_M, BLOCK_C] from their corners."""
        return (
            v00 * ((1 - fy) * (1 - fx) * modulation)[:, None]
            + v01 * ((1 - fy) * fx * modulation)[:, None]
            + v10 * (fy * (1 - fx) * modulation)[:, None]
            + v11 * (fy * fx * modulation)[:, None]
        )

    @triton.autotune(
        _configs([
            (16, 64, 64, 4, 3), (32, 64, 64, 4, 2), (32, 64, 256, 8, 2), (64, 32, 128, 4, 3), (64, 32, 256, 8, 2),
            (64, 64, 128, 8, 2), (64, 64, 256, 8, 3), (128, 32, 128, 8, 3), (128, 32, 256, 8, 2),
        ]),
        key=KEY,
    )  # fmt: skip
    @triton.jit(do_not_specialize=VARYING)
    def _forward_kernel(
        features_ptr, offset_ptr, mask_ptr, weight_ptr, bias_ptr, out_ptr,
        features_stride, offset_stride, mask_stride, height, width, out_width, positions, total, bucket,
        channels, filters, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
        BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
    ):  # fmt: skip
        """One tile [BLOCK_M, BLOCK_D] of the result [M, D]; features [B, H, W, C], weight [9, C, D]."""
        m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        live, in_d = m < total, (d < filters)[None, :]
        b, p = (m // positions).to(tl.int64), m % positions
        offset_at, mask_at = offset_ptr + b * offset_stride + p, mask_ptr + b * mask_stride + p
        sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for point in range(9):
            cell, fy, fx, modulation, upper, lower, left, right = _locate(
                offset_at, mask_at, p, live, point, height, width, out_width, positions, STRIDE
            )
            read_at = features_ptr + b * features_stride + cell * channels
            for start in range(0, channels, BLOCK_C):
                c = start + tl.arange(0, BLOCK_C)
                in_c = c < channels
                at = read_at[:, None] + c[None, :]
                v00, v01, v10, v11 = _gather(at, width, channels, in_c[None, :], upper, lower, left, right)
                columns = _blend(v00, v01, v10, v11, fy, fx, modulation)
                weight_at = weight_ptr + (point * channels + c)[:, None] * filters + d[None, :]
                weight = tl.load(weight_at, mask=in_c[:, None] & in_d, other=0.0)
                sums = _multiply(columns.to(weight.dtype), weight, sums, PRECISION)
        sums += tl.load(bias_ptr + d, mask=d < filters, other=0.0).to(tl.float32)[None, :]
        tl.store(out_ptr + m.to(tl.int64)[:, None] * filters + d[None, :], sums, mask=live[:, None] & in_d)

    @triton.autotune(
        _configs([
            (16, 64, 64, 4, 2), (32, 32, 64, 4, 2), (32, 64, 32, 4, 2), (32, 64, 64, 4, 2), (64, 32, 64, 4, 2),
            (64, 64, 64, 8, 2), (128, 32, 64, 8, 2),
        ]),
        key=KEY,
        reset_to_zero=["grad_features_ptr"],
    )  # fmt: skip
    @triton.jit(do_not_specialize=VARYING)
    def _backward_input_kernel(
        grad_ptr, features_ptr, offset_ptr, mask_ptr, weight_ptr, grad_features_ptr, grad_offset_ptr, grad_mask_ptr,
        features_stride, offset_stride, mask_stride, height, width, out_width, positions, total, bucket,
        channels, filters, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
        BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
    ):  # fmt: skip
        """Gradients of one sampling point of BLOCK_M positions: of the cells it read, its offset and its modulation.

        grad [M, D], features [B, H, W, C], weight [9, D, C]; grad_features float32, zero before.
        """
        m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        point = tl.program_id(1)
        live = m < total
        b, p = (m // positions).to(tl.int64), m % positions
        offset_at, mask_at = offset_ptr + b * offset_stride + p, mask_ptr + b * mask_stride + p
        cell, fy, fx, modulation, upper, lower, left, right = _locate(
            offset_at, mask_at, p, live, point, height, width, out_width, positions, STRIDE
        )
        read_at = features_ptr + b * features_stride + cell * channels
        # The gradient's map has no gap between samples, the features' may.
        add_at = grad_features_ptr + (b * height * width + cell) * channels
        s00 = tl.zeros([BLOCK_M], tl.float32)
        s01 = tl.zeros([BLOCK_M], tl.float32)
        s10 = tl.zeros([BLOCK_M], tl.float32)
        s11 = tl.zeros([BLOCK_M], tl.float32)
        for start in range(0, channels, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            in_c = (c < channels)[None, :]
            grad_columns = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
            for first in range(0, filters, BLOCK_D):
                d = first + tl.arange(0, BLOCK_D)
                in_d = d < filters
                weight_at = weight_ptr + (point * filters + d)[:, None] * channels + c[None, :]
                weight = tl.load(weight_at, mask=in_d[:, None] & in_c, other=0.0)
                grad_at = grad_ptr + m.to(tl.int64)[:, None] * filters + d[None, :]
                grad = tl.load(grad_at, mask=live[:, None] & in_d[None, :], other=0.0)
                grad_columns = _multiply(grad.to(weight.dtype), weight, grad_columns, PRECISION)
            at = read_at[:, None] + c[None, :]
            v00, v01, v10, v11 = _gather(at, width, channels, in_c, upper, lower, left, right)
            s00 += tl.sum(grad_columns * v00, axis=1)
            s01 += tl.sum(grad_columns * v01, axis=1)
            s10 += tl.sum(grad_columns * v10, axis=1)
            s11 += tl.sum(grad_columns * v11, axis=1)
            to, below = add_at[:, None] + c[None, :], width * channels
            grad_columns *= modulation[:, None]
            g00 = grad_columns * ((1 - fy) * (1 - fx))[:, None]
            g01 = grad_columns * ((1 - fy) * fx)[:, None]
            g10 = grad_columns * (fy * (1 - fx))[:, None]
            g11 = grad_columns * (fy * fx)[:, None]
            tl.atomic_add(to, g00, mask=(upper & left)[:, None] & in_c, sem="relaxed")
            tl.atomic_add(to + channels, g01, mask=(upper & right)[:, None] & in_c, sem="relaxed")
            tl.atomic_add(to + below, g10, mask=(lower & left)[:, None] & in_c, sem="relaxed")
            tl.atomic_add(to + below + channels, g11, mask=(lower & right)[:, None] & in_c, sem="relaxed")
        grad_y = modulation * ((1 - fx) * (s10 - s00) + fx * (s11 - s01))
        grad_x = modulation * ((1 - fy) * (s01 - s00) + fy * (s11 - s10))
        grad_modulation = (1 - fy) * ((1 - fx) * s00 + fx * s01) + fy * ((1 - fx) * s10 + fx * s11)
        offsets = grad_offset_ptr + (b * 18 + 2 * point) * positions + p
        tl.store(offsets, grad_y, mask=live)
        tl.store(offsets + positions, grad_x, mask=live)
        tl.store(grad_mask_ptr + (b * 9 + point) * positions + p, grad_modulation, mask=live)

    @triton.autotune(
        _configs([
            (32, 64, 64, 4, 2), (32, 64, 128, 4, 2), (32, 64, 256, 8, 2), (32, 128, 128, 8, 2), (64, 64, 64, 4, 2),
            (64, 64, 128, 8, 2),
        ], STEPS=2 if INTERPRETED else 16),
        key=KEY,
        reset_to_zero=["grad_weight_ptr"],
    )  # fmt: skip
    @triton.jit(do_not_specialize=VARYING)
    def _backward_weight_kernel(
        grad_ptr, features_ptr, offset_ptr, mask_ptr, grad_weight_ptr,
        features_stride, offset_stride, mask_stride, height, width, out_width, positions, total, bucket,
        channels, filters, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
        BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, STEPS: tl.constexpr,
    ):  # fmt: skip
        """What STEPS * BLOCK_M positions add to a tile [BLOCK_C, BLOCK_D] of one point's weight.

        grad [M, D], features [B, H, W, C]; grad_weight [9, C, D] float32, zero before.
        """
        blocks = tl.cdiv(channels, BLOCK_C)
        point = tl.program_id(1) // blocks
        c = tl.program_id(1) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
        d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
        in_c, in_d = c < channels, (d < filters)[None, :]
        sums = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
        for step in range(STEPS):
            m = (tl.program_id(0) * STEPS + step) * BLOCK_M + tl.arange(0, BLOCK_M)
            live = m < total
            b, p = (m // positions).to(tl.int64), m % positions
            offset_at, mask_at = offset_ptr + b * offset_stride + p, mask_ptr + b * mask_stride + p
            cell, fy, fx, modulation, upper, lower, left, right = _locate(
                offset_at, mask_at, p, live, point, height, width, out_width, positions, STRIDE
            )
            at = (features_ptr + b * features_stride + cell * channels)[:, None] + c[None, :]
            v00, v01, v10, v11 = _gather(at, width, channels, in_c[None, :], upper, lower, left, right)
            columns = _blend(v00, v01, v10, v11, fy, fx, modulation)
            grad_at = grad_ptr + m.to(tl.int64)[:, None] * filters + d[None, :]
            grad = tl.load(grad_at, mask=live[:, None] & in_d, other=0.0)
            sums = _multiply(tl.trans(columns.to(grad.dtype)), grad, sums, PRECISION)
        to = grad_weight_ptr + (point * channels + c)[:, None] * filters + d[None, :]
        tl.atomic_add(to, sums, mask=in_c[:, None] & in_d, sem="relaxed")


def _dense(maps: Tensor) -> Tensor:
    """The same with no gaps within a sample; between samples they may stay."""
    return maps if maps[:1].is_contiguous() else maps.contiguous()


def _rows(maps: Tensor) -> Tensor:
    """[B, C, H, W] to [B, H, W, C]; a view where the memory allows."""
    return _dense(maps.permute(0, 2, 3, 1))


def _arguments(rows: Tensor, offset: Tensor, mask: Tensor, filters: int, stride: int) -> dict[str, Any]:
    """The arguments that all three kernels take."""
    batch, _, out_height, out_width = offset.shape
    _, height, width, channels = rows.shape
    total = batch * out_height * out_width
    # Blocks are chosen per power of two of positions; beyond both ends the choice is the same.
    bucket = min(max(triton.next_power_of_2(total), 256), 65536)
    # "tf32" where the process allows it for every matrix product of PyTorch's.
    precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return {
        "features_stride": rows.stride(0),
        "offset_stride": offset.stride(0),
        "mask_stride": mask.stride(0),
        "height": height,
        "width": width,
        "out_width": out_width,
        "positions": out_height * out_width,
        "total": total,
        "bucket": bucket,
        "channels": channels,
        "filters": filters,
        "STRIDE": stride,
        "PRECISION": precision,
    }


@torch.library.custom_op(f"{NAMESPACE}::deform_conv2d", mutates_args=())
def _deform_conv2d(features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    batch, _, out_height, out_width = offset.shape
    filters = weight.shape[0]
    rows, offset, mask = _rows(features), _dense(offset), _dense(mask)
    out = features.new_empty(batch, out_height, out_width, filters)
    numbers = _arguments(rows, offset, mask, filters, stride)

    def grid(chosen: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(numbers["total"], chosen["BLOCK_M"]), triton.cdiv(filters, chosen["BLOCK_D"])

    with torch.cuda.device_of(features):
        kernel = weight.permute(2, 3, 1, 0).contiguous()
        _forward_kernel[grid](rows, offset, mask, kernel, bias.contiguous(), out, **numbers)
    return out.permute(0, 3, 1, 2)


@_deform_conv2d.register_fake
def _(features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    batch, _, out_height, out_width = offset.shape
    return features.new_empty(batch, out_height, out_width, weight.shape[0]).permute(0, 3, 1, 2)


@torch.library.custom_op(f"{NAMESPACE}::deform_conv2d_backward_input", mutates_args=())
def _backward_input(
    grad: Tensor, features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows, offset, mask, grad_rows = _rows(features), _dense(offset), _dense(mask), _rows(grad).contiguous()
    grad_features = torch.zeros(rows.shape, dtype=torch.float32, device=rows.device)
    grad_offset, grad_mask = offset.new_empty(offset.shape), mask.new_empty(mask.shape)
    numbers = _arguments(rows, offset, mask, weight.shape[0], stride)

    def grid(chosen: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(numbers["total"], chosen["BLOCK_M"]), 9

    with torch.cuda.device_of(features):
        kernel = weight.permute(2, 3, 0, 1).contiguous()
        _backward_input_kernel[grid](
            grad_rows, rows, offset, mask, kernel, grad_features, grad_offset, grad_mask, **numbers
        )
    return grad_features.to(features.dtype).permute(0, 3, 1, 2), grad_offset, grad_mask


@_backward_input.register_fake
def _(
    grad: Tensor, features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    grad_features = torch.empty_like(features, memory_format=torch.channels_last)
    return grad_features, offset.new_empty(offset.shape), mask.new_empty(mask.shape)


@torch.library.custom_op(f"{NAMESPACE}::deform_conv2d_backward_weight", mutates_args=())
def _backward_weight(
    grad: Tensor, features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, stride: int
) -> Tensor:
    rows, offset, mask, grad_rows = _rows(features), _dense(offset), _dense(mask), _rows(grad).contiguous()
    filters, channels = weight.shape[:2]
    grad_weight = torch.zeros(3, 3, channels, filters, dtype=torch.float32, device=weight.device)
    numbers = _arguments(rows, offset, mask, filters, stride)

    def grid(chosen: dict[str, int]) -> tuple[int, int, int]:
        return (
            triton.cdiv(numbers["total"], chosen["BLOCK_M"] * chosen["STEPS"]),
            9 * triton.cdiv(channels, chosen["BLOCK_C"]),
            triton.cdiv(filters, chosen["BLOCK_D"]),
        )

    with torch.cuda.device_of(features):
        _backward_weight_kernel[grid](grad_rows, rows, offset, mask, grad_weight, **numbers)
    return grad_weight.permute(3, 2, 0, 1).to(weight.dtype, memory_format=torch.contiguous_format)


@_backward_weight.register_fake
def _(grad: Tensor, features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, stride: int) -> Tensor:
    return weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, _, ctx.stride = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """First derivatives only: the backward operators have none of their own."""
    grads: list[Tensor | None] = [None] * 6
    if any(ctx.needs_input_grad[:3]):
        grads[:3] = _backward_input(grad, *ctx.saved_tensors, ctx.stride)
    if ctx.needs_input_grad[3]:
        grads[3] = _backward_weight(grad, *ctx.saved_tensors, ctx.stride)
    if ctx.needs_input_grad[4]:
        grads[4] = grad.sum((0, 2, 3))
    return tuple(grads)


_deform_conv2d.register_autograd(_backward, setup_context=_setup_context)


@torch.compiler.assume_constant_result
def _is_capable(device_index: int) -> bool:
    """Whether a device has what Triton asks for (compute capability 8.0), and is one of NVIDIA's."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device_index) >= (8, 0)


def triton_runs(features: Tensor) -> bool:
    """Whether `deform_conv2d_triton` may take these features: device, dtype, and no demand for reproducible sums."""
    return (
        features.is_cuda
        and features.dtype in TRITON_DTYPES
        and is_triton_available()
        and not torch.are_deterministic_algorithms_enabled()
        and _is_capable(features.device.index)
    )


def deform_conv2d_triton(
    features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int = 1
) -> Tensor:
    """See `deform_conv2d`; CUDA tensors (in Triton's interpreter also CPU) of one of `TRITON_DTYPES`.

    The result lies channels-last. float32 products are exact unless `torch.set_float32_matmul_precision` allows TF32.
    Gradients sum by atomic additions, so their last bits differ from run to run. The offset's gradient at a whole
    coordinate is that of the side on which it grows. Blocks are chosen by a measurement at the first call for a power
    of two of positions, a number of channels and a dtype, and kept for the process: run every size once before
    capturing a CUDA graph.

    An operator of `torch.library`: `torch.compile` and `torch.export` keep it whole, without a graph break.

    Raises:
        ImportError: without Triton.
        ValueError: for a dtype or device the kernels do not run on.
    """
    if not is_triton_available():
        raise ImportError("deform_conv2d_triton needs Triton: pip install triton, or call deform_conv2d.")
    if features.dtype not in TRITON_DTYPES or not (features.is_cuda or INTERPRETED):
        raise ValueError(
            f"features are {features.dtype} on {features.device}, but Triton's kernels take CUDA tensors of "
            f"{TRITON_DTYPES}: call deform_conv2d, which picks a version that fits."
        )
    return _deform_conv2d(features, offset, mask, weight, bias, stride)
