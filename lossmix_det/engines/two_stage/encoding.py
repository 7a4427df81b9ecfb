"""What a two-stage detector has computed of its images: anchors, proposals, and the scores of proposals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lossmix_det.engines.canvases import in_order
from lossmix_det.engines.contract import Encoding
from lossmix_det.engines.two_stage.sampling import PADDING, random_ranks
from lossmix_det.structures import ImageBatch, Size

SIDE, KINDS = 2**16, 2**8  # more cells along a side, and anchors in a cell, than any network has


class Scores(NamedTuple):
    """Head outputs of R boxes: features (R, D), class logits (R, K + 1), offsets (R, C, 4).

    What C is, and where among the logits the background stands, is the engine's.
    """

    features: Tensor
    logits: Tensor
    deltas: Tensor

    def take(self, rows: Tensor) -> Scores:
        """Those of some boxes, given their (S,) rows."""
        return Scores(*(values.index_select(0, rows) for values in self))


class ScoredProposals:
    """Head outputs by proposal, filled as truths ask for them, so that a proposal is scored once for all truths.

    Args:
        counts: proposals per image.
        share: false where the head must see each truth's samples as one batch (it normalises over the batch).
    """

    def __init__(self, counts: list[int], share: bool) -> None:
        self.counts, self.share = counts, share
        self.starts = [0, *accumulate(counts)]  # of the proposals of each image, among those of all
        self.known: Tensor | None = None  # row of each proposal, -1 for those not scored yet
        self.size = 0
        self.outputs: list[Scores] = []
        self.announced: dict[int, tuple[Any, Tensor]] = {}  # samples of a supervision, by its identity, and their rows

    def take(self, rows: Tensor) -> Scores:
        """Head outputs in the given (S,) rows."""
        if len(self.outputs) > 1:
            self.outputs = [Scores(*map(torch.cat, zip(*self.outputs, strict=True)))]
        return self.outputs[0].take(rows)

    def rows_of(self, images: Sequence[int], index: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Rows of the outputs for boxes, image after image, and which of the boxes are yet to be scored, in this order.

        Args:
            images: numbers of some images.
            index: for each of them (S,) which of its proposals the boxes are; beyond them: other boxes.
        """
        flat = torch.cat(list(index))
        if self.known is None:
            self.known = flat.new_full((self.starts[-1] + 1,), -1)
        pairs = list(zip(images, index, strict=True))
        proposal = torch.cat([of_image < self.counts[image] for image, of_image in pairs])
        offset = torch.cat([torch.full_like(of_image, self.starts[image]) for image, of_image in pairs])
        place = torch.where(proposal, flat + offset, self.starts[-1])  # the last place is that of all other boxes
        row = torch.where(proposal, self.known[place], -1)
        new = row < 0 if self.share else torch.ones_like(proposal)
        numbers = self.size + new.cumsum(0) - 1
        row = torch.where(new, numbers, row)
        self.known[place] = row
        self.size += int(new.sum())
        return row, new


@dataclass(frozen=True)
class AnchorGrid:
    """Where anchors lie: level after level, row after row, column after column, a few per cell.

    Args:
        levels: (rows, columns, anchors per cell) of each level.
        canvas: (height, width) in pixels that each level covers.
    """

    levels: tuple[tuple[int, int, int], ...]
    canvas: Size

    @property
    def strides(self) -> list[int]:
        """Pixels between the cells of each level: the nearest power of two, because levels round up or down."""
        return [
            2 ** round(math.log2(max(side / cells for side, cells in zip(self.canvas, level, strict=False))))
            for level in self.levels
        ]

    def shifted(self, index: Tensor, offset: Tensor, grid: AnchorGrid | None = None) -> Tensor:
        """The anchors that lie ``offset`` further up and left, in whole cells of their level.

        Args:
            index: (S,) of anchors.
            offset: (S, 2) pixels, down and right.
            grid: of the canvas on which they are looked for, by the same network; absent: this one.

        Returns:
            (S,) indices of anchors of the same shape, -1 where that place lies outside.
        """
        result, start, other_start = torch.full_like(index, -1), 0, 0
        for level, other, stride in zip(self.levels, (grid or self).levels, self.strides, strict=True):
            (rows, columns, count), (other_rows, other_columns, _) = level, other
            size = rows * columns * count
            here = (index >= start) & (index < start + size)
            cell, kind = (index - start) // count, (index - start) % count
            down, right = (offset / stride).round().long().unbind(1)
            row, column = cell // columns - down, cell % columns - right
            inside = here & (row >= 0) & (row < other_rows) & (column >= 0) & (column < other_columns)
            place = other_start + (row * other_columns + column) * count + kind
            result = torch.where(inside, place, result)
            start, other_start = start + size, other_start + other_rows * other_columns * count
        return result

    def places(self, device: torch.device) -> Tensor:
        """(A,) int64: level, row, column and kind of each anchor as one number, the same on every canvas."""
        numbers = []
        for level, (rows, columns, count) in enumerate(self.levels):
            row, column, kind = (torch.arange(length, device=device) for length in (rows, columns, count))
            cell = (level * SIDE + row[:, None, None]) * SIDE + column[None, :, None]
            numbers.append((cell * KINDS + kind).flatten())
        return torch.cat(numbers)

    def inside(self, sizes: Sequence[Size], device: torch.device) -> Tensor:
        """(B, A) bool: which anchors are of a cell that begins inside its image, not in the padding.

        Args:
            sizes: (height, width) of B images on this canvas.
            device: of the result.
        """
        limits, masks = torch.tensor(sizes, device=device, dtype=torch.float32), []
        for (rows, columns, count), stride in zip(self.levels, self.strides, strict=True):
            below, right = (
                torch.arange(cells, device=device) * stride < limits[:, side, None]
                for side, cells in enumerate((rows, columns))
            )
            cells = below[:, :, None] & right[:, None, :]
            masks.append(cells[..., None].expand(*cells.shape, count).flatten(1))
        return torch.cat(masks, dim=1)


