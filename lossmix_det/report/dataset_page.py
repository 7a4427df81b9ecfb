"""A page about data sets: numbers side by side, pictures of what is wrong and of extremes, faults and notes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from lossmix_det.data.images import probe, read
from lossmix_det.data.records import RawObject
from lossmix_det.data.survey import Survey
from lossmix_det.data.surveys import Comparison
from lossmix_det.evaluation.pictures import Mark
from lossmix_det.report.dataset_numbers import Numbers, classes_of, table_of
from lossmix_det.report.plots import Chart, histogram
from lossmix_det.report.sections import Cell, Header, Section, Table, render
from lossmix_det.report.thumbnails import DETECTED, TRUTH, Thumbnail, thumbnail

PICTURES, PAIRS, LINES = 12, 6, 3  # at most so many of a kind, and so many faults below a picture
UNITS = {"brightness": "", "boxes per image": "", "box side": "pixels"}  # of histograms
NONE = "0"  # boxes of a class that a data set has not


def write_page(report: Numbers, surveys: Sequence[Survey], comparison: Comparison) -> str:
    """The page as HTML.

    Args:
        report: of `report_of`.
        surveys, comparison: that it is of, for the pictures.
    """
    faulty = [one for survey in surveys for one in _faulty(survey)][:PICTURES]
    extremes = {survey.name: _extremes(survey) for survey in surveys}
    count = sum(map(len, report["faults"].values()))
    sections = [
        Section("Side by side", tables=[_table("Data sets side by side", table_of(report))]),
        Section("Boxes by class", tables=[_table("Boxes that count", classes_of(report), missing=True)]),
        Section("Distributions", charts=_charts(report)),
        Section("Boxes that cannot be used", rows={"": faulty} if faulty else {}),
        Section("In two data sets", rows={title: row for title, row in _pairs(surveys, comparison).items() if row}),
        Section("Extremes", rows={name: row for name, row in extremes.items() if row}),
        Section("Faults", LISTS, lists=report["faults"]),
        Section("Notes", LISTS, lists=report["notes"]),
    ]
    return render(Header("Check of data sets", f"{count} faults" if count else "no faults", bad=bool(count)), sections)


LISTS = "All of them are in check.json."


def _table(caption: str, rows: list[list[str]], *, missing: bool = False) -> Table:
    """A table of text; classes that a data set has not are marked."""
    cells = [([row[0]], [Cell(word, bad=missing and word == NONE) for word in row[1:]]) for row in rows[1:]]
    return Table(caption, [rows[0][0] or "quantity", *rows[0][1:]], cells)


def _charts(report: Numbers) -> list[Chart]:
    charts = [
        histogram(f"{each['name']}: {title}", each["histograms"][title], f"{title} {unit}".strip())
        for title, unit in UNITS.items()
        for each in report["sets"].values()
    ]
    return [chart for chart in charts if chart is not None]


def _faulty(survey: Survey) -> Iterable[Thumbnail]:
    """The images with boxes that cannot be used."""
    exif = survey.entry is not None and survey.entry.exif == "apply"
    for marked in survey.marked:
        path = marked.image.path
        marks = [Mark(_drawable(item, path, exif), DETECTED) for item, _ in marked.faults if item is not None]
        lines = [f"{survey.name}: {path.name}", *(line for _, line in marked.faults[:LINES])]
        yield from _pictures(path, exif, marks, "\n".join(lines))


def _drawable(item: RawObject, path: Path, exif: bool) -> tuple[float, float, float, float]:
    """A box in pixels with what is no number at 0, also where the image itself cannot be read."""
    try:
        width, height = probe(path).size(exif) if item.relative else (1, 1)
    except OSError:
        width, height = 1, 1
    x1, y1, x2, y2 = (float(value) if math.isfinite(value) else 0.0 for value in item.box)
    return x1 * width, y1 * height, x2 * width, y2 * height


def _pairs(surveys: Sequence[Survey], comparison: Comparison) -> dict[str, list[Thumbnail]]:
    """The first images that are in two data sets."""
    between = [each for each in comparison.shared if each.first != each.second]
    exif = {survey.name: survey.entry.exif == "apply" for survey in surveys if survey.entry is not None}
    rows: dict[str, list[Thumbnail]] = {}
    for each in between:
        row = rows.setdefault(f"{each.first} and {each.second}", [])
        for first, second in each.examples[: PAIRS // len(between) or 1]:
            row += _pictures(Path(second), exif[each.second], [], f"{Path(first).name} = {Path(second).name}")
    return rows


def _extremes(survey: Survey) -> list[Thumbnail]:
    """The darkest and the brightest image, the one with most boxes, and the one with the smallest."""
    records, looks = survey.records, survey.looks
    if looks is None or not looks.readable.any():
        return []
    brightness = np.where(looks.readable, looks.colours.mean(axis=1), np.nan)
    chosen = {"darkest": int(np.nanargmin(brightness)), "brightest": int(np.nanargmax(brightness))}
    counts = np.diff(records.ends, prepend=0)
    if counts.any():
        areas = (records.boxes[:, 2] - records.boxes[:, 0]) * (records.boxes[:, 3] - records.boxes[:, 1])
        smallest = int(np.searchsorted(records.ends, int(areas.argmin()), side="right"))
        chosen |= {f"most boxes ({counts.max()})": int(counts.argmax()), "smallest box": smallest}
    pictures = []
    for title, index in chosen.items():
        record = records[index]
        marks = [Mark(box, TRUTH) for box in record.boxes.tolist()]
        pictures += _pictures(record.path, record.exif, marks, f"{title}: {record.path.name}")
    return pictures


def _pictures(path: Path, exif: bool, marks: Sequence[Mark], caption: str) -> list[Thumbnail]:
    """An image with boxes; none if it cannot be read."""
    try:
        return [thumbnail(read(path, exif=exif), marks, (), caption, caption)]
    except OSError:
        return []
