"""Blocks of an image: what lies in them, where their pixels go when they move, and where boxes go."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lossmix_det.config import MixingConfig
from lossmix_det.mixing import BURN_IN_RULES, RULES, WEIGHTINGS, Mix, blend, supervise
from lossmix_det.mixing.blocks import BlockGrid, follow, in_place, is_in_place, moved_blocks
from lossmix_det.mixing.weightings import clipped_to_mask
from lossmix_det.structures import ImageBatch, Instances

GRID = BlockGrid((5, 7), 2, 4)  # 3×4 blocks of 8 pixels; the last row and column are half as high and wide


def truth(*boxes) -> Instances:
    return Instances(torch.tensor(boxes).reshape(-1, 4).float(), torch.arange(len(boxes)))


def swapped(cells=(4, 4)) -> torch.Tensor:
    """The left and the right half of 4×4 cells change places."""
    return torch.from_numpy(BlockGrid((4, 4), 2, 1).moves(np.array([1, 0, 3, 2]), cells))


def test_a_grid_worked_by_hand():
    assert GRID.shape == (3, 4)
    assert GRID.whole == (2, 3)
    assert (GRID.lengths(0).tolist(), GRID.lengths(1).tolist()) == ([2, 2, 1], [2, 2, 2, 1])
    assert GRID.cells(np.arange(12).reshape(3, 4))[4].tolist() == [8, 8, 9, 9, 10, 10, 11]
    assert GRID.inside((4, 6)).tolist() == [[True, True, True, False]] * 2 + [[False] * 4]


@pytest.mark.parametrize(
    ("frame", "count", "side"), [((10, 16), 4, 4), ((17, 3), 4, 5), ((2, 3), 16, 1), ((1, 1), 2, 1)]
)
def test_there_are_at_most_so_many_blocks_along_the_longer_side(frame, count, side):
    grid = BlockGrid.along(frame, count, 4)
    assert grid.side == side
    assert max(grid.shape) <= count


def test_sums_of_blocks_equal_those_of_single_pixels():
    """8-pixel blocks over values of 5×10 pixels each."""
    values = np.random.default_rng(0).random((6, 4))
    fine = values.repeat(5, 0).repeat(10, 1) / 50
    found = GRID.sums(values, (30, 40))
    for row, column in itertools.product(range(3), range(4)):
        part = fine[8 * row : min(8 * row + 8, 20), 8 * column : min(8 * column + 8, 28)]
        assert found[row, column] == pytest.approx(part.sum())


def test_cells_of_moved_blocks_worked_by_hand():
    assert swapped().tolist() == [[2, 3, 0, 1], [6, 7, 4, 5], [10, 11, 8, 9], [14, 15, 12, 13]]
    assert is_in_place(torch.from_numpy(GRID.moves(np.arange(6), (8, 8))))
    rest = GRID.moves(np.array([5, 4, 3, 2, 1, 0]), (8, 8))
    assert sorted(rest.ravel()) == list(range(64))
    assert rest[0, 0] == 2 * 8 + 4  # block 5 begins at row 2, column 4
    assert (rest[4:] == in_place((8, 8))[4:].numpy()).all()  # what the frame cuts off stays
    assert (rest[:, 6:] == in_place((8, 8))[:, 6:].numpy()).all()


def test_pixels_of_moved_blocks_by_a_loop():
    pixels = torch.rand(2, 3, 8, 12)
    blocks = torch.stack([torch.randperm(12).view(4, 3), in_place((4, 3))])
    moved = moved_blocks(pixels, blocks)
    assert torch.equal(moved[1], pixels[1])
    for row, column in itertools.product(range(4), range(3)):
        y, x = divmod(int(blocks[0, row, column]), 3)
        shown = pixels[0, :, 2 * y : 2 * y + 2, 4 * x : 4 * x + 4]
        assert torch.equal(moved[0, :, 2 * row : 2 * row + 2, 4 * column : 4 * column + 4], shown)


def test_a_canvas_that_cells_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"a canvas of \(9, 12\) pixels has no \(4, 3\) cells of one size"):
        moved_blocks(torch.zeros(1, 3, 9, 12), in_place((4, 3))[None])


# ------------------------------------------------------------------------------------------------- boxes


def test_boxes_of_swapped_halves_worked_by_hand():
    """16×16 pixels. The first box moves along whole. The second is torn: its pieces lie at both ends of a wide box."""
    boxes = truth((1, 2, 7, 10), (6, 4, 10, 8))
    found, visible = follow(boxes, torch.ones(4, 4), swapped(), (16, 16), 0.0)
    assert_close(found.boxes, torch.tensor([[9.0, 2, 15, 10], [0, 4, 16, 8]]))
    assert_close(visible, torch.ones(2))  # all of both is seen, the second in two pieces


def test_a_torn_box_is_dropped_if_its_pieces_fill_too_little_of_the_box_around_them():
    boxes = truth((1, 2, 7, 10), (6, 4, 10, 8))
    for least, kept in ((0.25, [0, 1]), (0.26, [0])):
        assert follow(boxes, torch.ones(4, 4), swapped(), (16, 16), least)[0].classes.tolist() == kept


def test_of_a_box_only_the_pieces_that_are_seen_count():
    """The mask shows the left half of the canvas: there the right part of the box has gone to; half of it is seen."""
    mask = torch.zeros(4, 4)
    mask[:, :2] = 1.0
    boxes = truth((6, 4, 10, 8), (0, 0, 8, 8))
    found, visible = follow(boxes, mask, swapped(), (16, 16), 0.5)
    assert_close(found.boxes, torch.tensor([[0.0, 4, 2, 8]]))
    assert found.classes.tolist() == [0]
    assert_close(visible, torch.tensor([0.5]))
    assert len(follow(boxes, mask, swapped(), (16, 16), 0.51)[0]) == 0
    assert len(follow(boxes, torch.zeros(4, 4), swapped(), (16, 16), 0.0)[0]) == 0


def test_a_soft_mask_counts_by_its_share():
    found, visible = follow(truth((1, 2, 7, 10)), torch.full((4, 4), 0.5), swapped(), (16, 16), 0.5)
    assert_close(found.boxes, torch.tensor([[9.0, 2, 15, 10]]))
    assert_close(visible, torch.tensor([0.5]))


def random_boxes(count: int, seed: int) -> Instances:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * 64
    return Instances(torch.cat([corners.amin(1), corners.amax(1) + 0.1], dim=1).clamp(max=64), torch.arange(count))


@pytest.mark.parametrize("least", [0.0, 0.1, 0.5])
def test_in_place_boxes_are_clipped_to_the_mask_as_ever(least):
    mask = (torch.rand(16, 16, generator=torch.Generator().manual_seed(2)) > 0.7).float()
    mask[:, :5] = 0.0
    boxes = random_boxes(1000, 0)
    found, _ = follow(boxes, mask, in_place((16, 16)), (64, 64), least)
    expected, _ = clipped_to_mask(boxes, mask, (64, 64), least)
    assert_close(found.boxes, expected.boxes)
    assert found.classes.tolist() == expected.classes.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_boxes_of_shuffled_cells_equal_a_search_through_pixels(seed):
    """Whole-pixel boxes are painted one by one, and the paint is looked for."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randperm(16, generator=generator).view(4, 4)
    mask = (torch.rand(4, 4, generator=generator) > 0.4).float()
    boxes = random_boxes(30, seed)
    boxes = Instances((boxes.boxes / 4).round().clamp(max=16), boxes.classes)
    boxes = boxes[(boxes.boxes[:, 2:] > boxes.boxes[:, :2]).all(1)]
    found, visible = follow(boxes, mask, blocks, (16, 16), 0.0)
    seen = mask.repeat_interleave(4, 0).repeat_interleave(4, 1)
    for box, label in zip(boxes.boxes.int().tolist(), boxes.classes.tolist(), strict=True):
        paint = torch.zeros(1, 3, 16, 16)
        paint[:, :, box[1] : box[3], box[0] : box[2]] = 1.0
        lit = moved_blocks(paint, blocks[None])[0, 0] * seen
        at = (found.classes == label).nonzero().flatten().tolist()
        assert bool(at) == bool(lit.any())
        for index in at:
            y, x = lit.nonzero().unbind(1)
            x1, y1, x2, y2 = (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1)
            assert found.boxes[index].tolist() == [x1, y1, x2, y2]
            assert float(visible[index]) == pytest.approx(float(lit.sum() / paint[0, 0].sum()))


