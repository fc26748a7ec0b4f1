# Copyright 2026 The glip_hf authors. MIT licence.
"""One reader a format. `build_source` picks it from a plain dictionary, as a recipe's YAML gives it."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...values_glip import quote
from .base import Source, find_path, require_images
from .coco import CocoFile, coco_annotations, read_coco, read_lvis, read_mdetr
from .hub import HubColumns, HubData, HubStream, read_hub
from .joined import JoinedSource
from .odinw import read_odinw
from .odvg import read_odvg
from .scenes import read_scenes
from .tsv import read_tsv
from .voc import read_voc
from .yolo import read_yolo

__all__ = [
    "CATALOGUE",
    "FILES",
    "READERS",
    "HubColumns",
    "HubStream",
    "JoinedSource",
    "Source",
    "build_source",
    "check_flags",
    "coco_annotations",
    "find_path",
    "guess_file",
    "guess_source",
    "read_coco",
    "read_hub",
    "read_lvis",
    "read_mdetr",
    "read_odinw",
    "read_odvg",
    "read_scenes",
    "read_tsv",
    "read_voc",
    "read_yolo",
    "require_images",
    "resolve_spec",
]

READERS = {
    "coco": read_coco,
    "lvis": read_lvis,
    "mdetr": read_mdetr,
    "odinw": read_odinw,
    "tsv": read_tsv,
    "voc": read_voc,
    "yolo": read_yolo,
    "odvg": read_odvg,
    "hub": read_hub,
    "scenes": read_scenes,
}

FILES: dict[str, Callable[..., CocoFile]] = {
    name: reader.make for name, reader in READERS.items() if hasattr(reader, "make")
}
"""Of the readers of files what says how one is read."""

NOT_READ = ("format", "copies", "weight", "streaming")
"""Entries of a data set's dictionary that say how it is mixed and read; the others are its reader's arguments."""

_MDETR = "mdetr_annotations"
_MIXED = {"format": "mdetr", "images": {"vg": "gqa/images", "coco": "coco/train2014"}}


def _coco(format: str, annotations: str, images: str, **options: Any) -> dict[str, Any]:
    return {"format": format, "annotations": f"coco/annotations/{annotations}.json", "images": images, **options}


CATALOGUE: dict[str, dict[str, Any]] = {
    "coco_2017_train": _coco("coco", "instances_train2017", "coco/train2017"),
    "coco_2017_val": _coco("coco", "instances_val2017", "coco/val2017", drop_empty=False),
    "lvis_v1_minival": _coco("lvis", "lvis_v1_minival_inserted_image_name", "coco", drop_empty=False),
    "lvis_v1_val": _coco("lvis", "lvis_od_val", "coco", drop_empty=False),
    "lvis_v1_train": _coco("lvis", "lvis_od_train", "coco"),
    "object365_dt_train": {"format": "tsv", "yaml_file": "Objects365/objects365_train_vgoiv6.cas2000.yaml"},
    "mixed_train": {**_MIXED, "annotations": f"{_MDETR}/final_mixed_train.json"},
    "mixed_train_no_coco": {**_MIXED, "annotations": f"{_MDETR}/final_mixed_train_no_coco.json"},
    **{
        f"flickr30k_{split}": {
            "format": "mdetr",
            "annotations": f"{_MDETR}/final_flickr_separateGT_{split}.json",
            "images": f"flickr30k/flickr30k_images/{split}",
        }
        for split in ("train", "val", "test")
    },
}
"""Data sets of the released models by their original names, at their original places under the data root."""


def build_source(
    spec: str | Mapping[str, Any], data_root: str | Path | None = None, cache_dir: str | Path | None = None
) -> Source:
    """A source from a name of `CATALOGUE`, or from a reader's arguments and its name as `format`.

    `{"format": "coco", "annotations": "a.json", "images": "photos"}`; with `{"name": "coco_2017_train", ...}` and no
    format the other entries change those of the catalogue. `shots` (and `shuffle_seed`) make it a few-shot set.

    Raises:
        ValueError: for a name, format or argument that does not exist, with the nearest that does.
    """
    given, resolved = spec, resolve_spec(spec)
    reader = READERS[resolved.pop("format")]
    few_shot = {}
    if resolved.get("name") is not None:
        resolved["name"] = str(resolved["name"])  # YAML reads 2017 as a number
    if reader is not read_odinw and "shots" in resolved:
        few_shot = {key: resolved.pop(key) for key in ("shots", "shuffle_seed") if key in resolved}
    signature = inspect.signature(reader)
    known = [name for name in signature.parameters if name != "load_options"]
    for key in resolved:
        if key not in known and reader is not read_hub:
            raise ValueError(f"Data set {given!r}: {reader.__name__} knows no {key!r}{_nearest(key, known)}.")
    check_flags(resolved, reader)
    for key, value in (("data_root", data_root), ("cache_dir", cache_dir)):
        if key in known:
            resolved.setdefault(key, value)
    try:
        signature.bind(**resolved)
    except TypeError as error:
        raise ValueError(f"Data set {given!r:.200}: {error}.") from None
    source = reader(**resolved)
    return source if few_shot.get("shots") is None else source.few_shot(**few_shot)


def check_flags(options: Mapping[str, Any], reader: Callable[..., Any]) -> None:
    """Raise a ValueError for an option that the reader takes for true or false and that is another value, as `"no"`."""
    readers = [reader, HubData] if reader in (read_hub, HubStream) else [reader]
    for key, parameter in [item for one in readers for item in inspect.signature(one).parameters.items()]:
        if isinstance(parameter.default, bool) and not isinstance(options.get(key, False), bool):
            raise ValueError(f"Data set {dict(options)!r:.200}: {key}={quote(options[key])} must be true or false.")


def resolve_spec(spec: str | Mapping[str, Any]) -> dict[str, Any]:
    """The reader's arguments and `format` that a data set stands for; a ValueError for an unknown name or format."""
    spec = {"name": spec} if isinstance(spec, str) else dict(spec)
    if "format" not in spec:
        name = spec.get("name")
        if not isinstance(name, str) or name not in CATALOGUE:
            raise ValueError(
                f"There is no data set {name!r}{_nearest(str(name), list(CATALOGUE))}. Give 'format' "
                f"({', '.join(READERS)}) and what its reader needs."
            )
        spec = CATALOGUE[name] | spec
    if str(spec["format"]) not in READERS:
        nearest = _nearest(str(spec["format"]), list(READERS))
        raise ValueError(f"There is no format {spec['format']!r}{nearest}; there are {', '.join(READERS)}.")
    return spec


