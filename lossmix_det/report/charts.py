"""The charts of a run's page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from lossmix_det.evaluation.diagnosis import Diagnosis
from lossmix_det.report.plots import Chart, Series, line_chart
from lossmix_det.report.run_folder import Row, RunFolder

LINES_SHOWN = 14  # of one chart; of more classes those with the most pseudo-labels or the worst precision

# Charts of columns of metrics.csv and speed.csv: title, columns by the name of their line, and the y axis.
PARTS = (
    ("Learning rate", {"learning rate": "lr"}, "rate"),
    ("Pseudo-labels per image", {"kept": "pseudo/per_image"}, "labels per image"),
    ("Images without a pseudo-label", {"share": "pseudo/images_without"}, "share of images"),
    ("Pseudo-labels compared with the truth", {"precision": "pseudo/precision", "recall": "pseudo/recall"}, "share"),
)
SPEEDS = (
    ("Speed", {"images": "images_per_s"}, "images per second"),
    ("Waiting for data", {"share": "data_wait_share"}, "share of time"),
    ("Peak memory", {"memory": "memory_gib"}, "GiB"),
)
PER_CLASS = (
    ("Pseudo-labels per image, by class", "pseudo/per_image/", "labels per image"),
    ("Precision of pseudo-labels, by class", "pseudo/precision/", "share"),
    ("Recall of pseudo-labels, by class", "pseudo/recall/", "share"),
    ("Least score of a pseudo-label, by class", "pseudo/threshold/", "score"),
)
LOSS_KINDS = ("source", "target", "mixed", "alignment")


def run_charts(run: RunFolder) -> list[Chart]:
    """Scores, losses, pseudo-labels and speed over the steps of one run."""
    marks = _burn_in(run)
    charts = [line_chart("AP50 over training", ap50_lines(run), "step", "AP50 in percent", marks)]
    charts.append(line_chart("Losses", _losses(run.metrics), "step", "loss", marks))
    for parts, rows in ((PARTS, run.metrics), (SPEEDS, run.speed)):
        for title, columns, y in parts:
            lines = {name: column_of(rows, column) for name, column in columns.items()}
            charts.append(line_chart(title, lines, "step", y, marks))
    for title, prefix, y in PER_CLASS:
        charts.append(line_chart(title, _by_class(run.metrics, prefix), "step", y, marks))
    return [chart for chart in charts if chart is not None]


def comparison_charts(runs: Mapping[str, RunFolder]) -> list[Chart]:
    """AP50 of the reported model of several runs, and how many pseudo-labels each had and how many were right."""
    lines: dict[str, dict[str, Series]] = {}
    for name, run in runs.items():
        for line, points in ap50_lines(run).items():
            model, _, test_set = line.partition(" on ")
            lines.setdefault(test_set, {})[f"{name}, {model}"] = points
    charts = [line_chart(f"AP50 on {name}", of, "step", "AP50 in percent") for name, of in lines.items()]
    for title, columns, y in PARTS[1:]:
        for column in columns.values():
            of_runs = {name: column_of(run.metrics, column) for name, run in runs.items()}
            charts.append(line_chart(f"{title}: {column.rpartition('/')[2]}", of_runs, "step", y))
    return [chart for chart in charts if chart is not None]


def diagnosis_charts(diagnosis: Diagnosis) -> list[Chart]:
    """Precision over recall by class, and how often detections of a score are right."""
    curves = {name: curve for name, curve in diagnosis.curves.items() if curve.positives and len(curve.hits)}
    worst = sorted(curves, key=lambda name: float(curves[name].hits.sum()) / curves[name].positives)[:LINES_SHOWN]
    lines = {name: (curves[name].recall, curves[name].precision) for name in curves if name in worst}
    bins = diagnosis.calibration
    charts = [
        line_chart("Precision over recall at IoU 0.5", lines, "recall", "precision"),
        line_chart(
            "Are scores right as often as they say?",
            {"detections": (bins[:, 0], bins[:, 1])},
            "score",
            "share of hits",
            diagonal=True,
        ),
    ]
    return [chart for chart in charts if chart is not None]


def ap50_lines(run: RunFolder) -> dict[str, Series]:
    """AP50 over the steps, by model and test set."""
    keys = dict.fromkeys(key for row in run.scores for key in row if key.endswith("/AP50"))
    lines = {}
    for key in keys:
        model, _, rest = key.partition("/")
        lines[f"{model} on {rest.rpartition('/')[0]}"] = column_of(run.scores, key)
    return lines


def column_of(rows: Iterable[Row], column: str) -> Series:
    """Steps and values of one column of a metrics file; rows without it are nan."""
    pairs = [(row["step"], row.get(column, np.nan)) for row in rows]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _losses(rows: list[Row]) -> dict[str, Series]:
    """The weighted sum, and by kind of image the plain sum of its terms; a single kind is shown term by term."""
    names = list(dict.fromkeys(name for row in rows for name in row if name.partition("/")[0] in LOSS_KINDS))
    kinds = list(dict.fromkeys(name.partition("/")[0] for name in names))
    if len(kinds) == 1:
        return {"loss": column_of(rows, "loss"), **{name: column_of(rows, name) for name in names}}
    lines = {"weighted sum": column_of(rows, "loss")}
    for kind in kinds:
        terms = np.array([column_of(rows, name)[1] for name in names if name.startswith(f"{kind}/")])
        known = np.isfinite(terms).any(axis=0)
        lines[kind] = column_of(rows, "loss")[0], np.where(known, np.nansum(terms, axis=0), np.nan)
    return lines


def _by_class(rows: list[Row], prefix: str) -> dict[str, Series]:
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(prefix))
    lines = {name.removeprefix(prefix): column_of(rows, name) for name in names}
    most = sorted(lines, key=lambda name: -float(np.nansum(lines[name][1])))[:LINES_SHOWN]
    return {name: line for name, line in lines.items() if name in most}


def _burn_in(run: RunFolder) -> dict[str, float]:
    """Where burn-in ends, in a run that adapts."""
    steps = run.setting("adaptation", "burn_in_steps")
    return {"burn-in ends": float(steps)} if run.setting("data", "target") and steps else {}
