# Copyright 2026 The glip_hf authors. MIT licence.
"""Plots of an evaluation, as PNG bytes. Needs matplotlib, which the extra `eval` brings."""

import io
from typing import Any

import numpy as np

from .._extras import require
from .base import MISSING, RECALL_POINTS, DetectionEvaluator
from .flickr import PhraseEvaluator
from .lvis import LvisEvaluator

INK, GRID = "#333333", "#dddddd"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito, apart to colour-blind eyes
FREQUENCY_NAMES = {"r": "rare", "c": "common", "f": "frequent"}
SIZE_NAMES = {"s": "small\n< 32²", "m": "medium\n32² to 96²", "l": "large\n≥ 96²"}
TITLE = {"fontsize": 10, "color": INK, "loc": "left"}
LEGEND = {"frameon": False, "fontsize": 9}
DPI = 110


def make_plots(evaluator: Any, metrics: dict[str, float]) -> dict[str, bytes]:
    """File name -> PNG; an ImportError without matplotlib."""
    if isinstance(evaluator, PhraseEvaluator):
        return {f"{evaluator.metric.lower()}.png": _recall_by_type(evaluator)}
    if not isinstance(evaluator, DetectionEvaluator):
        return {}
    return {
        "precision_recall.png": _precision_recall(evaluator),
        "size_frequency.png": _size_frequency(evaluator, metrics),
    }


def make_sets_plot(sets: dict[str, dict[str, float]], mean: float) -> bytes:
    """AP of every data set, the best on top, and their mean, as PNG; an ImportError without matplotlib."""
    order = sorted(sets, key=lambda name: sets[name]["AP"])
    values = [100 * max(sets[name]["AP"], 0) for name in order]
    figure, (axis,) = _figure(10, 1.2 + 0.28 * len(order))
    names = [_label(name if len(name) <= 34 else name[:33] + "…") for name in order]
    drawn = axis.barh(names, values, color=COLORS[0], height=0.65)
    marks = [f"{100 * sets[name]['AP']:.1f}" if sets[name]["AP"] >= 0 else "none" for name in order]
    background = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # keeps the line of the mean out of the labels
    axis.bar_label(drawn, marks, fontsize=9, color=INK, padding=3, bbox=background)
    axis.axvline(100 * mean, color=COLORS[1], linewidth=1.4, label=f"mean  {100 * mean:.1f}")
    axis.set(xlabel="AP, %", xlim=(0, max(10, 1.1 * max(values))), ylim=(-0.6, len(order) - 0.4))
    axis.grid(False, axis="y")
    axis.set_title("AP by data set", **TITLE)
    axis.legend(**LEGEND, loc="lower right", bbox_to_anchor=(1, 1))  # above the bars
    return _png(figure)


