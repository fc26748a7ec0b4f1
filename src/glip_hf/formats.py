# Copyright 2026 The glip_hf authors. MIT licence.
"""Detections in the formats of annotation tools: COCO, YOLO, Pascal VOC, Label Studio, CSV and JSON Lines.

    write_coco("coco.json", [ImageDetections("photo.jpg", *image.size, result)], ["cat", "dog"])

`glip ground --format` calls them. Each takes the images one by one, so that a generator need not hold all masks, and
writes the whole output or nothing. Importing it loads neither torch nor numpy: the command line lists the formats.
"""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

from ._extras import require
from ._writing import check_place, replacing, replacing_text
from .values_glip import escape, quote

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif", ".jp2")
)

# Entries of an image's detections and what they are called in a single one; of all others the final s is dropped
COLUMNS = {"text_labels": "text_label", "labels": "label", "scores": "score", "boxes": "box", "features": "features"}


class ImageDetections(NamedTuple):
    """What was found in one image.

    Attributes:
        file_name: of the image, relative to the folder of all images, with forward slashes.
        width, height: of the upright image, in pixels.
        detections: as post-processing returns them: `boxes` [K, 4] xyxy in pixels, `scores` [K], `text_labels` K
            strings; and whatever else has K rows, such as `masks` [K, H, W] bool of the image's size.
    """

    file_name: str
    width: int
    height: int
    detections: Mapping[str, Any]


