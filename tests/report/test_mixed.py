"""What the sheet of mixed images shows: sources, masks, and every box with its weight."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import ImageColor

from lossmix_det.config import MixingConfig
from lossmix_det.mixing import Mix, Recipe, blend
from lossmix_det.report import mixed as module
from lossmix_det.report.mixed import SOURCE_COLOURS, Drawn, draw_mixed, explain
from lossmix_det.structures import ImageBatch, Instances, Supervision

FIRST, SECOND = SOURCE_COLOURS[:2]
POOL = ImageBatch(torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)]), ((32, 32), (32, 24)))
TRUTHS = [
    Instances(torch.tensor([[0.0, 0, 16, 16], [16, 16, 32, 32]]), torch.tensor([0, 1])),
    Instances(torch.tensor([[0.0, 0, 16, 8]]), torch.tensor([2])),
]
SOURCES = torch.tensor([[0, 1], [1, 0]])
# The image above, its partner below; the second image is not mixed.
MASKED = Mix(
    SOURCES,
    torch.tensor([[0.5, 0.5], [1.0, 0.0]]),
    torch.tensor([[[[1.0], [0.0]], [[0.0], [1.0]]], [[[1.0], [1.0]], [[0.0], [0.0]]]]),
)
BLENDED = Mix(SOURCES, torch.tensor([[0.75, 0.25], [1.0, 0.0]]))


KNOWN = Supervision.full(TRUTHS)


def explained(mix, saliency=None, known=KNOWN, **settings):
    config = MixingConfig(mixer="cutmix", **{"least_visible": 0.0, **settings})
    recipe = Recipe(config)
    taught = recipe.supervise(known, mix, blend(POOL, replace(mix, stage="")))
    return explain(Drawn(POOL, mix, saliency, taught), known, recipe)


def labelled(picture):
    return [(label.class_index, round(label.value, 3), label.colour) for label in picture.labels]


def test_boxes_have_the_weight_and_the_colour_of_their_source():
    mixed, alone = explained(BLENDED)
    assert labelled(mixed) == [(0, 0.75, FIRST), (1, 0.75, FIRST), (2, 0.25, SECOND)]
    assert labelled(alone) == [(2, 1.0, FIRST)]


def test_visibility_weighs_each_box_by_what_is_seen_of_it():
    """The upper box of the image is whole, the lower one and the partner's are hidden."""
    mixed, _ = explained(MASKED, weighting="visibility")
    assert labelled(mixed) == [(0, 1.0, FIRST), (1, 0.0, FIRST), (2, 0.0, SECOND)]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("union", [(0, 1.0, FIRST), (1, 1.0, FIRST), (2, 1.0, SECOND)]),
        ("lossmix_instance", [(0, 0.75, FIRST), (1, 0.75, FIRST), (2, 0.25, SECOND)]),
        ("own", [(0, 1.0, FIRST), (1, 1.0, FIRST)]),
    ],
)
def test_boxes_of_a_joined_truth_keep_the_colour_of_their_source(rule, expected):
    mixed, _ = explained(BLENDED, rule=rule)
    assert labelled(mixed) == expected


def test_boxes_that_are_dropped_take_no_others_colour():
    mixed, _ = explained(MASKED, rule="union", least_visible=0.5)
    assert labelled(mixed) == [(0, 1.0, FIRST)]


@pytest.mark.parametrize("rule", ["union", "lossmix"])
def test_an_image_that_teaches_nothing_gives_its_colour_to_no_box(rule):
    known = Supervision.full(TRUTHS).scaled(torch.tensor([0.0, 1.0]))
    mixed, alone = explained(BLENDED, known=known, rule=rule)
    assert labelled(mixed) == [(2, {"union": 1.0, "lossmix": 0.25}[rule], SECOND)]
    assert labelled(alone) == [(2, 1.0, FIRST)]


def test_masks_have_the_colour_of_the_source_that_is_seen():
    mixed, alone = explained(MASKED)
    for rows, colour in ((mixed.masks[:16], FIRST), (mixed.masks[16:], SECOND)):
        np.testing.assert_allclose(rows * 255, np.broadcast_to(ImageColor.getrgb(colour), (16, 32, 3)), rtol=1e-5)
    assert alone.masks.shape == (32, 24, 3)
    assert all(picture.masks is None for picture in explained(BLENDED))


def test_only_sources_that_are_seen_are_shown_with_their_shares():
    mixed, alone = explained(BLENDED)
    assert [(seen.number, seen.title, seen.pixels.shape) for seen in mixed.sources] == [
        (0, "share 0.75", (32, 32, 3)),
        (1, "share 0.25", (32, 24, 3)),
    ]
    assert [seen.number for seen in alone.sources] == [0]
    assert float(mixed.pixels[0, 0, 0]) == 0.25


@pytest.mark.parametrize(("offset", "text"), [((4, -8), ", ↓4 ←8"), ((0, 8), ", →8"), ((0, 0), "")])
def test_a_title_says_how_far_a_source_was_moved(offset, text):
    offsets = torch.zeros(2, 2, 2, dtype=torch.int64)
    offsets[0, 1] = torch.tensor(offset)
    mixed, _ = explained(Mix(SOURCES, MASKED.shares, MASKED.masks, offsets))
    assert mixed.sources[1].title == "share 0.50" + text


@pytest.fixture
def sheet(monkeypatch):
    """What a sheet is drawn of: the heads of its columns, and its rows."""
    drawn = {}

    def draw(pictures):
        monkeypatch.setattr(module, "draw_grid", lambda rows, heads: drawn.update(rows=rows, heads=heads))
        draw_mixed(pictures, ["a", "b", "c"])
        return drawn["heads"], [tiles for _, tiles in drawn["rows"]]

    return draw


def test_a_sheet_has_a_row_for_each_image_and_a_column_for_all_that_was_used(sheet):
    heads, rows = sheet(explained(BLENDED))
    assert heads == ["image", "partner", "mixed image"]
    assert [[tile is not None for tile in row] for row in rows] == [
        [True] * 3,
        [True, False, True],
    ]  # one has no partner
    assert [tile.title for tile in rows[0]] == ["share 0.75", "share 0.25", "boxes with their weights"]
    heads, _ = sheet(explained(MASKED, saliency=torch.rand(2, 4, 4)))
    assert heads[2:] == ["saliency of the image", "saliency of the partner", "masks", "mixed image"]


def test_several_partners_are_numbered(sheet):
    three = Mix(torch.tensor([[0, 1, 1]]), torch.tensor([[0.5, 0.25, 0.25]]))
    heads, _ = sheet(explained(three))
    assert heads == ["image", "partner 1", "partner 2", "mixed image"]


def test_saliency_is_bright_where_it_is_greatest():
    heat = module._heat(np.array([[0.0, 1.0, 4.0]]))
    assert heat.sum(axis=2)[0].tolist() == sorted(heat.sum(axis=2)[0].tolist())
    np.testing.assert_allclose(heat[0, 2] * 255, ImageColor.getrgb(module.HEAT[-1]))


def test_a_sheet_is_a_picture():
    drawn = draw_mixed(explained(MASKED, saliency=torch.rand(2, 4, 4)), ["a", "b", "c"])
    assert np.asarray(drawn).std() > 20
