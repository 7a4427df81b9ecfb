"""PASCAL VOC average precision at IoU 0.5 (Everingham et al., IJCV 2010, and the 2010 devkit).

VOC counts pixels inclusively: a box is xmax - xmin + 1 wide. Here the first corner was moved by one pixel when the file
was read, so that x2 - x1 is the same width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

VOC_METRICS = ("VOC_AP50", "VOC07_AP50")  # area under the curve; mean of 11 points


@dataclass(frozen=True)
class ClassTruth:
    """Boxes (N, 4) of one class in one image, and which of them are difficult."""

    boxes: np.ndarray
    difficult: np.ndarray


@dataclass(frozen=True)
class ClassDetections:
    """Detections of one class over all images: index of the image, score and box of each."""

    images: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray


def voc_ap(truths: list[ClassTruth], detections: ClassDetections, threshold: float = 0.5) -> tuple[float, float]:
    """Average precision of one class.

    Detections are taken by falling score. Each belongs to the box that it overlaps most, if by more than the threshold.
    The first detection of a box is a hit, every other one a miss. Detections of difficult boxes are not counted.

    Args:
        truths: one per image.
        detections: of the same images.
        threshold: of the IoU, exclusive.

    Returns:
        AP as the area under the monotone precision-recall curve (VOC 2010 on), and as the mean precision at the
        recalls 0, 0.1, … 1 (VOC 2007); both nan if the class has no box that counts.
    """
    positives = sum(int((~truth.difficult).sum()) for truth in truths)
    if not positives:
        return float("nan"), float("nan")
    taken = [np.zeros(len(truth.boxes), dtype=bool) for truth in truths]
    hit, miss = [], []
    for index in np.argsort(-detections.scores, kind="stable"):
        image = detections.images[index]
        is_hit = _judge(detections.boxes[index], truths[image], taken[image], threshold)
        if is_hit is not None:
            hit.append(is_hit)
            miss.append(not is_hit)
    hits, misses = np.cumsum(hit), np.cumsum(miss)
    recall = hits / positives
    precision = hits / np.maximum(hits + misses, 1)
    return _area(recall, precision), _eleven_points(recall, precision)


def _judge(box: np.ndarray, truth: ClassTruth, taken: np.ndarray, threshold: float) -> bool | None:
    """True for a hit, False for a miss, None where it does not count; marks the box that is hit as taken."""
    overlaps = iou(box, truth.boxes)
    if not len(overlaps) or overlaps.max() <= threshold:
        return False
    best = int(overlaps.argmax())
    if truth.difficult[best]:
        return None
    first = not taken[best]
    taken[best] = True
    return first


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N,) intersection over union of a box with N boxes."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return common / (np.prod(box[2:] - box[:2]) + areas - common)


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope[1:]))


def _eleven_points(recall: np.ndarray, precision: np.ndarray) -> float:
    # Tenths as the devkit writes them: 0.1 * 3 is above 0.3 and would miss a recall of exactly 0.3.
    points = (precision[recall >= tenth / 10].max(initial=0.0) for tenth in range(11))
    return float(np.mean(list(points)))