@dataclass(frozen=True)
class EncodedCanvas:
    """What backbone and first stage have computed of b images on one canvas, which has A anchors.

    Args:
        features: pyramid levels (b, C, h, w) by name.
        inputs: the normalised images as the engine holds them.
        size: (height, width) in pixels that the levels cover.
        anchors: (A, 4) per image.
        objectness: (b, A) logits.
        deltas: (b, A, 4) predicted offsets of the anchors.
        proposals: (R, 4) per image, detached.
        grid: where the anchors lie; absent where they are neither drawn by key nor moved.
        indices: of the images in the batch; absent: the canvas holds all of it.
    """

    features: dict[str, Tensor]
    inputs: Any
    size: Size
    anchors: list[Tensor]
    objectness: Tensor
    deltas: Tensor
    proposals: list[Tensor]
    grid: AnchorGrid | None = None
    indices: tuple[int, ...] = ()


class TwoStageEncoding(Encoding):
    """What a network has computed of a batch, canvas by canvas; R proposals and A anchors differ per image.

    Args:
        images: that were encoded.
        canvases: that they lie on.
        shares_scores: as in `ScoredProposals`.
    """

    def __init__(self, images: ImageBatch, canvases: list[EncodedCanvas], shares_scores: bool = True) -> None:
        self.images, self.canvases = images, canvases
        self.indices = [canvas.indices or tuple(range(len(images))) for canvas in canvases]
        self.proposals: list[Tensor] = self._by_image([canvas.proposals for canvas in canvases])
        self.scored = ScoredProposals([len(boxes) for boxes in self.proposals], shares_scores)

    @cached_property
    def anchors(self) -> list[Tensor]:
        """(A, 4) per image."""
        return self._by_image([canvas.anchors for canvas in self.canvases])

    @cached_property
    def objectness(self) -> Tensor:
        """(Σ A,) logits of the anchors of all images; `anchor_rows` says where those of an image stand."""
        return torch.cat([canvas.objectness.flatten() for canvas in self.canvases])

    @cached_property
    def deltas(self) -> Tensor:
        """(Σ A, 4) predicted offsets of these anchors."""
        return torch.cat([canvas.deltas.flatten(0, 1) for canvas in self.canvases])

    @cached_property
    def anchor_boxes(self) -> Tensor:
        """(Σ A, 4) these anchors."""
        return torch.cat([boxes for canvas in self.canvases for boxes in canvas.anchors])

    @cached_property
    def starts(self) -> Tensor:
        """(B,) row of the first anchor of each image, on the CPU."""
        starts, start = torch.zeros(len(self.images), dtype=torch.int64), 0
        for indices, canvas in zip(self.indices, self.canvases, strict=True):
            count = canvas.objectness.shape[1]
            starts[list(indices)] = start + count * torch.arange(len(indices))
            start += count * len(indices)
        return starts

    def anchor_rows(self, images: Tensor, index: Tensor) -> Tensor:
        """(S,) rows of anchors, given the image of each and its number among the anchors of that image."""
        return self.starts.to(index.device)[images] + index

    @cached_property
    def ranks(self) -> list[Tensor] | None:
        """(A,) random rank of each anchor per image, drawn by the key of the image and the place of the anchor.

        So it does not depend on the canvas. Anchors of the padding come after all others. None without keys.
        """
        keys = self.images.keys
        if keys is None:
            return None
        ranks = []
        for indices, canvas in zip(self.indices, self.canvases, strict=True):
            device = canvas.objectness.device
            drawn = random_ranks([keys[index] for index in indices], canvas.grid.places(device))
            inside = canvas.grid.inside([self.images.sizes[index] for index in indices], device)
            ranks.append(torch.where(inside, drawn, drawn + PADDING))
        return self._by_image(ranks)

    def _by_image(self, values: list) -> list:
        return in_order(self.indices, values)
