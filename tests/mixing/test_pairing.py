"""Partners among the images of the other domain."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lossmix_det.config import PairsConfig
from lossmix_det.mixing import AcrossDomains
from lossmix_det.structures import is_wide

WIDE, TALL = (60, 100), (100, 60)
ACROSS = PairsConfig(source_source=0, source_target=1, target_target=0)
SHAPES = [  # of the source's images and of the target's
    ([WIDE] * 4, [WIDE] * 4),
    ([WIDE, WIDE, TALL, TALL], [WIDE, TALL, TALL, TALL]),
    ([WIDE, TALL, TALL], [WIDE, WIDE, WIDE, TALL, TALL]),
    ([WIDE] * 6, [TALL, WIDE, TALL]),  # more images than partners
]


def drawn(source: list, target: list, partners: int, seed: int) -> np.ndarray:
    """(B, P) by their place in the target."""
    pairing = AcrossDomains(len(source), len(target), ACROSS, both=False, sizes=source + target)
    return pairing.draw(np.random.default_rng(seed), partners) - len(source)


@pytest.mark.parametrize(("source", "target"), SHAPES)
@pytest.mark.parametrize("partners", [1, 2, 3])
def test_partners_of_an_image_differ_and_share_its_shape_as_often_as_they_can(source, target, partners):
    """Held against every way to deal the first partners that were drawn, where no image is needed twice."""
    for seed in range(30):
        found = drawn(source, target, partners, seed)
        assert all(len(set(row)) == partners for row in found.tolist())
        first = found[:, 0].tolist()
        alike = sum(is_wide(size) == is_wide(target[other]) for size, other in zip(source, first, strict=True))
        best = max(
            sum(is_wide(size) == is_wide(target[other]) for size, other in zip(source, order, strict=True))
            for order in set(itertools.permutations(first))
        )
        assert alike == best


@pytest.mark.parametrize(("source", "target"), SHAPES)
def test_every_image_of_the_other_domain_is_a_partner_equally_often(source, target):
    counts = np.bincount(
        np.concatenate([drawn(source, target, 1, seed).ravel() for seed in range(1500)]), minlength=len(target)
    )
    expected = 1500 * len(source) / len(target)
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize(("sources", "targets"), [(0, 3), (3, 0), (1, 0)])
def test_a_domain_may_be_absent(sources, targets):
    pairing = AcrossDomains(sources, targets, PairsConfig(), both=True, sizes=[WIDE] * (sources + targets))
    found = pairing.draw(np.random.default_rng(0), 2)
    assert found.shape == (sources + targets, 2)
    assert found.dtype == np.int64
    assert set(found.ravel().tolist()) <= set(range(sources + targets))
