"""What mixers of two images share: λ ~ Beta(α, α) for each image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lossmix_det.config import MixingConfig


class Pairwise:
    """λ = low + (high - low)·Beta(α, α), one for each image.

    Args:
        config: ``alpha``, and ``lam_range`` [low, high].
    """

    partners = 1
    needs_saliency = False

    def __init__(self, config: MixingConfig) -> None:
        self.alpha, self.lam_range = config.alpha, config.lam_range

    def draw_lam(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(B,) one number for each image."""
        low, high = self.lam_range
        return low + (high - low) * rng.beta(self.alpha, self.alpha, count)


def with_partners(partners: np.ndarray) -> Tensor:
    """(B, 1 + P) index of each image itself, and of its partners."""
    return torch.from_numpy(np.concatenate([np.arange(len(partners))[:, None], partners], axis=1))
