"""Burn-in mixes source images with target images whose truth nobody knows yet: three rules for these images.

The paper's rule is unknown (docs/method.md). Boxes are taught as far as they are seen, like those of any mixed image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lossmix_det.config import MixingConfig
from lossmix_det.mixing.blend import Mix, confined
from lossmix_det.mixing.rules import Rule
from lossmix_det.structures import ImageBatch

# From a mix, the (B,) bool of images that have a target partner, and the pool, to the mix that is applied.
BurnInRule = Callable[[Mix, Tensor, ImageBatch], Mix]


@dataclass(frozen=True)
class AsNoise:
    """``noise``: the target is seen at a share of at most ``share``, and the image's own truth keeps its full weight.

    Args:
        share: the largest share of the target.
        shrink: move λ there; a rule that teaches no partner has been given such a λ already.
    """

    share: float
    shrink: bool

    def __call__(self, mix: Mix, across: Tensor, pool: ImageBatch) -> Mix:
        lam = as_noise(mix.lam, self.share) if self.shrink else mix.lam
        return _applied(mix.with_lam(lam), mix, across)


def as_drawn(mix: Mix, across: Tensor, pool: ImageBatch) -> Mix:
    """``lam``: λ as it was drawn; the image's own truth weighs λ, and those of labelled partners their shares."""
    return mix


def largest(mix: Mix, across: Tensor, pool: ImageBatch) -> Mix:
    """``max``: the image itself is given the largest share, max(λ, 1 - λ); truths weigh the shares of their images.

    Where masks are exchanged, a partner is seen only where both it and the image have pixels.
    """
    moved = _applied(mix.largest_first(), mix, across)
    exchanged = across & (mix.shares.argmax(1) > 0)
    if moved.masks is not None and exchanged.any():
        moved = confined(moved, exchanged, pool)
    return moved


BURN_IN_RULES: dict[str, Callable[[MixingConfig, Rule], BurnInRule]] = {
    "noise": lambda config, rule: AsNoise(config.noise_share, rule.teaches_partners),
    "lam": lambda config, rule: as_drawn,
    "max": lambda config, rule: largest,
}


# The rule of mixing by which the truths that are known are taught then; what is not known weighs nothing.
TRUTHS = {"noise": "own", "lam": "lossmix", "max": "lossmix"}


def as_noise(lam: Tensor, share: float) -> Tensor:
    """λ moved into [1 - share, 1]; a share of 1 leaves it where it is."""
    return 1 - share * (1 - lam)


def _applied(moved: Mix, mix: Mix, across: Tensor) -> Mix:
    """The moved mix for some of the images, the drawn one for the others."""
    masks = mix.masks
    if masks is not None:
        masks = torch.where(across.view(-1, 1, 1, 1), moved.masks, masks)
    return replace(mix, shares=torch.where(across[:, None], moved.shares, mix.shares), masks=masks)
