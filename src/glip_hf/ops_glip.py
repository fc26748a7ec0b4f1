# Copyright 2026 The glip_hf authors. MIT licence.
"""Operations that have fast forms: the plain form of each, and the registry that may put a faster one in its place.

An operation is a function, or the `forward` of a module, decorated with `@operation(name)`; what is written there is
its plain form, the mathematics. A kernel is another form of it, with a condition (device, dtype, gradients, hooks).
Kernels live in `glip_hf.kernels`, register themselves here, and are never imported by the model: without them, as in
custom code loaded from the Hub, every operation takes its plain form.

Letters: B images, C channels in, D channels out, A locations of all levels, H_i x W_i cells of level i, H x W map,
h x w output positions, K = 9 sampling points.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# -- the registry ----------------------------------------------------------------------------------


class Kernel(NamedTuple):
    """A fast form of an operation.

    name: unique, e.g. "cpu_swin".
    accepts: whether this form may serve a call; takes the arguments of the operation.
    run: takes the plain form, then the arguments of the operation.
    traceable: whether `torch.compile`, `torch.export` and `torch.jit.trace` may record it.
    """

    name: str
    accepts: Callable[..., bool]
    run: Callable[..., Any]
    traceable: bool


_kernels: dict[str, list[Kernel]] = {}
_disabled: frozenset[str] = frozenset()  # replaced as a whole: other threads read it
_observers: list[Callable[[str, str], None]] = []


def is_traced() -> bool:
    """Whether the forward is being recorded (`torch.compile`, `torch.export`, `torch.jit.trace`) and not just run."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_enabled(kernel_name: str) -> bool:
    """Whether a kernel has not been turned off."""
    return kernel_name not in _disabled


def select_kernel(operation_name: str, *args: Any, **kwargs: Any) -> Kernel | None:
    """The first registered kernel that accepts the arguments, or None for the plain form."""
    traced = is_traced()
    for kernel in _kernels.get(operation_name, ()):
        if is_enabled(kernel.name) and (kernel.traceable or not traced) and kernel.accepts(*args, **kwargs):
            return kernel
    return None


