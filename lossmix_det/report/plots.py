"""Line charts as SVG that a page holds within itself, in the colours of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window, also where there is a screen

import matplotlib.pyplot as plt
import numpy as np

from lossmix_det.evaluation.lettering import lettered

INK = "#010203"  # stands for the colour of the page's text, which is light or dark
# Told apart by those who see red and green alike, and seen on white and on black (Okabe & Ito, without black).
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A7FBF")
DASHES = ("-", "--", ":")  # a second and third round of the colours
POINTS = 300  # of a line; longer ones are averaged in windows

Series = tuple[Sequence[float], Sequence[float]]  # x and y


@dataclass(frozen=True)
class Chart:
    """A chart and what it is called.

    Args:
        title: of the chart.
        svg: the drawing, to be put into a page.
        text: what it shows in words, for those who cannot see it.
    """

    title: str
    svg: str
    text: str


def line_chart(
    title: str,
    lines: Mapping[str, Series],
    x: str,
    y: str,
    marks: Mapping[str, float] | None = None,
    diagonal: bool = False,
) -> Chart | None:
    """A chart of one or more lines; None where none has a point.

    Args:
        title: of the chart.
        lines: x and y by name; points that are nan are left out.
        x, y: what the axes are.
        marks: vertical lines by name, such as the end of burn-in.
        diagonal: draw the line from (0, 0) to (1, 1).
    """
    drawn = {name: thinned(*points) for name, points in lines.items()}
    drawn = {name: points for name, points in drawn.items() if len(points[0])}
    if not drawn:
        return None
    with plt.rc_context(_style(title)):
        figure, axis = plt.subplots(figsize=(4.6, 2.7))
        for number, (name, (xs, ys)) in enumerate(drawn.items()):
            style = {"color": LINES[number % len(LINES)], "linestyle": DASHES[number // len(LINES) % len(DASHES)]}
            marker = "." if len(xs) < 30 else None
            axis.plot(xs, ys, label=_named(name, number), linewidth=1.4, marker=marker, **style)
        for name, place in (marks or {}).items():
            axis.axvline(place, color=INK, alpha=0.5, linewidth=0.8, linestyle=":")
            axis.annotate(name, (place, 1), xycoords=("data", "axes fraction"), fontsize=7, color=INK, va="bottom")
        if diagonal:
            axis.plot([0, 1], [0, 1], color=INK, alpha=0.4, linewidth=0.8)
        _finish(axis, x, y, len(drawn))
        figure.tight_layout()
        svg = _svg(figure)
    return Chart(title, svg, f"{title}. {'; '.join(_spoken(name, *points) for name, points in drawn.items())}.")


def _named(name: str, number: int) -> str:
    """The entry of a line in the legend, from which matplotlib leaves out names that begin with an underscore."""
    label = lettered(name, f"line {number + 1}")[0]
    return f" {label}" if label.startswith("_") else label


def histogram(title: str, bins: Mapping[str, Any], x: str) -> Chart | None:
    """A chart of counts in equal bins; None where there are none.

    Args:
        title: of the chart.
        bins: ``counts``, and where they begin and end: ``from`` and ``to``.
        x: what is counted.
    """
    counts, low, high = bins["counts"], float(bins["from"]), float(bins["to"])
    if not any(counts):
        return None
    with plt.rc_context(_style(title)):
        figure, axis = plt.subplots(figsize=(4.6, 1.9))
        width = (high - low) / len(counts)
        axis.bar(low + width * np.arange(len(counts)), counts, width=0.92 * width, align="edge", color=LINES[0])
        _finish(axis, x, "count", 1)
        figure.tight_layout()
        svg = _svg(figure)
    most = int(np.argmax(counts))
    spoken = f"most are from {low + width * most:.3g} to {low + width * (most + 1):.3g}"
    return Chart(title, svg, f"{title}, from {low:g} to {high:g}: {spoken}.")


def _style(title: str) -> dict[str, Any]:
    return {"svg.fonttype": "none", "svg.hashsalt": title, "text.parse_math": False, "font.size": 9}


def thinned(xs: Sequence[float], ys: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """At most `POINTS` points: means of equally many neighbours. Points whose y is nan are left out first."""
    x, y = np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    window = -(-len(x) // POINTS)
    if window <= 1:
        return x, y
    starts = np.arange(0, len(x), window)
    lengths = np.diff([*starts, len(x)])
    return np.add.reduceat(x, starts) / lengths, np.add.reduceat(y, starts) / lengths


def _finish(axis: plt.Axes, x: str, y: str, count: int) -> None:
    axis.set_xlabel(x, color=INK)
    axis.set_ylabel(y, color=INK)
    axis.tick_params(colors=INK)
    axis.grid(color=INK, alpha=0.15, linewidth=0.6)
    for side, spine in axis.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    if count > 1:
        legend = axis.legend(fontsize=7, frameon=False, labelcolor=INK, ncols=1 + (count > 8))
        legend.set_in_layout(True)


def _svg(figure: plt.Figure) -> str:
    content = io.StringIO()
    figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = content.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 aria-hidden="true"', text, count=1)


def _spoken(name: str, xs: np.ndarray, ys: np.ndarray) -> str:
    return f"{name}: {ys[0]:.3g} at {xs[0]:g}, {ys[-1]:.3g} at {xs[-1]:g}"
