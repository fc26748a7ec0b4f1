# Copyright 2026 The glip_hf authors. MIT licence.
"""ODinW (Object Detection in the Wild): a task file in YAML beside COCO-format annotations."""

import ast
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..._extras import load_yaml
from ...values_glip import integer, quote
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
    lists = ("OVERRIDE_CATEGORY", "CAPTION_PROMPT")
    parsed = dict.fromkeys(lists) | dict(datasets)
    for key in (*lists, "TRAIN", "TEST"):
        if isinstance(parsed.get(key), str):
            try:
                parsed[key] = ast.literal_eval(parsed[key])
            except (SyntaxError, TypeError, ValueError) as error:
                if key in lists:
                    raise ValueError(f"{path}: {key} is not a valid Python list: {error}") from None
    for key in lists:
        if parsed[key] is not None and not isinstance(parsed[key], list | tuple):
            raise ValueError(f"{path}: {key} {quote(parsed[key])} is not a list.")
    for key in ("TRAIN", "TEST"):
        names = parsed.get(key) or ()
        names = (names,) if isinstance(names, str) else names  # ("test") is no tuple
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path}: {key} {quote(names)} is not a list of splits, such as ('test',).")
        parsed[key] = tuple(names)
    if (copies := integer(1 if parsed.get("GENERAL_COPY") is None else parsed["GENERAL_COPY"])) is None:
        raise ValueError(f"{path}: GENERAL_COPY {quote(parsed['GENERAL_COPY'])} is not an integer.")
    return parsed | {"GENERAL_COPY": max(copies, 1)}
