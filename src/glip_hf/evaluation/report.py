# Copyright 2026 The glip_hf authors. MIT licence.
"""The folder an evaluation leaves: metrics.json, predictions.json, per_class.csv, plots, and one HTML page.

The page (`report.html.j2`) holds everything it shows, images included: it opens anywhere, without a network.
"""

import base64
import csv
import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from .._extras import require
from .._writing import replacing, replacing_text
from ..data.records import ImageRef
from ..formats import spreadsheet_cell
from ..image_processing_pil_glip import read_pixels
from ..visualize import draw_detections
from .base import DetectionEvaluator, Evaluator, GalleryItem
from .plots import make_plots, make_sets_plot
from .run import Result, write_json, write_predictions
from .tasks import Task

GALLERY_SIDE = 520  # pixels, the long side of an image in the gallery
BOXES_SHOWN = 40  # per image; more cannot be told apart


def write_report(
    output: Path,
    result: Result,
    evaluator: Evaluator,
    task: Task | None,
    gallery: int = 6,
    predictions: bool = True,
) -> None:
    """Write everything. `metrics.json` holds the metrics by name and, under "run", how they came about.

    Args:
        output: the folder.
        task: says where images are; None leaves the gallery out.
        gallery: how many of the best, and how many of the worst images.
        predictions: whether to write predictions.json (not where it is what was scored).
    """
    rows = evaluator.per_class()
    document = {**result.metrics, "primary": evaluator.primary, "run": result.info}
    if isinstance(evaluator, DetectionEvaluator):
        document["per_category_AP"] = {str(row["id"]): row["AP"] for row in rows}
    _write_csv(output / "per_class.csv", rows)
    if predictions:
        write_predictions(output / "predictions.json", evaluator)
    plots = _write_plots(output, lambda: make_plots(evaluator, result.metrics))
    best, worst = _choose(evaluator.gallery_items(), gallery) if task is not None and gallery else ([], [])
    images = {} if task is None else {str(image.image_id): image.ref for image in task.images}
    _write_page(output, result, evaluator.primary, rows, plots, _cards(best, images), _cards(worst, images))
    write_json(output / "metrics.json", document)  # last: where it is, the rest is


def write_summary(
    output: Path, result: Result, primary: str, sets: dict[str, dict[str, float]], num_images: dict[str, int]
) -> None:
    """metrics.json, per_set.csv, a plot and a page for several data sets, each of which has its own folder in this one.

    Args:
        sets: metrics of each; num_images: how many images each has.
    """
    rows = [{"name": name, "images": num_images[name], **metrics} for name, metrics in sets.items()]
    info = {**result.info, "sets": len(sets)}
    _write_csv(output / "per_set.csv", rows)
    plots = _write_plots(output, lambda: {"ap_by_set.png": make_sets_plot(sets, result.metrics["AP"])})
    _write_page(output, Result(result.metrics, info), primary, rows, plots)
    write_json(output / "metrics.json", {**result.metrics, "primary": primary, "sets": sets, "run": info})


def _write_plots(output: Path, make: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
    """What `make` draws, also as files; nothing, with a warning, without matplotlib."""
    try:
        plots = make()
    except ImportError as error:
        warnings.warn(f"no plots: {error}", stacklevel=3)
        return {}
    for name, png in plots.items():
        with replacing(output / name) as path:
            path.write_bytes(png)
    return plots


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with replacing_text(path) as file:
        if rows:
            writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: spreadsheet_cell(value) for key, value in row.items()} for row in rows)


def _choose(items: list[GalleryItem], number: int) -> tuple[list[GalleryItem], list[GalleryItem]]:
    """Best and worst, of equals those with more objects; none in both."""
    worst = sorted(items, key=lambda item: (item.score, -item.objects))
    best = sorted(items, key=lambda item: (-item.score, -item.objects))[: min(number, len(items) // 2)]
    kept = {id(item) for item in best}
    return best, [item for item in worst if id(item) not in kept][:number]


# -- HTML ------------------------------------------------------------------------------------------


def _write_page(
    output: Path,
    result: Result,
    primary: str,
    rows: list[dict[str, Any]],
    plots: dict[str, bytes],
    best: list[dict[str, Any]] | None = None,
    worst: list[dict[str, Any]] | None = None,
) -> None:
    jinja2 = require("jinja2", "eval")
    environment = jinja2.Environment(loader=jinja2.PackageLoader(__package__, ""), autoescape=True)
    environment.filters |= {
        "base64": lambda data: base64.b64encode(data).decode("ascii"),
        "metric_name": _metric_name,
        "percent": lambda value: f"{100 * value:.1f}" if value >= 0 else "–",
        "quote": quote,
        "summary": _summary,
    }
    info = result.info
    page = environment.get_template("report.html.j2").render(
        title=f"{info.get('benchmark', 'evaluation')}: {info.get('model') or info.get('predictions', '')}",
        **vars(result),
        primary=primary,
        rows=rows,
        phrases=bool(rows) and "phrases" in rows[0],
        plots=plots,
        best=best,
        worst=worst,
    )
    with replacing_text(output / "report.html") as file:
        file.write(page)


def _metric_name(name: str) -> str:
    """A metric's name for people: "Recall@1_all" -> "Recall@1, all phrases"; "AR@-1" (no limit) -> "AR"."""
    name, _, kind = name.removesuffix("@-1").partition("_")
    if kind and name.startswith("Precision"):
        return f"{name}, {'all expressions' if kind == 'all' else kind}"
    return f"{name}, {kind} phrases" if name.startswith("Recall") and kind else "_".join(filter(None, (name, kind)))


def _summary(options: Mapping[str, Any]) -> str:
    """Options on one line, without those that were not used."""
    used = {name: value for name, value in options.items() if not isinstance(value, dict)}
    return ", ".join(f"{name} {value}" for name, value in used.items() if value not in (None, False, (), []))


def _cards(items: list[GalleryItem], refs: dict[str, ImageRef]) -> list[dict[str, Any]]:
    """Images with their detections and their ground truth; an image that cannot be read is left out."""
    cards = []
    for item in items:
        try:
            pixels = read_pixels(refs[str(item.image_id)].load())
        except (KeyError, OSError, ValueError) as error:
            warnings.warn(f"not in the gallery: {error}", stacklevel=3)
            continue
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        side = GALLERY_SIDE / max(image.size)  # before drawing, so that names stay legible and hide little
        small = image.resize([max(round(side * length), 1) for length in image.size])
        scale = np.array([small.width / image.width, small.height / image.height] * 2)
        images = {}
        for name, boxes in zip(("found", "annotated"), item.show()):
            boxes = {key: value[:BOXES_SHOWN] for key, value in boxes.items()}
            boxes["boxes"] = np.asarray(boxes["boxes"], dtype=np.float64).reshape(-1, 4) * scale
            buffer = io.BytesIO()
            draw_detections(small, boxes).save(buffer, "JPEG", quality=85)
            images[name] = buffer.getvalue()
        cards.append({**vars(item), "correct": round(item.score * item.objects), "images": images})
    return cards
