"""Square blocks over an image: what lies in each, how they are painted, and how pixels and boxes follow when they move.

Cells are those of a mask over the canvas; a block is some whole cells wide and high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lossmix_det.structures import Instances, Size


@dataclass(frozen=True)
class BlockGrid:
    """R×C blocks over the upper left part of a canvas; the frame cuts off those at its right and lower edge.

    Args:
        frame: (rows, columns) of that part, in cells; at least one of each.
        side: of a block, in cells.
        cell: side of a cell, in pixels.
    """

    frame: Size
    side: int
    cell: int

    @staticmethod
    def along(frame: Size, count: int, cell: int) -> BlockGrid:
        """At most a number of blocks along the longer side of the frame: as many as blocks of whole cells allow."""
        return BlockGrid(frame, -(-max(frame) // count), cell)

    @property
    def shape(self) -> Size:
        """(R, C)."""
        return -(-self.frame[0] // self.side), -(-self.frame[1] // self.side)

    @property
    def whole(self) -> Size:
        """(rows, columns) of the blocks that are not cut off."""
        return self.frame[0] // self.side, self.frame[1] // self.side

    def starts(self, axis: int) -> np.ndarray:
        """The first cell of each row (axis 0) or column (axis 1) of blocks."""
        return self.side * np.arange(self.shape[axis])

    def lengths(self, axis: int) -> np.ndarray:
        """Cells of each row (axis 0) or column (axis 1) of blocks."""
        return np.diff(self.starts(axis), append=self.frame[axis])

    def sums(self, values: np.ndarray, canvas: Size) -> np.ndarray:
        """(R, C) of what lies in each block of (h, w) values over the canvas; a value that is cut counts in part."""
        rows, columns = (self._overlaps(axis, values.shape[axis], canvas[axis]) for axis in (0, 1))
        return rows @ values @ columns.T

    def _overlaps(self, axis: int, count: int, pixels: int) -> np.ndarray:
        """(R or C, count) share of each of so many parts of a side that lies in each row or column of blocks."""
        part, starts = pixels / count, self.starts(axis)
        low, high = ((starts + add)[:, None] * self.cell for add in (0, self.lengths(axis)))
        places = np.arange(count) * part
        return (np.minimum(high, places + part) - np.maximum(low, places)).clip(min=0) / part

    def inside(self, limit: Size) -> np.ndarray:
        """(R, C) bool: which blocks lie wholly within the first so many (rows, columns) of cells."""
        rows, columns = (self.starts(axis) + self.lengths(axis) <= limit[axis] for axis in (0, 1))
        return rows[:, None] & columns

    def cells(self, values: np.ndarray) -> np.ndarray:
        """(rows, columns) of the frame's cells, each with the (R, C) value of its block."""
        return values.repeat(self.lengths(0), axis=0).repeat(self.lengths(1), axis=1)

    def moves(self, order: np.ndarray, cells: Size) -> np.ndarray:
        """(h, w) of a canvas of cells: the number of the cell that each shows.

        Args:
            order: by place, the number of the whole block that is shown there.
            cells: (h, w) of the canvas.
        """
        result = np.arange(cells[0] * cells[1]).reshape(cells)
        (rows, columns), side = self.whole, self.side
        down, right = (
            (new.reshape(rows, columns) - old).repeat(side, 0).repeat(side, 1) * side
            for new, old in zip(np.divmod(order, columns), np.indices((rows, columns)), strict=True)
        )
        result[: rows * side, : columns * side] += down * cells[1] + right
        return result


def in_place(cells: Sequence[int]) -> Tensor:
    """(h, w) cells that show themselves."""
    return torch.arange(cells[0] * cells[1]).view(cells[0], cells[1])


def is_in_place(blocks: Tensor) -> bool:
    """Whether each of (h, w) cells shows itself."""
    return torch.equal(blocks.cpu(), in_place(blocks.shape))


