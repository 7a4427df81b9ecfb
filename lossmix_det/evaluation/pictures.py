"""Detections drawn on an image in its own pixels; labels never lie on each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lossmix_det.evaluation.lettering import lettered_file
from lossmix_det.structures import Instances

# Classes take these in turn; neighbours differ much.
COLOURS = (
    *("#e6550d", "#3182bd", "#31a354", "#756bb1", "#e7298a", "#f2b701", "#17becf", "#8c564b", "#1b4f9c", "#9acd32"),
    *("#d62728", "#40e0d0", "#c49c94", "#ff9896", "#5254a3", "#637939", "#8c6d31", "#ad494a", "#a55194", "#7f7f7f"),
)
LEGIBLE = 640  # pixels; smaller images are drawn so many times larger that the longer side comes near it
SMALLEST_FONT, PER_FONT = 11, 64  # pixels; of the longer side to a pixel of the font
DARK = 140  # brightness, of 255; on darker colours the text is white
SLACK = 1e-9  # pixels by which labels may overlap, as rounding goes

Area = tuple[float, float, float, float]  # x1, y1, x2, y2


def draw_picture(pixels: np.ndarray, found: Instances, classes: Sequence[str]) -> np.ndarray:
    """Draw boxes in the colour of their class, and beside each its class and score.

    The best are labelled first. A label for which there is no free place at its box is left out.

    Args:
        pixels: (H, W, 3) uint8 RGB; stays as it is.
        found: N boxes in its pixels, with scores or without.
        classes: names of the K classes.

    Returns:
        (f·H, f·W, 3) uint8 RGB, with a whole number f of at least 1 by which small images are enlarged.
    """
    height, width = pixels.shape[:2]
    factor = enlargement(height, width)
    image = Image.fromarray(pixels).resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    draw, frame = ImageDraw.Draw(image), image.size
    size = max(SMALLEST_FONT, max(frame) // PER_FONT)
    boxes = (found.boxes.double().cpu().numpy() * factor).tolist()
    labels = found.classes.tolist()
    scores = [None] * len(boxes) if found.scores is None else found.scores.tolist()
    order = sorted(range(len(boxes)), key=lambda index: -(scores[index] or 0))
    for index in reversed(order):  # the best on top
        _outline(draw, boxes[index], COLOURS[labels[index] % len(COLOURS)], max(2, size // 7))
    texts = [Label(classes, labels[index], scores[index], size) for index in order]
    areas = lay_out([boxes[index] for index in order], [text.extent for text in texts], frame)
    for text, area in zip(texts, areas, strict=True):
        if area is not None:
            text.write(draw, area)
    return np.asarray(image)


def enlargement(height: int, width: int) -> int:
    """By how much an image is enlarged to be drawn on."""
    return max(1, round(LEGIBLE / max(height, width)))


class Label:
    """The text beside a box, in the colour of its class.

    Args:
        classes: names of the K classes.
        index: of the class.
        score: of the box, if it has one.
        size: of the font in pixels.
    """

    def __init__(self, classes: Sequence[str], index: int, score: float | None, size: int) -> None:
        name, path = lettered_file(classes[index], f"class {index + 1}")
        self.text = name if score is None else f"{name} {score:.2f}"
        self.font, self.colour = _font(path, size), COLOURS[index % len(COLOURS)]
        self.pad = size // 5
        self.extent = (self.font.getlength(self.text) + 2 * self.pad, size * 1.15 + 2 * self.pad)

    def write(self, draw: ImageDraw.ImageDraw, area: Area) -> None:
        """Write it into an area of its extent."""
        draw.rectangle(area, fill=self.colour)
        red, green, blue = (int(self.colour[at : at + 2], 16) for at in (1, 3, 5))
        ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < DARK else "black"
        middle = (area[0] + self.pad, (area[1] + area[3]) / 2)
        draw.text(middle, self.text, fill=ink, font=self.font, anchor="lm")


@lru_cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def _outline(draw: ImageDraw.ImageDraw, box: Sequence[float], colour: str, width: int) -> None:
    """A box with a thin white edge, to be seen on any picture."""
    x1, y1, x2, y2 = box
    x2, y2 = max(x2, x1), max(y2, y1)
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="white")
    draw.rectangle((x1, y1, x2, y2), outline=colour, width=width)


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
