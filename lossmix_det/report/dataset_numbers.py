"""What a survey of data sets found, as numbers for tables, JSON and a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lossmix_det.data.survey import Survey
from lossmix_det.data.surveys import Comparison

SMALL, LARGE = 32**2, 96**2  # square pixels: COCO's borders of small, medium and large
PERCENTILES = (5, 50, 95)
BINS = 20  # of histograms

Numbers = dict[str, Any]

# By the title of a row: the numbers of a set that stand in it.
ROWS = {
    "images": "images",
    "boxes": "boxes",
    "images without a box": "empty",
    "boxes per image, mean": "boxes_per_image",
    "image width × height, median": "image_size",
    "different image sizes": "image_sizes",
    "box side, 5 % … median … 95 %": "box_side",
    "small / medium / large boxes": "box_areas",
    "brightness, mean ± deviation": "brightness",
    "red, green, blue, mean": "colour",
    "faults": "faults",
    "notes": "notes",
    "left out": "left_out",
}


def numbers_of(survey: Survey) -> Numbers:
    """The numbers of one data set; None where there is nothing to count."""
    records, looks = survey.records, survey.looks
    counts = np.diff(records.ends, prepend=0)
    edges = records.boxes
    areas = (edges[:, 2] - edges[:, 0]).astype(float) * (edges[:, 3] - edges[:, 1])
    labelled = survey.image_set is not None and survey.image_set.labelled
    present = np.bincount(records.classes, minlength=len(survey.classes)).tolist()
    seen = looks is not None and looks.readable.any()
    return {
        "name": survey.name,
        "use": survey.use,
        "labelled": labelled,
        "images": len(records),
        "boxes": len(edges),
        "classes": dict(zip(survey.classes, present, strict=True)) if labelled else {},
        "names": dict(survey.names.most_common()),
        "empty": int((counts == 0).sum()) if labelled else None,
        "boxes_per_image": _round(counts.mean()) if labelled and len(counts) else None,
        "image_size": [int(value) for value in np.median(records.sizes, axis=0)[::-1]] if len(records) else None,
        "image_sizes": len(np.unique(records.sizes, axis=0)),
        "box_side": [_round(value) for value in np.percentile(np.sqrt(areas), PERCENTILES)] if len(areas) else None,
        "box_areas": np.bincount(np.digitize(areas, (SMALL, LARGE)), minlength=3).tolist(),
        "brightness": [_round(looks.brightness.mean()), _round(looks.brightness.std())] if seen else None,
        "colour": [_round(value) for value in looks.colours[looks.readable].mean(axis=0)] if seen else None,
        "histograms": _histograms(np.sqrt(areas), counts if labelled else counts[:0], looks.brightness if seen else []),
        "faults": len(survey.faults),
        "notes": len(survey.notes),
        "left_out": len(survey.left_out),
    }


def _histograms(sides: np.ndarray, counts: np.ndarray, brightness: Sequence[float]) -> Numbers:
    """Counts in equal bins between two ends."""
    most = max(float(counts.max(initial=0)), 1.0)
    ends = {"box side": (0, max(sides.max(initial=0), 1)), "boxes per image": (0, most), "brightness": (0, 255)}
    values = {"box side": sides, "boxes per image": counts, "brightness": np.asarray(brightness)}
    return {
        name: {"from": 0, "to": _round(high), "counts": np.histogram(values[name], BINS, (low, high))[0].tolist()}
        for name, (low, high) in ends.items()
    }


def report_of(surveys: Sequence[Survey], comparison: Comparison) -> Numbers:
    """Everything that was found, as it stands in ``check.json``."""
    return {
        "sets": {survey.name: numbers_of(survey) for survey in surveys},
        "faults": {survey.name: survey.faults for survey in surveys} | {"between sets": comparison.faults()},
        "notes": {survey.name: survey.notes for survey in surveys} | {"between sets": comparison.notes()},
        "left out": {survey.name: survey.left_out for survey in surveys},
        "shared images": [vars(each) for each in comparison.shared],
        "names that are nearly the same": comparison.alike,
    }


def table_of(report: Numbers) -> list[list[str]]:
    """Rows of text: titles, and a column for each data set."""
    sets = report["sets"].values()
    rows = [["", *(f"{each['name']} ({each['use']})" for each in sets)]]
    return rows + [[title, *(cell(each[key], key) for each in sets)] for title, key in ROWS.items()]


def classes_of(report: Numbers) -> list[list[str]]:
    """Rows of text: boxes that are learned or scored, by class and data set."""
    sets = [each for each in report["sets"].values() if each["labelled"]]
    names = dict.fromkeys(name for each in sets for name in each["classes"])
    rows = [["class", *(each["name"] for each in sets)]]
    return rows + [[name, *(f"{each['classes'].get(name, 0):,}" for each in sets)] for name in names]


JOINED = {"image_size": " × ", "box_side": " … ", "box_areas": " / ", "brightness": " ± ", "colour": ", "}


def cell(value: Any, key: str) -> str:
    """A number, or several, as text."""
    if value is None:
        return "–"
    values = value if isinstance(value, list) else [value]
    return JOINED.get(key, " ").join(f"{each:,}" for each in values)


def _round(value: float) -> float:
    return round(float(value), 1)
