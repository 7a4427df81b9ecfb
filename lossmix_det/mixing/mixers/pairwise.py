"""What mixers of two images share: λ ~ Beta(α, α) for each image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lossmix_det.config import MixingConfig


class Pairwise:
    """λ = low + (high - low)·Beta(α, α), one for each image.

    Args:
        config: ``alpha``, and ``lam_range`` [low, high]; None: the mixer's own.
    """

    partners = 1
    needs_saliency = False
    own_lam_range = (0.0, 1.0)

    def __init__(self, config: MixingConfig) -> None:
        self.alpha = config.alpha
        self.lam_range = self.own_lam_range if config.lam_range is None else config.lam_range

    def draw_lam(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(B,) one number for each image."""
        low, high = self.lam_range
        return low + (high - low) * rng.beta(self.alpha, self.alpha, count)


def with_partners(partners: np.ndarray) -> Tensor:
    """(B, 1 + P) index of each image itself, and of its partners."""
    return torch.from_numpy(np.concatenate([np.arange(len(partners))[:, None], partners], axis=1))
