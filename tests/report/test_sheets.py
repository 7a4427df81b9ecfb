"""Titles and colours of the pictures on a sheet."""

import numpy as np
import pytest
import torch
from PIL import Image

from lossmix_det.report import sheets
from lossmix_det.report.sheets import ANNOTATED, PSEUDO_LABELLED, Picture, Taught, draw_sheet
from lossmix_det.structures import Instances

PIXELS = np.zeros((8, 8, 3))
BOXES = torch.tensor([[1.0, 1, 5, 5]])
ANNOTATION = Instances(BOXES, torch.tensor([0]))
PSEUDO_LABEL = Instances(BOXES, torch.tensor([0]), torch.tensor([0.9]))


def test_a_title_gives_the_weights_of_what_is_taught():
    taught = [Taught("source", ANNOTATION, 0.75), Taught("source", ANNOTATION, 0.25)]
    assert Picture(PIXELS, taught).title == "weights 0.75, 0.25"
    assert Picture(PIXELS, []).title == ""


def test_with_two_domains_a_title_names_the_loss_and_skips_what_is_not_taught():
    taught = [Taught("source", ANNOTATION, 0.0), Taught("target", PSEUDO_LABEL, 1.0)]
    assert Picture(PIXELS, taught, two_domains=True).title == "target, weights 1.00"
    assert Picture(PIXELS, taught[:1], two_domains=True).title == "nothing taught"


def test_colours_tell_truths_apart_or_with_two_domains_where_they_come_from():
    taught = [Taught("mixed", ANNOTATION, 0.5), Taught("mixed", PSEUDO_LABEL, 0.3), Taught("mixed", ANNOTATION, 0.2)]
    one, two = (Picture(PIXELS, taught, two_domains) for two_domains in (False, True))
    assert len({one.colour(index) for index in range(3)}) == 3
    assert [two.colour(index) for index in range(3)] == [ANNOTATED, PSEUDO_LABELLED, ANNOTATED]


def test_a_box_tells_its_weight_or_score_and_what_weighs_nothing_has_none():
    taught = [Taught("source", ANNOTATION, 0.75), Taught("source", ANNOTATION, 0.0), Taught("source", ANNOTATION, 1.0)]
    picture = Picture(PIXELS, [*taught, Taught("target", PSEUDO_LABEL, 0.25)])
    assert all((mark.box, mark.class_index) == ([1.0, 1, 5, 5], 0) for mark in picture.marks)
    told = [(mark.value, mark.strength) for mark in picture.marks]
    assert told == [(0.75, 0.75), (None, 1.0), (pytest.approx(0.9), 0.25)]


def test_a_sheet_has_rows_of_pictures_with_their_titles(monkeypatch):
    drawn = {}
    monkeypatch.setattr(sheets, "draw_grid", lambda rows: drawn.update(rows) or Image.new("RGB", (1, 1)))
    pictures = [Picture(PIXELS, [Taught("source", ANNOTATION, 1.0), Taught("source", ANNOTATION, 0.0)])] * 2
    draw_sheet({"long": pictures, "short": pictures[:1]}, ["cat"])
    titles = {name: [tile.title for tile in tiles] for name, tiles in drawn.items()}
    assert titles == {"long": ["weights 1.00"] * 2, "short": ["weights 1.00"]}
    assert all(tile.pixels.max() > 128 for tiles in drawn.values() for tile in tiles)  # a box on black
