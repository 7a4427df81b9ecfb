"""What a two-stage detector has computed of its images: anchors, proposals, and the scores of proposals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lossmix_det.engines.contract import Encoding
from lossmix_det.structures import ImageBatch


class Scores(NamedTuple):
    """Head outputs of R boxes: features (R, D), class logits (R, K + 1), offsets (R, C, 4).

    What C is, and where among the logits the background stands, is the engine's.
    """

    features: Tensor
    logits: Tensor
    deltas: Tensor


class ScoredProposals:
    """Head outputs by proposal, filled as truths ask for them, so that a proposal is scored once for all truths.

    Args:
        counts: proposals per image.
        share: false where the head must see each truth's samples as one batch (it normalises over the batch).
    """

    def __init__(self, counts: list[int], share: bool) -> None:
        self.counts, self.share = counts, share
        self.rows: dict[int, Tensor] = {}
        self.size = 0
        self.outputs: list[Scores] = []

    def rows_of(self, image: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the outputs for the boxes of an image, and which of the boxes are yet to be scored, in this order."""
        count = self.counts[image]
        known = self.rows.setdefault(image, index.new_full((count,), -1))
        proposal = index < count
        row = torch.where(proposal, known[index.clamp(max=count - 1)], -1) if count else torch.full_like(index, -1)
        new = row < 0 if self.share else torch.ones_like(proposal)
        added = int(new.sum())
        row[new] = torch.arange(self.size, self.size + added, device=index.device)
        known[index[new & proposal]] = row[new & proposal]
        self.size += added
        return row, new


@dataclass(frozen=True)
class AnchorGrid:
    """Where anchors lie: level after level, row after row, column after column, a few per cell.

    Args:
        levels: (rows, columns, anchors per cell) of each level.
        canvas: (height, width) in pixels that each level covers.
    """

    levels: tuple[tuple[int, int, int], ...]
    canvas: tuple[int, int]

    def shifted(self, index: Tensor, offset: Tensor) -> Tensor:
        """The anchors that lie ``offset`` further up and left, in whole cells of their level.

        Args:
            index: (S,) of anchors.
            offset: (S, 2) pixels, down and right.

        Returns:
            (S,) indices of anchors of the same shape, -1 where that place lies outside.
        """
        result, start = torch.full_like(index, -1), 0
        for rows, columns, count in self.levels:
            size = rows * columns * count
            here = (index >= start) & (index < start + size)
            cell, kind = (index - start) // count, (index - start) % count
            cells = offset.new_tensor([rows / self.canvas[0], columns / self.canvas[1]])
            down, right = (offset * cells).round().long().unbind(1)
            row, column = cell // columns - down, cell % columns - right
            inside = here & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            result = torch.where(inside, start + (row * columns + column) * count + kind, result)
            start += size
        return result


@dataclass(frozen=True)
class TwoStageEncoding(Encoding):
    """R proposals and A anchors differ per image.

    Args:
        features: pyramid levels (B, C, h, w) by name.
        anchors: (A, 4) per image.
        objectness: (B, A) logits.
        deltas: (B, A, 4) predicted offsets of the anchors.
        proposals: (R, 4) per image, detached.
        inputs: the normalised images as the engine holds them.
        images: that were encoded.
        scored: head outputs of the proposals.
        grid: where the anchors lie; absent where nothing is moved.
    """

    features: dict[str, Tensor]
    anchors: list[Tensor]
    objectness: Tensor
    deltas: Tensor
    proposals: list[Tensor]
    inputs: Any
    images: ImageBatch
    scored: ScoredProposals | None = None
    grid: AnchorGrid | None = None
