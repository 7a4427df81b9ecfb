"""Confusions, calibration and the worst images, on cases worked by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lossmix_det.data.packed import ImageRecord
from lossmix_det.evaluation.diagnosis import Found, diagnose, judge

CAT, DOG = 0, 1


def record(*objects, uncounted=()):
    """Objects as (class, x1, y1, x2, y2)."""
    rows = np.array(objects, dtype=np.float32).reshape(-1, 5)
    difficult = np.isin(np.arange(len(rows)), uncounted)
    area = np.ones(len(rows))
    classes = rows[:, 0].astype(np.int64)
    return ImageRecord(Path("a.jpg"), 1, (100, 100), rows[:, 1:], classes, difficult, np.zeros_like(difficult), area)


def found(*rows):
    """Detections as (class, score, x1, y1, x2, y2)."""
    values = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return Found(values[:, 2:], values[:, 0].astype(np.int64), values[:, 1])


def test_each_object_is_paired_with_the_detection_that_overlaps_it_most():
    truth = record((CAT, 0, 0, 10, 10), (DOG, 50, 50, 60, 60), (DOG, 80, 80, 90, 90))
    of_image = found(
        (CAT, 0.9, 0, 0, 10, 8),  # IoU 0.8 with the cat
        (DOG, 0.8, 0, 0, 10, 9),  # 0.9 with the cat, and of another class
        (CAT, 0.7, 50, 50, 60, 60),
        (DOG, 0.2, 80, 80, 90, 90),  # not sure
    )
    verdict = judge(0, truth, of_image)
    assert sorted(map(tuple, verdict.pairs.tolist())) == [(0, 1), (1, 2)]
    assert verdict.missed.tolist() == [2]
    assert verdict.extra.tolist() == [0]
    assert verdict.right == 0
    assert verdict.f1 == 0


def test_uncounted_objects_are_no_misses_and_what_lies_on_them_no_mistake():
    truth = record((CAT, 0, 0, 10, 10), (CAT, 50, 50, 60, 60), uncounted=[1])
    verdict = judge(0, truth, found((CAT, 0.9, 0, 0, 10, 10), (DOG, 0.9, 50, 50, 60, 60)))
    assert (verdict.pairs.tolist(), verdict.missed.tolist(), verdict.extra.tolist()) == ([[0, 0]], [], [])
    assert verdict.f1 == 1


def test_all_that_lies_in_a_crowd_is_of_it():
    truth = record((CAT, 0, 0, 10, 10), (CAT, 0, 0, 60, 60), uncounted=[1])
    truth = replace(truth, difficult=np.zeros(2, dtype=bool), crowd=np.array([False, True]))
    inside = [(CAT, 0.9, 20, 20, 30, 30), (DOG, 0.9, 40, 40, 50, 50)]
    verdict = judge(0, truth, found(*inside, (CAT, 0.8, 0, 0, 10, 10), (CAT, 0.7, 80, 80, 90, 90)))
    assert (verdict.pairs.tolist(), verdict.missed.tolist(), verdict.extra.tolist()) == ([[0, 2]], [], [3])


@pytest.mark.parametrize(
    ("truth", "detections", "f1"),
    [
        (record(), found(), 1.0),
        (record((CAT, 0, 0, 9, 9)), found(), 0.0),
        (record(), found((CAT, 0.9, 0, 0, 9, 9)), 0.0),
        (record((CAT, 0, 0, 9, 9), (CAT, 20, 20, 29, 29)), found((CAT, 0.9, 0, 0, 9, 9)), 2 / 3),
    ],
)
def test_f1_of_an_image(truth, detections, f1):
    assert judge(0, truth, detections).f1 == pytest.approx(f1)


def coco(image_id, label, score, x1, y1, x2, y2):
    return {"image_id": image_id, "category_id": label, "score": score, "bbox": [x1, y1, x2 - x1, y2 - y1]}


class Pair:
    """Two images of cats and dogs, numbered 1 and 2; classes are numbered 7 and 9 in their file."""

    classes, category_ids = ["cat", "dog"], [7, 9]

    def __init__(self):
        first = record((CAT, 0, 0, 10, 10), (DOG, 50, 50, 60, 60))
        second = record((DOG, 0, 0, 10, 10))
        self.records = [first, ImageRecord(Path("b.jpg"), 2, *(getattr(second, name) for name in FIELDS))]

    def __len__(self):
        return 2

    def id_of(self, number):
        return number


FIELDS = ("size", "boxes", "classes", "difficult", "crowd", "areas")


def test_confusion_calibration_and_order_of_a_data_set():
    detections = [
        coco(1, 7, 0.95, 0, 0, 10, 10),  # right
        coco(1, 7, 0.91, 50, 50, 60, 60),  # a dog taken for a cat
        coco(2, 9, 0.45, 0, 0, 10, 10),  # right
        coco(2, 9, 0.41, 70, 70, 80, 80),  # nothing there
    ]
    result = diagnose(Pair(), detections)
    assert result.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    np.testing.assert_allclose(result.calibration, [[0.43, 0.5, 2], [0.93, 0.5, 2]])
    assert [one.index for one in result.images] == [0, 1]  # F1 0.5, then 2/3
    assert result.curves["dog"].hits.tolist() == [True, False]
    assert result.curves["dog"].recall.tolist() == [0.5, 0.5]


def test_nothing_found_is_all_missed():
    result = diagnose(Pair(), [])
    assert result.confusion.tolist() == [[0, 0, 1], [0, 0, 2], [0, 0, 0]]
    assert result.calibration.shape == (0, 3)
