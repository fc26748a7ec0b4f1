# Copyright 2026 The glip_hf authors. MIT licence.
"""The folder an evaluation leaves: metrics.json, predictions.json, per_class.csv, plots, and one HTML page.

The page holds everything it shows, pictures included: it can be sent and opened anywhere, without a network.
"""

import base64
import csv
import html
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from ..image_processing_pil_glip import load_image, read_pixels
from ..visualize import draw_detections
from .base import DetectionEvaluator, Evaluator, Exhibit
from .plots import make_plots, make_sets_plot
from .run import Result, write_json, write_predictions
from .tasks import Task

GALLERY_SIDE = 520  # pixels, the long side of a picture in the gallery
TRUTH_SHOWN = 40  # boxes drawn a picture; more is a thicket


def write_report(
    output: Path,
    result: Result,
    evaluator: Evaluator,
    task: Task | None,
    gallery: int = 6,
    predictions: bool = True,
) -> None:
    """Write everything. `metrics.json` holds the figures by name and, under "run", how they came about.

    Args:
        output: the folder.
        task: says where pictures are; None leaves the gallery out.
        gallery: how many of the best, and how many of the worst pictures.
        predictions: whether to write predictions.json (not where it is what was scored).
    """
    output.mkdir(parents=True, exist_ok=True)
    rows = evaluator.per_class()
    document = {**result.metrics, "primary": evaluator.primary, "run": result.info}
    if isinstance(evaluator, DetectionEvaluator):
        document["per_category_AP"] = {str(row["id"]): row["AP"] for row in rows}
    write_json(output / "metrics.json", document)
    _write_csv(output / "per_class.csv", rows)
    if predictions:
        write_predictions(output / "predictions.json", evaluator)
    plots = _write_plots(output, lambda: make_plots(evaluator, result.metrics))
    best, worst = _choose(evaluator.exhibits(), gallery) if task is not None and gallery else ([], [])
    paths = {} if task is None else {str(picture.image_id): picture.path for picture in task.pictures}
    page = _page(result, evaluator.primary, rows, plots, _cards(best, paths), _cards(worst, paths))
    (output / "report.html").write_text(page, encoding="utf-8")


def write_summary(
    output: Path, result: Result, primary: str, sets: dict[str, dict[str, float]], pictures: dict[str, int]
) -> None:
    """metrics.json, per_set.csv, a plot and a page for several data sets, each of which has its own folder in this one.

    Args:
        sets: figures of each; pictures: how many each has.
    """
    output.mkdir(parents=True, exist_ok=True)
    rows = [{"name": name, "pictures": pictures[name], **figures} for name, figures in sets.items()]
    info = {**result.info, "sets": len(sets)}
    write_json(output / "metrics.json", {**result.metrics, "primary": primary, "sets": sets, "run": info})
    _write_csv(output / "per_set.csv", rows)
    plots = _write_plots(output, lambda: {"ap_by_set.png": make_sets_plot(sets, result.metrics["AP"])})
    page = _page(Result(result.metrics, info), primary, rows, plots, "", "")
    (output / "report.html").write_text(page, encoding="utf-8")


