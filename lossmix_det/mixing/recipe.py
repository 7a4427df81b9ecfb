"""The mixing of a run, made once from its settings: mixer, rule, weighting, and how often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lossmix_det.config import MixingConfig
from lossmix_det.errors import pick
from lossmix_det.mixing.blend import Mix, unmixed
from lossmix_det.mixing.mixers import MIXERS
from lossmix_det.mixing.pairing import Pairing
from lossmix_det.mixing.rules import RULES, Rule, supervise
from lossmix_det.mixing.saliency import SALIENCIES
from lossmix_det.mixing.weightings import WEIGHTINGS
from lossmix_det.structures import ImageBatch, Instances, Supervision


class Recipe:
    """How images are mixed and what they are taught then.

    Args:
        config: the ``mixing`` branch.

    Raises:
        UserError: it names a mixer, rule or weighting that does not exist.
    """

    def __init__(self, config: MixingConfig) -> None:
        self.mixer = pick(MIXERS, config.mixer, "mixing.mixer")(config)
        self.saliency = pick(SALIENCIES, config.saliency, "mixing.saliency") if self.mixer.needs_saliency else None
        self.tears_boxes: bool = getattr(self.mixer, "tears_boxes", False)
        self.least_visible = config.least_visible
        self.rule: Rule = pick(RULES, config.rule, "mixing.rule")(config)
        self.weighting = pick(WEIGHTINGS, config.weighting, "mixing.weighting")
        self.probability = config.probability

    def draw(
        self, pool: ImageBatch, pairing: Pairing, rng: np.random.Generator, truths: Sequence[Instances] = ()
    ) -> Mix:
        """Draw partners, then how each image is mixed with its own, then which images are mixed at all.

        Args:
            pool: the images to mix first, then others that may be partners.
            pairing: chooses partners among them.
            rng: the only source of chance.
            truths: or pseudo-labels of every image of the pool, for saliency of boxes; absent: none are known.
        """
        partners = np.stack([pairing.draw(rng) for _ in range(self.mixer.partners)], axis=1)
        known = truths or [Instances.empty()] * len(pool)
        saliency = None if self.saliency is None else self.saliency(pool, known).cpu()
        mix = self.mixer.draw(pool, partners, saliency, rng)
        chosen = rng.random(len(partners)) < self.probability
        paired = (partners != np.arange(len(partners))[:, None]).any(axis=1)
        return mix.where(torch.from_numpy(chosen & paired))

    def unmixed(self, count: int) -> Mix:
        """Every image alone, with as many sources as a mix of this recipe has."""
        return unmixed(count, 1 + self.mixer.partners)

    def supervise(self, pool: Supervision | Sequence[Instances], mix: Mix, images: ImageBatch) -> list[Supervision]:
        """What the mixed images are taught, by the rule and the weighting of this recipe."""
        return supervise(pool, mix, images, self.rule, self.weighting, self.least_visible)
