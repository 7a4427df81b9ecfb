"""Burn-in mixes source images with target images whose truth nobody knows yet: three rules for these images.

The paper's rule is unknown (docs/method.md). Boxes are taught as far as they are seen, like those of any mixed image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from lossmix_det.config import MixingConfig
from lossmix_det.mixing.blend import Mix, confined
from lossmix_det.mixing.rules import Rule
from lossmix_det.structures import ImageBatch


class BurnInRule(Protocol):
    """How an image is mixed with a target image, and what it is taught then.

    Attributes:
        truths: the rule of mixing by which the truths that are known are taught; what is not known weighs nothing.
    """

    truths: str

    def __call__(self, mix: Mix, across: Tensor, pool: ImageBatch) -> Mix:
        """The mix that is applied.

        Args:
            mix: as it was drawn.
            across: (B,) bool, the images that have a target partner.
            pool: the images.
        """


class AsNoise:
    """``noise``: the target is seen at a share of at most ``noise_share``; the image's own truth keeps its full weight.

    Args:
        config: ``noise_share``.
        rule: of mixing; one that teaches no partner may have a range of λ of its own, which is kept above
            1 - ``noise_share``.
    """

    truths = "own"

    def __init__(self, config: MixingConfig, rule: Rule) -> None:
        self.share, self.shrink = config.noise_share, rule.teaches_partners

    def __call__(self, mix: Mix, across: Tensor, pool: ImageBatch) -> Mix:
        """As `BurnInRule`."""
        lam = as_noise(mix.lam, self.share) if self.shrink else mix.lam.clamp(min=1 - self.share)
        return _applied(mix.with_lam(lam), mix, across)


class AsDrawn:
    """``lam``: λ as it was drawn; the image's own truth weighs λ, and those of labelled partners their shares."""

    truths = "lossmix"

    def __init__(self, config: MixingConfig, rule: Rule) -> None:
        pass

    def __call__(self, mix: Mix, across: Tensor, pool: ImageBatch) -> Mix:
        """As `BurnInRule`."""
        return mix


class Largest(AsDrawn):
    """``max``: the image itself is given the largest share, max(λ, 1 - λ); truths weigh the shares of their images.

    Where masks are exchanged, a partner is seen only where both it and the image have pixels.
    """

    def __call__(self, mix: Mix, across: Tensor, pool: ImageBatch) -> Mix:
        """As `BurnInRule`."""
        moved = _applied(mix.largest_first(), mix, across)
        exchanged = across & (mix.shares.argmax(1) > 0)
        if moved.masks is not None and exchanged.any():
            moved = confined(moved, exchanged, pool)
        return moved


BURN_IN_RULES: dict[str, Callable[[MixingConfig, Rule], BurnInRule]] = {
    "noise": AsNoise,
    "lam": AsDrawn,
    "max": Largest,
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
