"""Mixes of several sources, with masks and offsets: what a mixer may draw beyond one share for the whole image."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.testing import assert_close

from lossmix_det.config import MixingConfig
from lossmix_det.mixing import BURN_IN_RULES, RULES, WEIGHTINGS, Mix, blend, supervise
from lossmix_det.structures import ImageBatch, Instances, Supervision
from lossmix_det.visible import mean_inside

SIZE = 8


def pool(*values: float, size: tuple[int, int] = (SIZE, SIZE)) -> ImageBatch:
    """One image of each value."""
    pixels = torch.zeros(len(values), 3, SIZE, SIZE)
    for image, value in zip(pixels, values, strict=True):
        image[:, : size[0], : size[1]] = value
    return ImageBatch(pixels, (size,) * len(values))


def truth(*boxes: tuple[float, float, float, float], label: int = 0) -> Instances:
    return Instances(torch.tensor(boxes).reshape(-1, 4).float(), torch.full((len(boxes),), label))


def quarters() -> Mix:
    """The left half of image 0, the upper right quarter of image 1, the lower right one of image 2."""
    masks = torch.zeros(1, 3, 2, 2)
    masks[0, 0, :, 0] = masks[0, 1, 0, 1] = masks[0, 2, 1, 1] = 1.0
    return Mix(torch.tensor([[0, 1, 2]]), torch.tensor([[0.5, 0.25, 0.25]]), masks)


# ----------------------------------------------------------------------------------------------- pixels


def test_shares_of_three_sources_worked_by_hand():
    mix = Mix(torch.tensor([[0, 1, 2]]), torch.tensor([[0.2, 0.3, 0.5]]))
    assert_close(blend(pool(1.0, 10.0, 100.0), mix).pixels, torch.full((1, 3, SIZE, SIZE), 0.2 + 3 + 50))


def test_a_share_of_zero_is_not_seen_bit_for_bit():
    images = ImageBatch(torch.rand(3, 3, SIZE, SIZE), ((SIZE, SIZE),) * 3)
    for seen in range(3):
        shares = torch.zeros(1, 3)
        shares[0, seen] = 1.0
        assert torch.equal(blend(images, Mix(torch.tensor([[0, 1, 2]]), shares)).pixels[0], images.pixels[seen])


def test_masks_in_low_resolution_cover_the_canvas():
    mixed = blend(pool(1.0, 2.0, 3.0), quarters()).pixels[0, 0]
    expected = torch.ones(SIZE, SIZE)
    expected[:4, 4:], expected[4:, 4:] = 2.0, 3.0
    assert torch.equal(mixed, expected)


def test_a_soft_mask_blends_each_pixel_by_its_own_share():
    masks = torch.rand(1, 2, SIZE, SIZE)
    masks = masks / masks.sum(1, keepdim=True)
    shares = masks.mean((2, 3))
    images = ImageBatch(torch.rand(2, 3, SIZE, SIZE), ((SIZE, SIZE),) * 2)
    mixed = blend(images, Mix(torch.tensor([[0, 1]]), shares, masks))
    assert_close(mixed.pixels[0], masks[0, :1] * images.pixels[0] + masks[0, 1:] * images.pixels[1])


@pytest.mark.parametrize("offset", [(2, 3), (-2, 1), (0, -3), (-8, -8)])
def test_a_moved_source_leaves_black_behind(offset):
    down, right = offset
    images = ImageBatch(torch.rand(2, 3, SIZE, SIZE), ((SIZE, SIZE),) * 2)
    mix = Mix(torch.tensor([[0, 1]]), torch.tensor([[0.0, 1.0]]), offsets=torch.tensor([[[0, 0], offset]]))
    moved, expected = blend(images, mix).pixels[0], torch.zeros(3, SIZE, SIZE)
    for row, column in itertools.product(range(SIZE), range(SIZE)):
        if 0 <= row - down < SIZE and 0 <= column - right < SIZE:
            expected[:, row, column] = images.pixels[1, :, row - down, column - right]
    assert torch.equal(moved, expected)


def test_the_mixed_image_is_as_large_as_its_largest_visible_source():
    images = ImageBatch(torch.rand(3, 3, SIZE, SIZE), ((4, 5), (2, 8), (8, 2)))
    sources = torch.tensor([[0, 1, 2]] * 3)
    shares = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.0, 0.5, 0.5]])
    offsets = torch.zeros(3, 3, 2, dtype=torch.int64)
    assert blend(images, Mix(sources, shares)).sizes == ((4, 5), (4, 8), (8, 8))
    offsets[1, 1] = torch.tensor([3, -6])
    assert blend(images, Mix(sources, shares, offsets=offsets)).sizes[1] == (5, 5)


# ------------------------------------------------------------------------------------------ what is drawn


def test_images_that_are_not_chosen_are_left_as_they_are():
    images = pool(1.0, 2.0, 3.0)
    mix = quarters()
    two = Mix(
        torch.tensor([[0, 1, 2], [1, 2, 0]]),
        mix.shares.repeat(2, 1),
        mix.masks.repeat(2, 1, 1, 1),
        torch.ones(2, 3, 2, dtype=torch.int64),
    ).where(torch.tensor([True, False]))
    assert two.mixed.tolist() == [True, False]
    assert torch.equal(blend(images, two).pixels[1], images.pixels[1])
    assert not two.offsets[1].any()


def test_another_share_of_the_image_itself_scales_the_others_alike():
    mix = quarters().with_lam(torch.tensor([0.9]))
    assert_close(mix.shares, torch.tensor([[0.9, 0.05, 0.05]]))
    assert_close(mix.masks.sum(1), torch.ones(1, 2, 2))
    assert_close(mix.masks[0, 1], torch.tensor([[0.0, 0.2], [0.0, 0.0]]))
    assert_close(mix.masks.mean((2, 3)), mix.shares)


def test_the_image_itself_takes_the_mask_of_which_most_is_seen():
    mix = quarters()
    other = Mix(mix.sources, mix.shares[:, [1, 0, 2]], mix.masks[:, [1, 0, 2]]).largest_first()
    assert_close(other.shares, mix.shares)
    assert_close(other.masks, mix.masks)


@pytest.mark.parametrize("name", BURN_IN_RULES)
def test_rules_for_unlabelled_partners_keep_masks_and_shares_in_step(name):
    config = MixingConfig(noise_share=0.2)
    rule = BURN_IN_RULES[name](config, RULES["lossmix"](config))
    drawn = quarters()
    drawn = Mix(drawn.sources, drawn.shares[:, [1, 0, 2]], drawn.masks[:, [1, 0, 2]])
    whole = ImageBatch(torch.rand(3, 3, 32, 32), ((32, 32),) * 3)
    mix = rule(drawn, torch.tensor([True]), whole)
    assert_close(mix.masks.mean((2, 3)), mix.shares)
    assert_close(mix.shares.sum(1), torch.ones(1))
    assert float(mix.lam) == pytest.approx({"noise": 1 - 0.2 * 0.75, "lam": 0.25, "max": 0.5}[name])
    assert_close(rule(drawn, torch.tensor([False]), whole).masks, drawn.masks)


# ------------------------------------------------------------------------------------------------ truths


def taught(rule: str, weighting: str, truths, mix: Mix, **settings):
    images = blend(pool(1.0, 2.0, 3.0), mix)
    return supervise(truths, mix, images, RULES[rule](MixingConfig(**settings)), WEIGHTINGS[weighting])


THREE = (truth((0, 0, 8, 8)), truth((4, 0, 8, 8), (0, 0, 2, 2), label=1), truth((2, 4, 6, 8), label=2))


def test_lossmix_teaches_every_source_by_its_share():
    supervisions = taught("lossmix", "share", THREE, quarters())
    assert [float(one.class_weights) for one in supervisions] == [0.5, 0.25, 0.25]
    assert [one.truths[0].classes.tolist() for one in supervisions] == [[0], [1, 1], [2]]


def test_visibility_weighs_each_box_by_the_mean_of_its_mask_and_the_background_by_the_share():
    """Box of image 0: half seen. Of image 1: half of the right half, and nothing. Of image 2: a right half."""
    supervisions = taught("lossmix", "visibility", THREE, quarters())
    weights = [one.class_weights * one.truths[0].weights for one in supervisions]
    for found, expected in zip(weights, ([0.5], [0.5, 0.0], [0.5]), strict=True):
        assert_close(found, torch.tensor(expected))
    assert [float(one.class_weights) for one in supervisions] == [0.5, 0.25, 0.25]


@pytest.mark.parametrize(("weighting", "expected"), [("share", [1.0] * 4), ("visibility", [0.5, 0.5, 0.0, 0.5])])
def test_union_joins_the_boxes_of_all_sources(weighting, expected):
    (one,) = taught("union", weighting, THREE, quarters())
    assert one.truths[0].classes.tolist() == [0, 1, 1, 2]
    assert_close(one.truths[0].weights, torch.tensor(expected))
    assert float(one.class_weights) == 1.0
    (halved,) = taught("union", weighting, THREE, quarters(), weight_sum=1.5)
    assert float(halved.class_weights) == 0.5


@pytest.mark.parametrize(
    ("weighting", "expected"), [("share", [0.5, 0.25, 0.25, 0.25]), ("visibility", [0.5, 0.5, 0, 0.5])]
)
def test_one_assignment_of_three_sources_weighs_every_box(weighting, expected):
    (one,) = taught("lossmix_instance", weighting, THREE, quarters(), background_weight=0.4)
    assert_close(one.truths[0].weights, torch.tensor(expected))
    assert one.background_weight == 0.4


def test_without_masks_both_weightings_are_the_same():
    mix = Mix(torch.tensor([[0, 1, 2]]), torch.tensor([[0.2, 0.3, 0.5]]))
    for rule in RULES:
        for one, other in zip(taught(rule, "share", THREE, mix), taught(rule, "visibility", THREE, mix), strict=True):
            assert_close(one.class_weights, other.class_weights)
            assert [t.weights is None for t in one.truths] == [t.weights is None for t in other.truths]


def test_truths_move_with_their_pixels():
    """Painted boxes are found where the truths say."""
    images = pool(0.0, 0.0)
    images.pixels[1, :, 1:4, 2:6] = 1.0
    truths = (truth(), truth((2, 1, 6, 4)))
    for offset in ((3, 1), (-2, -3), (6, 0)):
        offsets = torch.tensor([[[0, 0], offset]])
        mix = Mix(torch.tensor([[0, 1]]), torch.tensor([[0.4, 0.6]]), offsets=offsets)
        mixed = blend(images, mix)
        moved = supervise(truths, mix, mixed, RULES["lossmix"](MixingConfig()))[1].truths[0]
        painted = torch.zeros(SIZE, SIZE)
        for x1, y1, x2, y2 in moved.boxes.int().tolist():
            painted[y1:y2, x1:x2] = 1.0
        assert torch.equal(mixed.pixels[0, 0] > 0, painted > 0)
        assert moved.offset == offset


def test_a_box_that_leaves_the_image_is_not_taught():
    mix = Mix(torch.tensor([[0, 1]]), torch.tensor([[0.4, 0.6]]), offsets=torch.tensor([[[0, 0], [0, -7]]]))
    supervisions = supervise(
        (truth(), truth((0, 0, 4, 4))), mix, blend(pool(0.0, 1.0), mix), RULES["union"](MixingConfig())
    )
    assert len(supervisions[0].truths[0]) == 0


def test_a_source_without_truth_leaves_its_share_untaught():
    weights = torch.tensor([1.0, 0.0, 1.0])
    known = Supervision(THREE, weights, weights)
    supervisions = taught("lossmix", "share", known, quarters())
    assert [float(one.class_weights) for one in supervisions] == [0.5, 0.0, 0.25]
    (one,) = taught("union", "share", known, quarters())
    assert one.truths[0].classes.tolist() == [0, 2]


def test_the_mean_inside_a_box_equals_that_of_a_fine_raster():
    """Boxes with edges on sixteenths of cells, against the mean over a raster of sixteenths."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(5, 7, generator=generator)
    fine = mask.repeat_interleave(16, 0).repeat_interleave(16, 1)
    corners = torch.randint(0, 5 * 16, (50, 2, 2), generator=generator)
    low, high = corners.min(1).values, corners.max(1).values + 1
    boxes = torch.cat([low, high], dim=1)
    found = mean_inside(mask, boxes.double() / 16)
    for (x1, y1, x2, y2), value in zip(boxes.tolist(), found.tolist(), strict=True):
        assert value == pytest.approx(float(fine[y1:y2, x1:x2].mean()), abs=1e-6)


