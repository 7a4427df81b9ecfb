"""On which canvases the images of a batch pass through a network.

Images of unequal shape on one canvas are mostly padding. So a detector lays them on the few canvases that waste least,
and runs its backbone once for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from lossmix_det.structures import STRIDE, ImageBatch, Size, rounded, smallest_canvas

# Pixels whose computing takes as long as one more run of the network, by kind of device. On CPUs a run costs little
# beyond its pixels. On GPUs it is some hundred launches of kernels; this number is an estimate, and not measured yet.
COST_OF_A_CANVAS = {"cpu": 2**14, "cuda": 2**17}

# Orders in which images of a like shape are neighbours.
ORDERS: tuple[Callable[[Size], tuple[float, ...]], ...] = (
    lambda size: (size[0] / size[1], size[0]),
    lambda size: (size[0], size[1]),
    lambda size: (size[1], size[0]),
)


@dataclass(frozen=True)
class Canvas:
    """Some images of a batch on a canvas of their own.

    Args:
        indices: of the images in the batch, in rising order.
        images: these alone.
    """

    indices: tuple[int, ...]
    images: ImageBatch


def few(images: ImageBatch, multiple: int = STRIDE) -> list[Canvas]:
    """The canvases that were planned, else those that take least to compute."""
    groups: dict[Size, list[int]] = {}
    for index, canvas in enumerate(images.canvases or plan(images, multiple)):
        groups.setdefault(canvas, []).append(index)
    if len(groups) == 1 and tuple(images.pixels.shape[2:]) in groups:
        return one(images)
    return [Canvas(tuple(group), images.take(group).cropped(*canvas)) for canvas, group in groups.items()]


def one(images: ImageBatch, multiple: int = STRIDE) -> list[Canvas]:
    """The one that the batch is on."""
    return [Canvas(tuple(range(len(images))), images)]


Layout = Callable[[ImageBatch, int], list[Canvas]]  # the sides of a canvas are multiples of that number of pixels
LAYOUTS: dict[str, Layout] = {"few": few, "one": one}


def plan(images: ImageBatch, multiple: int = STRIDE) -> tuple[Size, ...]:
    """The canvas of each image, so that all take least to compute; one for all where nothing is to be gained.

    That one is the canvas of the batch, without the padding that a network which takes any size has no use for.

    Args:
        images: of any sizes.
        multiple: that the sides of a canvas are of, as the network needs.
    """
    cost = COST_OF_A_CANVAS.get(images.pixels.device.type, COST_OF_A_CANVAS["cuda"])
    groups = partition(images.sizes, cost, multiple)
    height, width = images.pixels.shape[2:]
    if multiple < STRIDE:
        height, width = smallest_canvas(images.sizes, multiple)
    canvases = {group: smallest_canvas([images.sizes[index] for index in group], multiple) for group in groups}
    computed = sum(len(group) * rows * columns for group, (rows, columns) in canvases.items())
    if len(images) * height * width - computed < cost:
        return ((height, width),) * len(images)
    by_image = {index: canvas for group, canvas in canvases.items() for index in group}
    return tuple(by_image[index] for index in range(len(images)))


def partition(sizes: Sequence[Size], cost: float, multiple: int = STRIDE) -> list[tuple[int, ...]]:
    """Images by canvas: the least Σ pixels + ``cost`` · canvases, among neighbours in one of `ORDERS`.

    Args:
        sizes: (height, width) of each image.
        cost: of a canvas, in pixels.
        multiple: that the sides of a canvas are of.
    """
    orders = [sorted(range(len(sizes)), key=lambda index, key=key: key(sizes[index])) for key in ORDERS]
    _, groups = min((_best_cuts(order, sizes, cost, multiple) for order in orders), key=lambda found: found[0])
    return sorted(tuple(sorted(group)) for group in groups)


def _best_cuts(order: list[int], sizes: Sequence[Size], cost: float, multiple: int) -> tuple[float, list[list[int]]]:
    """Cut a row of images into the runs that cost least; the cost, and the runs."""
    least, starts = [0.0], [0]
    for end in range(1, len(order) + 1):
        height = width = start = 0
        best = math.inf
        for first in reversed(range(end)):
            height, width = max(height, sizes[order[first]][0]), max(width, sizes[order[first]][1])
            total = least[first] + (end - first) * rounded(height, multiple) * rounded(width, multiple) + cost
            if total <= best:  # of what costs the same, the fewest canvases
                best, start = total, first
        least.append(best)
        starts.append(start)
    runs, end = [], len(order)
    while end:
        runs.append(order[starts[end] : end])
        end = starts[end]
    return least[-1], runs


def in_order(indices: Sequence[Sequence[int]], values: Sequence[Sequence]) -> list:
    """What was computed of each image, in the order of the batch.

    Args:
        indices: of the images on each canvas.
        values: for each canvas one value per image.
    """
    placed = {
        index: value
        for of_canvas, computed in zip(indices, values, strict=True)
        for index, value in zip(of_canvas, computed, strict=True)
    }
    return [placed[index] for index in range(len(placed))]


def row_order(indices: Sequence[Sequence[int]], counts: Sequence[int]) -> Tensor | None:
    """Where the rows of each image stand among those computed canvas after canvas; None where they are in order.

    Args:
        indices: of the images on each canvas.
        counts: rows of each image of the batch.
    """
    if len(indices) == 1:
        return None
    computed = [index for of_canvas in indices for index in of_canvas]
    starts = dict(zip(computed, accumulate([0, *(counts[index] for index in computed)]), strict=False))
    return torch.cat([torch.arange(starts[index], starts[index] + count) for index, count in enumerate(counts)])
