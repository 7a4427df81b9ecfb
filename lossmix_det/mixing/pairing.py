"""Who is mixed with whom.

Partners are of a like shape where there are any, because a mixed image is as large as both: a wide and a tall one make
a square one, a third of which only one of them fills. That changes who meets whom, but not how often an image is a
partner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from scipy.optimize import linear_sum_assignment

from lossmix_det.config import PairsConfig
from lossmix_det.structures import Size, is_wide


class Pairing(Protocol):
    """Chooses partners."""

    def draw(self, rng: np.random.Generator, partners: int = 1) -> np.ndarray:
        """(B, P) index of each of P partners of each image; its own index where it has none."""


def draw_partners(count: int, rng: np.random.Generator, sizes: Sequence[Size] = (), partners: int = 1) -> np.ndarray:
    """(count, P) partners of each image, each image being the p-th partner of exactly one other.

    The images are laid in a random circle and everyone takes the next ones, so nobody is paired with itself (but one
    image alone, which has nobody else), and the partners of an image differ where there are enough others. Wide images
    and the others have a circle each, if there are enough of both for partners that differ.

    Args:
        count: of the images.
        rng: the only source of chance.
        sizes: (height, width) of each; absent: all are alike.
        partners: P, of each image.
    """
    partner = np.empty((count, partners), dtype=np.int64)
    circle = rng.permutation(count)
    for part in _by_shape(circle, sizes, partners):
        for number in range(partners):
            partner[part, number] = np.roll(part, -1 - number % max(len(part) - 1, 1))
    return partner


def _by_shape(circle: np.ndarray, sizes: Sequence[Size], partners: int) -> list[np.ndarray]:
    wide = np.array([is_wide(size) for size in sizes], dtype=bool)
    if len(wide) and min(wide.sum(), (~wide).sum()) > partners:
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

    def draw(self, rng: np.random.Generator, partners: int = 1) -> np.ndarray:
        """As `Pairing.draw`."""
        return draw_partners(self.count, rng, self.sizes, partners)


class AcrossDomains:
    """Each image takes a partner of its own or of the other domain, as often as ``pairs`` says.

    Args:
        sources, targets: how many images there are of each; the source's come first.
        pairs: odds of the kinds of pairs, for each image: those of a source image are source×source : source×target.
        both: pair the images of both domains; otherwise those of the source alone, with partners of either (burn-in).
        sizes: (height, width) of each image; absent: all are alike.
    """

    def __init__(
        self, sources: int, targets: int, pairs: PairsConfig, *, both: bool, sizes: Sequence[Size] = ()
    ) -> None:
        self.pairs, self.both = pairs, both
        self._source, self._target = Images(sources, sizes[:sources]), Images(targets, sizes[sources:])

    def draw(self, rng: np.random.Generator, partners: int = 1) -> np.ndarray:
        """As `Pairing.draw`."""
        pairs, source, target = self.pairs, self._source, self._target
        of_source = _partners_of(source, target, (pairs.source_source, pairs.source_target), rng, partners)
        if not self.both:
            return of_source
        other = _partners_of(target, source, (pairs.target_target, pairs.source_target), rng, partners)
        return np.concatenate([of_source, np.where(other < target.count, other + source.count, other - target.count)])


class Images(NamedTuple):
    """Those of one domain: how many, and (height, width) of each, absent where all are alike."""

    count: int
    sizes: Sequence[Size]


def _partners_of(
    images: Images, others: Images, odds: tuple[float, float], rng: np.random.Generator, partners: int
) -> np.ndarray:
    """Partners for the images of one domain, counting its own images before those of the other.

    An image that is alone in its domain has partners of the other domain only, if there are to be any.
    """
    if images.count == 1 and others.count:
        odds = (0.0, odds[1])
    within = draw_partners(images.count, rng, images.sizes, partners)
    across = within
    if others.count:
        drawn = rng.permutation(others.count)
        across = images.count + _across(drawn, images, others, partners)
    chosen = rng.random(within.shape)
    own = np.arange(images.count)[:, None].repeat(partners, axis=1)
    return np.where(chosen * sum(odds) < odds[1], across, within) if sum(odds) else own


def _across(drawn: np.ndarray, images: Images, others: Images, partners: int) -> np.ndarray:
    """(B, P) partners among the images of the other domain, dealt in the order that was drawn.

    Those of an image differ where there are enough, and as many as possible are of its own shape.
    """
    taken: list[set[int]] = [set() for _ in range(images.count)]
    columns = []
    for number in range(partners):
        column = _dealt(np.resize(np.roll(drawn, -number), images.count).tolist(), taken, images.sizes, others.sizes)
        for partner, before in zip(column, taken, strict=True):
            before.add(partner)
        columns.append(column)
    return np.array(columns, dtype=np.int64).reshape(partners, images.count).T


def _dealt(drawn: list[int], taken: list[set[int]], sizes: Sequence[Size], other_sizes: Sequence[Size]) -> list[int]:
    """The partners that were drawn, one to each image: a new one, and of the image's own shape, wherever possible."""
    cost = np.array([[float(other in before) for other in drawn] for before in taken]).reshape(len(taken), len(drawn))
    if sizes:
        wide, other_wide = (np.array([is_wide(size) for size in each]) for each in (sizes, other_sizes))
        cost = len(drawn) * cost + (wide[:, None] != other_wide[drawn])
    return [drawn[place] for place in linear_sum_assignment(cost)[1]]
