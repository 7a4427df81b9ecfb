"""Scores as labelled tables, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text  # what people named is text; rich reads brackets in plain strings as markup

from lossmix_det.evaluation.coco import COCO_LIMIT
from lossmix_det.evaluation.detect import METRICS
from lossmix_det.files import write_atomically

TITLES = dict(zip(METRICS, ("AP", "AP50", "AP75", "small", "medium", "large", "VOC area", "VOC 11-pt"), strict=True))

# Scores by model ("student", "ema"), then by test set.
Results = dict[str, dict[str, dict[str, Any]]]


def print_tables(results: Results, console: Console) -> None:
    """Print every score of every model on every test set, and AP50 per class; nothing where nothing was scored."""
    if not any(results.values()):
        return
    # Laid out at its full width, so that a log file or a narrow window never cuts a name or a number.
    wide = Console(file=console.file, width=1000, force_terminal=console.is_terminal)
    for table in (_summary(results), _per_class(results)):
        wide.print(table, width=wide.measure(table).maximum, crop=False, soft_wrap=True)


def write_results(results: Results, folder: Path) -> None:
    """Write ``results.csv`` and then ``results.json``.

    The CSV has a row for each class and one for all of them, by model and test set. Scores that are nan are a dash in
    the CSV and null in the JSON.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "test_set", "class", *METRICS])
    for model, sets in results.items():
        for name, metrics in sets.items():
            for label, row in [("all", metrics), *metrics["classes"].items()]:  # a class may be called so, too
                writer.writerow([model, name, label, *(_cell(row.get(key), digits=3) for key in METRICS)])
    write_atomically(folder / "results.csv", text.getvalue())
    write_atomically(folder / "results.json", json.dumps(_null_nan(results), indent=2) + "\n")


def write_detections(detections: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """Write ``detections_<test set>.json`` for each test set: COCO results."""
    for name, rows in detections.items():
        write_atomically(folder / f"detections_{name}.json", json.dumps(rows))


def _summary(results: Results) -> Table:
    table = Table(
        title=f"Average precision in percent: COCO's{_limits(results)}, and PASCAL VOC's at IoU 0.5",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for title in ("model", "test set"):
        table.add_column(title)
    for title in TITLES.values():
        table.add_column(title, justify="right")
    for model, sets in results.items():
        for name, metrics in sets.items():
            table.add_row(Text(model), Text(name), *(_cell(metrics[key]) for key in METRICS))
    return table


def _limits(results: Results) -> str:
    """How many detections of an image count, where that is not COCO's own number."""
    counted = {
        metrics.get("detections_per_image", COCO_LIMIT) for sets in results.values() for metrics in sets.values()
    }
    return (
        "" if counted <= {COCO_LIMIT} else f" of up to {max(counted)} detections per image (COCO itself: {COCO_LIMIT})"
    )


def _per_class(results: Results) -> Table:
    table = Table(title="COCO AP50 per class", title_justify="left", box=box.SIMPLE_HEAD)
    columns = [(model, name, sets[name]["classes"]) for model, sets in results.items() for name in sets]
    table.add_column("class")
    for model, name, _ in columns:
        table.add_column(Text(f"{model}\n{name}"), justify="right")
    for label in dict.fromkeys(label for _, _, classes in columns for label in classes):
        table.add_row(Text(label), *(_cell(classes.get(label, {}).get("AP50")) for _, _, classes in columns))
    return table


def _cell(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _null_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null_nan(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
