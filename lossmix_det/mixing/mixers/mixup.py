"""Mixup (Zhang et al., ICLR 2018): one share for the whole image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lossmix_det.config import MixingConfig
from lossmix_det.mixing.blend import Mix
from lossmix_det.structures import ImageBatch


class Mixup:
    """x~ = λ·x + (1 - λ)·partner with λ = low + (high - low)·Beta(α, α), one for each image.

    Args:
        config: ``alpha``, and ``lam_range`` [low, high].
    """

    partners = 1
    needs_saliency = False

    def __init__(self, config: MixingConfig) -> None:
        self.alpha, self.lam_range = config.alpha, config.lam_range

    def draw(self, pool: ImageBatch, partners: np.ndarray, saliency: Tensor | None, rng: np.random.Generator) -> Mix:
        """As `Mixer.draw`."""
        low, high = self.lam_range
        lam = low + (high - low) * rng.beta(self.alpha, self.alpha, len(partners))
        shares = torch.from_numpy(lam).float()
        sources = np.concatenate([np.arange(len(partners))[:, None], partners], axis=1)
        return Mix(torch.from_numpy(sources), torch.stack([shares, 1 - shares], dim=1))
