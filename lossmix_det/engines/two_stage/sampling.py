"""Random choice of anchors and proposals that does not depend on the batch an image is in."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

BLOCK = 4096


class KeyedSampler(BalancedPositiveNegativeSampler):
    """torchvision's balanced sampler, drawing from a key per image.

    The key gives every candidate a random rank, and the candidates of the lowest ranks are taken: a uniform choice
    without replacement, as in stock. The same image with the same key gets the same samples alone, in a batch, in a
    part of an accumulated batch and on any process; and two truths of one mixed image are scored on the same
    background samples, so that the second costs little. Without keys it is the stock sampler, drawing from torch's
    global generator.
    """

    keys: list[int] | None = None

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Boolean masks of the chosen positives (label ≥ 1) and negatives (label 0) of each image."""
        if self.keys is None:
            return super().__call__(labels)
        chosen = [self._choose(label, key) for label, key in zip(labels, self.keys, strict=True)]
        return [positive for positive, _ in chosen], [negative for _, negative in chosen]

    def _choose(self, label: Tensor, key: int) -> tuple[Tensor, Tensor]:
        ranks = _ranks(len(label), key, label.device)
        positive, negative = label >= 1, label == 0
        positives = min(int(positive.sum()), int(self.batch_size_per_image * self.positive_fraction))
        negatives = min(int(negative.sum()), self.batch_size_per_image - positives)
        return _lowest(ranks, positive, positives), _lowest(ranks, negative, negatives)


def _ranks(count: int, key: int, device: torch.device) -> Tensor:
    """Random ranks that start alike for every count: drawn in blocks, because a GPU's draw depends on its size."""
    generator = torch.Generator(device).manual_seed(key)
    return torch.rand(-(-count // BLOCK) * BLOCK, generator=generator, device=device)[:count]


def _lowest(ranks: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Mask of the ``count`` candidates of the lowest ranks."""
    chosen = torch.topk(torch.where(candidates, ranks, 2.0), count, largest=False).indices
    return torch.zeros_like(candidates).index_fill_(0, chosen, True)
