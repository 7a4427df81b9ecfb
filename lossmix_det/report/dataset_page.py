"""A page about data sets: one HTML file with its pictures inside, which needs no network and no script."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jinja2 import Environment
from PIL import Image, ImageDraw

from lossmix_det.data.images import probe, read
from lossmix_det.data.records import RawObject
from lossmix_det.data.survey import Survey
from lossmix_det.data.surveys import Comparison
from lossmix_det.report.dataset_numbers import Numbers, classes_of, table_of

SIDE, QUALITY = 320, 80  # of pictures: the longer side in pixels, JPEG's quality
PICTURES, PAIRS, LINES = 12, 6, 200  # at most so many of a kind
GOOD, BAD = "#31a354", "#e31a1c"

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Picture:
    """A picture with what is to be said about it; ``data`` is the source of an <img>."""

    data: str
    caption: str
    lines: tuple[str, ...] = ()


def write_page(report: Numbers, surveys: Sequence[Survey], comparison: Comparison) -> str:
    """The page as HTML.

    Args:
        report: of `report_of`.
        surveys, comparison: that it is of, for the pictures.
    """
    pictures = {
        "Boxes that cannot be used": [one for survey in surveys for one in _faulty(survey)][:PICTURES],
        "In two data sets": _pairs(surveys, comparison),
        "Extremes": [one for survey in surveys for one in _extremes(survey)],
    }
    faults = {name: lines for name, lines in report["faults"].items() if lines}
    notes = {name: lines for name, lines in report["notes"].items() if lines}
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(PAGE).render(
        report=report,
        table=table_of(report),
        classes=classes_of(report),
        pictures={title: several for title, several in pictures.items() if several},
        lists={"Faults": faults, "Notes": notes},
        limit=LINES,
        count=sum(map(len, faults.values())),
    )


# ----------------------------------------------------------------------------------------------------------- pictures


def _faulty(survey: Survey) -> list[Picture]:
    """The images with boxes that cannot be used, these in red."""
    pictures, exif = [], survey.entry is not None and survey.entry.exif == "apply"
    for marked in survey.marked:
        boxes = [(_drawable(item, marked.image.path, exif), BAD) for item, _ in marked.faults if item is not None]
        picture = _picture(marked.image.path, exif, boxes, f"{survey.name}: {marked.image.path.name}")
        if picture is not None:
            pictures.append(replace(picture, lines=tuple(line for _, line in marked.faults[:3])))
    return pictures


def _drawable(item: RawObject, path: Path, exif: bool) -> Box:
    """A box in pixels with what is no number at 0, also where the image itself cannot be read."""
    try:
        width, height = probe(path).size(exif) if item.relative else (1, 1)
    except OSError:
        width, height = 1, 1
    x1, y1, x2, y2 = (float(value) if math.isfinite(value) else 0.0 for value in item.box)
    return x1 * width, y1 * height, x2 * width, y2 * height


def _pairs(surveys: Sequence[Survey], comparison: Comparison) -> list[Picture]:
    """The first images that are in two data sets."""
    between = [each for each in comparison.shared if each.first != each.second]
    exif = {survey.name: survey.entry.exif == "apply" for survey in surveys if survey.entry is not None}
    pictures = []
    for each in between:
        for first, second in each.examples[: PAIRS // len(between) or 1]:
            words = f"{each.first}: {Path(first).name} = {each.second}: {Path(second).name}"
            pictures.append(_picture(Path(second), exif[each.second], [], words))
    return [picture for picture in pictures if picture is not None]


def _extremes(survey: Survey) -> list[Picture]:
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
        boxes = [(tuple(box), GOOD) for box in record.boxes.tolist()]
        pictures.append(_picture(record.path, record.exif, boxes, f"{survey.name}, {title}: {record.path.name}"))
    return [picture for picture in pictures if picture is not None]


def _picture(path: Path, exif: bool, boxes: list[tuple[Box, str]], caption: str) -> Picture | None:
    """An image with boxes, small; None if it cannot be read."""
    try:
        pixels = read(path, exif=exif)
    except OSError:
        return None
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR if scale > 1 else Image.Resampling.BOX)
    draw = ImageDraw.Draw(image)
    for box, colour in boxes:
        x1, y1, x2, y2 = (min(max(value * scale, -2.0), 2.0 * SIDE) for value in box)
        draw.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=colour, width=2)
    content = io.BytesIO()
    image.save(content, format="jpeg", quality=QUALITY)
    return Picture(f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}", caption)


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Check of data sets</title>
<style>
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #5c5c66; --page: #ffffff; --line: #d8d8de; --bar: #2b6ca3;
  --bad: #b3261e; --good: #1d6f3a; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececf1; --soft: #a5a5b0; --page: #17171a; --line: #3a3a42;
  --bar: #6fb1e8; --bad: #ff8a80; --good: #7ddc9a; } }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; font: 16px/1.45 system-ui, sans-serif; color: var(--ink);
  background: var(--page); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; } h3 { font-size: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; font-weight: normal; color: var(--soft); }
thead th { font-weight: 600; color: var(--ink); }
.bad { color: var(--bad); font-weight: 600; } .good { color: var(--good); font-weight: 600; }
ul { padding-left: 1.2rem; overflow-wrap: anywhere; } li { font-size: .9rem; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; width: 20rem; max-width: 100%; } figure img { max-width: 100%; height: auto; display: block; }
figcaption, .soft { font-size: .85rem; color: var(--soft); overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.2rem; }
.chart svg { width: 100%; height: 5rem; display: block; border-bottom: 1px solid var(--line); }
.chart rect { fill: var(--bar); }
@media print { body { max-width: none; } }
</style>
</head>
<body>
<main>
<h1>Check of data sets</h1>
{% if count %}
<p class="bad">{{ count }} faults</p>
{% else %}
<p class="good">no faults</p>
{% endif %}

<h2>Side by side</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Data sets side by side"><table>
<thead><tr>{% for word in table[0] %}<th scope="col">{{ word }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table[1:] %}
<tr><th scope="row">{{ row[0] }}</th>{% for word in row[1:] %}<td>{{ word }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>

{% if classes | length > 1 %}
<h2>Boxes by class</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Boxes by class"><table>
<thead><tr>{% for word in classes[0] %}<th scope="col">{{ word }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in classes[1:] %}
<tr><th scope="row">{{ row[0] }}</th>{% for word in row[1:] %}
<td{% if word == "0" %} class="bad"{% endif %}>{{ word }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endif %}

<h2>Distributions</h2>
{% for title in ("brightness", "boxes per image", "box side") %}
<div class="charts">
{% for set in report.sets.values() %}
{% set chart = set.histograms[title] %}
{% set most = chart.counts | max %}
{% if most %}
<div class="chart"><h3>{{ set.name }}: {{ title }}</h3>
<svg viewBox="0 0 {{ chart.counts | length }} 100" preserveAspectRatio="none" role="img"
 aria-label="{{ set.name }}: histogram of {{ title }} from {{ chart.from }} to {{ chart.to }}">
{% for value in chart.counts %}
<rect x="{{ loop.index0 + 0.05 }}" width="0.9" y="{{ 100 - 100 * value / most }}" height="{{ 100 * value / most }}"/>
{% endfor %}
</svg><span class="soft">{{ chart.from }} … {{ chart.to }}{% if title != "boxes per image" and title != "brightness" %}
 pixels{% endif %}, at most {{ most }} in a bar</span></div>
{% endif %}
{% endfor %}
</div>
{% endfor %}

{% for title, several in pictures.items() %}
<h2>{{ title }}</h2>
<div class="pictures">
{% for picture in several %}
<figure><img src="{{ picture.data }}" alt="{{ picture.caption }}" loading="lazy"><figcaption>{{ picture.caption }}
{% for line in picture.lines %}<br>{{ line }}{% endfor %}</figcaption></figure>
{% endfor %}
</div>
{% endfor %}

{% for title, table in lists.items() %}
{% if table %}
<h2>{{ title }}</h2>
{% for name, lines in table.items() %}
<h3>{{ name }} ({{ lines | length }})</h3>
<ul>{% for line in lines[:limit] %}<li>{{ line }}</li>{% endfor %}</ul>
{% if lines | length > limit %}<p class="soft">… and {{ lines | length - limit }} more, in check.json</p>{% endif %}
{% endfor %}
{% endif %}
{% endfor %}
</main>
</body>
</html>
"""