def test_visibility_is_of_the_whole_box_although_the_box_is_clipped():
    """A box of 8×8 of which the left 6 columns are the image's own: 0.75 is seen, and the box ends there."""
    masks = torch.zeros(1, 2, 2, 8)
    masks[0, 0, :, :6], masks[0, 1, :, 6:] = 1.0, 1.0
    mix = Mix(torch.tensor([[0, 1]]), torch.tensor([[0.75, 0.25]]), masks)
    whole = [Instances(torch.tensor([[0.0, 0, 32, 32]]), torch.tensor([0]))] * 2
    images = ImageBatch(torch.rand(2, 3, 32, 32), ((32, 32),) * 2)
    rule = RULES["lossmix_instance"](MixingConfig())
    (taught,) = supervise(whole, mix, blend(images, mix), rule, WEIGHTINGS["visibility"], least_visible=0.1)
    assert_close(taught.truths[0].boxes, torch.tensor([[0.0, 0, 24, 32], [24, 0, 32, 32]]))
    assert_close(taught.truths[0].weights, torch.tensor([0.75, 0.25]))


def test_what_has_left_the_image_with_a_move_is_not_seen():
    """The partner is moved by half of the image. Of its box a quarter stays, which the mask shows whole."""
    masks = torch.zeros(1, 2, 2, 2)
    masks[0, 0, :, 0], masks[0, 1, :, 1] = 1.0, 1.0
    mix = Mix(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]), masks, torch.tensor([[[0, 0], [0, 16]]]))
    box = [Instances(torch.tensor([[12.0, 0, 28, 32]]), torch.tensor([0]))] * 2
    images = ImageBatch(torch.rand(2, 3, 32, 32), ((32, 32),) * 2)
    rule = RULES["lossmix_instance"](MixingConfig())
    found = supervise(box, mix, blend(images, mix), rule, WEIGHTINGS["visibility"], least_visible=0.1)[0].truths[0]
    assert_close(found.boxes, torch.tensor([[12.0, 0, 16, 32], [28, 0, 32, 32]]))
    assert_close(found.weights, torch.tensor([0.25, 0.25]))
    strict = supervise(box, mix, blend(images, mix), rule, WEIGHTINGS["visibility"], least_visible=0.3)[0].truths[0]
    assert len(strict) == 0


