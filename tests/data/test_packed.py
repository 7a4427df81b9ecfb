"""Records come out of the arrays as they went in."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from lossmix_det.data.loaders import teaches
from lossmix_det.data.packed import ImageRecord, Records


def record(number: int, boxes: int, name: str | None = None) -> ImageRecord:
    rng = np.random.default_rng(number)
    return ImageRecord(
        Path("/data") / (name or f"{number}.jpg"),
        1000 - number,
        (40 + number, 60),
        rng.random((boxes, 4), dtype=np.float32),
        rng.integers(0, 5, boxes),
        rng.random(boxes) < 0.5,
        rng.random(boxes) < 0.5,
        rng.random(boxes),
    )


NAMES = [None, "Bäume 1.jpg", os.fsdecode(b"caf\xe9.png"), "a" * 200, None]  # the third is not UTF-8
ALL = [record(number, boxes, name) for number, (boxes, name) in enumerate(zip([2, 0, 3, 0, 1], NAMES, strict=True))]


def assert_same(found: ImageRecord, expected: ImageRecord) -> None:
    for spec in dataclasses.fields(ImageRecord):
        value, wanted = getattr(found, spec.name), getattr(expected, spec.name)
        if isinstance(wanted, np.ndarray):
            np.testing.assert_array_equal(value, wanted)
            assert value.dtype == wanted.dtype
        else:
            assert value == wanted
            assert type(value) is type(wanted)


def test_records_come_out_as_they_went_in():
    packed = Records.pack(iter(ALL))
    assert len(packed) == 5
    for found, expected in zip(packed, ALL, strict=True):
        assert_same(found, expected)
    assert_same(packed[-1], ALL[-1])
    assert [item.image_id for item in packed[1:4:2]] == [999, 997]
    with pytest.raises(IndexError):
        packed[5]


def test_no_records_at_all():
    packed = Records.pack([])
    assert (len(packed), list(packed), packed.boxes.shape, packed.sizes.shape) == (0, [], (0, 4), (0, 2))


def test_some_records_and_several_sets_in_a_row():
    packed = Records.pack(ALL)
    for found, expected in zip(packed.take(np.array([4, 0, 2])), (ALL[4], ALL[0], ALL[2]), strict=True):
        assert_same(found, expected)
    joined = Records.cat([packed, Records.pack(ALL[:2]), Records.pack([]), Records.pack(ALL[3:])])
    for found, expected in zip(joined, [*ALL, *ALL[:2], *ALL[3:]], strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("keep_difficult", [True, False])
def test_which_boxes_teach_is_the_same_of_one_image_and_of_all(keep_difficult):
    by_image = np.concatenate([teaches(item, keep_difficult) for item in ALL])
    np.testing.assert_array_equal(teaches(Records.pack(ALL), keep_difficult), by_image)
