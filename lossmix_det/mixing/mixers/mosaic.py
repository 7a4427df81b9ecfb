"""Mosaic (Bochkovskiy et al., YOLOv4, 2020): four images on one canvas, around a random centre."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lossmix_det.config import MixingConfig
from lossmix_det.mixing.blend import Mix
from lossmix_det.mixing.mixers.grid import grid_cell, own_masks, shares_of
from lossmix_det.mixing.mixers.pairwise import with_partners
from lossmix_det.structures import ImageBatch

Quarter = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)

MIDDLE = (0.25, 0.75)  # of each side, where the centre is drawn, as in YOLO's


class Mosaic:
    """Three of an image's quarters around a random centre show partners; the image itself keeps its size and place.

    Each partner is moved so that a random part of it fills its quarter. It is not scaled, so objects keep their size.
    Where a partner is smaller than its quarter, the rest of that quarter shows the image itself. YOLO's Mosaic draws
    on a canvas of twice the size and fills what is left with grey.

    Args:
        config: nothing of it; the centre alone says how much of each image is seen.
    """

    partners = 3
    needs_saliency = False

    def __init__(self, config: MixingConfig) -> None:
        pass

    def draw(self, pool: ImageBatch, partners: np.ndarray, saliency: Tensor | None, rng: np.random.Generator) -> Mix:
        """As `Mixer.draw`."""
        count, cell = len(partners), grid_cell(pool.canvas)
        centres, places = rng.uniform(*MIDDLE, (count, 2)), rng.random((count, 3, 2))
        own = rng.integers(4, size=count)  # the quarter that stays the image's
        masks = own_masks(count, 4, pool.canvas, cell)
        offsets = torch.zeros(count, 4, 2, dtype=torch.int64)
        for index, row in enumerate(partners.tolist()):
            frame = [side // cell for side in pool.sizes[index]]
            quarters = quarters_around([round(c * side) for c, side in zip(centres[index], frame, strict=True)], frame)
            del quarters[own[index]]
            for number, (partner, quarter) in enumerate(zip(row, quarters, strict=True)):
                sides = zip(quarter, pool.sizes[partner], places[index, number], strict=True)
                placed = [_place(start, end, size, place, cell) for (start, end), size, place in sides]
                offsets[index, 1 + number] = torch.tensor([move for _, move in placed])
                (top, bottom), (left, right) = (seen for seen, _ in placed)
                masks[index, 0, top:bottom, left:right] = 0.0
                masks[index, 1 + number, top:bottom, left:right] = 1.0
        return Mix(with_partners(partners), shares_of(masks, pool.sizes[:count], cell), masks, offsets)


def quarters_around(centre: list[int], frame: list[int]) -> list[Quarter]:
    """((top, bottom), (left, right)) of the four parts of a frame around a centre, row by row."""
    (row, column), (rows, columns) = centre, frame
    return [(down, across) for down in ((0, row), (row, rows)) for across in ((0, column), (column, columns))]


def _place(start: int, end: int, size: int, place: float, cell: int) -> tuple[tuple[int, int], int]:
    """Where along one side a partner is put into a quarter.

    Args:
        start, end: of the quarter, in cells.
        size: of the partner, in pixels.
        place: in [0, 1), which of all positions.
        cell: pixels.

    Returns:
        The cells from … to that show it, and by how many pixels it is moved.
    """
    length, cells = end - start, size // cell
    free = length - cells  # positive: it is moved within the quarter; negative: a part of it is chosen
    first = start + (1 if free > 0 else -1) * int(place * (abs(free) + 1))
    return (max(first, start), min(first + cells, end)), first * cell