def _write_plots(output: Path, make: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
    """What `make` draws, also as files; nothing, with a warning, without matplotlib."""
    try:
        plots = make()
    except ImportError as error:
        warnings.warn(f"no plots: {error}", stacklevel=3)
        return {}
    for name, png in plots.items():
        (output / name).write_bytes(png)
    return plots


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        if rows:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


def _choose(exhibits: list[Exhibit], number: int) -> tuple[list[Exhibit], list[Exhibit]]:
    """Best and worst, of equals those with more objects; none in both."""
    worst = sorted(exhibits, key=lambda e: (e.score, -e.objects))
    best = sorted(exhibits, key=lambda e: (-e.score, -e.objects))[: min(number, len(exhibits) // 2)]
    kept = {id(exhibit) for exhibit in best}
    return best, [exhibit for exhibit in worst if id(exhibit) not in kept][:number]


# -- HTML ------------------------------------------------------------------------------------------

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
.lead{color:#555;margin:.2rem 0 1.2rem}.big{font-size:2.6rem;font-weight:600;color:#0072b2}
table{border-collapse:collapse}th,td{padding:.2rem .8rem .2rem 0;text-align:right;border-bottom:1px solid #eee}
th:first-child,td:first-child{text-align:left}th{color:#555;font-weight:600}
table.row th,table.row td{text-align:right}table.sortable td:first-child{max-width:15rem;overflow-wrap:anywhere}
a{color:#0072b2;text-decoration:none}a:hover{text-decoration:underline}
table.sortable th{cursor:pointer}table.sortable th:hover{color:#0072b2}
.scroll{max-height:30rem;overflow:auto}.scroll th{position:sticky;top:0;background:#fff}
.plots img{max-width:100%;display:block;margin:.6rem 0}
.card{margin:0 0 1.4rem}.card .pair{display:grid;grid-template-columns:1fr 1fr;gap:.5rem}
.card img{width:100%;border-radius:3px}.card figcaption{color:#555;font-size:.9rem}
code{background:#f5f5f5;padding:.1rem .3rem;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}dt{color:#555}dd{margin:0;overflow-wrap:anywhere}
"""

SCRIPT = """
document.querySelectorAll("table.sortable th").forEach(function (head, column) {
  var down = true;
  head.addEventListener("click", function () {
    var body = head.closest("table").tBodies[0];
    var rows = Array.from(body.rows);
    rows.sort(function (a, b) {
      var x = a.cells[head.cellIndex].dataset.value, y = b.cells[head.cellIndex].dataset.value;
      var order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    });
    down = !down;
    rows.forEach(function (row) { body.appendChild(row); });
  });
});
"""


def _page(
    result: Result, primary: str, rows: list[dict[str, Any]], plots: dict[str, bytes], best: str, worst: str
) -> str:
    info, esc = result.info, html.escape
    title = f"{info.get('benchmark', 'evaluation')}: {info.get('model') or info.get('predictions', '')}"
    parts = [f"<h1>{esc(title)}</h1>"]
    pictures = f"{info['pictures']:,} pictures, " if "pictures" in info else ""
    seconds = f"{info['seconds']:,} s, " if "seconds" in info else ""
    parts.append(f'<p class="lead">{pictures}{seconds}{esc(info["date"])}</p>')
    phrases = bool(rows) and "phrases" in rows[0]
    what = f"{primary}, mean of {info['sets']} data sets" if "sets" in info else _title(primary)
    parts.append(f'<p><span class="big">{_percent(result.metrics[primary])}</span> {esc(what)}</p>')
    parts.append("<h2>Figures</h2>" + (_table(rows) if phrases else _figures(result.metrics)))
    if plots:
        images = "".join(f'<img src="{_uri(png, "png")}" alt="{esc(name)}">' for name, png in plots.items())
        parts.append(f'<h2>Plots</h2><div class="plots">{images}</div>')
    if worst:
        left = (
            "the first box of each phrase"
            if "Recall" in primary
            else "the best detections, as many as there are objects"
        )
        parts.append(f'<h2>Gallery</h2><p class="lead">Left: {left}. Right: what is annotated.</p>')
        parts += [f"<h3>Best</h3>{best}" if best else "", f"<h3>Worst</h3>{worst}"]
    if rows and not phrases:
        sets = "sets" in info
        parts.append(f"<h2>{'Data sets' if sets else 'Classes'}</h2>{_table(rows, links=sets)}")
    parts.append(f"<h2>How this was made</h2>{_definitions(info)}")
    body = "\n".join(part for part in parts if part)
    head = f'<meta charset="utf-8"><title>{esc(title)}</title><link rel="icon" href="data:,"><style>{STYLE}</style>'
    script = f"<script>{SCRIPT}</script>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n{script}</body></html>\n'


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if value >= 0 else "&ndash;"


def _title(name: str) -> str:
    """A figure's name for people: "Recall@1_all" -> "Recall@1, all phrases"; "AR@-1" (no limit) -> "AR"."""
    name, _, kind = name.removesuffix("@-1").partition("_")
    return f"{name}, {kind} phrases" if name.startswith("Recall") and kind else "_".join(filter(None, (name, kind)))


def _figures(metrics: dict[str, float]) -> str:
    """One row of all figures but those of single data sets, which have a table of their own."""
    shown = {_title(name): value for name, value in metrics.items() if "/" not in name}
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in shown)
    cells = "".join(f"<td>{_percent(value)}</td>" for value in shown.values())
    return f'<div class="scroll"><table class="row"><tr>{heads}</tr><tr>{cells}</tr></table></div>'


def _table(rows: list[dict[str, Any]], links: bool = False) -> str:
    """One row each, the name first; with `links` the name leads to the report in the folder of that name."""
    heads = list(dict.fromkeys(name for name in ("name", *rows[0]) if name in rows[0]))
    lines = []
    for row in rows:
        cells = []
        for name in heads:
            value = row[name]
            text = html.escape(str(value))
            shown = _percent(value) if isinstance(value, float) else text
            if links and name == "name":
                shown = f'<a href="{quote(value)}/report.html">{text}</a>'
            cells.append(f'<td data-value="{text}">{shown}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in heads)
    return (
        f'<div class="scroll"><table class="sortable" id="classes"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _definitions(info: dict[str, Any]) -> str:
    lines = []
    for name, value in info.items():
        if value is None:
            continue
        if isinstance(value, dict):  # options that were not used say nothing
            parts = {key: part for key, part in value.items() if not isinstance(part, dict)}
            value = ", ".join(f"{key} {part}" for key, part in parts.items() if part not in (None, False, (), []))
        code = f"<code>{html.escape(str(value))}</code>" if name == "command" else html.escape(str(value))
        lines.append(f"<dt>{html.escape(name)}</dt><dd>{code}</dd>")
    return f"<dl>{''.join(lines)}</dl>"


def _cards(exhibits: list[Exhibit], paths: dict[str, str]) -> str:
    """Pictures with what was found and what is there; a picture that cannot be read is left out."""
    cards = []
    for exhibit in exhibits:
        try:
            pixels = read_pixels(load_image(paths[str(exhibit.image_id)]))
        except (KeyError, OSError, ValueError) as error:
            warnings.warn(f"not in the gallery: {error}", stacklevel=3)
            continue
        found, truth = exhibit.show()
        photo = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        side = GALLERY_SIDE / max(photo.size)  # before drawing, so that names stay legible and hide little
        small = photo.resize([max(round(side * length), 1) for length in photo.size])
        scale = np.array([small.width / photo.width, small.height / photo.height] * 2)
        images = []
        for boxes, what in ((found, "found"), (truth, "annotated")):
            boxes = {key: value[:TRUTH_SHOWN] for key, value in boxes.items()}
            boxes["boxes"] = np.asarray(boxes["boxes"], dtype=np.float64).reshape(-1, 4) * scale
            drawn = draw_detections(small, boxes)
            buffer = io.BytesIO()
            drawn.save(buffer, "JPEG", quality=85)
            images.append(f'<img src="{_uri(buffer.getvalue(), "jpeg")}" alt="{what}">')
        caption = f"{html.escape(exhibit.caption)}<br>" if exhibit.caption else ""
        right = f"{round(exhibit.score * exhibit.objects)} of {exhibit.objects} right"
        text = f"{caption}{html.escape(str(exhibit.image_id))}: {right}"
        cards.append(
            f'<figure class="card"><div class="pair">{"".join(images)}</div><figcaption>{text}</figcaption></figure>'
        )
    return "".join(cards)


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


__all__ = ["write_report", "write_summary"]
