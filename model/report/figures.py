"""The figures of a report, drawn by matplotlib, as SVG that belongs into the page, with its fonts and colours.

Words in a figure are those of this module, never labels from the data: matplotlib measures text with fonts of its own,
which have no Chinese.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from model.run.report import CalibrationBin

# matplotlib needs colours with values; in the page they become the style sheet's names.
_INK, _MUTED, _RULE = "#010101", "#020202", "#030303"
_SERIES = ("#040404", "#050505", "#060606")
_CSS_NAMES = {_INK: "ink", _MUTED: "muted", _RULE: "rule"} | {
    color: f"series-{number}" for number, color in enumerate(_SERIES, 1)
}
# Typed loosely: matplotlib lists its three hundred keys one by one.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlecolor": _INK,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "lines.linewidth": 1.6,
}
_MAX_BARS = 64


def draw_learning_curves(rows: Sequence[Mapping[str, float]], heads: Sequence[str], best_epoch: int) -> Markup:
    """Draw losses and accuracies by epoch.

    Args:
        rows: of `metrics.csv`, at least one.
        heads: of the run.
        best_epoch: whose weights were kept.
    """
    epochs = [row["epoch"] for row in rows]

    def plot(axes: Axes, name: str, label: str, color: str) -> None:
        axes.plot(epochs, [row[name] for row in rows], "--", color=color, alpha=0.75, marker=".", linewidth=1.1)
        axes.plot(epochs, [row[f"val_{name}"] for row in rows], color=color, marker="o", markersize=3.5, label=label)

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 2.9), layout="constrained")
        losses, accuracies = figure.subplots(1, 2)
        plot(losses, "loss", "all heads", _INK)
        for head, color in zip(heads, _SERIES, strict=False):
            if len(heads) > 1:
                plot(losses, f"{head}_loss", head, color)
            plot(accuracies, f"{head}_accuracy", head, color)
        if len(heads) > 1:
            plot(accuracies, "exact_match", "exact match", _INK)
        losses.set_title("Loss")
        losses.set_ylim(bottom=0)
        accuracies.set_title("Accuracy")
        accuracies.yaxis.set_major_formatter(PercentFormatter(1.0))
        for axes in (losses, accuracies):
            axes.axvline(best_epoch, color=_MUTED, linewidth=0.8, linestyle=":")
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(loc="best")
        return _as_markup(figure, "Loss and accuracy by epoch")


def draw_calibration(head: str, calibration: Sequence[CalibrationBin]) -> Markup:
    """Draw accuracy over confidence, and how many predictions have which confidence.

    Args:
        head: whose they are.
        calibration: bins, see `model.report.metrics.calibrate`.
    """
    centers = [(bin_.lower + bin_.upper) / 2 for bin_ in calibration]
    width = 0.86 / len(calibration)
    filled = [bin_ for bin_ in calibration if bin_.count]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 2.7), layout="constrained")
        reliability, counts = figure.subplots(1, 2)
        reliability.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.8, linestyle=":")
        reliability.bar(centers, [bin_.accuracy or 0.0 for bin_ in calibration], width, color=_SERIES[0], alpha=0.35)
        reliability.plot(
            [bin_.confidence for bin_ in filled],
            [bin_.accuracy for bin_ in filled],
            linestyle="none",
            color=_SERIES[0],
            marker="o",
            markersize=3.5,
        )
        reliability.set_title("Accuracy by confidence")
        reliability.set_ylim(0, 1.02)
        reliability.yaxis.set_major_formatter(PercentFormatter(1.0))
        counts.bar(centers, [bin_.count for bin_ in calibration], width, color=_SERIES[0], alpha=0.6)
        counts.set_title("Predictions by confidence")
        _count_axis(counts)
        for axes in (reliability, counts):
            axes.set_xlim(0, 1)
            axes.set_xlabel("confidence")
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        return _as_markup(figure, f"Accuracy and number of predictions by confidence, {head}")


def draw_lengths(length_histogram: Sequence[int], cut_at: int) -> Markup:
    """Draw how many examples have which length.

    Args:
        length_histogram: examples per length.
        cut_at: where texts are cut, which a dotted line shows if it is not at the end.
    """
    width = -(-len(length_histogram) // _MAX_BARS)
    counts = np.add.reduceat(np.asarray(length_histogram), np.arange(0, len(length_histogram), width))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 2.3), layout="constrained")
        axes = figure.subplots()
        starts = np.arange(counts.size) * width
        axes.bar(starts, counts, width * 0.9, align="edge", color=_SERIES[0], alpha=0.6)
        if cut_at < len(length_histogram) - 1:
            axes.axvline(cut_at, color=_MUTED, linewidth=0.8, linestyle=":")
        axes.set_xlim(0, len(length_histogram) + width)
        axes.set_xlabel("tokens, [CLS] and [SEP] included")
        _count_axis(axes)
        return _as_markup(figure, "Number of examples by length")


def _count_axis(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _as_markup(figure: Figure, description: str) -> Markup:
    """Return a figure as an SVG element: nothing in it refers to anything outside the page, or to another figure."""
    text = io.StringIO()
    # Its parts are named after the description, so that no two on a page are the same, and equal runs give equal pages.
    with matplotlib.rc_context({"svg.hashsalt": description}):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=metadata)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    (box,) = re.findall(r'viewBox="([\d. ]+)"', svg[: svg.index(">")])
    svg = svg[svg.index(">") + 1 :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;]*; ?", "", svg)
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if f"#{match[1]}" in svg else "", svg)
    for color, name in _CSS_NAMES.items():
        svg = svg.replace(color, f"var(--{name})")
    return Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(box, description) + Markup(svg)
