"""FMix, Mosaic, ClassMix and ConfMix: cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lossmix_det.config import MixingConfig
from lossmix_det.mixing import Among, Recipe, blend
from lossmix_det.mixing.mixers.classmix import ClassMix, half_of_classes, paint
from lossmix_det.mixing.mixers.confmix import ConfMix, share_above
from lossmix_det.mixing.mixers.fmix import FMix, among_the_lowest, low_frequency_noise
from lossmix_det.mixing.mixers.mosaic import Mosaic, quarters_around
from lossmix_det.structures import ImageBatch, Instances, Supervision


def images(*sizes: tuple[int, int], canvas: tuple[int, int] = (64, 64)) -> ImageBatch:
    batch = ImageBatch(torch.ones(len(sizes), 3, *canvas), sizes)
    values = torch.arange(1, len(sizes) + 1).view(-1, 1, 1, 1).expand(-1, 3, -1, -1) / 10
    return ImageBatch(torch.where(batch.valid(), values, 0.0), sizes)


def instances(*rows: tuple[float, ...], scores: list[float] | None = None) -> Instances:
    values = torch.tensor(rows).reshape(-1, 5)
    return Instances(values[:, :4], values[:, 4].long(), None if scores is None else torch.tensor(scores))


def partners(*rows) -> np.ndarray:
    return np.array(rows)


# ------------------------------------------------------------------------------------------------------- FMix


def test_the_lowest_share_of_the_noise_is_the_partners():
    values = np.array([[3.0, 1.0], [2.0, 4.0]])
    assert among_the_lowest(values, 0.5).tolist() == [[False, True], [True, False]]
    assert not among_the_lowest(values, 0.0).any()
    assert among_the_lowest(values, 1.0).all()


def test_the_spectrum_of_the_noise_falls_as_the_power_of_its_frequency():
    """The mean amplitude at a frequency, over many draws, against 1 / f³."""
    rng, shape = np.random.default_rng(0), (16, 16)
    frequency = np.hypot(np.fft.fftfreq(16)[:, None], np.fft.fftfreq(16))
    amplitudes = np.mean([np.abs(np.fft.fft2(low_frequency_noise(shape, 3.0, rng))) for _ in range(400)], axis=0)
    ratio = amplitudes[0, 2] / amplitudes[0, 4]
    assert frequency[0, 4] == 2 * frequency[0, 2]
    assert ratio == pytest.approx(8, rel=0.15)


def test_patches_of_fmix_cover_the_share_that_was_drawn_and_are_few():
    pool = images((64, 64), (64, 64))
    mix = FMix(MixingConfig(mixer="fmix", lam_range=[0.7, 0.7])).draw(
        pool, partners([1], [0]), None, np.random.default_rng(0)
    )
    assert_close(mix.lam, torch.full((2,), 0.7), atol=1 / 256, rtol=0)
    white = FMix(MixingConfig(mixer="fmix", lam_range=[0.7, 0.7], fmix_decay=0.0))
    noisy = white.draw(pool, partners([1], [0]), None, np.random.default_rng(0))
    edges = [int((m.masks[0, 1, 1:] != m.masks[0, 1, :-1]).sum()) for m in (mix, noisy)]
    assert edges[0] < edges[1] / 2  # smooth noise has few outlines


# ----------------------------------------------------------------------------------------------------- Mosaic


def test_quarters_around_a_centre():
    assert quarters_around([2, 3], [10, 8]) == [
        ((0, 2), (0, 3)),
        ((0, 2), (3, 8)),
        ((2, 10), (0, 3)),
        ((2, 10), (3, 8)),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_a_mosaic_shows_every_image_of_the_canvas_and_nothing_black(seed):
    pool = images((64, 64), (64, 48), (40, 64), (16, 20))
    mix = Mosaic(MixingConfig()).draw(pool, partners([1, 2, 3], [0, 2, 3]), None, np.random.default_rng(seed))
    mixed = blend(pool, mix)
    assert mixed.sizes == ((64, 64), (64, 48))
    for index, (height, width) in enumerate(mixed.sizes):
        values, counts = mixed.pixels[index, 0, :height, :width].unique(return_counts=True)
        assert (values > 0.05).all()
        seen = dict(zip((values * 10).round().int().tolist(), (counts / (height * width)).tolist(), strict=True))
        for source, share in zip(mix.sources[index].tolist(), mix.shares[index].tolist(), strict=True):
            assert seen[source + 1] == pytest.approx(share, abs=1e-5)


def test_a_larger_partner_fills_its_quarter_and_a_smaller_one_lies_within():
    pool = images((64, 64), (64, 64), (64, 64), (8, 8))
    for seed in range(10):
        mix = Mosaic(MixingConfig()).draw(pool, partners([1, 2, 3]), None, np.random.default_rng(seed))
        cells = mix.masks[0].sum((1, 2))
        assert cells[3] == 4  # 8×8 pixels are 2×2 cells, all of which are seen
        assert cells[1] >= 16  # a quarter is at least 4×4 cells
        assert cells[2] >= 16


# --------------------------------------------------------------------------------------------------- ClassMix


def test_half_of_the_classes_is_rounded_up_and_first_in_the_order():
    order = np.array([0.9, 0.1, 0.5])
    assert half_of_classes([0, 0, 1, 2], order) == [1, 2]
    assert half_of_classes([0, 2], order) == [2]
    assert half_of_classes([0], order) == [0]
    assert half_of_classes([], order) == []


def test_boxes_of_the_chosen_classes_are_pasted_to_the_pixel():
    pool = images((64, 64), (64, 64))
    truths = [Instances.empty(), instances((10.4, 5.6, 20.0, 30.0, 0), (40.0, 40.0, 63.0, 64.0, 0))]
    mix = ClassMix(MixingConfig()).draw_objects(pool, partners([1]), truths, np.random.default_rng(0))
    expected = torch.zeros(64, 64)
    expected[6:30, 10:20] = 1.0
    expected[40:64, 40:63] = 1.0
    assert torch.equal(mix.masks[0, 1], expected)
    assert_close(mix.shares[0], torch.tensor([1 - expected.mean(), expected.mean()]))


def test_each_class_of_two_is_pasted_about_as_often():
    pool, pasted = images((64, 64), (64, 64)), []
    truths = [Instances.empty(), instances((0.0, 0, 16, 16, 0), (32.0, 32, 48, 48, 1))]
    for seed in range(200):
        mask = (
            ClassMix(MixingConfig()).draw_objects(pool, partners([1]), truths, np.random.default_rng(seed)).masks[0, 1]
        )
        assert bool(mask[0, 0]) != bool(mask[40, 40])  # one class of two
        pasted.append(bool(mask[0, 0]))
    assert 0.4 < np.mean(pasted) < 0.6


def test_nothing_is_pasted_beyond_either_image_or_from_an_image_without_boxes():
    mask = torch.zeros(64, 64)
    paint(mask, instances((-5.0, -5, 70, 70, 0)), (40, 30))
    assert mask[:40, :30].all()
    assert not mask[40:].any()
    assert not mask[:, 30:].any()
    pool = images((64, 64), (64, 64))
    mix = ClassMix(MixingConfig()).draw_objects(
        pool, partners([1], [0]), [Instances.empty()] * 2, np.random.default_rng(0)
    )
    assert not mix.mixed.any()


# ---------------------------------------------------------------------------------------------------- ConfMix


def test_the_quarter_with_the_highest_mean_score_is_pasted():
    """Upper left: 0.9 and 0.2, mean 0.55; lower right: 0.6."""
    pool = images((64, 64), (64, 64))
    found = instances((2.0, 2, 10, 10, 0), (12.0, 12, 20, 20, 0), (40.0, 40, 60, 60, 1), scores=[0.9, 0.2, 0.6])
    own = instances((0.0, 0, 20, 20, 0), (34.0, 34, 62, 62, 0))
    mix = ConfMix(MixingConfig(confmix_sure=0.5)).draw_objects(
        pool, partners([1]), [own, found], np.random.default_rng(0)
    )
    expected = torch.zeros(16, 16)
    expected[8:, 8:] = 1.0
    assert torch.equal(mix.masks[0, 1], expected)
    assert_close(mix.shares[0], torch.tensor([0.75, 0.25]))
    # Left are the upper of the own boxes, with score 1, and the pasted one with 0.6: both are sure.
    assert mix.factors.tolist() == [1.0]
    strict = ConfMix(MixingConfig(confmix_sure=0.7)).draw_objects(
        pool, partners([1]), [own, found], np.random.default_rng(0)
    )
    assert strict.factors.tolist() == [0.5]


def test_the_share_of_sure_boxes():
    assert share_above(torch.tensor([0.4, 0.5, 0.6, 1.0]), 0.5) == 0.5
    assert share_above(torch.zeros(0), 0.5) == 1.0


def test_among_equal_quarters_each_is_drawn():
    pool = images((64, 64), (64, 64))
    corners = set()
    for seed in range(40):
        mix = ConfMix(MixingConfig()).draw_objects(
            pool, partners([1]), [Instances.empty()] * 2, np.random.default_rng(seed)
        )
        corners.add(tuple(mix.masks[0, 1].nonzero()[0].tolist()))
    assert corners == {(0, 0), (0, 8), (8, 0), (8, 8)}


def test_the_factor_weighs_all_that_a_mixed_image_teaches_and_nothing_of_others():
    pool = images((64, 64), (64, 64))
    recipe = Recipe(MixingConfig(mixer="confmix", rule="union", probability=1.0, confmix_sure=0.7))
    truths = [instances((0.0, 0, 20, 20, 0)), instances((40.0, 40, 60, 60, 1), scores=[0.6])]
    mix = recipe.draw(pool, Among(2), np.random.default_rng(0), truths)
    assert mix.factors.tolist() == [0.5, 0.5]  # of either image one box is sure, and one is not
    mix = mix.where(torch.tensor([True, False]))
    (taught,) = recipe.supervise(Supervision.full(truths, 0.8), mix, blend(pool, mix))
    assert_close(taught.class_weights, torch.tensor([0.4, 0.8]))
    assert_close(taught.box_weights, torch.tensor([0.4, 0.8]))