# --------------------------------------------------------------------------------------------------- Mix


def torn() -> Mix:
    """The image itself is seen above, its partner below; the halves of both have changed places."""
    masks = torch.zeros(1, 2, 4, 4)
    masks[0, 0, :2] = masks[0, 1, 2:] = 1.0
    return Mix(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]), masks, blocks=swapped().repeat(1, 2, 1, 1))


def images() -> ImageBatch:
    return ImageBatch(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), ((16, 16),) * 2)


TRUTHS = (truth((0, 0, 8, 8), (6, 2, 10, 6)), truth((8, 0, 16, 8), (8, 8, 16, 16), (7, 9, 9, 11)))


def test_pixels_of_torn_sources_worked_by_hand():
    pixels = images().pixels
    mixed = blend(images(), torn()).pixels[0]
    assert torch.equal(mixed[:, :8], torch.cat([pixels[0, :, :8, 8:], pixels[0, :, :8, :8]], dim=2))
    assert torch.equal(mixed[:, 8:], torch.cat([pixels[1, :, 8:, 8:], pixels[1, :, 8:, :8]], dim=2))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_teaches_torn_boxes_where_their_pieces_are(rule):
    mix = torn()
    made = RULES[rule](MixingConfig())
    found = supervise(TRUTHS, mix, blend(images(), mix), made, WEIGHTINGS["visibility"], least_visible=0.1)
    boxes = torch.cat([each.truths[0].boxes for each in found])
    own, other = [[8.0, 0, 16, 8], [0, 2, 16, 6]], [[0.0, 8, 8, 16], [0, 9, 16, 11]]
    partners = other if made.teaches_partners else []
    assert boxes.tolist() == own + partners
    if made.joins_boxes:
        assert_close(found[0].truths[0].weights, torch.ones(4))  # all of each is seen, in one piece or two


