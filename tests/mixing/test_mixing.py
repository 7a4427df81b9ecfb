import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lossmix_det.config import MixingConfig
from lossmix_det.mixing import RULES, Among, Mix, Recipe, blend, supervise, unmixed
from lossmix_det.mixing.pairing import draw_partners
from lossmix_det.structures import ImageBatch, Instances


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def boxes(*labels: int) -> Instances:
    return Instances(
        torch.tensor([[label, 0.0, label + 5, 9] for label in labels]).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
    )


def mix(lam: list[float], partner: list[int]) -> Mix:
    """Two sources of each image: itself and a partner."""
    shares = torch.tensor(lam)
    sources = torch.stack([torch.arange(len(lam)), torch.tensor(partner)], dim=1)
    return Mix(sources, torch.stack([shares, 1 - shares], dim=1))


def draw(count: int, seed: int = 0, **settings) -> Mix:
    """A mix of black images."""
    pool = ImageBatch(torch.zeros(count, 3, 1, 1), ((1, 1),) * count)
    return Recipe(MixingConfig(**settings)).draw(pool, Among(count), rng(seed))


# ---------------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize("count", [2, 3, 16])
def test_nobody_is_its_own_partner_and_everybody_is_somebodys(count):
    for seed in range(20):
        partner = draw_partners(count, rng(seed))[:, 0]
        assert sorted(partner) == list(range(count))
        assert not (partner == np.arange(count)).any()


@pytest.mark.parametrize("count", [4, 5, 9])
def test_several_partners_of_an_image_differ_and_each_image_is_each_partner_once(count):
    for seed in range(20):
        partners = draw_partners(count, rng(seed), partners=3)
        for index, row in enumerate(partners.tolist()):
            assert len({index, *row}) == 4
        assert (np.sort(partners, axis=0) == np.arange(count)[:, None]).all()


def test_several_partners_differ_although_their_shapes_do():
    """Two wide and two tall images: nobody has three partners of its own shape."""
    sizes = [(40, 60), (40, 60), (60, 40), (60, 40)]
    for seed in range(10):
        for index, row in enumerate(draw_partners(4, rng(seed), sizes, partners=3).tolist()):
            assert {index, *row} == {0, 1, 2, 3}


def test_partners_repeat_where_there_are_too_few_others():
    for seed in range(10):
        partners = draw_partners(2, rng(seed), partners=3)
        assert partners.tolist() == [[1] * 3, [0] * 3]


def test_one_image_alone_stays_unmixed():
    assert draw(1, probability=1.0).mixed.tolist() == [False]


def test_lam_is_drawn_per_image_from_a_symmetric_beta():
    lam = draw(20000, alpha=2.0, probability=1.0).lam
    assert len(lam.unique()) > 19000
    assert lam.mean() == pytest.approx(0.5, abs=0.01)
    assert lam.var() == pytest.approx(1 / (4 * (2 * 2.0 + 1)), rel=0.05)  # of Beta(a, a)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_the_probability_is_the_share_of_mixed_images(probability):
    mixed = draw(10000, probability=probability).mixed
    assert mixed.float().mean() == pytest.approx(probability, abs=0.02)


def test_every_rule_draws_the_same_numbers():
    """Only then does a comparison of rules compare rules."""
    drawn = {rule: draw(64, 4, rule=rule) for rule in RULES}
    for other in drawn.values():
        assert_close(other.shares, drawn["lossmix"].shares)
        assert_close(other.sources, drawn["lossmix"].sources)


def test_a_range_of_lam_keeps_the_other_image_within_its_share():
    lam = draw(5000, probability=1.0, lam_range=[0.8, 1.0]).lam
    assert lam.min() >= 0.8
    assert lam.min() < 0.81
    assert lam.mean() == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        (torch.tensor([[1.2, -0.2]]), r"shares must lie in \[0, 1\]"),
        (torch.tensor([[0.5, 0.4]]), "must sum to 1"),
        (torch.ones(2, 1), "must both have shape"),
    ],
)
def test_impossible_mixes_are_refused(shares, message):
    with pytest.raises(ValueError, match=message):
        Mix(torch.tensor([[0, 0]]), shares)


