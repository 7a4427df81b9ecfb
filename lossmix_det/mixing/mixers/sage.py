"""SAGE (Ma et al., BMVC 2022): both images weighted by their saliency, the partner moved to where most survives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lossmix_det.mixing.blend import Mix
from lossmix_det.mixing.mixers.pairwise import Pairwise, with_partners
from lossmix_det.mixing.saliency import cell_of
from lossmix_det.structures import ImageBatch, Size

# Values that are compared at a time: to bound memory, and on a CPU to stay in its cache.
AT_ONCE, AT_ONCE_ON_CPU = 2**22, 2**18


class Sage(Pairwise):
    """x~ = M·x + (1 - M)·T(partner), with M = s / (s + T(s')) of saliencies that sum to a and 1 - a.

    The partner is moved by T, whole cells of the saliency's grid: of all (2h - 1)·(2w - 1) moves the one that keeps
    most saliency, Σ M·s + (1 - M)·T(s') over the image. The authors' code tries a random 1 % of the moves of square
    images. The image keeps its size. h·w cells cost (2h - 1)·(2w - 1)·h·w evaluations for each pair, on the device of
    the pixels.

    If both saliencies are even, the sum is a + f·(1 - a)·(1 - 2a), where f is the share of the image that the partner
    covers: a partner stays where a < 1/2, and is moved out where a > 1/2.

    Args:
        config: ``alpha``, and ``lam_range`` [low, high], which a ~ low + (high - low)·Beta(α, α) lies in; by default
            [0, 0.5], the range of the authors' smaller networks.
    """

    needs_saliency = True
    own_lam_range = (0.0, 0.5)

    def draw(self, pool: ImageBatch, partners: np.ndarray, saliency: Tensor | None, rng: np.random.Generator) -> Mix:
        """As `Mixer.draw`."""
        count = len(partners)
        a = torch.from_numpy(self.draw_lam(count, rng)).view(-1, 1, 1)
        rows, columns = saliency.shape[1:]
        cell = cell_of(pool.canvas), cell_of(pool.canvas)
        # Whole cells of the image alone, so that nothing is seen beyond its edge.
        frames = [(height // cell[0], width // cell[1]) for height, width in pool.sizes[:count]]
        own, others = a.float() * saliency[:count], (1 - a).float() * saliency[partners[:, 0]]
        moves = best_moves(own, others, frames, pool.pixels.device)
        masks, shares = torch.zeros(count, 2, rows, columns), torch.zeros(count, 2)
        for index, ((height, width), move) in enumerate(zip(frames, moves, strict=True)):
            mask = torch.ones(rows, columns)
            mask[:height, :width] = soft_mask(own[index], moved(others[index], *move))[:height, :width]
            masks[index] = torch.stack([mask, 1 - mask])
            shares[index] = _shares(mask, pool.sizes[index], cell)
        offsets = torch.tensor([[(0, 0), (down * cell[0], right * cell[1])] for down, right in moves])
        masks = _over_canvas(masks, cell[0], pool.canvas)
        return Mix(with_partners(partners), shares, masks, offsets.view(count, 2, 2))


def soft_mask(s: Tensor, other: Tensor) -> Tensor:
    """s / (s + s'), 1 where the other has nothing."""
    return torch.where(other > 0, s / (s + other).clamp(min=1e-30), 1.0)


def moved(values: Tensor, down: int, right: int) -> Tensor:
    """(h, w) values moved by whole cells, zero where nothing comes from."""
    height, width = values.shape
    return F.pad(values, (right, -right, down, -down))[:height, :width]


def best_moves(
    own: Tensor, others: Tensor, frames: Sequence[Size], device: torch.device | str = "cpu"
) -> list[tuple[int, int]]:
    """(down, right) in cells for each pair: of all moves that leave any of the partner on the frame, the best.

    All pairs are searched before the first result is read, so that a GPU is not waited for in between.

    Args:
        own, others: (B, h, w) of the images and of their partners.
        frames: (rows, columns) of each image, in whole cells; where there are none, nothing moves.
        device: that searches.
    """
    own, others = own.to(device), others.to(device)
    totals = [
        _kept(own[index, :rows, :columns], others[index]) if rows and columns else None
        for index, (rows, columns) in enumerate(frames)
    ]
    best = [torch.zeros((), dtype=torch.int64, device=device) if kept is None else kept.argmax() for kept in totals]
    numbers = torch.stack(best).tolist() if best else []
    return [
        (0, 0) if kept is None else (rows - 1 - number // kept.shape[1], columns - 1 - number % kept.shape[1])
        for number, kept, (rows, columns) in zip(numbers, totals, frames, strict=True)
    ]


def _kept(s: Tensor, other: Tensor) -> Tensor:
    """(moves down, moves right) Σ M·s + (1 - M)·T(s') over a frame, from the move furthest down and right.

    Args:
        s: (h, w) of the image, its frame alone.
        other: (H, W) of the partner.
    """
    height, width = s.shape
    padded = F.pad(other, (width - 1, width - 1, height - 1, height - 1))
    windows = padded.unfold(0, height, 1).unfold(1, width, 1)  # (moves down, moves right, h, w), not copied
    best: list[Tensor] = []
    at_once = AT_ONCE_ON_CPU if s.device.type == "cpu" else AT_ONCE
    rows_at_once = max(1, at_once // (windows.shape[1] * height * width))
    for part in windows.split(rows_at_once):
        kept = (s.square() + part.square()) / (s + part).clamp(min=1e-30)
        best.append(kept.sum((2, 3)))
    return torch.cat(best)


def _over_canvas(masks: Tensor, cell: int, canvas: Size) -> Tensor:
    """(B, K, h', w') masks whose cells end with the canvas, of (B, K, h, w) whose last ones may reach out of it."""
    part = math.gcd(cell, *canvas)
    if part == cell:
        return masks
    finer = masks.repeat_interleave(cell // part, 2).repeat_interleave(cell // part, 3)
    return finer[:, :, : canvas[0] // part, : canvas[1] // part]


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
