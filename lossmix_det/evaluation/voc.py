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
    order = np.argsort(-detections.scores, kind="stable")
    best = _best_overlaps(truths, detections, threshold)[order]
    difficult = np.concatenate([truth.difficult for truth in truths])
    overlapping = best >= 0
    best, overlapping = _counted(best, overlapping, difficult)
    hit = np.zeros(len(best), dtype=bool)
    hit[overlapping.nonzero()[0][np.unique(best[overlapping], return_index=True)[1]]] = True  # the first of each box
    hits = np.cumsum(hit)
    recall = hits / positives
    precision = hits / np.arange(1, len(hits) + 1)
    return _area(recall, precision), _eleven_points(recall, precision)


def _counted(best: np.ndarray, overlapping: np.ndarray, difficult: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without the detections of difficult boxes."""
    counted = ~(overlapping & difficult[best])
    return best[counted], overlapping[counted]


def _best_overlaps(truths: list[ClassTruth], detections: ClassDetections, threshold: float) -> np.ndarray:
    """(D,) the box that each detection overlaps most, among those of all images in a row; -1 below the threshold."""
    best = np.full(len(detections.images), -1)
    counts = np.array([len(truth.boxes) for truth in truths])
    near = counts[detections.images].nonzero()[0]  # in an image that has such boxes
    if not len(near):
        return best
    boxes = np.concatenate([truth.boxes for truth in truths if len(truth.boxes)])
    images = detections.images[near]
    lengths = counts[images]
    starts = np.cumsum(lengths) - lengths  # of the pairs of each detection
    first = (np.cumsum(counts) - counts)[images]
    pair_box = np.arange(lengths.sum()) - np.repeat(starts - first, lengths)
    overlaps = iou(np.repeat(detections.boxes[near], lengths, axis=0), boxes[pair_box])
    most = np.maximum.reduceat(overlaps, starts)
    is_most = overlaps == np.repeat(most, lengths)
    chosen = np.minimum.reduceat(np.where(is_most, pair_box, len(boxes)), starts)  # of equals the first
    best[near] = np.where(most > threshold, chosen, -1)
    return best


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) intersection over union of boxes (N, 4) or (4,) with others, one by one."""
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=-1)
    areas = np.prod(a[..., 2:] - a[..., :2], axis=-1) + np.prod(b[..., 2:] - b[..., :2], axis=-1)
    return common / (areas - common)


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope[1:]))


def _eleven_points(recall: np.ndarray, precision: np.ndarray) -> float:
    # Tenths as the devkit writes them: 0.1 * 3 is above 0.3 and would miss a recall of exactly 0.3.
    points = (precision[recall >= tenth / 10].max(initial=0.0) for tenth in range(11))
    return float(np.mean(list(points)))
