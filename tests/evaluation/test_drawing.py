"""Where labels of boxes lie."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from PIL import Image

from lossmix_det.evaluation import drawing
from lossmix_det.structures import Instances

SIDE = st.floats(0, 100)


def overlap(one, other):
    return max(min(one[2], other[2]) - max(one[0], other[0]), 0) * max(min(one[3], other[3]) - max(one[1], other[1]), 0)


@given(st.tuples(SIDE, SIDE, SIDE, SIDE), st.tuples(st.floats(1, 60), st.floats(1, 20)))
def test_a_label_stays_inside_of_the_image(box, extent):
    x1, y1, x2, y2 = drawing._place(box, extent, [], (100, 80))
    assert min(x1, y1) >= 0
    assert (x2 - x1, y2 - y1) == pytest.approx(extent)
    assert x2 <= 100 + 1e-6
    assert y2 <= 80 + 1e-6


def test_a_label_lies_above_its_box_and_elsewhere_if_another_lies_there():
    box, extent = (20.0, 30.0, 60.0, 70.0), (20.0, 8.0)
    first = drawing._place(box, extent, [], (100, 100))
    assert first == (20, 22, 40, 30)
    second = drawing._place(box, extent, [first], (100, 100))
    assert overlap(first, second) == 0
    assert drawing._place(box, extent, [first, second], (100, 100)) not in (first, second)


def test_labels_of_boxes_at_one_place_can_all_be_read():
    figure, axis = plt.subplots(figsize=(3, 3))
    axis.imshow(np.zeros((96, 96, 3)))
    boxes = torch.tensor([[30.0, 30, 70, 70]]).repeat(4, 1) + torch.arange(4)[:, None]
    drawing.draw_instances(axis, Instances(boxes, torch.arange(4)), ["a", "b", "c", "d"], "red")
    figure.canvas.draw()
    inside = axis.get_window_extent()
    drawn = [text.get_bbox_patch().get_window_extent().extents for text in axis.texts]
    plt.close(figure)
    assert len(drawn) == 4
    for index, one in enumerate(drawn):
        assert all(overlap(one, other) == 0 for other in drawn[:index])
        assert overlap(one, inside.extents) == pytest.approx((one[2] - one[0]) * (one[3] - one[1]))


def test_a_picture_of_few_colours_is_smaller_and_looks_the_same(tmp_path):
    rng, sizes, pictures = np.random.default_rng(0), [], []
    noise = rng.random((64, 64, 3))
    for colours in (None, 64):
        figure, axis = plt.subplots(figsize=(2, 2))
        axis.imshow(noise)
        drawing.save(figure, tmp_path / "x.png", colours=colours)
        sizes.append((tmp_path / "x.png").stat().st_size)
        picture = Image.open(io.BytesIO((tmp_path / "x.png").read_bytes())).convert("RGB")
        pictures.append(np.asarray(picture, dtype=float))
    assert sizes[1] < sizes[0] / 2
    assert np.abs(pictures[0] - pictures[1]).mean() < 20
    assert len(np.unique(pictures[1].reshape(-1, 3), axis=0)) <= 64
