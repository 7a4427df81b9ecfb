"""The mixing of a run, made once from its settings: mixers, rule, weighting, and how often."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor

from lossmix_det.config import MixingConfig, check
from lossmix_det.errors import pick
from lossmix_det.mixing.blend import Mix, unmixed
from lossmix_det.mixing.mixers import MIXERS
from lossmix_det.mixing.mixers.contract import Choice, Mixer, MixesObjects
from lossmix_det.mixing.pairing import Pairing
from lossmix_det.mixing.rules import RULES, Rule, supervise
from lossmix_det.mixing.saliency import SALIENCIES, InputGradient
from lossmix_det.mixing.weightings import WEIGHTINGS
from lossmix_det.structures import ImageBatch, Instances, Supervision


class Recipe:
    """How images are mixed and what they are taught then.

    Where the settings name several mixers, or several stages of the network, `drawn` gives the recipe of one step.

    Args:
        config: the ``mixing`` branch.

    Raises:
        UserError: it names a mixer, rule or weighting that does not exist, a value lies outside its limits, or a
            setting has no effect with its mixers.
    """

    def __init__(self, config: MixingConfig) -> None:
        check(config, "mixing.")
        self.mixers, self.odds = _mixers(config)
        self.mixer = self.mixers[0]
        self.saliency = pick(SALIENCIES, config.saliency, "mixing.saliency")
        self.tears_boxes = any(getattr(mixer, "tears_boxes", False) for mixer in self.mixers)
        self.pastes_objects = config.pastes_objects
        self.least_visible = config.least_visible
        self.rule: Rule = pick(RULES, config.rule, "mixing.rule")(config)
        self.weighting = pick(WEIGHTINGS, config.weighting, "mixing.weighting")
        self.probability = config.probability
        # Told of every draw: the pool, the mix and the saliency, if there was any.
        self.watch: Callable[[ImageBatch, Mix, Tensor | None], None] = _unwatched

    @property
    def needs_gradient(self) -> bool:
        """Whether any of its mixers looks at the gradient of a student's loss."""
        return self.saliency.needs_gradient and any(_needs_saliency(mixer) for mixer in self.mixers)

    @property
    def stages(self) -> list[str]:
        """Names of the network's stages at which any of its mixers mixes features."""
        return [stage for mixer in self.mixers if (stage := getattr(mixer, "stage", ""))]

    def drawn(self, rng: np.random.Generator) -> Recipe:
        """The same with one of its mixers, for all images of a step; nothing is drawn where there is only one."""
        if len(self.mixers) == 1:
            return self
        chosen = copy(self)
        chosen.mixer = self.mixers[rng.choice(len(self.mixers), p=self.odds)]
        chosen.mixers, chosen.odds = [chosen.mixer], np.ones(1)
        return chosen

    def draw(
        self,
        pool: ImageBatch,
        pairing: Pairing,
        rng: np.random.Generator,
        truths: Sequence[Instances] = (),
        gradient: InputGradient | None = None,
    ) -> Mix:
        """Draw partners, then how each image is mixed with its own, then which images are mixed at all.

        Args:
            pool: the images to mix first, then others that may be partners.
            pairing: chooses partners among them.
            rng: the only source of chance.
            truths: or pseudo-labels of every image of the pool, where mixers or saliency look at boxes; absent: none
                are known.
            gradient: of the student's loss by the pool's pixels, where saliency needs it.
        """
        partners = pairing.draw(rng, self.mixer.partners)
        if not self.probability:
            return self.unmixed(len(partners))
        known = truths or [Instances.empty()] * len(pool)
        saliency = self.saliency(pool, known, gradient).cpu() if _needs_saliency(self.mixer) else None
        if isinstance(self.mixer, MixesObjects):
            mix = self.mixer.draw_objects(pool, partners, known, rng)
        else:
            mix = self.mixer.draw(pool, partners, saliency, rng)
        chosen = rng.random(len(partners)) < self.probability
        paired = (partners != np.arange(len(partners))[:, None]).any(axis=1)
        mix = mix.where(torch.from_numpy(chosen & paired))
        self.watch(pool, mix, saliency)
        return mix

    def unmixed(self, count: int) -> Mix:
        """Every image alone, with as many sources as a mix of this recipe has."""
        return unmixed(count, 1 + self.mixer.partners)

    def supervise(self, pool: Supervision | Sequence[Instances], mix: Mix, images: ImageBatch) -> list[Supervision]:
        """What the mixed images are taught, by the rule and the weighting of this recipe."""
        return supervise(pool, mix, images, self.rule, self.weighting, self.least_visible)


def _mixers(config: MixingConfig) -> tuple[list[Mixer | MixesObjects], np.ndarray]:
    """The mixers that ``mixing.mixer`` names, and how likely each is; the stages of one share its weight."""
    table = config.mixer if isinstance(config.mixer, dict) else {config.mixer: 1.0}
    mixers, odds = [], []
    for name, weight in table.items():
        mixer = pick(MIXERS, name, "mixing.mixer")(config)
        several = mixer.mixers if isinstance(mixer, Choice) else [mixer]
        if weight:
            mixers += several
            odds += [weight / len(several)] * len(several)
    return mixers, np.array(odds) / sum(odds)


def _unwatched(pool: ImageBatch, mix: Mix, saliency: Tensor | None) -> None:
    """Nobody looks; a function, so that recipes can be pickled."""


def _needs_saliency(mixer: Mixer | MixesObjects) -> bool:
    return not isinstance(mixer, MixesObjects) and mixer.needs_saliency
