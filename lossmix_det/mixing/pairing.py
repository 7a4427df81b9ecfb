"""Who is mixed with whom."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from lossmix_det.config import PairsConfig


class Pairing(Protocol):
    """Chooses partners."""

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """(B,) index of a partner for each image; its own index where it has none."""


def draw_partners(count: int, rng: np.random.Generator) -> np.ndarray:
    """A partner for each of ``count`` images, each image being the partner of exactly one other.

    The images are laid in a random circle and everyone takes the next, so nobody is paired with itself (but one image
    alone, which has nobody else).
    """
    circle = rng.permutation(count)
    partner = np.empty(count, dtype=np.int64)
    partner[circle] = np.roll(circle, -1)
    return partner


class Among:
    """Each of ``count`` images takes another of them."""

    def __init__(self, count: int) -> None:
        self.count = count

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """As `Pairing.draw`."""
        return draw_partners(self.count, rng)


class AcrossDomains:
    """Each image takes a partner of its own or of the other domain, as often as ``pairs`` says.

    Args:
        sources, targets: how many images there are of each; the source's come first.
        pairs: relative frequency of the kinds of pairs.
        both: pair the images of both domains; otherwise those of the source alone, with partners of either (burn-in).
    """

    def __init__(self, sources: int, targets: int, pairs: PairsConfig, *, both: bool) -> None:
        self.sources, self.targets, self.pairs, self.both = sources, targets, pairs, both

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """As `Pairing.draw`."""
        sources, targets, pairs = self.sources, self.targets, self.pairs
        partner = _partners_of(sources, targets, (pairs.source_source, pairs.source_target), rng)
        if not self.both:
            return partner
        other = _partners_of(targets, sources, (pairs.target_target, pairs.source_target), rng)
        return np.concatenate([partner, np.where(other < targets, other + sources, other - targets)])


def _partners_of(count: int, others: int, odds: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Partners for the images of one domain, counting its own images before those of the other."""
    within = draw_partners(count, rng)
    across = count + np.resize(rng.permutation(others), count) if others else within
    chosen = rng.random(count)
    return np.where(chosen * sum(odds) < odds[1], across, within) if sum(odds) else np.arange(count)