def guess_source(path: str | Path, images: str | Path | None = None) -> dict[str, Any]:
    """What `build_source` takes, from a path alone: a `.json` is COCO's, a `.yaml` (or a folder with `data.yaml`)
    YOLO's, a `.jsonl` ODVG's, a folder with XML files Pascal VOC's, and any other file COCO's if it begins with `{`.

    Args:
        images: folder of the images; default where the format has them, for JSON the file's folder.

    Raises:
        FileNotFoundError: if the path does not exist.
        ValueError: for everything else; the message names the choices.
    """
    path = Path(path)
    found = find_path(path, must_exist=False)
    if not found.exists():
        raise FileNotFoundError(f"There is no {str(path)!r} in {Path.cwd()}.")
    suffix = found.suffix.lower()
    if found.is_dir():
        is_yolo = (found / "data.yaml").is_file()
        format = "yolo" if is_yolo else "voc" if any(True for _ in found.rglob("*.xml")) else None
    else:
        format = {".json": "coco", ".jsonl": "odvg", ".yaml": "yolo", ".yml": "yolo"}.get(suffix)
        if format is None and found.is_file():
            with open(found, "rb") as file:
                format = "coco" if file.read(4096).lstrip().startswith(b"{") else None
    if format is None:
        what = "a folder without XML files and data.yaml" if found.is_dir() else f"a file of the kind {suffix!r}"
        raise ValueError(
            f"{path} is {what}. Data is a COCO file (.json), a YOLO data.yaml, an ODVG file (.jsonl) or a folder of "
            "Pascal VOC files (.xml)."
        )
    spec: dict[str, Any] = {"format": format, "annotations": str(path)}
    if images is not None or format in ("coco", "odvg"):
        spec["images"] = str(path.parent if images is None else images)
    return spec


def guess_file(
    path: str | Path,
    images: str | Path | None = None,
    splits: Sequence[str] = (),
    allow_outside: bool = False,
    **options: Any,
) -> tuple[CocoFile, dict[str, Any]]:
    """What reads the data set that `guess_source` tells, and the `spec` of it.

    Args:
        splits: the split to read, the first of these that the set has; without any of them the reader's default.
        options: more arguments of the reader.
    """
    spec = guess_source(path, images) | options | ({"allow_outside": True} if allow_outside else {})

    def make() -> CocoFile:
        return FILES[spec["format"]](**{key: value for key, value in spec.items() if key != "format"})

    file = make()
    if (split := next((name for name in splits if name in file.splits), None)) is not None:
        spec["split"], file = split, None
    return file or make(), spec


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""
