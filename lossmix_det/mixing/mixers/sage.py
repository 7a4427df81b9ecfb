"""SAGE (Ma et al., BMVC 2022): both images weighted by their saliency, the partner moved to where most survives."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lossmix_det.mixing.blend import Mix
from lossmix_det.mixing.mixers.pairwise import Pairwise, with_partners
from lossmix_det.structures import ImageBatch

AT_ONCE = 2**22  # values that are compared at a time, to bound memory


class Sage(Pairwise):
    """x~ = M·x + (1 - M)·T(partner), with M = s / (s + T(s')) of saliencies that sum to a and 1 - a.

    The partner is moved by T, whole cells of the saliency's grid: of all (2h - 1)·(2w - 1) moves the one that keeps
    most saliency, Σ M·s + (1 - M)·T(s') over the image. The authors' code tries a random 1 % of the moves of square
    images. The image keeps its size. h·w cells cost (2h - 1)·(2w - 1)·h·w evaluations for each pair.

    Args:
        config: ``alpha``, and ``lam_range`` [low, high], which a ~ low + (high - low)·Beta(α, α) lies in.
    """

    needs_saliency = True

    def draw(self, pool: ImageBatch, partners: np.ndarray, saliency: Tensor | None, rng: np.random.Generator) -> Mix:
        """As `Mixer.draw`."""
        count = len(partners)
        a = self.draw_lam(count, rng)
        rows, columns = saliency.shape[1:]
        cell = pool.canvas[0] // rows, pool.canvas[1] // columns
        masks, shares = torch.zeros(count, 2, rows, columns), torch.zeros(count, 2)
        offsets = torch.zeros(count, 2, 2, dtype=torch.int64)
        for index, partner in enumerate(partners[:, 0].tolist()):
            s, other = float(a[index]) * saliency[index], float(1 - a[index]) * saliency[partner]
            # Whole cells of the image alone, so that nothing is seen beyond its edge.
            height, width = (side // by for side, by in zip(pool.sizes[index], cell, strict=True))
            mask = torch.ones(rows, columns)
            if height and width:
                down, right = best_move(s[:height, :width], other)
                mask[:height, :width] = soft_mask(s, moved(other, down, right))[:height, :width]
                offsets[index, 1] = torch.tensor([down * cell[0], right * cell[1]])
            masks[index] = torch.stack([mask, 1 - mask])
            shares[index] = _shares(mask, pool.sizes[index], cell)
        return Mix(with_partners(partners), shares, masks, offsets)


def soft_mask(s: Tensor, other: Tensor) -> Tensor:
    """s / (s + s'), 1 where the other has nothing."""
    return torch.where(other > 0, s / (s + other).clamp(min=1e-30), 1.0)


def moved(values: Tensor, down: int, right: int) -> Tensor:
    """(h, w) values moved by whole cells, zero where nothing comes from."""
    height, width = values.shape
    return F.pad(values, (right, -right, down, -down))[:height, :width]


def best_move(s: Tensor, other: Tensor) -> tuple[int, int]:
    """(down, right) in cells: of all moves that leave any of the other on the frame, one that keeps most saliency.

    Args:
        s: (h, w) of the image, its frame alone.
        other: (H, W) of the partner.
    """
    height, width = s.shape
    padded = F.pad(other, (width - 1, width - 1, height - 1, height - 1))
    windows = padded.unfold(0, height, 1).unfold(1, width, 1)  # (moves down, moves right, h, w), not copied
    best: list[Tensor] = []
    rows_at_once = max(1, AT_ONCE // (windows.shape[1] * height * width))
    for part in windows.split(rows_at_once):
        kept = (s.square() + part.square()) / (s + part).clamp(min=1e-30)
        best.append(kept.sum((2, 3)))
    totals = torch.cat(best)
    row, column = divmod(int(totals.flatten().argmax()), totals.shape[1])
    return height - 1 - row, width - 1 - column


def _shares(mask: Tensor, size: tuple[int, int], cell: tuple[int, int]) -> Tensor:
    """(2,) means of the mask and its rest over the real area of the image, to the pixel."""
    height, width = size
    rows, columns = (
        ((torch.arange(count) + 1) * by).clamp(max=side) - (torch.arange(count) * by).clamp(max=side)
        for count, by, side in zip(mask.shape, cell, (height, width), strict=True)
    )
    share = float((rows[:, None] * columns * mask.double()).sum() / (height * width))
    share = min(max(share, 0.0), 1.0)
    return torch.tensor([share, 1 - share])
