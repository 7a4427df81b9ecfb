"""Manifold Mixup (Verma et al., ICML 2019): Mixup of the features at a stage of the network, drawn for each step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from lossmix_det.config import MixingConfig
from lossmix_det.mixing.blend import Mix
from lossmix_det.mixing.mixers.mixup import Mixup
from lossmix_det.structures import ImageBatch

PIXELS = "0"  # the stage before the first


class StageMixup(Mixup):
    """Mixup of the features that one stage of the network gives.

    Args:
        config: as for `Mixup`.
        stage: its name, of those that the detector has.
    """

    def __init__(self, config: MixingConfig, stage: str) -> None:
        super().__init__(config)
        self.stage = stage

    def draw(self, pool: ImageBatch, partners: np.ndarray, saliency: Tensor | None, rng: np.random.Generator) -> Mix:
        """As `Mixer.draw`."""
        return replace(super().draw(pool, partners, saliency, rng), stage=self.stage)


class Manifold:
    """One of ``mixing.stages`` for each step, all equally likely; stage 0 is the image itself.

    h~ = λ·h + (1 - λ)·h of the partner, with λ as in Mixup. The authors draw one λ for a batch; here every image has
    its own. They mix at stages 0, 1 and 2 of a network of three or four.

    Args:
        config: ``stages``, ``alpha``, ``lam_range``.
    """

    needs_saliency = False

    def __init__(self, config: MixingConfig) -> None:
        self.mixers = [StageMixup(config, "" if stage == PIXELS else stage) for stage in config.stages]
