"""What adaptation changed: scores since burn-in, and the pseudo-labels between its first and its last steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from benchmarks.cells import cell_of, gain_of, text_of
from benchmarks.curves import rows_of
from benchmarks.runs import Run

METRICS = ("AP50", "AP", "AP75")
SHARE = 8  # of the rows of adaptation: the first and the last eighth are given
# By column: the name in metrics.csv, and how a value is written.
COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "pseudo-labels per image": ("pseudo/per_image", "{:.2f}".format),
    "precision in percent": ("pseudo/precision", lambda share: f"{100 * share:.0f}"),
    "recall in percent": ("pseudo/recall", lambda share: f"{100 * share:.0f}"),
}


def adaptation_of(runs: list[Run], test_set: str) -> list[str]:
    """A table in Markdown of the methods that adapt; empty if none does.

    Args:
        runs: finished or not.
        test_set: that scores are of.
    """
    lines = []
    for method in dict.fromkeys(run.method for run in runs):
        finished = [run for run in runs if run.method == method and run.finished]
        gains = [[_gain(run, test_set, metric) for run in finished] for metric in METRICS]
        if any(gain is not None for gain in gains[0]):
            cells = [cell_of(of_metric, error=True) for of_metric in gains]
            cells += [_change(finished, *column) for column in COLUMNS.values()]
            lines.append(f"| {text_of(method)} | " + " | ".join(cells) + " |")
    if not lines:
        return []
    heads = ["method", *METRICS, *COLUMNS]
    return [
        f"What adaptation changed: scores on {test_set} minus those at the end of burn-in, mean ± standard error; "
        f"pseudo-labels in the first → the last {100 / SHARE:g} % of its steps, means over seeds.",
        "",
        "| " + " | ".join(heads) + " |",
        "|---|" + "---:|" * (len(heads) - 1),
        *lines,
    ]


def _gain(run: Run, test_set: str, metric: str) -> float | None:
    """A score of the reported model minus that of the burned-in one; None where the run has no burn-in."""
    return gain_of(run.scores(), run.results().get("burn-in", {}), test_set, metric)


def _change(runs: list[Run], name: str, written: Callable[[float], str]) -> str:
    ends: list[tuple[float, float]] = []
    for run in runs:
        values = [float(row[name]) for row in rows_of(run.folder / "metrics.csv") if row.get(name)]
        count = max(len(values) // SHARE, 1)
        parts = [[value for value in part if math.isfinite(value)] for part in (values[:count], values[-count:])]
        if all(parts):  # a precision without any pseudo-label is none
            ends.append((statistics.mean(parts[0]), statistics.mean(parts[1])))
    return " → ".join(written(statistics.mean(end)) for end in zip(*ends, strict=True)) or "–"