def moved_blocks(pixels: Tensor, blocks: Tensor) -> Tensor:
    """(B, 3, H, W) pixels of which each cell shows that of ``blocks`` (B, h, w).

    Raises:
        ValueError: the canvas is not of whole cells.
    """
    (height, width), (rows, columns) = pixels.shape[2:], blocks.shape[1:]
    if height % rows or width % columns:
        raise ValueError(f"a canvas of {(height, width)} pixels has no {(rows, columns)} cells of one size")
    image, place = (blocks != in_place(blocks.shape[1:])).flatten(1).nonzero(as_tuple=True)
    if not len(image):
        return pixels
    shown = blocks.flatten(1)[image, place]
    cells = (len(pixels), pixels.shape[1], rows, height // rows, columns, width // columns)
    moved = pixels.clone()
    moved.view(cells)[image, :, place // columns, :, place % columns] = pixels.reshape(cells)[
        image, :, shown // columns, :, shown % columns
    ]
    return moved


def follow(truth: Instances, mask: Tensor, blocks: Tensor, canvas: Size, least: float) -> tuple[Instances, Tensor]:
    """Boxes after their image was torn into blocks, each the smallest box around those of its pieces that are seen.

    Args:
        truth: N boxes in pixels.
        mask: (h, w) of their source, over the canvas.
        blocks: (h, w) cells of the source that each cell shows, as in `Mix`.
        canvas: (height, width) in pixels.
        least: of the box, and of the box around its pieces, the share that is seen; under either the box is dropped.

    Returns:
        The boxes that are kept, without masks, and (N,) the share of each, as it was before, that is seen.
    """
    cells, scale = _Cells(mask, blocks), np.array([mask.shape[1] / canvas[1], mask.shape[0] / canvas[0]] * 2)
    before = truth.boxes.detach().cpu().double().numpy() * scale
    found = [cells.around(box) for box in before]
    after, seen = np.array([box for box, _ in found]).reshape(-1, 4), np.array([area for _, area in found])
    areas = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1).clip(min=1e-12) for boxes in (before, after))
    own, around = (seen / area for area in areas)
    kept = torch.from_numpy((seen > 0) & (own >= least) & (around >= least)).to(truth.boxes.device)
    boxes, visible = (torch.from_numpy(values).to(truth.boxes) for values in (after / scale, own.clip(max=1)))
    return replace(truth, boxes=boxes, masks=None)[kept], visible[kept]


class _Cells:
    """Where the cells of one source are shown, and how much of each is seen; all (h, w), by the cell of the source."""

    def __init__(self, mask: Tensor, blocks: Tensor) -> None:
        shown, (rows, columns) = blocks.cpu().numpy(), blocks.shape
        place = np.empty(shown.size, dtype=np.int64)
        place[shown.ravel()] = np.arange(shown.size)
        self.seen = mask.cpu().double().numpy().ravel()[place].reshape(rows, columns)
        row, column = np.indices((rows, columns))
        self.down = (place // columns).reshape(rows, columns) - row
        self.right = (place % columns).reshape(rows, columns) - column

    def around(self, box: np.ndarray) -> tuple[list[float], float]:
        """The box around the pieces of a box (``xyxy`` in cells) that are seen, and the area that is seen of them."""
        (left, top), (right, bottom) = np.floor(box[:2]).astype(int).clip(0), np.ceil(box[2:]).astype(int)
        part = np.s_[top:bottom, left:right]
        seen = self.seen[part]
        if not seen.any():
            return [0.0] * 4, 0.0
        rows, columns = np.arange(self.seen.shape[0])[part[0], None], np.arange(self.seen.shape[1])[part[1]]
        limits = [(rows, box[1], box[3], self.down[part]), (columns, box[0], box[2], self.right[part])]
        sides, lengths = [], []
        for cell, low, high, move in limits:
            start, end = np.maximum(cell, low), np.minimum(cell + 1, high)
            sides.append(((start + move)[seen > 0].min(), (end + move)[seen > 0].max()))
            lengths.append((end - start).ravel())
        (y1, y2), (x1, x2) = sides
        return [x1, y1, x2, y2], float(lengths[0] @ seen @ lengths[1])
