"""Burn-in mixes source images with target images whose truth nobody knows yet: three rules for these pairs.

The paper's rule is unknown (docs/method.md).
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

# From a mix, the (B,) bool of images that have a target partner, and the pool, to the mix that is applied, and (B,) the
# weight of the image's own truth (nan for all other images, which the mixing rule weighs).
BurnInRule = Callable[[Mix, Tensor, ImageBatch], tuple[Mix, Tensor]]


@dataclass(frozen=True)
class AsNoise:
    """``noise``: the target is seen at a share of at most ``share``, and the image's own truth keeps its full weight.

    Args:
        share: the largest share of the target.
        shrink: move λ there; a rule that teaches no partner has been given such a λ already.
    """

    share: float
    shrink: bool

    def __call__(self, mix: Mix, across: Tensor, pool: ImageBatch) -> tuple[Mix, Tensor]:
        lam = as_noise(mix.lam, self.share) if self.shrink else mix.lam
        return _applied(mix.with_lam(lam), mix, across), torch.where(across, torch.ones_like(lam), torch.nan)


def as_drawn(mix: Mix, across: Tensor, pool: ImageBatch) -> tuple[Mix, Tensor]:
    """``lam``: λ as it was drawn, and the image's own truth weighs λ."""
    return mix, torch.where(across, mix.lam, torch.nan)


def largest(mix: Mix, across: Tensor, pool: ImageBatch) -> tuple[Mix, Tensor]:
    """``max``: the image itself is given the largest share, which its own truth weighs: max(λ, 1 - λ).

    Where masks are exchanged, a partner is seen only where both it and the image have pixels.
    """
    moved = _applied(mix.largest_first(), mix, across)
    exchanged = across & (mix.shares.argmax(1) > 0)
    if moved.masks is not None and exchanged.any():
        moved = confined(moved, exchanged, pool)
    return moved, torch.where(across, moved.lam, torch.nan)


BURN_IN_RULES: dict[str, Callable[[MixingConfig, Rule], BurnInRule]] = {
    "noise": lambda config, rule: AsNoise(config.noise_share, rule.teaches_partners),
    "lam": lambda config, rule: as_drawn,
    "max": lambda config, rule: largest,
}


def as_noise(lam: Tensor, share: float) -> Tensor:
    """λ moved into [1 - share, 1]; a share of 1 leaves it where it is."""
    return 1 - share * (1 - lam)


def _applied(moved: Mix, mix: Mix, across: Tensor) -> Mix:
    """The moved mix for some of the images, the drawn one for the others."""
    masks = mix.masks
    if masks is not None:
        masks = torch.where(across.view(-1, 1, 1, 1), moved.masks, masks)
    return replace(mix, shares=torch.where(across[:, None], moved.shares, mix.shares), masks=masks)