def test_a_share_weighs_torn_boxes_too():
    mix = torn()
    found = supervise(TRUTHS, mix, blend(images(), mix), RULES["lossmix"](MixingConfig()))
    assert [each.truths[0].weights for each in found] == [None, None]


def test_images_that_are_not_chosen_are_not_torn():
    alone = torn().where(torch.tensor([False]))
    assert torch.equal(blend(images(), alone).pixels[0], images().pixels[0])
    assert is_in_place(alone.blocks[0, 0])
    chosen = torn().where(torch.tensor([True]))
    assert torch.equal(chosen.blocks, torn().blocks)


def test_only_the_image_itself_is_made_whole():
    whole = torn().whole(torch.tensor([True]))
    assert is_in_place(whole.blocks[0, 0])
    assert torch.equal(whole.blocks[0, 1], swapped())
    assert torch.equal(torn().whole(torch.tensor([False])).blocks, torn().blocks)
    plain = Mix(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]))
    assert plain.whole(torch.tensor([True])) is plain


@pytest.mark.parametrize("name", BURN_IN_RULES)
def test_rules_of_burn_in_keep_blocks(name):
    rule = BURN_IN_RULES[name](MixingConfig(), RULES["lossmix"](MixingConfig()))
    mix = rule(torn(), torch.tensor([True]), images())
    assert torch.equal(mix.blocks, torn().blocks)


def test_blocks_without_masks_of_their_shape_or_beside_offsets_are_refused():
    sources, shares, masks = torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]), torn().masks
    with pytest.raises(ValueError, match="blocks need masks, and no offsets"):
        Mix(sources, shares, blocks=torn().blocks)
    with pytest.raises(ValueError, match="blocks need masks, and no offsets"):
        Mix(sources, shares, masks, torch.zeros(1, 2, 2), torn().blocks)
    with pytest.raises(ValueError, match=r"blocks must have shape \(1, 2, 4, 4\), got \(1, 2, 2, 2\)"):
        Mix(sources, shares, masks, blocks=torch.zeros(1, 2, 2, 2))
