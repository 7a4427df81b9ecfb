"""Random choice of anchors and proposals that does not depend on the batch an image is in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

PADDING = 1.0  # added to the rank of what is to be chosen only if nothing else is left
NEVER = 3.0  # a rank above all others

# SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): its odd numbers, signed as torch's are, and how far bits are moved.
GAMMA, MIX, SHIFTS = -7046029254386353131, (-4658895280553007687, -7723592293110705685), (30, 27, 31)


class RankedSampler(BalancedPositiveNegativeSampler):
    """torchvision's balanced sampler, choosing by a rank of every candidate instead of torch's global generator.

    The candidates of the lowest ranks are taken: a uniform choice without replacement, as in stock. With ranks that
    follow from a key per image, the same image gets the same samples alone, in a batch, in a micro-batch and on any
    process; and two truths of one mixed image are scored on the same background samples, so that the second costs
    little. Without ranks it is the stock sampler.
    """

    ranks: list[Tensor] | None = None  # (A,) per image

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Boolean masks of the chosen positives (label ≥ 1) and negatives (label 0) of each image."""
        if self.ranks is None:
            return super().__call__(labels)
        chosen = [self._choose(label, ranks) for label, ranks in zip(labels, self.ranks, strict=True)]
        return [positive for positive, _ in chosen], [negative for _, negative in chosen]

    def _choose(self, label: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
        limit = int(self.batch_size_per_image * self.positive_fraction)
        positives = _lowest(ranks, label >= 1, limit)
        negatives = _lowest(ranks, label == 0, self.batch_size_per_image, self.batch_size_per_image - positives.sum())
        return positives, negatives


def random_ranks(keys: Sequence[int], places: Tensor) -> Tensor:
    """(B, A) float32 in [0, 1]: uniform, fixed by a key per image and a number per candidate, alike on every device.

    Args:
        keys: B whole numbers.
        places: (A,) int64.
    """
    bits = _scrambled(places)[None] ^ torch.tensor(keys, device=places.device)[:, None]
    # By way of float64, so that low ranks, which decide, are told apart in 24 bits of their own.
    return (_shifted(_scrambled(bits), 11).double() / 2**53).float()


def _scrambled(bits: Tensor) -> Tensor:
    """SplitMix64's output function of int64 numbers; products overflow on purpose."""
    bits = bits + GAMMA
    for shift, factor in zip(SHIFTS[:2], MIX, strict=True):
        bits = (bits ^ _shifted(bits, shift)) * factor
    return bits ^ _shifted(bits, SHIFTS[2])


def _shifted(bits: Tensor, count: int) -> Tensor:
    """Logical shift to the right."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _lowest(ranks: Tensor, candidates: Tensor, most: int, count: Tensor | None = None) -> Tensor:
    """Mask of the candidates of the lowest ranks: ``most``, or fewer if ``count`` says so, or there are no more.

    How many there are is never asked for on the CPU, which would wait for a GPU.
    """
    most = min(most, len(ranks))
    lowest, chosen = torch.topk(torch.where(candidates, ranks, NEVER), most, largest=False)
    kept = lowest < NEVER
    if count is not None:
        kept &= torch.arange(most, device=ranks.device) < count
    return torch.zeros_like(candidates).scatter_(0, chosen, kept)