def test_a_mask_that_is_exchanged_shows_a_smaller_partner_only_where_it_has_pixels():
    """The partner, 16×16 of 32×32, showed the image in one of four columns; exchanged, it is seen in its own part."""
    masks = torch.zeros(1, 2, 4, 4)
    masks[0, 0, :, 0], masks[0, 1, :, 1:] = 1.0, 1.0
    images = ImageBatch(torch.rand(2, 3, 32, 32), ((32, 32), (16, 16)))
    mix = Mix(torch.tensor([[0, 1]]), torch.tensor([[0.25, 0.75]]), masks)
    config = MixingConfig()
    moved = BURN_IN_RULES["max"](config, RULES["lossmix"](config))(mix, torch.tensor([True]), images)
    expected = torch.zeros(4, 4)
    expected[:2, 0] = 1.0  # of the first column the upper half
    assert torch.equal(moved.masks[0, 1], expected)
    assert torch.equal(moved.masks[0, 0], 1 - expected)
    assert_close(moved.shares, torch.tensor([[1 - 2 / 16, 2 / 16]]))


def test_boxes_beyond_the_mixed_image_go_whatever_share_must_be_seen():
    """A wide image of which a mask shows the left half alone: the mixed image is as small as its partner."""
    pixels = torch.rand(2, 3, 16, 32)
    images = ImageBatch(pixels, ((16, 32), (16, 16)))
    masks = torch.zeros(1, 2, 4, 8)
    masks[:, 0, :, :2], masks[:, 1, :, 2:] = 1, 1
    mix = Mix(torch.tensor([[0, 1]]), torch.tensor([[0.25, 0.75]]), masks)
    mixed = blend(images, mix)
    assert mixed.sizes == ((16, 16),)
    boxes = [truth((2, 2, 12, 12), (12, 2, 24, 12), (20, 2, 30, 12), (5, 5, 5, 9)), truth()]
    rule = RULES["lossmix"](MixingConfig())
    for weighting in WEIGHTINGS.values():
        found = supervise(boxes, mix, mixed, rule, weighting, least_visible=0.0)[0].truths[0]
        assert found.boxes.tolist() == [[2, 2, 12, 12], [12, 2, 16, 12]]
