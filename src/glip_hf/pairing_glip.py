# Copyright 2026 The glip_hf authors. MIT licence.
"""Which picture goes with which caption, and features and outputs taken apart and put together accordingly.

Letters: B pictures, N captions or (picture, caption) pairs.
"""

from typing import Any

import torch
from torch import Tensor


def select(features: Any, rows: Tensor | None) -> Any:
    """The pictures or captions `rows` of a features output; None takes all."""
    if rows is None:
        return features

    def pick(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows.to(value.device)]  # parts of a spread model lie on different devices
        return tuple(pick(item) for item in value)

    return type(features)(**{name: pick(value) for name, value in features.items()})


def keep_states(states: list[Tensor], requested: bool | int | list[int] | None) -> tuple[Tensor | None, ...] | None:
    """The states that `output_hidden_states` asks for: all, none, or those of some indices with None elsewhere."""
    if requested is None or requested is False:
        return None
    if requested is True:
        return tuple(states)
    indices = [requested] if isinstance(requested, int) else requested
    kept = {index % len(states) for index in indices if -len(states) <= index < len(states)}
    return tuple(state if i in kept else None for i, state in enumerate(states))


def check_inputs(raw: Tensor | None, features: Any, raw_name: str, features_name: str) -> None:
    """Refuse a forward without, or with two sources for, one of its two sides.

    Raises:
        ValueError: naming both ways.
    """
    if (raw is None) == (features is None):
        both = "neither" if raw is None else "both"
        raise ValueError(f"{both} of {raw_name} and {features_name} given: pass one of the two.")


def pair_captions(
    num_images: int, num_captions: int, image_indices: Tensor | None, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Which picture and which caption each pair takes; None stands for "all, in order".

    One picture goes with every caption, one caption with every picture, equal numbers pair one to one, and
    `image_indices` [N] says it explicitly.

    Raises:
        ValueError: where the numbers fit none of these.
    """
    if image_indices is not None:
        if len(image_indices) != num_captions:
            raise ValueError(
                f"image_indices has {len(image_indices)} entries for {num_captions} captions: give each caption "
                "the index of its picture."
            )
        return image_indices, None
    if num_images == num_captions:
        return None, None
    if num_images == 1:
        return torch.zeros(num_captions, dtype=torch.int64, device=device), None
    if num_captions == 1:
        return None, torch.zeros(num_images, dtype=torch.int64, device=device)
    raise ValueError(
        f"{num_captions} captions for {num_images} pictures: pass image_indices with the picture of each caption."
    )


def split_pairs(pictures: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The pictures [N] of all captions, in order, in groups of at most `size` pairs: pictures and captions of each."""
    captions = torch.arange(len(pictures), device=pictures.device)
    return list(zip(pictures.split(size), captions.split(size)))


def concatenate(parts: list[Any]) -> Any:
    """Join dicts or outputs of tensors and tuples of tensors along the first dimension; a single part as it is."""
    if len(parts) == 1:
        return parts[0]

    def join(values: list[Any]) -> Any:
        if values[0] is None:
            return None
        if isinstance(values[0], Tensor):
            return torch.cat(values)
        return tuple(join(list(items)) for items in zip(*values))

    joined = {name: join([part[name] for part in parts]) for name in parts[0]}
    return joined if type(parts[0]) is dict else type(parts[0])(**joined)


__all__ = ["check_inputs", "concatenate", "keep_states", "pair_captions", "select", "split_pairs"]