def operation(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function, or the `forward` of a module, an operation: registered kernels may serve its calls.

    The plain form stays at hand as the attribute `plain`. Several functions may share a name.
    """

    def decorate(plain: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(plain)
        def call(*args: Any, **kwargs: Any) -> Any:
            kernel = select_kernel(name, *args, **kwargs)
            if _observers and not is_traced():
                for observe in _observers:
                    observe(name, "plain" if kernel is None else kernel.name)
            return plain(*args, **kwargs) if kernel is None else kernel.run(plain, *args, **kwargs)

        call.plain = plain
        return call

    return decorate


def register_kernel(
    operation_name: str, name: str, accepts: Callable[..., bool], traceable: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function that computes what an operation does; kernels registered first are asked first. A ValueError
    if the operation has a kernel of this name already."""

    def decorate(run: Callable[..., Any]) -> Callable[..., Any]:
        registered = _kernels.setdefault(operation_name, [])
        if any(kernel.name == name for kernel in registered):
            raise ValueError(f"the operation {operation_name!r} has a kernel named {name!r} already.")
        registered.append(Kernel(name, accepts, run, traceable))
        return run

    return decorate


# -- helpers of operations -------------------------------------------------------------------------


def shape_constants(maxsize: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function of sizes and a device that makes constant tensors: the last `maxsize` results are kept.

    They are ordinary tensors even if made within `torch.inference_mode`, whose own could take no part in training
    later. Callers must not change them. While a forward is traced every call makes new ones. Fake
    tensors are kept apart.
    """

    def decorate(build: Callable[..., Any]) -> Callable[..., Any]:
        cached = functools.lru_cache(maxsize)(lambda _fake_mode, *args: build(*args))

        @functools.wraps(build)
        def call(*args: Any) -> Any:
            if is_traced():
                return build(*args)
            with torch.inference_mode(False), torch.no_grad():
                return cached(torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE), *args)

        call.cache_info, call.cache_clear = cached.cache_info, cached.cache_clear
        return call

    return decorate


@shape_constants(maxsize=256)
def constant(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor of these values. Made anew it would be a copy to the device, which the host waits for."""
    return torch.tensor(values, device=device, dtype=dtype)


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the `backward` of a `torch.autograd.Function` that works in place: it runs once, in the dtypes of its
    `forward` even if called under autocast, and cannot be differentiated itself."""

    @functools.wraps(backward)
    def call(ctx: Any, *grads: Any) -> Any:
        with torch.autocast(grads[-1].device.type, enabled=False):
            return backward(ctx, *grads)

    return torch.autograd.function.once_differentiable(call)


# -- layouts ---------------------------------------------------------------------------------------


def to_tokens(pyramid: Sequence[Tensor]) -> Tensor:
    """Levels [B, D, H_i, W_i] to tokens [B, A, D], finest first, row-major."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in pyramid], dim=1)


def to_pyramid(tokens: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Inverse of `to_tokens`; the levels are channels-last views."""
    sizes = [height * width for height, width in spatial_shapes]
    return [
        level.transpose(1, 2).unflatten(2, shape) for level, shape in zip(tokens.split(sizes, dim=1), spatial_shapes)
    ]


# -- modulated deformable convolution --------------------------------------------------------------

NUM_POINTS = 9  # sampling points of a 3x3 kernel


def view_offsets_as(offset: Tensor, mask: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Read the memory of `offset` and `mask` as if it were shaped for a feature map of `height` x `width`.

    The kernel that GLIP was trained with never compared sizes: a convolution on the coarser level received the offsets
    of the finer one and took the first `18 * height * width` (and `9 * height * width`) values of each sample. Released
    weights depend on it; gradients flow into those elements only. Of equal sizes it is the identity.

    Args:
        offset: [B, 18, H, W]; mask: [B, 9, H, W].
        height, width: of the convolution's output.

    Returns:
        [B, 18, height, width] and [B, 9, height, width].
    """
    if offset.shape[-2:] == (height, width):
        return offset, mask
    positions = height * width
    return (
        offset.flatten(1)[:, : 2 * NUM_POINTS * positions].unflatten(1, (2 * NUM_POINTS, height, width)),
        mask.flatten(1)[:, : NUM_POINTS * positions].unflatten(1, (NUM_POINTS, height, width)),
    )


def _bilinear_corners(offset: Tensor, mask: Tensor, size: tuple[int, int], stride: int) -> tuple[Tensor, Tensor]:
    """Rows and weights of the four feature-map cells that each sampling point is interpolated from.

    Returns:
        indices [B, h, w, K, 4] int64 into the flattened map and weights [B, h, w, K, 4], at least float32, bilinear
        weight times modulation; a corner outside the map has weight 0.
    """
    height, width = size
    out_height, out_width = offset.shape[-2:]
    device = offset.device
    # [B, 18, h, w] -> [B, h, w, K, 2] with (dy, dx) last; coordinates need float32 at any precision of the model
    dtype = torch.promote_types(offset.dtype, torch.float32)
    offset = offset.to(dtype).unflatten(1, (NUM_POINTS, 2)).permute(0, 3, 4, 1, 2)
    step = torch.arange(3, device=device, dtype=dtype) - 1
    row = torch.arange(out_height, device=device, dtype=dtype) * stride
    column = torch.arange(out_width, device=device, dtype=dtype) * stride
    y = offset[..., 0] + row[:, None, None] + step.repeat_interleave(3)
    x = offset[..., 1] + column[:, None] + step.repeat(3)
    y0, x0 = y.floor(), x.floor()
    ys = torch.stack([y0, y0, y0 + 1, y0 + 1], dim=-1)
    xs = torch.stack([x0, x0 + 1, x0, x0 + 1], dim=-1)
    below, right = y - y0, x - x0
    weights = torch.stack([1 - below, 1 - below, below, below], dim=-1)
    weights = weights * torch.stack([1 - right, right, 1 - right, right], dim=-1)
    outside = (ys < 0) | (ys > height - 1) | (xs < 0) | (xs > width - 1)
    modulation = mask.to(dtype).permute(0, 2, 3, 1)[..., None]
    weights = torch.where(outside, 0, weights * modulation)
    # Before the cast: neither a far-away float nor NaN has an integer. NaN stays in the weight, so it reaches the loss.
    ys, xs = ys.nan_to_num(0).clamp(0, height - 1), xs.nan_to_num(0).clamp(0, width - 1)
    indices = ys.long() * width + xs.long()
    return indices, weights


@operation("deform_conv2d")
def _deform_conv2d(
    features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int = 1
) -> Tensor:
    """See `deform_conv2d`.

    Each sampling point is a weighted sum of four rows of channels, which is what `embedding_bag` computes: the map is
    channels-last, so a corner is one contiguous read, and one matrix product follows. Positions are joined and split as
    *last* dimension: beside channels, `torch.export` confuses a symbolic side of one cell with a factor of theirs.
    """
    device_type = features.device.type
    if device_type != "meta" and torch.is_autocast_enabled(device_type):  # which "meta" does not know
        with torch.autocast(device_type, enabled=False):
            return _deform_conv2d.plain(*(x.float() for x in (features, offset, mask, weight, bias)), stride)
    batch, channels, height, width = features.shape
    out_height, out_width = offset.shape[-2:]
    indices, weights = _bilinear_corners(offset, mask, (height, width), stride)
    first_row = torch.arange(batch, device=features.device) * (height * width)
    rows = features.transpose(0, 1).flatten(1).t().contiguous()
    columns = nn.functional.embedding_bag(
        (indices + first_row[:, None, None, None, None]).reshape(-1, 4),
        rows,
        mode="sum",
        per_sample_weights=weights.reshape(-1, 4).to(rows.dtype),
    )
    kernel = weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)
    columns = columns.view(batch * out_height * out_width, NUM_POINTS * channels)
    out = nn.functional.linear(columns, kernel, bias)
    return out.t().unflatten(1, (batch, out_height, out_width)).transpose(0, 1)


def deform_conv2d(
    features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int = 1
) -> Tensor:
    """Modulated deformable 3x3 convolution with padding 1 (DCNv2, arXiv 1811.11168).

    A value at (y, x) is interpolated bilinearly from the map extended by zeros, so it is 0 at y <= -1, y >= H, x <= -1
    or x >= W. Under autocast it stays in float32, as in the released recipe; where Triton runs it under autocast to
    bfloat16, operands of its products are rounded to that, as in other convolutions; coordinates and sums are not.

    Args:
        features: [B, C, H, W].
        offset: [B, 18, h, w] in feature-map cells; channel 2k is dy and 2k + 1 is dx of sampling point k, row-major.
        mask: [B, 9, h, w], the modulation of each sampling point, already in 0..1.
        weight: [D, C, 3, 3]; bias: [D].
        stride: 1 or 2.

    Returns:
        [B, D, h, w] in the dtype of `features`.

    Raises:
        ValueError: if h x w is not the size that a 3x3 convolution of this stride gives.
    """
    expected = tuple((side - 1) // stride + 1 for side in features.shape[-2:])
    if tuple(offset.shape[-2:]) != expected or tuple(mask.shape[-2:]) != expected:
        raise ValueError(
            f"offset {tuple(offset.shape)} and mask {tuple(mask.shape)} must have the output's size {expected} "
            f"for a feature map of {tuple(features.shape[-2:])} at stride {stride}; see view_offsets_as."
        )
    return _deform_conv2d(features, offset, mask, weight, bias, stride)
