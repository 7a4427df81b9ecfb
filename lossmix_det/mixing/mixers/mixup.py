"""Mixup (Zhang et al., ICLR 2018): one share for the whole image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lossmix_det.mixing.blend import Mix
from lossmix_det.mixing.mixers.pairwise import Pairwise, with_partners
from lossmix_det.structures import ImageBatch


class Mixup(Pairwise):
    """x~ = λ·x + (1 - λ)·partner with λ = low + (high - low)·Beta(α, α), one for each image.

    Args:
        config: ``alpha``, and ``lam_range`` [low, high].
    """

    def draw(self, pool: ImageBatch, partners: np.ndarray, saliency: Tensor | None, rng: np.random.Generator) -> Mix:
        """As `Mixer.draw`."""
        lam = self.draw_lam(len(partners), rng)
        shares = torch.from_numpy(lam).float()
        return Mix(with_partners(partners), torch.stack([shares, 1 - shares], dim=1))
