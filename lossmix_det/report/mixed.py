"""Sheets that show how images were mixed: sources, saliency, masks, and what the mixed image is taught."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageColor
from torch import Tensor
from torch.nn import functional as F

from lossmix_det.config import MixingConfig
from lossmix_det.evaluation.drawing import Tile, draw_grid
from lossmix_det.evaluation.pictures import Mark, draw_marks, marks_of
from lossmix_det.mixing import RULES, Mix, Recipe, blend, supervise
from lossmix_det.mixing.saliency import covered
from lossmix_det.report.sheets import COLOURS, as_bytes
from lossmix_det.structures import ImageBatch, Instances, Size, Supervision

SOURCE_COLOURS = (*COLOURS, "#c51b7d", "#8c6d31", "#1b9e9e", "#636363")  # of sources, in order
SIDE, LETTERS = 160, 8  # of a picture and of its labels, in pixels
HEAT = ("#000004", "#420a68", "#932667", "#dd513a", "#fca50a", "#fcffa4")  # of saliency, from none to the most


@dataclass(frozen=True)
class Drawn:
    """A mix with what it was drawn from.

    Args:
        pool: all images that may be sources.
        mix: of the first B of them.
        saliency: (P, h, w) over the canvas, if the mixer asks for it.
        taught: one truth or several of the mixed images.
    """

    pool: ImageBatch
    mix: Mix
    saliency: Tensor | None
    taught: list[Supervision]


@dataclass(frozen=True)
class Seen:
    """One source of a mixed image.

    Args:
        number: 0 for the image itself, then its partners.
        pixels: (H, W, 3) in [0, 1].
        truth: of this image alone.
        title: its share, and how far it was moved.
        colour: that it is shown in everywhere.
        saliency: (H, W), if the mixer used it.
    """

    number: int
    pixels: np.ndarray
    truth: Instances
    title: str
    colour: str
    saliency: np.ndarray | None


@dataclass(frozen=True)
class MixedPicture:
    """A mixed image, what it was made of, and what it is taught.

    Args:
        pixels: (H, W, 3) in [0, 1].
        sources: of which anything is seen, the image itself first.
        masks: (H, W, 3) the colour of each source where it is seen; absent: shares everywhere.
        labels: the boxes of every truth with their weights.
    """

    pixels: np.ndarray
    sources: list[Seen]
    masks: np.ndarray | None
    labels: list[Mark]


def explain(drawn: Drawn, supervision: Supervision, recipe: Recipe) -> list[MixedPicture]:
    """How each mixed image came about; features that are mixed are shown as if the pixels were.

    Args:
        drawn: the mix.
        supervision: of each image of the pool.
        recipe: that drew the mix.
    """
    images = blend(drawn.pool, replace(drawn.mix, stage=""))
    origins = drawn.taught
    if recipe.rule.joins_boxes:  # each source apart, to tell which box came from where
        apart = RULES["lossmix"](MixingConfig())
        origins = supervise(supervision, drawn.mix, images, apart, least_visible=recipe.least_visible)
    return [
        MixedPicture(
            _shown(images.pixels[index], size),
            _sources(drawn, supervision, index),
            _mask_colours(drawn.mix, index, drawn.pool.canvas, size),
            _labels(drawn.taught, index, iter(_colours_of(drawn.taught, origins, index))),
        )
        for index, size in enumerate(images.sizes)
    ]


def _colours_of(taught: Sequence[Supervision], origins: Sequence[Supervision], index: int) -> list[str]:
    """The colour of each box that an image is taught, source by source.

    Args:
        taught: truths, which may hold the boxes of several sources.
        origins: the boxes of each source; where these are others, each truth is of one source.
        index: of the image.
    """
    found = [_by_source(supervisions, index) for supervisions in (origins, taught)]
    return found[0] if len(found[0]) == len(found[1]) else found[1]


def _by_source(supervisions: Sequence[Supervision], index: int) -> list[str]:
    return [
        _colour(k)
        for k, supervision in enumerate(supervisions)
        if supervision.class_weights[index] > 0
        for _ in range(len(supervision.truths[index]))
    ]


def _colour(source: int) -> str:
    return SOURCE_COLOURS[source % len(SOURCE_COLOURS)]


def _labels(supervisions: Sequence[Supervision], index: int, colours: Iterator[str]) -> list[Mark]:
    labels = []
    for supervision in supervisions:
        truth, weight = supervision.truths[index], float(supervision.class_weights[index])
        if not weight:
            continue
        weights = torch.ones(len(truth)) if truth.weights is None else truth.weights
        rows = zip(truth.boxes.tolist(), truth.classes.tolist(), (weight * weights).tolist(), strict=True)
        labels += [Mark(box, next(colours), label, value, value) for box, label, value in rows]
    return labels


def _sources(drawn: Drawn, supervision: Supervision, index: int) -> list[Seen]:
    mix, seen = drawn.mix, []
    for k, (number, share) in enumerate(zip(mix.sources[index].tolist(), mix.shares[index].tolist(), strict=True)):
        if not share:
            continue
        size, saliency = drawn.pool.sizes[number], None
        if drawn.saliency is not None:
            saliency = _over(drawn.saliency[number], covered(drawn.pool.canvas), size).numpy()
        title = f"share {share:.2f}" + ("" if mix.offsets is None else _moved(*mix.offsets[index, k].tolist()))
        truth, pixels = supervision.truths[number], _shown(drawn.pool.pixels[number], size)
        seen.append(Seen(k, pixels, truth, title, _colour(k), saliency))
    return seen


def _moved(down: int, right: int) -> str:
    steps = [f"{sign[by > 0]}{abs(by)}" for by, sign in ((down, "↑↓"), (right, "←→")) if by]
    return ", " + " ".join(steps) if steps else ""


def _mask_colours(mix: Mix, index: int, canvas: Size, size: Size) -> np.ndarray | None:
    if mix.masks is None:
        return None
    shown = torch.stack([_over(mask, canvas, size) for mask in mix.masks[index]])  # (K, H, W)
    palette = torch.tensor([ImageColor.getrgb(_colour(k)) for k in range(len(shown))], dtype=shown.dtype) / 255
    return torch.einsum("khw,kc->hwc", shown, palette).clamp(0, 1).numpy()


def _over(values: Tensor, canvas: Size, size: Size) -> Tensor:
    """Values on a grid over a canvas, for each pixel of an image on it."""
    height, width = size
    return F.interpolate(values[None, None].float().cpu(), size=canvas, mode="nearest")[0, 0, :height, :width]


def _shown(pixels: Tensor, size: Size) -> np.ndarray:
    height, width = size
    return pixels[:, :height, :width].permute(1, 2, 0).clamp(0, 1).cpu().numpy()


# What a column shows: the kind, and the number of the source.
Column = tuple[int, int]
SOURCE, SALIENCY, MASKS, MIXED = range(4)


def draw_mixed(pictures: list[MixedPicture], classes: list[str]) -> Image.Image:
    """Draw a row for each mixed image: its sources, their saliency, the masks, and the image with every box taught.

    Args:
        pictures: of the rows.
        classes: names of the K classes.
    """
    rows = [_tiles(picture, classes) for picture in pictures]
    columns = sorted({column for row in rows for column in row})
    heads = [head_of(column, columns) for column in columns]
    return draw_grid([("", [row.get(column) for column in columns]) for row in rows], heads)


def head_of(column: Column, columns: Sequence[Column]) -> str:
    """What stands above a column, given all of them."""
    kind, source = column
    several = (SOURCE, 2) in columns
    name = "image" if not source else f"partner {source}" if several else "partner"
    return {SOURCE: name, SALIENCY: f"saliency of the {name}", MASKS: "masks", MIXED: "mixed image"}[kind]


def _tiles(picture: MixedPicture, classes: list[str]) -> dict[Column, Tile]:
    tiles = {(MIXED, 0): _tile(picture.pixels, classes, picture.labels, "boxes with their weights")}
    if picture.masks is not None:
        tiles[MASKS, 0] = _tile(picture.masks, classes)
    for seen in picture.sources:
        marks = [replace(mark, value=None) for mark in marks_of(seen.truth, seen.colour)]
        tiles[SOURCE, seen.number] = _tile(seen.pixels, classes, marks, seen.title, seen.colour)
        if seen.saliency is not None:
            tiles[SALIENCY, seen.number] = _tile(_heat(seen.saliency), classes)
    return tiles


def _heat(saliency: np.ndarray) -> np.ndarray:
    """(H, W, 3) in [0, 1]: the brighter, the more of (H, W)."""
    share = saliency / max(float(saliency.max()), 1e-12)
    stops, palette = np.linspace(0, 1, len(HEAT)), np.array([ImageColor.getrgb(colour) for colour in HEAT]) / 255
    return np.stack([np.interp(share, stops, palette[:, channel]) for channel in range(3)], axis=2)


def _tile(
    pixels: np.ndarray, classes: list[str], marks: Sequence[Mark] = (), title: str = "", colour: str = "black"
) -> Tile:
    return Tile(draw_marks(as_bytes(pixels), marks, classes, SIDE, LETTERS), title, colour)