def test_masks_and_offsets_are_of_every_source():
    two = torch.tensor([[0.5, 0.5]])
    with pytest.raises(ValueError, match=r"masks must begin with shape \(1, 2\), got \(1, 1, 4, 4\)"):
        Mix(torch.tensor([[0, 1]]), two, masks=torch.ones(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"offsets must begin with shape \(1, 2\)"):
        Mix(torch.tensor([[0, 1]]), two, offsets=torch.zeros(2, 2, 2))


# ----------------------------------------------------------------------------------------------- pixels


def pair() -> ImageBatch:
    """A: 2×4 of value 1; B: 3×2 of value 0.5; on a 3×4 canvas."""
    pixels = torch.zeros(2, 3, 3, 4)
    pixels[0, :, :2, :4] = 1.0
    pixels[1, :, :3, :2] = 0.5
    return ImageBatch(pixels, ((2, 4), (3, 2)), (8, 9))


def test_mixed_pixels_worked_by_hand():
    mixed = blend(pair(), mix([0.25, 1.0], [1, 0]))
    expected = torch.tensor(
        [
            [0.25 + 0.375, 0.25 + 0.375, 0.25, 0.25],  # both, then A over black
            [0.25 + 0.375, 0.25 + 0.375, 0.25, 0.25],
            [0.375, 0.375, 0.0, 0.0],  # B over black
        ]
    )
    assert_close(mixed.pixels[0, 1], expected)
    assert mixed.sizes == ((3, 4), (3, 2))
    assert mixed.keys == (8, 9)


def test_lam_one_is_the_image_and_lam_zero_its_partner_exactly():
    batch = ImageBatch(torch.rand(2, 3, 4, 4), ((4, 3), (2, 4)))
    same, other = blend(batch, mix([1.0, 1.0], [1, 0])), blend(batch, mix([0.0, 0.0], [1, 0]))
    assert torch.equal(same.pixels, batch.pixels)
    assert same.sizes == batch.sizes
    assert torch.equal(other.pixels, batch.pixels[[1, 0]])
    assert other.sizes == batch.sizes[::-1]


def test_mixing_leaves_its_input_alone():
    batch = pair()
    before = batch.pixels.clone()
    blend(batch, mix([0.3, 0.3], [1, 0]))
    assert torch.equal(batch.pixels, before)


def test_swapping_the_pair_and_lam_gives_the_same_pixels():
    batch = ImageBatch(torch.rand(2, 3, 4, 4), ((4, 4), (4, 4)))
    mixed = blend(batch, mix([0.3, 0.7], [1, 0]))
    assert_close(mixed.pixels[0], mixed.pixels[1])


# ------------------------------------------------------------------------------------------------ truths

TRUTHS = (boxes(0), boxes(1, 2), boxes())
LAM, PARTNER = [0.3, 1.0, 0.6], [1, 2, 0]


IMAGES = ImageBatch(torch.zeros(3, 3, 10, 10), ((10, 10),) * 3)


def taught(rule: str, drawn: Mix | None = None, **settings):
    made = RULES[rule](MixingConfig(rule=rule, **settings))
    return supervise(TRUTHS, mix(LAM, PARTNER) if drawn is None else drawn, IMAGES, made)


def test_lossmix_keeps_both_truths_each_with_its_share():
    own, other = taught("lossmix")
    assert [truth.classes.tolist() for truth in own.truths] == [[0], [1, 2], []]
    assert [truth.classes.tolist() for truth in other.truths] == [[1, 2], [], [0]]
    for weights, expected in ((own.class_weights, [0.3, 1.0, 0.6]), (other.class_weights, [0.7, 0.0, 0.4])):
        assert_close(weights, torch.tensor(expected))
    assert_close(own.box_weights, own.class_weights)
    assert_close(other.box_weights, other.class_weights)


def test_weights_of_a_mixed_image_add_up_to_the_setting_and_of_an_unmixed_one_to_one():
    own, other = taught("lossmix", weight_sum=2.0)
    assert_close(own.class_weights + other.class_weights, torch.tensor([2.0, 1.0, 2.0]))


def test_union_teaches_all_boxes_fully_whatever_lam():
    (only,) = taught("union")
    assert [truth.classes.tolist() for truth in only.truths] == [[0, 1, 2], [1, 2], [0]]
    assert_close(only.class_weights, torch.ones(3))
    assert all(truth.weights is None or (truth.weights == 1).all() for truth in only.truths)


def test_union_at_the_weight_sum_of_lossmix_is_halved():
    (only,) = taught("union", weight_sum=1.0)
    assert_close(only.class_weights, torch.tensor([0.5, 1.0, 0.5]))


def test_instance_weights_follow_the_image_of_each_box():
    (only,) = taught("lossmix_instance", background_weight=0.4)
    assert_close(only.truths[0].weights, torch.tensor([0.3, 0.7, 0.7]))
    assert only.truths[1].weights is None
    assert_close(only.truths[2].weights, torch.tensor([0.4]))
    assert only.background_weight == 0.4
    assert_close(only.class_weights, torch.ones(3))


def test_own_teaches_the_image_alone():
    (only,) = taught("own")
    assert [truth.classes.tolist() for truth in only.truths] == [[0], [1, 2], []]
    assert_close(only.class_weights, torch.ones(3))


@pytest.mark.parametrize("rule", RULES)
def test_without_mixing_every_rule_is_ordinary_training(rule):
    first, *rest = taught(rule, unmixed(3))
    assert_close(first.class_weights, torch.ones(3))
    assert all(truth.weights is None for truth in first.truths)
    assert [truth.classes.tolist() for truth in first.truths] == [[0], [1, 2], []]
    assert all(supervision.active == [] for supervision in rest)


def test_a_mix_of_images_that_the_pool_lacks_is_refused():
    with pytest.raises(ValueError, match="the mix names image 2 of 2 truths"):
        supervise(TRUTHS[:2], mix(LAM, PARTNER), IMAGES, RULES["lossmix"](MixingConfig()))


WIDE, TALL = (40, 60), (60, 40)


@pytest.mark.parametrize("sizes", [[WIDE] * 4 + [TALL] * 3, [TALL, WIDE, TALL, WIDE, WIDE], [WIDE] * 2 + [TALL] * 2])
def test_partners_are_of_a_like_shape_and_each_image_is_one_once(sizes):
    partners = np.array([draw_partners(len(sizes), rng(seed), sizes)[:, 0] for seed in range(200)])
    assert (np.sort(partners, axis=1) == np.arange(len(sizes))).all()
    assert (partners != np.arange(len(sizes))).all()
    for image, size in enumerate(sizes):
        others = {other for other, shape in enumerate(sizes) if shape == size} - {image}
        assert set(partners[:, image]) == others


@pytest.mark.parametrize("sizes", [[WIDE] * 4 + [TALL], [TALL], [WIDE] * 3])
def test_an_image_that_is_alone_in_its_shape_is_mixed_all_the_same(sizes):
    for seed in range(50):
        assert draw_partners(len(sizes), rng(seed), sizes).tolist() == draw_partners(len(sizes), rng(seed)).tolist()
