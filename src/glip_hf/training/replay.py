# Copyright 2026 The glip_hf authors. MIT licence.
"""Replay: other data mixed into fine-tuning, so that a model keeps what it knew.

    load_replay(["scenes:0.3"], images=len(data.train))       # 3 of 10 training images are generated scenes

A source is `scenes`, a name of `data.CATALOGUE`, a YAML file (a source as recipes have it, or a whole recipe), Parquet
shards of `examples/label_captions.py` (a folder, a glob or a file), or annotations as `guess_source` knows them. Each
epoch of the run draws other samples of it, from (seed, epoch).
"""

import glob
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._extras import load_yaml
from ..data.columns import ALLOWED_DAMAGE
from ..data.shards import FORMATS
from ..data.sources import CATALOGUE, NOT_READ, Source, build_source, guess_source, require_images
from ..data.sources.scenes import SceneSource
from ..values_glip import counted, shown
from .recipe import RecipeError

logger = logging.getLogger(__name__)

SHARE = 0.25
"""Default share of the training images that are replayed."""


@dataclass
class Replay:
    """One replayed data set.

    Attributes:
        source: its samples. spec: what it was built from, as `build_source` takes it.
        copies: samples of an epoch in multiples of its size, see `Mixture`.
    """

    source: Source
    spec: dict[str, Any]
    copies: float


def other_images(source: Source, held_out: Source) -> Sequence[int]:
    """The rows of `source` whose image files are not among those of `held_out`; all of one without image files."""
    known = {os.path.abspath(image.path) for image in held_out.image_files() if image.path}
    if not (files := list(source.image_files())):
        return range(len(source))
    return [row for row, image in enumerate(files) if not image.path or os.path.abspath(image.path) not in known]


def read_replay(text: str) -> tuple[list[dict[str, Any]], float]:
    """The data sets and the share of the training images that `SOURCE[:share]` stands for.

    Raises:
        RecipeError: for a share that is not above 0 and below 1, and a recipe whose data is streamed.
        FileNotFoundError, ValueError: as `guess_source`.
    """
    name, _, end = text.rpartition(":")
    try:
        share = float(end) if name else SHARE
    except ValueError:  # the colon belongs to the name
        share = SHARE
    else:
        text = name or text
    if not text:
        raise RecipeError("--replay is empty: write SOURCE or SOURCE:SHARE, such as scenes:0.25.")
    if not 0 < share < 1:
        raise RecipeError(f"--replay {shown(text)}:{share:g}: the share of replayed images must lie between 0 and 1.")
    specs = _specs(text)
    if any(spec.get("streaming") for spec in specs):
        raise RecipeError(f"--replay {shown(text)} is streamed: replay needs stored data, drop `streaming`.")
    return specs, share


def _specs(text: str) -> list[dict[str, Any]]:
    path = Path(text)
    if text in CATALOGUE:
        return [{"name": text}]
    if text == "scenes" and not path.exists():
        return [{"format": "scenes"}]
    shards = sorted(glob.glob(text)) if glob.has_magic(text) and not path.exists() else [text]
    if path.is_dir():
        shards = [str(file) for file in sorted(path.iterdir()) if file.name.endswith(tuple(FORMATS))]
    if shards and shards[0].endswith(tuple(FORMATS)) and os.path.isfile(shards[0]):
        if tars := [shard for shard in shards if not shard.endswith(".parquet")]:
            raise RecipeError(f"--replay {shown(tars[0])}: shards are read as Parquet; label with --format parquet.")
        return [{"format": "hub", "dataset": "parquet", "data_files": [os.path.abspath(shard) for shard in shards]}]
    if path.suffix in (".yaml", ".yml") and path.is_file():
        try:
            content = load_yaml(path)
        except ValueError as error:
            raise RecipeError(f"--replay {error}") from None
        if isinstance(content, Mapping) and isinstance(content.get("data"), Mapping):  # a recipe
            sources = content["data"].get("sources") or [{"format": "scenes"}]
            return [{"name": source} if isinstance(source, str) else dict(source) for source in sources]
        if isinstance(content, Mapping) and {"format", "name"} & set(content):
            return [dict(content)]
    try:
        return [guess_source(text)]
    except (OSError, ValueError) as error:
        kinds = (
            "scenes, a known data set, a recipe in YAML, shards or annotations; a share follows a colon, as in :0.25"
        )
        raise RecipeError(f"--replay {shown(text)}: {error} It is {kinds}.") from None


def load_replay(
    texts: Sequence[str],
    images: int,
    allow_damage: float = ALLOWED_DAMAGE,
    on_broken: str = "skip",
    cache_dir: str | Path | None = None,
    held_out: Source | None = None,
) -> list[Replay]:
    """The data sets of `--replay`, read and checked like training data.

    Args:
        texts: `SOURCE[:share]` each. Of several data sets behind one text each gets its part by `copies` or `weight`.
        images: training images besides.
        held_out: the validation data, whose image files are not replayed.

    Raises:
        RecipeError: see `read_replay`; also if the shares leave nothing to tune on, or no image is left to replay.
        DamagedData, MissingImages: as for training data.
    """
    asked = [(text, *read_replay(text)) for text in texts]
    rest = 1 - sum(share for _, _, share in asked)
    if rest <= 1e-9:
        raise RecipeError(f"--replay {' '.join(texts)}: the shares leave no room for the images to tune on.")
    found = []
    for text, specs, share in asked:
        own = []
        for spec in specs:
            plain = {key: value for key, value in spec.items() if key not in NOT_READ or key == "format"}
            source = build_source(plain, cache_dir=cache_dir)
            source.require_boxes(allow_damage, needed=not isinstance(source, SceneSource))
            require_images([source], f"the data of --replay {shown(text)}")
            source = source.without_broken(on_broken)
            rows = range(len(source)) if held_out is None else other_images(source, held_out)
            if (left_out := len(source) - len(rows)) > 0:
                logger.warning(f"--replay {shown(text)}: {counted(left_out, 'image')} held out for validation left out")
                source = source.select(rows)
            if not rows:
                raise RecipeError(
                    f"--replay {shown(text)}: all of its images are validated on, nothing is left to replay."
                )
            own.append((source, plain, spec.get("weight", spec.get("copies", 1) * len(source))))
        total = sum(weight for *_, weight in own)
        for source, plain, weight in own:
            samples = max(images * share / rest * weight / total, 1)
            found.append(Replay(source, plain, samples / len(source)))
    return found
