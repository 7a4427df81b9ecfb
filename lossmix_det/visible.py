"""What a mask over an image lets be seen of boxes in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Visible:
    """Where an image is seen that others cover in part, for boxes that come up after it was mixed.

    Args:
        mask: (h, w) float in [0, 1] over the canvas: how much of the image is seen in each cell.
        canvas: (height, width) in pixels.
        least: the share of a box that must be seen for it to count; one of which nothing is seen never does.
    """

    mask: Tensor
    canvas: tuple[int, int]
    least: float

    def sees(self, boxes: Tensor) -> Tensor:
        """(N,) bool: of which boxes (N, 4), ``xyxy`` in pixels, enough is seen."""
        seen = mean_inside(self.mask, boxes.double() * self._scale(boxes))
        return (seen >= self.least) & (seen > 0)

    def clipped(self, boxes: Tensor) -> Tensor:
        """(N, 4) the smallest box around what is seen of each, in pixels; one of which nothing is seen stays."""
        scale = self._scale(boxes)
        cells = boxes.double() * scale
        clipped = around(self.mask.to(boxes.device), cells)
        # What is not cut stays to the last bit.
        return torch.where(clipped == cells, boxes, (clipped / scale).to(boxes))

    def _scale(self, boxes: Tensor) -> Tensor:
        """(4,) cells to a pixel."""
        height, width = (count / side for count, side in zip(self.mask.shape, self.canvas, strict=True))
        return torch.tensor([width, height] * 2, dtype=torch.float64, device=boxes.device)


def mean_inside(mask: Tensor, boxes: Tensor) -> Tensor:
    """(N,) mean of a (h, w) mask inside boxes (N, 4), ``xyxy`` in cells; a cell that is cut counts in part."""
    height, width = mask.shape
    sums = torch.zeros(height + 1, width + 1, dtype=torch.float64, device=boxes.device)
    sums[1:, 1:] = mask.to(sums).cumsum(0).cumsum(1)

    def up_to(x: Tensor, y: Tensor) -> Tensor:
        """Sum of the mask left of x and above y; linear between the corners of cells, so exact."""
        column, row = x.floor().clamp(0, width - 1).long(), y.floor().clamp(0, height - 1).long()
        right, down = x - column, y - row
        upper = sums[row, column] * (1 - right) + sums[row, column + 1] * right
        lower = sums[row + 1, column] * (1 - right) + sums[row + 1, column + 1] * right
        return upper * (1 - down) + lower * down

    x1, y1, x2, y2 = boxes.clamp(min=0).unbind(1)
    x1, x2, y1, y2 = x1.clamp(max=width), x2.clamp(max=width), y1.clamp(max=height), y2.clamp(max=height)
    inside = up_to(x2, y2) - up_to(x1, y2) - up_to(x2, y1) + up_to(x1, y1)
    return (inside / ((x2 - x1) * (y2 - y1)).clamp(min=1e-12)).clamp(0, 1)


def around(mask: Tensor, cells: Tensor) -> Tensor:
    """(N, 4) the smallest box around what a (h, w) mask shows of each box (``xyxy`` in cells); one not seen stays."""
    height, width = mask.shape
    shown = (mask > 0).int()
    above, before = F.pad(shown.cumsum(0), (0, 0, 1, 0)), F.pad(shown.cumsum(1), (1, 0))  # up to each edge of a cell
    low, high = cells[:, :2].floor().long().clamp(min=0), cells[:, 2:].ceil().long().clamp(min=0)
    left, right = low[:, 0].clamp(max=width), high[:, 0].clamp(max=width)
    top, bottom = low[:, 1].clamp(max=height), high[:, 1].clamp(max=height)
    limits, found = torch.empty_like(cells), []
    for axis, (counts, first, last) in enumerate(
        ((above[bottom] - above[top], left, right), ((before[:, right] - before[:, left]).T, top, bottom))
    ):
        place = torch.arange(counts.shape[1], device=cells.device)
        lines = (counts > 0) & (place >= first[:, None]) & (place < last[:, None])  # (N, columns), or rows
        limits[:, axis] = lines.int().argmax(1).to(cells)
        limits[:, axis + 2] = (lines.shape[1] - lines.flip(1).int().argmax(1)).to(cells)
        found.append(lines.any(1))
    clipped = [torch.maximum(cells[:, :2], limits[:, :2]), torch.minimum(cells[:, 2:], limits[:, 2:])]
    return torch.where((found[0] & found[1])[:, None], torch.cat(clipped, dim=1), cells)
