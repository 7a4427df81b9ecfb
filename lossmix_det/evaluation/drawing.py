"""Pictures beside one another: a grid with names and titles, and images before and after adaptation."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from lossmix_det.data.images import read
from lossmix_det.data.packed import ImageRecord
from lossmix_det.data.records import ImageSet
from lossmix_det.evaluation.lettering import lettered_file
from lossmix_det.evaluation.pictures import COLOURS, draw_marks, font_of, marks_of
from lossmix_det.files import write_atomically
from lossmix_det.structures import Instances

SHOWN = 0.5  # least score of a drawn detection
SIDE, LETTERS = 210, 9  # of a picture of a grid in pixels, and of the labels on it
GAP = 6  # pixels between pictures
LARGE, SMALL, LEAST = 15, 11, 7  # pixels: letters of names, of titles, and of titles that would be too wide


@dataclass(frozen=True)
class Tile:
    """A picture of a grid.

    Args:
        pixels: (h, w, 3) uint8 RGB.
        title: above it.
        colour: of the title.
    """

    pixels: np.ndarray
    title: str = ""
    colour: str = "black"


# What stands above a row, and its pictures; None leaves a place empty.
GridRow = tuple[str, Sequence[Tile | None]]


def draw_grid(rows: Sequence[GridRow], heads: Sequence[str] = (), title: str = "") -> Image.Image:
    """Draw rows of pictures, each below its name.

    Args:
        rows: with at least one picture.
        heads: of the columns.
        title: of it all.
    """
    columns = max(len(tiles) for _, tiles in rows)
    cells = [[*tiles, *[None] * (columns - len(tiles))] for _, tiles in rows]
    widths = [max((tile.pixels.shape[1] for tile in column if tile), default=0) for column in zip(*cells, strict=True)]
    lefts = list(accumulate((width + GAP for width in widths), initial=GAP))
    strips = [_strip([title], [GAP], [lefts[-1] - 2 * GAP], LARGE)] if title else []
    strips += [_strip(heads, lefts, widths, SMALL)] if heads else []
    for (name, _), tiles in zip(rows, cells, strict=True):
        strips += [_strip([name], [GAP], [lefts[-1] - 2 * GAP], LARGE)] if name else []
        titles = [tile.title if tile else "" for tile in tiles]
        colours = [tile.colour if tile else "black" for tile in tiles]
        strips += [_strip(titles, lefts, widths, SMALL, colours)] if any(titles) else []
        strips.append(_beside(tiles, lefts))
    return _stacked(strips)


def _strip(
    texts: Sequence[str], lefts: Sequence[int], widths: Sequence[int], size: int, colours: Sequence[str] = ()
) -> Image.Image:
    """Texts beside one another, each no wider than its place where letters that can be read allow it."""
    strip = Image.new("RGB", (lefts[len(texts) - 1] + widths[len(texts) - 1] + GAP, size + GAP), "white")
    draw = ImageDraw.Draw(strip)
    for index, text in enumerate(texts):
        shown, path = lettered_file(" ".join(text.split()), f"name {index + 1}")
        font = _fitting(path, shown, size, widths[index])
        place = (lefts[index], (size + GAP) / 2)
        draw.text(place, shown, fill=colours[index] if colours else "black", font=font, anchor="lm")
    return strip


def _fitting(path: str, text: str, size: int, width: int) -> ImageFont.FreeTypeFont:
    sizes = (letters for letters in range(size, LEAST, -1) if font_of(path, letters).getlength(text) <= width)
    return font_of(path, next(sizes, LEAST))


def _beside(tiles: Sequence[Tile | None], lefts: Sequence[int]) -> Image.Image:
    height = max((tile.pixels.shape[0] for tile in tiles if tile), default=0)
    strip = Image.new("RGB", (lefts[-1], height + GAP), "white")
    for tile, left in zip(tiles, lefts, strict=False):
        if tile is not None:
            strip.paste(Image.fromarray(tile.pixels), (left, 0))
    return strip


def _stacked(strips: Sequence[Image.Image]) -> Image.Image:
    *tops, height = accumulate((strip.height for strip in strips), initial=GAP)
    grid = Image.new("RGB", (max(strip.width for strip in strips), height), "white")
    for strip, top in zip(strips, tops, strict=True):
        grid.paste(strip, (0, top))
    return grid


def save(picture: Image.Image, path: Path, colours: int | None = None) -> None:
    """Write a picture as PNG, atomically.

    Args:
        picture: to write.
        path: of the PNG.
        colours: at most so many different ones, up to 256, which makes photos a third as large; absent: all.
    """
    if colours:
        picture = picture.quantize(colours, dither=Image.Dither.NONE)
    content = io.BytesIO()
    picture.save(content, format="png", optimize=True)
    write_atomically(path, content.getvalue())


def draw_before_after(
    image_set: ImageSet,
    before: list[dict[str, Any]],
    after: list[dict[str, Any]],
    path: Path,
    *,
    count: int = 6,
    high_bit_depth: str = "full",
) -> None:
    """Draw a row of images with the truth, if there is one, a row with detections before and a row with those after.

    Args:
        image_set: that was detected on.
        before, after: COCO results.
        path: of the PNG.
        count: how many images, spread over the set.
        high_bit_depth: how 16-bit images are read.
    """
    chosen = np.unique(np.linspace(0, len(image_set) - 1, min(count, len(image_set))).round().astype(int))
    records = [image_set.records[int(index)] for index in chosen]
    images = [read(record.path, high_bit_depth, exif=record.exif) for record in records]
    rows = {"truth": [_truth(record) for record in records]} if image_set.labelled else {}
    for name, results in (("before", before), ("after", after)):
        rows[name] = [_detections(results, record, image_set) for record in records]
    colours = dict(zip(("before", "after", "truth"), COLOURS, strict=False))
    grid = [
        (name, [_tile(*pair, image_set.classes, colours[name]) for pair in zip(images, found, strict=True)])
        for name, found in rows.items()
    ]
    title = f"{image_set.name}: detections scoring at least {SHOWN}, before and after adaptation"
    save(draw_grid(grid, title=title), path, colours=256)


def _tile(pixels: np.ndarray, found: Instances, classes: Sequence[str], colour: str) -> Tile:
    return Tile(draw_marks(pixels, marks_of(found, colour), classes, SIDE, LETTERS))


def _truth(record: ImageRecord) -> Instances:
    return Instances(torch.from_numpy(record.boxes), torch.from_numpy(record.classes))


def _detections(results: list[dict[str, Any]], record: ImageRecord, image_set: ImageSet) -> Instances:
    image_id = image_set.id_of(record.image_id)
    rows = [row for row in results if row["image_id"] == image_id and row["score"] >= SHOWN]
    boxes = torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    classes = torch.tensor([image_set.category_ids.index(row["category_id"]) for row in rows], dtype=torch.int64)
    return Instances(boxes, classes, torch.tensor([row["score"] for row in rows]))
