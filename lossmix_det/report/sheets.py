"""Sheets of images with the boxes of every truth that is taught on them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from lossmix_det.evaluation.drawing import LETTERS, SIDE, Tile, draw_grid
from lossmix_det.evaluation.pictures import Mark, draw_marks, marks_of
from lossmix_det.structures import Instances

COLOURS = ("#e6550d", "#3182bd", "#31a354", "#756bb1")  # of the truths of an image
ANNOTATED, PSEUDO_LABELLED = COLOURS[:2]


@dataclass(frozen=True)
class Taught:
    """A truth that an image is taught: the name its loss is logged under, and its weight in [0, 1]."""

    name: str
    truth: Instances
    weight: float


@dataclass(frozen=True)
class Picture:
    """An image of the student and what it is taught.

    Args:
        pixels: (H, W, 3) in [0, 1].
        taught: every truth; those of weight 0 are not drawn.
        two_domains: colours tell annotated from pseudo-labelled truths, and the title names the loss; else every truth
            of an image has a colour of its own.
    """

    pixels: np.ndarray
    taught: list[Taught]
    two_domains: bool = False

    @property
    def title(self) -> str:
        """The weights of the truths that are taught, and with two domains the name of their loss."""
        shown = [one for one in self.taught if one.weight]
        weights = "weights " + ", ".join(f"{one.weight:.2f}" for one in shown) if shown else ""
        if not self.two_domains:
            return weights
        return f"{shown[0].name}, {weights}" if shown else "nothing taught"

    def colour(self, index: int) -> str:
        """The colour that a truth is drawn in."""
        if self.two_domains:
            return ANNOTATED if self.taught[index].truth.scores is None else PSEUDO_LABELLED
        return COLOURS[index % len(COLOURS)]

    @property
    def marks(self) -> list[Mark]:
        """The boxes of every truth that is taught; where a box has no number of its own, the weight of its truth."""
        marks = []
        for index, one in enumerate(self.taught):
            if one.weight:
                own = marks_of(one.truth, self.colour(index), one.weight)
                told = one.weight if one.weight < 1 else None
                marks += [replace(mark, value=told) if mark.value is None else mark for mark in own]
        return marks


def draw_sheet(rows: dict[str, list[Picture]], classes: list[str]) -> Image.Image:
    """Draw rows of pictures, each below its name.

    Args:
        rows: pictures by the name of their row; a shorter row ends in empty places.
        classes: names of the K classes.
    """
    return draw_grid([(name, [_tile(picture, classes) for picture in pictures]) for name, pictures in rows.items()])


def _tile(picture: Picture, classes: list[str]) -> Tile:
    return Tile(draw_marks(as_bytes(picture.pixels), picture.marks, classes, SIDE, LETTERS), picture.title)


def as_bytes(pixels: np.ndarray) -> np.ndarray:
    """uint8 of pixels in [0, 1]."""
    return (pixels * 255).round().clip(0, 255).astype(np.uint8)
