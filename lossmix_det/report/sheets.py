"""Sheets of images with the boxes of every truth that is taught on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lossmix_det.evaluation.drawing import COLOURS, draw_instances, hide_ticks
from lossmix_det.structures import Instances

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


def draw_sheet(rows: dict[str, list[Picture]], classes: list[str]) -> Figure:
    """Draw rows of pictures, each named at its left.

    Args:
        rows: pictures by the name of their row; a shorter row ends in empty cells.
        classes: names of the K classes.
    """
    columns = max(len(pictures) for pictures in rows.values())
    figure, axes = plt.subplots(len(rows), columns, figsize=(2.6 * columns, 2.9 * len(rows)), squeeze=False)
    for (name, pictures), row in zip(rows.items(), axes, strict=True):
        row[0].set_ylabel(name, fontsize=13)
        for axis, picture in zip(row, pictures, strict=False):
            _draw(axis, picture, classes)
        for axis in row[len(pictures) :]:
            axis.axis("off")
    figure.tight_layout()
    return figure


def _draw(axis: Axes, picture: Picture, classes: list[str]) -> None:
    axis.imshow(picture.pixels)
    hide_ticks(axis)
    for index, one in enumerate(picture.taught):
        if one.weight:
            draw_instances(axis, one.truth, classes, picture.colour(index), one.weight)
    axis.set_title(picture.title, fontsize=9)