def encode_mask(mask: Any) -> dict[str, list[int]]:
    """A mask [H, W] as COCO's uncompressed RLE: `size` (H, W) and `counts` of zeros, ones, zeros ... down the columns.

    pycocotools reads it (`COCO.annToMask`, `mask.frPyObjects`).
    """
    import numpy as np

    pixels = np.asarray(mask, dtype=bool)
    flat = pixels.reshape(-1, order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    return {"size": list(pixels.shape), "counts": np.diff(changes, prepend=0, append=flat.size).tolist()}


def detection_records(detections: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each detection of an image as a plain dict: `text_label`, `label`, `score`, `box` (xyxy in pixels), and a key for
    everything else that there is, with masks as `encode_mask` gives them. A ValueError if there are no `text_labels`,
    or an entry has another number of rows than there are boxes."""
    if "text_labels" not in detections:
        raise ValueError("the detections have no text_labels: give post-processing text_labels=, the class names.")
    count, columns = len(detections["boxes"]), {}
    for name in sorted(detections, key=lambda name: list(COLUMNS).index(name) if name in COLUMNS else len(COLUMNS)):
        rows = detections[name]
        if len(rows) != count:
            raise ValueError(f"{count} boxes, but {len(rows)} {name}: each entry needs a row for each box.")
        rows = [encode_mask(mask) for mask in rows] if name == "masks" else rows
        columns[COLUMNS.get(name, name.removesuffix("s"))] = rows.tolist() if hasattr(rows, "tolist") else rows
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def outline(mask: Any) -> list[list[int]]:
    """The outermost pixels [x, y] of the largest part of a mask [H, W], in order around it; [] if the mask is empty.

    `cv2.fillPoly`, which tools read polygons with, fills what they enclose and themselves: the part, without its holes.
    """
    import numpy as np

    padded = np.pad(np.asarray(mask, dtype=float), 1)
    contourpy = require("contourpy", "eval")  # it comes with matplotlib
    lines = contourpy.contour_generator(z=padded).lines(0.99)  # just outside of the pixels' centres

    def area(line: Any) -> float:
        (x, y), (x2, y2) = line.T, np.roll(line, -1, axis=0).T
        return abs(float(np.dot(x, y2) - np.dot(y, x2)))

    pixels = np.round(max(lines, key=area) - 1).astype(int) if lines else np.empty((0, 2), int)
    return pixels[(pixels != np.roll(pixels, 1, axis=0)).any(1)].tolist() or pixels[:1].tolist()


def rounded(record: Mapping[str, Any]) -> dict[str, Any]:
    """A detection for people to read: hundredths of a pixel, four digits of the score."""
    return {**record, "score": round(record["score"], 4), "box": [round(v, 2) for v in record["box"]]}


def spreadsheet_cell(value: Any) -> Any:
    """A value that a spreadsheet does not take for a formula; lists and dictionaries as JSON."""
    value = json.dumps(value) if isinstance(value, dict | list) else value
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def write_coco(output: str | Path, images: Iterable[ImageDetections], names: Sequence[str]) -> None:
    """A COCO file with one category for each of `names`, which `glip check-data` and fine-tuning read.

    An annotation has its `score` and everything else that a detection has; `segmentation` is the mask as RLE.
    """
    ids = {name: number for number, name in enumerate(dict.fromkeys(names), start=1)}
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in images:
        entries.append({"id": len(entries) + 1, **image._asdict()})
        for found in detection_records(entries[-1].pop("detections")):
            x, y, x2, y2 = (round(v, 4) for v in found.pop("box"))
            box = {"bbox": [x, y, round(x2 - x, 4), round(y2 - y, 4)], "area": round((x2 - x) * (y2 - y), 4)}
            if (mask := found.pop("mask", None)) is not None:
                box |= {"segmentation": mask, "area": sum(mask["counts"][1::2])}
            category = _number(found.pop("text_label"), ids)
            found.pop("label", None)
            place = {"id": len(annotations) + 1, "image_id": len(entries), "category_id": category}
            annotations.append({**place, **box, "iscrowd": 0, **found})
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    write_json(output, {"images": entries, "categories": categories, "annotations": annotations})


def write_yolo(output: str | Path, images: Iterable[ImageDetections], names: Sequence[str]) -> None:
    """A folder with `data.yaml` and `labels/NAME.txt` for each image: a line `class x y width height` per detection,
    centre and size as fractions of the image, without the score. With masks it is `class x y x y ...`, the outline of
    the mask's largest part. The images belong into `images` beside `labels`.
    """
    ids = {name: number for number, name in enumerate(dict.fromkeys(names))}
    quoted = [escape(json.dumps(name, ensure_ascii=False)) for name in ids]  # JSON's strings are YAML's
    files = {"data.yaml": f"path: .\ntrain: images\nval: images\nnames: [{', '.join(quoted)}]\n"}
    for image in images:
        lines, masks = "", image.detections.get("masks")
        for row, found in enumerate(detection_records(image.detections)):
            x, y, x2, y2 = _relative(found["box"], image)
            parts = [(x + x2) / 2, (y + y2) / 2, x2 - x, y2 - y]
            if masks is not None:
                points = [_relative(point, image) for point in outline(masks[row])]
                if len(points) < 3:  # not a polygon
                    points = [(x, y), (x2, y), (x2, y2), (x, y2)]
                parts = [side for point in points for side in point]
            lines += f"{_number(found['text_label'], ids)} {' '.join(f'{part:.7f}' for part in parts)}\n"
        _add(files, f"labels/{image.file_name}", ".txt", lines)
    _write_folder(output, files)


def write_voc(output: str | Path, images: Iterable[ImageDetections], names: Sequence[str]) -> None:
    """A folder with a Pascal VOC file `NAME.xml` for each image: boxes in whole pixels, without scores. `xmin` and
    `ymin` count from 1, `xmax` and `ymax` are the far edges, as supervision reads them.
    """
    ids, files = dict.fromkeys(names, 0), {}
    for image in images:
        path = PurePosixPath(image.file_name)
        root = ElementTree.Element("annotation")
        size = {"width": image.width, "height": image.height, "depth": 3}
        _fill(root, {"folder": path.parent.name, "filename": path.name, "size": size, "segmented": 0})
        for found in detection_records(image.detections):
            _number(found["text_label"], ids)
            x, y, x2, y2 = (round(v) for v in found["box"])
            x, y = min(x, image.width - 1), min(y, image.height - 1)
            box = {"xmin": x + 1, "ymin": y + 1, "xmax": max(x2, x + 1), "ymax": max(y2, y + 1)}
            fields = {"name": escape(found["text_label"]), "pose": "Unspecified", "truncated": 0, "difficult": 0}
            _fill(ElementTree.SubElement(root, "object"), {**fields, "bndbox": box})
        ElementTree.indent(root)
        _add(files, image.file_name, ".xml", ElementTree.tostring(root, encoding="unicode") + "\n")
    _write_folder(output, files)


def write_label_studio(output: str | Path, images: Iterable[ImageDetections], names: Sequence[str]) -> None:
    """Tasks with predictions for Label Studio's "Import", for a labelling configuration with
    `<Image name="image" value="$image"/>` and `<RectangleLabels name="label" toName="image">`. Boxes are in per cent.

    `$image` is the image's file name: it has to be what Label Studio finds the image by, such as
    `/data/local-files/?d=photos/a.jpg`.
    """
    ids, tasks = dict.fromkeys(names, 0), []
    for image in images:
        regions = []
        for found in detection_records(image.detections):
            _number(found["text_label"], ids)
            x, y, x2, y2 = (100 * side for side in _relative(found["box"], image))
            value = {"x": x, "y": y, "width": x2 - x, "height": y2 - y, "rotation": 0}
            region = {"from_name": "label", "to_name": "image", "type": "rectanglelabels", "score": found["score"]}
            region |= {"original_width": image.width, "original_height": image.height}
            regions.append({**region, "value": {**value, "rectanglelabels": [found["text_label"]]}})
        tasks.append(
            {"data": {"image": image.file_name}, "predictions": [{"model_version": "glip", "result": regions}]}
        )
    write_json(output, tasks)


def write_jsonl(output: str | Path, images: Iterable[ImageDetections], names: Sequence[str] = ()) -> None:
    """A line of JSON for each image: `file_name`, `width`, `height`, and `detections` as in `glip ground --json`."""
    with replacing_text(output) as file:
        for image in images:
            found = [rounded(record) for record in detection_records(image.detections)]
            file.write(json.dumps({**image._asdict(), "detections": found}, ensure_ascii=False) + "\n")


def write_csv(output: str | Path, images: Iterable[ImageDetections], names: Sequence[str] = ()) -> None:
    """A table with a row per detection: `file_name`, `width`, `height`, `text_label`, `label`, `score`, the corners
    `x1`, `y1`, `x2`, `y2`, and a column for everything else that there is. An image without detections has no row.
    Text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    rows = []
    for image in images:
        for found in map(rounded, detection_records(image.detections)):
            row = {**image._asdict(), **dict(zip(("x1", "y1", "x2", "y2"), found.pop("box"))), **found}
            del row["detections"]
            rows.append({key: spreadsheet_cell(value) for key, value in row.items()})
    header = ("file_name", "width", "height", "text_label", "label", "score", "x1", "y1", "x2", "y2")
    with replacing_text(output) as file:
        table = csv.DictWriter(file, list(dict.fromkeys(chain(header, *rows))))
        table.writeheader()
        table.writerows(rows)


FORMATS: dict[str, Callable[[str | Path, Iterable[ImageDetections], Sequence[str]], None]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_voc,
    "label-studio": write_label_studio,
    "csv": write_csv,
    "jsonl": write_jsonl,
}
"""A function for each format: of the output, the images, and all class names that were asked for.

Raises:
    ValueError: for what `detection_records` refuses, a text label that is not among `names`, and two images that a
        format would give the same file.
    NotWrittenError: if the disk is full, read-only, ...
"""

# The formats of a file for each image; their output is a folder, which must be new or empty
FOLDERS = frozenset(("yolo", "voc"))

# Option of the command line -> the formats that have a place for what it gives
PLACES = {"masks": ("coco", "yolo", "csv", "jsonl"), "track": ("coco", "csv", "jsonl")}


def _relative(box: Sequence[float], image: ImageDetections) -> list[float]:
    """A box or a point in pixels as fractions of its image."""
    return [side / size for side, size in zip(box, (image.width, image.height) * 2)]


def _number(name: str, ids: Mapping[str, int]) -> int:
    if name not in ids:
        raise ValueError(f"the text label {quote(name)} is not among the class names {quote(list(ids))}.")
    return ids[name]


def _fill(element: ElementTree.Element, values: Mapping[str, Any]) -> None:
    for tag, value in values.items():
        child = ElementTree.SubElement(element, tag)
        if isinstance(value, Mapping):
            _fill(child, value)
        else:
            child.text = str(value)


def _add(files: dict[str, str], image: str, suffix: str, content: str) -> None:
    """Enter the file of an image, which is called like it and lies inside the folder."""
    path = PurePosixPath(image).with_suffix(suffix)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the file name {quote(image)} leads out of the folder: name images from the folder of all.")
    if str(path) in files:
        raise ValueError(f"{path} would hold two images: give them names that differ in more than the suffix.")
    files[str(path)] = content


def _write_folder(output: str | Path, files: Mapping[str, str]) -> None:
    check_output(output, is_folder=True)
    with replacing(output) as folder:
        folder.mkdir()
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")


def write_json(output: str | Path, document: Any) -> None:
    """A file of one line."""
    with replacing_text(output) as file:  # `json.dump` takes three times as long
        file.write(json.dumps(document, ensure_ascii=False) + "\n")


def check_output(output: str | Path, is_folder: bool) -> None:
    """Whether an output can be written, before there is anything to lose: a ValueError for a folder where a file
    belongs, or a file or a full folder where a new folder belongs, else what `check_place` raises."""
    path = Path(output)
    if not is_folder and path.is_dir():
        raise ValueError(f"{path} is a folder: name a file.")
    if is_folder and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} exists: name a new or an empty folder.")
    check_place(path)
