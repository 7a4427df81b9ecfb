"""Boxes on pictures, and pictures on grids."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from lossmix_det.evaluation import pictures
from lossmix_det.evaluation.drawing import GAP, Tile, draw_grid, save
from lossmix_det.evaluation.pictures import Mark, draw_marks, marks_of
from lossmix_det.structures import Instances

GREY = np.full((40, 80, 3), 128, dtype=np.uint8)


def changed(picture, value=128):
    """Rows and columns of the pixels that are drawn on."""
    rows, columns = (np.abs(picture.astype(int) - value).max(axis=2) > 8).nonzero()
    return (rows.min(), rows.max()), (columns.min(), columns.max())


def test_a_box_lies_where_it_is_in_a_picture_of_another_size():
    picture = draw_marks(GREY, [Mark((20.0, 10, 60, 30), "#ff0000")], (), 160)
    assert picture.shape == (80, 160, 3)
    assert changed(picture) == ((19, 61), (39, 121))  # with a white edge of one pixel
    np.testing.assert_array_equal(picture[20, 50], (255, 0, 0))
    assert (GREY == 128).all()


@pytest.mark.parametrize("box", [(-1e30, 5, 1e30, 30), (70.0, 35, 10, 5), (0.0, 0, 0, 0), (500.0, 500, 600, 600)])
def test_a_box_of_any_numbers_can_be_drawn(box):
    assert draw_marks(GREY, [Mark(box, "#ff0000", 0, 0.5)], ["cat"], 80).shape == GREY.shape


def test_what_weighs_less_is_fainter():
    red = [
        int(draw_marks(GREY, [Mark((20.0, 10, 60, 30), "#ff0000", strength=weight)], (), 80)[10, 40, 0])
        for weight in (0.0, 0.5, 1.0)
    ]
    assert 128 < red[0] < red[1] < red[2] == 255


def test_marks_have_weights_before_scores_and_only_weights_make_them_faint():
    boxes, classes, values = torch.zeros(2, 4), torch.tensor([0, 1]), torch.tensor([0.25, 0.75])
    of = [(mark.value, mark.strength) for mark in marks_of(Instances(boxes, classes, scores=values), "#000000")]
    assert of == [(0.25, 1.0), (0.75, 1.0)]
    weighed = Instances(boxes, classes, scores=values, weights=1 - values)
    assert [(mark.value, mark.strength) for mark in marks_of(weighed)] == [(0.75, 0.75), (0.25, 0.25)]
    assert [mark.strength for mark in marks_of(Instances(boxes, classes), weight=0.5)] == [0.5, 0.5]
    assert len({mark.colour for mark in marks_of(weighed)}) == 2  # of their classes


def test_labels_of_boxes_at_one_place_can_all_be_read(monkeypatch):
    written = []
    monkeypatch.setattr(pictures.Label, "write", lambda label, draw, area: written.append((label.text, area)))
    boxes = torch.tensor([[30.0, 30, 70, 70]]).repeat(4, 1) + torch.arange(4)[:, None]
    found = Instances(boxes, torch.arange(4), torch.tensor([0.5, 0.9, 0.7, 0.8]))
    draw_marks(np.zeros((96, 96, 3), np.uint8), marks_of(found, "#ff0000"), ["a", "b", "c", "d"], 300)
    assert [text for text, _ in written] == ["b 0.90", "d 0.80", "c 0.70", "a 0.50"]
    for index, (_, one) in enumerate(written):
        for _, other in written[:index]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_a_grid_has_every_picture_in_its_column_and_white_where_there_is_none():
    red, blue = (Tile(np.full((20, 30, 3), ImageColor.getrgb(name), np.uint8), name) for name in ("red", "blue"))
    grid = np.asarray(draw_grid([("first", [red, blue, red]), ("", [blue, None])], ["a", "b", "c"], "all of it"))
    assert grid.shape[1] == 3 * 30 + 4 * GAP
    places = {}
    for column in range(3):
        left = GAP + column * (30 + GAP)
        for name in ("red", "blue"):
            filled = (grid[:, left + 1 : left + 29] == ImageColor.getrgb(name)).all(axis=(1, 2)).nonzero()[0].tolist()
            places |= {(column, name): filled} if filled else {}
    assert places.keys() == {(0, "red"), (0, "blue"), (1, "blue"), (2, "red")}
    assert {len(filled) for filled in places.values()} == {20}
    assert places[0, "red"] == places[1, "blue"] == places[2, "red"]
    assert places[0, "blue"][0] > places[0, "red"][-1]
    assert (grid[-GAP - 10, GAP + 30 + GAP :] == 255).all()
    assert (grid[: GAP + 12].min(axis=(1, 2)) < 200).any()  # the title


def test_a_title_that_is_too_wide_gets_smaller_letters():
    tile = np.full((20, 60, 3), 255, np.uint8)
    short, long = (
        np.asarray(draw_grid([("", [Tile(tile, text, "black"), Tile(tile)])]))
        for text in ("weight", "weights 0.5, 0.5")
    )
    for grid in (short, long):
        assert grid[:, GAP + 60 + GAP :].min() == 255  # none of it above the next picture
        assert grid[:, : GAP + 60 + GAP].min() < 128


def test_a_picture_of_few_colours_is_smaller_and_looks_the_same(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    sizes, saved = [], []
    for colours in (None, 64):
        save(Image.fromarray(noise), tmp_path / "x.png", colours)
        sizes.append((tmp_path / "x.png").stat().st_size)
        saved.append(np.asarray(Image.open(tmp_path / "x.png").convert("RGB"), dtype=float))
    np.testing.assert_array_equal(saved[0], noise)
    assert sizes[1] < sizes[0] / 2
    assert np.abs(saved[0] - saved[1]).mean() < 40
    assert len(np.unique(saved[1].reshape(-1, 3), axis=0)) <= 64
