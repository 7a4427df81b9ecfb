"""VOC AP against a hand-worked case, a brute-force reading of its definition, and another library."""

from dataclasses import replace

import numpy as np
import pytest
from mean_average_precision import MetricBuilder

from lossmix_det.evaluation.voc import ClassDetections, ClassTruth, iou, voc_ap


def truth(boxes, difficult=None) -> ClassTruth:
    boxes = np.array(boxes, dtype=float).reshape(-1, 4)
    return ClassTruth(boxes, np.array(difficult if difficult is not None else [False] * len(boxes), dtype=bool))


def detections(*rows) -> ClassDetections:
    """Rows of (image, score, box)."""
    boxes = np.array([row[2] for row in rows], dtype=float).reshape(-1, 4)
    return ClassDetections(np.array([row[0] for row in rows], dtype=int), np.array([row[1] for row in rows]), boxes)


A, B, C, NOWHERE = [0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60], [80, 80, 90, 90]


def test_a_case_worked_by_hand():
    """Four boxes; by falling score: hit, miss, hit, second on the same box (a miss), hit.

    recall    1/4  1/4  2/4  2/4  3/4
    precision 1    1/2  2/3  1/2  3/5
    The envelope from the right is 1, 2/3, 2/3, 3/5, 3/5; beyond a recall of 3/4 it is 0.
    area      = 1/4·1 + 1/4·2/3 + 1/4·3/5
    11 points = (3·1 [0, .1, .2] + 3·2/3 [.3, .4, .5] + 2·3/5 [.6, .7] + 3·0) / 11
    """
    truths = [truth([A, B]), truth([C, A])]
    found = detections((0, 0.9, A), (0, 0.8, NOWHERE), (1, 0.7, C), (1, 0.6, C), (0, 0.5, B))
    area, eleven = voc_ap(truths, found)
    assert area == pytest.approx(0.25 + 0.25 * 2 / 3 + 0.25 * 3 / 5)
    assert eleven == pytest.approx((3 + 3 * 2 / 3 + 2 * 3 / 5) / 11)


def test_perfect_detections_score_one():
    assert voc_ap([truth([A, B])], detections((0, 0.9, A), (0, 0.2, B))) == (pytest.approx(1), pytest.approx(1))


def test_difficult_boxes_count_neither_as_found_nor_as_missed():
    truths = [truth([A, B], [False, True])]
    assert voc_ap(truths, detections((0, 0.9, B), (0, 0.8, B), (0, 0.7, A)))[0] == pytest.approx(1)
    assert voc_ap(truths, detections((0, 0.7, A)))[0] == pytest.approx(1)


def test_what_lies_in_a_crowd_is_not_counted_unless_it_is_of_a_box():
    """A and B lie in the crowd; the first of A is a hit, the second one a miss, and NOWHERE too. B is nobody's."""
    truths = [replace(truth([A]), crowds=np.array([[0.0, 0, 40, 40]])), truth([B])]
    half_in, hardly_in = [35, 0, 44, 9], [36, 0, 45, 9]
    for found, score in (
        ([(0, 0.9, B), (0, 0.8, A), (1, 0.7, B)], 1),
        ([(0, 0.9, half_in), (0, 0.8, A), (1, 0.7, B)], 1),
        ([(0, 0.9, hardly_in), (0, 0.8, A), (1, 0.7, B)], 2 / 3),
        ([(0, 0.9, A), (0, 0.8, A), (1, 0.7, B)], 1 / 2 + 1 / 2 * 2 / 3),
        ([(0, 0.9, A), (1, 0.8, A), (1, 0.7, B)], 1 / 2 + 1 / 2 * 2 / 3),  # the crowd is of the other image
    ):
        assert voc_ap(truths, detections(*found))[0] == pytest.approx(score), found


def test_an_overlap_of_exactly_half_is_not_enough():
    half, more = [0, 0, 10, 5], [0, 0, 10, 5.1]
    assert voc_ap([truth([A])], detections((0, 0.9, half)))[0] == 0
    assert voc_ap([truth([A])], detections((0, 0.9, more)))[0] == pytest.approx(1)


