"""Curves of scores and pseudo-labels over the steps, method by method."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window, also where there is a screen

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.runs import Run
from lossmix_det.files import write_atomically
from lossmix_det.report.run_folder import RunFolder

WINDOW = 10  # rows of metrics.csv that are averaged
FAR = 15.0  # points of AP50: curves that end farther off are named and not shown
BINS = np.linspace(0, 1, 21)

# By (method, step): one value of each run.
Points = dict[tuple[str, int], list[float]]


SCORES = "AP50 of the reported model on the target"


def draw_curves(runs: list[Run], path: Path) -> bool:
    """Up to four panels: target AP50, precision and recall of pseudo-labels, and how confident the reported model is.

    Args:
        runs: finished or not.
        path: of the PNG.

    Returns:
        Whether there was anything to draw.
    """
    target = _last_test_set(runs)
    panels = {
        SCORES: _scores(runs, target),
        "precision of pseudo-labels": _metric(runs, "pseudo/precision"),
        "recall of pseudo-labels": _metric(runs, "pseudo/recall"),
    }
    panels = {title: points for title, points in panels.items() if points}  # without adaptation there are fewer
    if not panels:
        return False
    methods = list(dict.fromkeys(run.method for run in runs))
    colours = dict(zip(methods, _colours(len(methods)), strict=True))
    rows = -(-(len(panels) + 1) // 2)
    figure, grid = plt.subplots(rows, 2, figsize=(11, 3.75 * rows), squeeze=False)
    axes = list(grid.flat)
    for unused in axes[len(panels) + 1 :]:
        unused.remove()
    for axis, (title, points) in zip(axes, panels.items(), strict=False):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        for method in methods:
            _line(axis, method, points, colours[method])
    if SCORES in panels:
        _zoom(axes[0])
    _confidence(axes[len(panels)], runs, colours, target)
    axes[0].legend(fontsize=7)
    save_figure(figure, path)
    return True


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically, and close it."""
    figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, dpi=80, format="png")
    plt.close(figure)
    write_atomically(path, content.getvalue())


def _colours(count: int) -> list[tuple[float, ...]]:
    """As many different ones; the fewer they are, the easier they are told apart."""
    for name, size in (("tab10", 10), ("tab20", 20)):
        if count <= size:
            return [plt.get_cmap(name)(index) for index in range(count)]
    return [plt.get_cmap("turbo")(index / (count - 1)) for index in range(count)]


def _line(axis: Axes, method: str, points: Points, colour: tuple[float, ...]) -> None:
    """The mean over seeds, and a band of one standard deviation."""
    steps = sorted(step for name, step in points if name == method)
    if not steps:
        return
    means = np.array([np.mean(points[method, step]) for step in steps])
    values = [points[method, step] for step in steps]
    spreads = np.array([np.std(each, ddof=1) if len(each) > 1 else 0.0 for each in values])  # as in the tables
    axis.plot(steps, means, label=method, color=colour, linewidth=1.3)
    band = axis.fill_between(steps, means - spreads, means + spreads, color=colour, alpha=0.15, linewidth=0)
    band.set_label(f"_{method}")  # no line of its own in the legend


def _zoom(axis: Axes) -> None:
    """Show where methods differ: the second half, without curves that end far off (the oracle), which are named."""
    lines = axis.get_lines()
    ends = {line.get_label(): float(line.get_ydata()[-1]) for line in lines}
    middle = float(np.median(list(ends.values()))) if ends else 0.0
    near = [line for line in lines if abs(ends[line.get_label()] - middle) <= FAR]
    half = max((float(line.get_xdata()[-1]) for line in near), default=0.0) / 2
    names = {f"_{line.get_label()}" for line in near}
    bands = [band.get_paths()[0].vertices for band in axis.collections if band.get_label() in names]
    drawn = [*(np.transpose(line.get_data()) for line in near), *bands]
    shown = [value for points in drawn for x, value in points if x >= half]
    if not shown:
        return
    axis.set_xlim(left=half)
    axis.set_ylim(min(shown) - 2, max(shown) + 2)
    far = [f"{name} ends at {value:.1f}" for name, value in ends.items() if abs(value - middle) > FAR]
    axis.set_xlabel("; ".join(["step", *far]))


def _last_test_set(runs: list[Run]) -> str:
    """The last of all that any run was scored on, as on the page; empty if none was."""
    names = (name for run in runs for row in rows_of(run.folder / "scores.csv")[:1] for name in row)
    sets = dict.fromkeys(name.partition("/")[2].rpartition("/")[0] for name in names)
    return list(sets)[-1] if sets else ""


def _scores(runs: list[Run], test_set: str) -> Points:
    points: Points = defaultdict(list)
    for run in runs:
        for row in rows_of(run.folder / "scores.csv"):
            values = [float(value) for name, value in row.items() if name.endswith(f"/{test_set}/AP50") and value]
            if values:
                points[run.method, int(row["step"])].append(values[-1])
    return points


def _metric(runs: list[Run], name: str) -> Points:
    """Averaged over `WINDOW` rows."""
    points: Points = defaultdict(list)
    for run in runs:
        rows = [row for row in rows_of(run.folder / "metrics.csv") if row.get(name)]
        for start in range(0, len(rows) - WINDOW + 1, WINDOW):
            window = rows[start : start + WINDOW]
            value = np.nanmean([float(row[name]) for row in window])
            if np.isfinite(value):
                points[run.method, int(window[-1]["step"])].append(float(value))
    return points


def _confidence(axis: Axes, runs: list[Run], colours: dict[str, tuple[float, ...]], test_set: str) -> None:
    axis.set_title("scores of the reported model's detections on the last test set", fontsize=10)
    axis.set_xlabel("score")
    axis.set_ylabel("share of detections above 0.1")
    for method, colour in colours.items():
        scores = [score for run in runs if run.method == method for score in _detection_scores(run, test_set)]
        if scores:
            heights, _ = np.histogram(scores, BINS)
            axis.stairs(heights / max(heights[2:].sum(), 1), BINS, color=colour, linewidth=1.2)
    axis.set_xlim(0.1, 1)
    axis.set_ylim(0, None)


def _detection_scores(run: Run, test_set: str) -> list[float]:
    rows = RunFolder(run.folder).detections(test_set) if test_set else None
    return [row["score"] for row in rows or () if row["score"] >= BINS[2]]


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if there is no file."""
    if not path.is_file():
        return []
    with open(path) as file:
        return list(csv.DictReader(file))
