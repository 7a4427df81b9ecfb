"""Who is mixed with whom.

Partners are of a like shape where there are any, because a mixed image is as large as both: a wide and a tall one make
a square one, a third of which only one of them fills. That changes who meets whom, but not how often an image is a
partner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from lossmix_det.config import PairsConfig
from lossmix_det.structures import Size, is_wide


class Pairing(Protocol):
    """Chooses partners."""

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """(B,) index of a partner for each image; its own index where it has none."""


def draw_partners(count: int, rng: np.random.Generator, sizes: Sequence[Size] = ()) -> np.ndarray:
    """A partner for each of ``count`` images, each image being the partner of exactly one other.

    The images are laid in a random circle and everyone takes the next, so nobody is paired with itself (but one image
    alone, which has nobody else). Wide images and the others have a circle each, if there are two or more of both.

    Args:
        count: of the images.
        rng: the only source of chance.
        sizes: (height, width) of each; absent: all are alike.
    """
    partner = np.empty(count, dtype=np.int64)
    circle = rng.permutation(count)
    for part in _by_shape(circle, sizes):
        partner[part] = np.roll(part, -1)
    return partner


def _by_shape(circle: np.ndarray, sizes: Sequence[Size]) -> list[np.ndarray]:
    wide = np.array([is_wide(size) for size in sizes], dtype=bool)
    if len(wide) and min(wide.sum(), (~wide).sum()) > 1:
        return [circle[wide[circle]], circle[~wide[circle]]]
    return [circle]


class Among:
    """Each of ``count`` images takes another of them.

    Args:
        count: of the images.
        sizes: (height, width) of each; absent: all are alike.
    """

    def __init__(self, count: int, sizes: Sequence[Size] = ()) -> None:
        self.count, self.sizes = count, sizes

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """As `Pairing.draw`."""
        return draw_partners(self.count, rng, self.sizes)


class AcrossDomains:
    """Each image takes a partner of its own or of the other domain, as often as ``pairs`` says.

    Args:
        sources, targets: how many images there are of each; the source's come first.
        pairs: relative frequency of the kinds of pairs.
        both: pair the images of both domains; otherwise those of the source alone, with partners of either (burn-in).
        sizes: (height, width) of each image; absent: all are alike.
    """

    def __init__(
        self, sources: int, targets: int, pairs: PairsConfig, *, both: bool, sizes: Sequence[Size] = ()
    ) -> None:
        self.sources, self.targets, self.pairs, self.both = sources, targets, pairs, both
        self.source_sizes, self.target_sizes = sizes[:sources], sizes[sources:]

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """As `Pairing.draw`."""
        sources, targets, pairs = self.sources, self.targets, self.pairs
        sizes, other_sizes = self.source_sizes, self.target_sizes
        partner = _partners_of(sources, targets, (pairs.source_source, pairs.source_target), rng, sizes, other_sizes)
        if not self.both:
            return partner
        other = _partners_of(targets, sources, (pairs.target_target, pairs.source_target), rng, other_sizes, sizes)
        return np.concatenate([partner, np.where(other < targets, other + sources, other - targets)])


def _partners_of(
    count: int,
    others: int,
    odds: tuple[float, float],
    rng: np.random.Generator,
    sizes: Sequence[Size],
    other_sizes: Sequence[Size],
) -> np.ndarray:
    """Partners for the images of one domain, counting its own images before those of the other."""
    within = draw_partners(count, rng, sizes)
    across = within
    if others:
        across = count + _alike(np.resize(rng.permutation(others), count), sizes, other_sizes)
    chosen = rng.random(count)
    return np.where(chosen * sum(odds) < odds[1], across, within) if sum(odds) else np.arange(count)


def _alike(drawn: np.ndarray, sizes: Sequence[Size], other_sizes: Sequence[Size]) -> np.ndarray:
    """The partners that were drawn, dealt so that as many as possible get one of their own shape."""
    if not sizes:
        return drawn
    left, dealt = drawn.tolist(), {}
    for image, size in enumerate(sizes):
        partner = next((other for other in left if is_wide(other_sizes[other]) == is_wide(size)), None)
        if partner is not None:
            left.remove(partner)
            dealt[image] = partner
    rest = iter(left)
    return np.array([dealt[image] if image in dealt else next(rest) for image in range(len(sizes))])