def test_a_class_without_boxes_has_no_score():
    assert np.isnan(voc_ap([truth([])], detections((0, 0.9, A)))).all()
    assert np.isnan(voc_ap([truth([A], [True])], detections())).all()


def test_no_detections_score_zero():
    assert voc_ap([truth([A])], detections()) == (0, 0)


def test_iou_worked_by_hand():
    np.testing.assert_allclose(iou(np.array([0.0, 0, 4, 4]), np.array([[2.0, 2, 6, 6], [4, 4, 5, 5]])), [4 / 28, 0])


def random_case(seed: int, images: int = 6):
    """Integer boxes, so that the other library's inclusive pixels mean the same; detections near them or anywhere."""
    rng = np.random.default_rng(seed)
    truths, rows = [], []
    for image in range(images):
        corners = rng.integers(0, 60, (rng.integers(0, 5), 2))
        boxes = np.concatenate([corners, corners + rng.integers(8, 30, corners.shape)], axis=1).astype(float)
        truths.append(truth(boxes, rng.random(len(boxes)) < 0.25))
        for box in [*boxes, *boxes[::2]]:
            rows.append((image, rng.random(), box + np.concatenate([rng.integers(-4, 4, 2)] * 2)))
        for corner in rng.integers(0, 60, (2, 2)):
            rows.append((image, rng.random(), [*corner, *(corner + 15)]))
    return truths, detections(*rows)


def brute_force(truths, found, points=None) -> float:
    """The definition: at every score threshold match anew; precision at a recall is the best at that recall or more."""
    pairs = set()
    positives = sum((~item.difficult).sum() for item in truths)
    for threshold in sorted(set(found.scores), reverse=True):
        used, hits, misses = set(), 0, 0
        for index in sorted(np.where(found.scores >= threshold)[0], key=lambda i: -found.scores[i]):
            image = found.images[index]
            candidates = [(one_iou(found.boxes[index], box), place) for place, box in enumerate(truths[image].boxes)]
            overlap, place = max(candidates, key=lambda pair: pair[0], default=(0, None))
            if overlap > 0.5 and truths[image].difficult[place]:
                continue
            first = overlap > 0.5 and (image, place) not in used
            hits, misses = hits + first, misses + (not first)
            if first:
                used.add((image, place))
        if hits + misses:
            pairs.add((hits / positives, hits / (hits + misses)))

    def best(recall: float) -> float:
        return max((precision for reached, precision in pairs if reached >= recall - 1e-12), default=0)

    if points:
        return sum(best(point) for point in points) / len(points)
    levels = sorted({0.0, *(reached for reached, _ in pairs)})
    return sum((high - low) * best(high) for low, high in zip(levels, levels[1:], strict=False))


def one_iou(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


@pytest.mark.parametrize("seed", range(8))
def test_against_the_definition_by_brute_force(seed):
    truths, found = random_case(seed)
    area, eleven = voc_ap(truths, found)
    assert 0.1 < area < 1
    assert area == pytest.approx(brute_force(truths, found))
    assert eleven == pytest.approx(brute_force(truths, found, [tenth / 10 for tenth in range(11)]))


@pytest.mark.parametrize("seed", range(8))
def test_against_another_library(seed):
    truths, found = random_case(seed)
    truths = [truth(item.boxes) for item in truths]  # it counts difficult boxes otherwise
    other = MetricBuilder.build_evaluation_metric("map_2d", async_mode=False, num_classes=1)
    for image, item in enumerate(truths):
        mine = found.images == image
        inclusive = np.array([0, 0, 1, 1])
        predicted = np.column_stack([found.boxes[mine] - inclusive, np.zeros(mine.sum()), found.scores[mine]])
        annotated = np.column_stack([item.boxes - inclusive, np.zeros((len(item.boxes), 3))])
        other.add(predicted, annotated)
    area, eleven = voc_ap(truths, found)
    assert area == pytest.approx(other.value(iou_thresholds=0.5)["mAP"], abs=1e-6)
    points = np.arange(0, 1.1, 0.1)
    assert eleven == pytest.approx(other.value(iou_thresholds=0.5, recall_thresholds=points)["mAP"], abs=1e-6)
