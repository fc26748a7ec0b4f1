# Copyright 2026 The glip_hf authors. MIT licence.
"""ODinW (Object Detection in the Wild): a task file in YAML beside COCO-format annotations."""

import ast
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..._extras import load_yaml
from ...values_glip import quote
from .base import find_path
from .coco import CocoFile, coco_file, reader


def odinw_file(
    task: str | Path,
    split: str = "train",
    *,
    shots: int | None = None,
    seed: int = 3,
    use_prompts: bool = True,
    data_root: str | Path | None = None,
    allow_outside: bool = False,
) -> CocoFile:
    """One split of an ODinW task, called "<task>/<split>".

    Args:
        task: the YAML file, as the original ships it (`DATASETS.REGISTER`, `OVERRIDE_CATEGORY`, `CAPTION_PROMPT`).
        split: a key of `REGISTER`: "train", "val", "test", "minival", ...
        shots, seed: the few-shot file of the split with so many shots (1, 3, 5, 10) and this seed (3, 30, 300).
        use_prompts: write captions with the task's prompts, where it has some.
        data_root, allow_outside: as for `coco_file`.

    Raises:
        ValueError: for a split that the task does not have, and a malformed task file or entry.
    """
    path = Path(task) if Path(task).is_file() else find_path(task, data_root)
    settings = load_task(path)
    if shots is not None:
        split = f"{split}_{shots}_{seed}"
    if split not in settings["REGISTER"]:
        listed = ", ".join(sorted(settings["REGISTER"]))
        raise ValueError(f"{path}: there is no split {split!r} in REGISTER; it has {listed}.")
    entry = settings["REGISTER"][split]
    if not isinstance(entry, Mapping) or not {"ann_file", "img_dir"} <= set(entry):
        raise ValueError(f"{path}, REGISTER of {split!r}: {quote(entry)} must have ann_file and img_dir.")
    file = coco_file(
        entry["ann_file"],
        entry["img_dir"],
        data_root=data_root,
        categories=settings["OVERRIDE_CATEGORY"],
        prompts=settings["CAPTION_PROMPT"] if use_prompts else None,
        allow_outside=allow_outside,
    )
    return replace(file, name=f"{path.stem}/{split}")


read_odinw = reader(odinw_file)


def load_task(path: str | Path) -> dict[str, Any]:
    """`DATASETS` of a task file, with lists that are stored as text parsed.

    `OVERRIDE_CATEGORY` and `CAPTION_PROMPT` are None where absent; `TRAIN` and `TEST` tuples of split names;
    `GENERAL_COPY` the number of copies (1 where absent).
    """
    content = load_yaml(path)
    datasets = content.get("DATASETS") if isinstance(content, Mapping) else None
    if not isinstance(datasets, Mapping) or not isinstance(datasets.get("REGISTER"), Mapping):
        raise ValueError(f"{path}: an ODinW task file has DATASETS.REGISTER; this one does not.")
    parsed = {"OVERRIDE_CATEGORY": None, "CAPTION_PROMPT": None} | dict(datasets)
    for key in ("OVERRIDE_CATEGORY", "CAPTION_PROMPT", "TRAIN", "TEST"):
        if isinstance(parsed.get(key), str):
            try:
                parsed[key] = ast.literal_eval(parsed[key])
            except (ValueError, SyntaxError) as error:
                raise ValueError(f"{path}: {key} is not a valid Python list: {error}") from None
    parsed["GENERAL_COPY"] = max(int(parsed.get("GENERAL_COPY", 1)), 1)
    return parsed
