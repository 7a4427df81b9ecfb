"""Mixup on padded batches (Zhang et al., ICLR 2018).

Images are aligned at the top-left corner and zero-filled, as by Zhang et al. (arXiv 1902.04103).

λ is the weight of the image itself, 1 - λ that of its partner; torchvision and timm count the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossmix_det.config import MixingConfig
from lossmix_det.mixing.pairing import draw_partners
from lossmix_det.structures import ImageBatch


@dataclass(frozen=True)
class Mix:
    """The random numbers of one mixed batch, drawn before they are applied.

    Args:
        partner: (B,) int64, index of the image that each image is mixed with.
        lam: (B,) float in [0, 1], weight of the image itself; 1 leaves it as it is.
    """

    partner: Tensor
    lam: Tensor

    def __post_init__(self) -> None:
        if self.partner.shape != self.lam.shape or self.lam.ndim != 1:
            raise ValueError(
                f"partner and lam must have one entry per image, got {tuple(self.partner.shape)} "
                f"and {tuple(self.lam.shape)}"
            )
        if len(self.lam) and not (self.lam.min() >= 0 and self.lam.max() <= 1):
            raise ValueError(f"lam must lie in [0, 1], got {self.lam.tolist()}")

    @property
    def mixed(self) -> Tensor:
        """(B,) bool: which images another one is blended into."""
        return self.lam < 1


def unmixed(count: int) -> Mix:
    return Mix(torch.arange(count), torch.ones(count))


def draw_mix(count: int, config: MixingConfig, rng: np.random.Generator) -> Mix:
    """Draw partners and λ ~ Beta(α, α) for a batch; every rule draws the same numbers from the same generator.

    An image stays unmixed with probability 1 - ``probability``, and always under the rule ``none``.
    """
    if config.rule == "none":
        return unmixed(count)
    return _mix(draw_partners(count, rng), np.arange(count), config, rng)


def draw_domain_mix(sources: int, targets: int, config: MixingConfig, rng: np.random.Generator, *, both: bool) -> Mix:
    """Draw partners and λ for images of two domains, the source's first.

    Each image takes a partner of its own or of the other domain, as often as ``pairs`` says.

    Args:
        sources, targets: how many images there are of each.
        config: of mixing.
        rng: draws.
        both: mix the images of both domains; otherwise those of the source alone, with partners of either (burn-in).
    """
    if config.rule == "none":
        return unmixed(sources + targets if both else sources)
    pairs = config.pairs
    partner = _partners_of(sources, targets, (pairs.source_source, pairs.source_target), rng)
    if both:
        other = _partners_of(targets, sources, (pairs.target_target, pairs.source_target), rng)
        partner = np.concatenate([partner, np.where(other < targets, other + sources, other - targets)])
    return _mix(partner, np.arange(len(partner)), config, rng)


def _partners_of(own: int, other: int, odds: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Partners for the images of one domain, counting its own images before those of the other."""
    circle = draw_partners(own, rng)
    across = own + np.resize(rng.permutation(other), own) if other else circle
    chosen = rng.random(own)
    return np.where(chosen * sum(odds) < odds[1], across, circle) if sum(odds) else np.arange(own)


def _mix(partner: np.ndarray, own: np.ndarray, config: MixingConfig, rng: np.random.Generator) -> Mix:
    """Under the ``noise`` rule λ is moved into [1 - ``noise_share``, 1]: the other image only disturbs."""
    low, high = config.lam_range
    lam = low + (high - low) * rng.beta(config.alpha, config.alpha, len(own))
    chosen = rng.random(len(own)) < config.probability
    if config.rule == "noise":
        lam = as_noise(lam, config.noise_share)
    lam = np.where(chosen & (partner != own), lam, 1.0)
    return Mix(torch.from_numpy(partner), torch.from_numpy(lam).float())


def as_noise(lam: Any, share: float) -> Any:
    """λ moved into [1 - share, 1]; a share of 1 leaves it where it is."""
    return 1 - share * (1 - lam)


def mixup(images: ImageBatch, mix: Mix, pool: ImageBatch | None = None) -> ImageBatch:
    """Blend each image with its partner: x~ = λ·x + (1 - λ)·pool[partner].

    Both are aligned at the top-left corner and zero-filled to the larger height and width, which become the size of
    the mixed image. λ = 1 gives the image itself and λ = 0 the partner, at their own sizes.

    Args:
        images: float pixels.
        mix: partners and weights.
        pool: the images that partners are taken from, on the same canvas; absent: ``images``.
    """
    pool = pool or images
    lam = mix.lam.to(images.pixels).view(-1, 1, 1, 1)
    partner = mix.partner.to(images.pixels.device)

    pixels = torch.lerp(pool.pixels[partner], images.pixels, lam)
    sizes = tuple(
        _mixed_size(size, pool.sizes[other], weight)
        for size, other, weight in zip(images.sizes, mix.partner.tolist(), mix.lam.tolist(), strict=True)
    )
    return replace(images, pixels=pixels, sizes=sizes)


def _mixed_size(size: tuple[int, int], other: tuple[int, int], lam: float) -> tuple[int, int]:
    if lam == 1:
        return size
    if lam == 0:
        return other
    return max(size[0], other[0]), max(size[1], other[1])