def _label(name: str) -> str:
    """A name that matplotlib does not take for a formula."""
    return name.replace("$", r"\$")


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, list[Any]]:
    require("matplotlib", "eval")
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        axis.grid(True, color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(colors=INK, labelsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _precision_recall(evaluator: DetectionEvaluator) -> bytes:
    lvis = isinstance(evaluator, LvisEvaluator)
    precision = evaluator.precision
    figure, axes = _figure(10 if lvis else 5.2, 4.2, 2 if lvis else 1)
    curves = {"IoU 0.50": precision[0], "IoU 0.75": precision[5], "IoU 0.50:0.95": precision.mean(0)}
    _draw_curves(axes[0], curves, "precision and recall, mean over classes")
    if lvis:
        kind = np.array(evaluator.frequencies)
        curves = {name: precision[0][:, kind == key] for key, name in FREQUENCY_NAMES.items()}
        _draw_curves(axes[1], curves, "precision and recall at IoU 0.50, by class frequency")
    return _png(figure)


def _draw_curves(axis: Any, curves: dict[str, np.ndarray], title: str) -> None:
    """Means over the classes that have objects; curves are [recall points, classes]."""
    for (name, values), color in zip(curves.items(), COLORS):
        present = values[:, (values > MISSING).all(0)]
        if present.shape[1]:
            mean = present.mean(1)
            axis.plot(RECALL_POINTS, mean, color=color, linewidth=1.8, label=f"{name}  ({100 * mean.mean():.1f})")
    axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axis.set_title(title, **TITLE)
    if axis.lines:
        axis.legend(**LEGEND, title="area under the curve, %", title_fontsize=8)


def _size_frequency(evaluator: DetectionEvaluator, metrics: dict[str, float]) -> bytes:
    """AP by object size (and class frequency), and AP of each class against its number of objects."""
    figure, (bars, cloud) = _figure(10, 4.2, 2)
    ticker = require("matplotlib.ticker", "eval")
    frequencies = FREQUENCY_NAMES if isinstance(evaluator, LvisEvaluator) else {}
    names = {"": "all"} | SIZE_NAMES | frequencies
    labels = {f"AP{key}": name for key, name in names.items()}
    values = [max(metrics[key], 0) * 100 for key in labels]
    colors = [COLORS[0]] + [COLORS[2]] * 3 + [COLORS[1]] * 3
    drawn = bars.bar(list(labels.values()), values, color=colors[: len(values)], width=0.65)
    marks = [f"{100 * metrics[key]:.1f}" if metrics[key] >= 0 else "none" for key in labels]
    bars.bar_label(drawn, marks, fontsize=9, color=INK, padding=2)
    bars.set(ylabel="AP, %", ylim=(0, max(10, 1.15 * max(values))))
    bars.grid(False, axis="x")
    bars.tick_params(axis="x", labelsize=8)
    bars.set_title("AP by size of objects" + (" and frequency" if len(values) > 4 else ""), **TITLE)

    rows = [row for row in evaluator.per_class() if row["AP"] > MISSING and row["objects"]]
    groups = frequencies or {"": "classes"}
    for (key, name), color in zip(groups.items(), COLORS):
        own = [row for row in rows if not key or row["frequency"] == key]
        points = [row["objects"] for row in own], [100 * row["AP"] for row in own]
        cloud.scatter(*points, s=22, color=color, alpha=0.65, linewidths=0, label=name)
    cloud.set(xlabel="objects of the class", ylabel="AP of the class, %", ylim=(-2, 102))
    if rows:  # a logarithmic axis needs something to show
        most, least = (extreme(row["objects"] for row in rows) for extreme in (max, min))
        cloud.set(xscale="log", xlim=(0.8 * least, max(1.25 * most, 2.5 * least)))
        cloud.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        cloud.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
        cloud.xaxis.set_minor_formatter(ticker.NullFormatter())
    cloud.set_title("AP and number of objects", **TITLE)
    if rows and len(groups) > 1:
        cloud.legend(**LEGEND)
    return _png(figure)


def _recall_by_type(evaluator: PhraseEvaluator) -> bytes:
    rows = evaluator.per_class()
    names = [name for name in rows[0] if name.startswith(evaluator.metric) or name == "Upper_bound"] if rows else []
    figure, (axis,) = _figure(10, 4.2)
    width = 0.8 / max(len(names), 1)
    for index, name in enumerate(names):
        places = [place + (index - (len(names) - 1) / 2) * width for place in range(len(rows))]
        heights = [100 * max(row[name], 0) for row in rows]
        label = "any number" if name == "Upper_bound" else name.replace(f"{evaluator.metric}@", "first ")
        axis.bar(places, heights, width * 0.92, color=COLORS[index % len(COLORS)], label=label)
    axis.set_xticks(range(len(rows)), [f"{_label(row['name'])}\n{row['phrases']}" for row in rows])
    axis.set(ylabel=f"{evaluator.metric.lower()}, %", ylim=(0, 104))
    axis.grid(False, axis="x")
    axis.set_title("phrases found among the first k boxes, by type (and number of phrases)", **TITLE)
    axis.legend(**LEGEND, ncols=len(names) or 1, loc="upper right", bbox_to_anchor=(1, 1.13))
    return _png(figure)
