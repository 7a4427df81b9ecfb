"""Boxes drawn on an image; labels never lie on each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from lossmix_det.evaluation.lettering import lettered_file
from lossmix_det.structures import Instances

# Classes take these in turn, and so do the truths of an image; neighbours differ much.
COLOURS = (
    *("#e6550d", "#3182bd", "#31a354", "#756bb1", "#e7298a", "#f2b701", "#17becf", "#8c564b", "#1b4f9c", "#9acd32"),
    *("#d62728", "#40e0d0", "#c49c94", "#ff9896", "#5254a3", "#637939", "#8c6d31", "#ad494a", "#a55194", "#7f7f7f"),
)
LEGIBLE = 640  # pixels; smaller images are drawn so many times larger that the longer side comes near it
SMALLEST_FONT, PER_FONT = 11, 64  # pixels; of the longer side to a pixel of the font
DARK = 140  # brightness, of 255; on darker colours the text is white
SLACK = 1e-9  # pixels by which labels may overlap, as rounding goes

Area = tuple[float, float, float, float]  # x1, y1, x2, y2


@dataclass(frozen=True)
class Mark:
    """A box to be drawn.

    Args:
        box: ``xyxy`` pixels of the image; may reach out of it.
        colour: as ``#rrggbb``.
        class_index: whose name stands beside it; absent: no text.
        value: behind the name, such as a score or a weight; boxes of a greater one are labelled first.
        strength: in [0, 1]; the less, the fainter.
    """

    box: Sequence[float]
    colour: str
    class_index: int | None = None
    value: float | None = None
    strength: float = 1.0


def marks_of(found: Instances, colour: str | None = None, weight: float = 1.0) -> list[Mark]:
    """Boxes with their class, and their weight or score where they have one.

    Args:
        found: N boxes.
        colour: of all; absent: of its class each.
        weight: of boxes without weights of their own; what weighs less is fainter.
    """
    boxes, classes = found.boxes.tolist(), found.classes.tolist()
    values = found.weights if found.weights is not None else found.scores
    written = [None] * len(boxes) if values is None else values.tolist()
    strengths = [weight] * len(boxes) if found.weights is None else written
    return [
        Mark(box, colour or COLOURS[label % len(COLOURS)], label, value, strength)
        for box, label, value, strength in zip(boxes, classes, written, strengths, strict=True)
    ]


def draw_picture(pixels: np.ndarray, found: Instances, classes: Sequence[str]) -> np.ndarray:
    """Draw boxes in the colour of their class, and beside each its class and score, in the pixels of the image.

    Args:
        pixels: (H, W, 3) uint8 RGB; stays as it is.
        found: N boxes in its pixels, with scores or without.
        classes: names of the K classes.

    Returns:
        (f·H, f·W, 3) uint8 RGB, with a whole number f of at least 1 by which small images are enlarged.
    """
    height, width = pixels.shape[:2]
    return draw_marks(pixels, marks_of(found), classes, enlargement(height, width) * max(height, width))


def draw_marks(
    pixels: np.ndarray, marks: Sequence[Mark], classes: Sequence[str], side: int, font: int = 0
) -> np.ndarray:
    """Draw boxes with their labels on an image of another size.

    Those of the greatest value are labelled first. A label for which there is no free place at its box is left out.

    Args:
        pixels: (H, W, 3) uint8 RGB; stays as it is.
        marks: in its pixels.
        classes: names of the K classes.
        side: the longer side of the picture.
        font: height of the letters in pixels; 0: as fits the picture.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    frame = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(pixels).resize(frame, Image.Resampling.BICUBIC)
    draw, size = ImageDraw.Draw(image, "RGBA"), font or max(SMALLEST_FONT, side // PER_FONT)
    order = sorted(marks, key=lambda mark: -(mark.value or 0))
    boxes = [_scaled(mark.box, scale, frame) for mark in order]
    for mark, box in zip(reversed(order), reversed(boxes), strict=True):  # the best on top
        _outline(draw, box, mark, max(2, size // 7))
    pairs = [(mark, box) for mark, box in zip(order, boxes, strict=True) if mark.class_index is not None]
    named = [(box, Label(classes, mark, size)) for mark, box in pairs]
    areas = lay_out([box for box, _ in named], [label.extent for _, label in named], frame)
    for (_, label), area in zip(named, areas, strict=True):
        if area is not None:
            label.write(draw, area)
    return np.asarray(image)


def _scaled(box: Sequence[float], scale: float, frame: tuple[int, int]) -> Area:
    """A box in pixels of the picture; what lies far outside of it is brought near."""
    x1, y1, x2, y2 = (min(max(value * scale, -4.0), max(frame) + 4.0) for value in box)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def enlargement(height: int, width: int) -> int:
    """By how much an image is enlarged to be drawn on."""
    return max(1, round(LEGIBLE / max(height, width)))


class Label:
    """The text beside a box, in its colour.

    Args:
        classes: names of the K classes.
        mark: with a class.
        size: of the font in pixels.
    """

    def __init__(self, classes: Sequence[str], mark: Mark, size: int) -> None:
        name, path = lettered_file(classes[mark.class_index], f"class {mark.class_index + 1}")
        name = " ".join(name.split())
        self.text = name if mark.value is None else f"{name} {mark.value:.2f}"
        self.font, self.mark = font_of(path, size), mark
        self.pad = size // 5
        self.extent = (self.font.getlength(self.text) + 2 * self.pad, size * 1.15 + 2 * self.pad)

    def write(self, draw: ImageDraw.ImageDraw, area: Area) -> None:
        """Write it into an area of its extent."""
        red, green, blue = ImageColor.getrgb(self.mark.colour)
        draw.rectangle(area, fill=(red, green, blue, round(255 * (0.6 + 0.4 * self.mark.strength))))
        ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < DARK else "black"
        middle = (area[0] + self.pad, (area[1] + area[3]) / 2)
        draw.text(middle, self.text, fill=ink, font=self.font, anchor="lm")


@lru_cache
def font_of(path: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of a file, in pixels."""
    return ImageFont.truetype(path, size)


def _outline(draw: ImageDraw.ImageDraw, box: Area, mark: Mark, width: int) -> None:
    """A box with a thin white edge, to be seen on any picture."""
    x1, y1, x2, y2 = box
    seen = round(255 * (0.35 + 0.65 * min(mark.strength, 1.0)))
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(255, 255, 255, seen))
    draw.rectangle(box, outline=(*ImageColor.getrgb(mark.colour), seen), width=width)


def places(box: Sequence[float], extent: tuple[float, float], frame: tuple[int, int]) -> Iterator[Area]:
    """Where a label may lie: at the corners of its box, outside first, and moved so that it is inside of the image.

    Args:
        box: ``xyxy`` pixels.
        extent: (width, height) of the label.
        frame: (width, height) of the image.
    """
    (x1, y1, x2, y2), (width, height) = box, extent
    rows = (y1 - height, y2, y1, y2 - height)
    for x, y in [(x, y) for y in rows for x in (x1, x2 - width)] + [(x2, y1), (x1 - width, y1)]:
        left, top = max(min(x, frame[0] - width), 0.0), max(min(y, frame[1] - height), 0.0)
        yield left, top, left + width, top + height


def lay_out(
    boxes: Sequence[Sequence[float]], extents: Sequence[tuple[float, float]], frame: tuple[int, int]
) -> list[Area | None]:
    """Where each label lies, the first served first; None where all of its `places` are taken."""
    areas: list[Area | None] = []
    for box, extent in zip(boxes, extents, strict=True):
        taken = [area for area in areas if area is not None]
        areas.append(next((place for place in places(box, extent, frame) if _is_free(place, taken)), None))
    return areas


def _is_free(place: Area, taken: Sequence[Area]) -> bool:
    x1, y1, x2, y2 = (side + inwards for side, inwards in zip(place, (SLACK, SLACK, -SLACK, -SLACK), strict=True))
    return all(x2 <= other[0] or other[2] <= x1 or y2 <= other[1] or other[3] <= y1 for other in taken)
