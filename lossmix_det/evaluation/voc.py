"""PASCAL VOC average precision at IoU 0.5 (Everingham et al., IJCV 2010, and the 2010 devkit).

VOC counts pixels inclusively: a box is xmax - xmin + 1 wide. Here the first corner was moved by one pixel when the file
was read, so that x2 - x1 is the same width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lossmix_det.data.boxes import overlaps

VOC_METRICS = ("VOC_AP50", "VOC07_AP50")  # area under the curve; mean of 11 points


@dataclass(frozen=True)
class ClassTruth:
    """Boxes (N, 4) of one class in one image, and which of them are difficult; (C, 4) of COCO's crowds beside them."""

    boxes: np.ndarray
    difficult: np.ndarray
    crowds: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))


@dataclass(frozen=True)
class ClassDetections:
    """Detections of one class over all images: index of the image, score and box of each."""

    images: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray


def voc_ap(truths: list[ClassTruth], detections: ClassDetections, threshold: float = 0.5) -> tuple[float, float]:
    """Average precision of one class.

    Detections are taken by falling score. Each belongs to the box that it overlaps most, if by more than the threshold.
    The first detection of a box is a hit, every other one a miss. Detections of difficult boxes are not counted. Nor
    are those that overlap no box and lie in a crowd, of which VOC has none.

    Args:
        truths: one per image.
        detections: of the same images.
        threshold: of the IoU, exclusive.

    Returns:
        AP as the area under the monotone precision-recall curve (VOC 2010 on), and as the mean precision at the
        recalls 0, 0.1, … 1 (VOC 2007); both nan if the class has no box that counts.
    """
    ranked = rank(truths, detections, threshold)
    if not ranked.positives:
        return float("nan"), float("nan")
    return _area(ranked.recall, ranked.precision), _eleven_points(ranked.recall, ranked.precision)


@dataclass(frozen=True)
class Ranked:
    """Detections of one class by falling score, those of difficult boxes left out.

    Args:
        scores: (D,) of the detections.
        hits: (D,) whether each is the first detection of a box.
        positives: how many boxes there are to find.
    """

    scores: np.ndarray
    hits: np.ndarray
    positives: int

    @property
    def recall(self) -> np.ndarray:
        """(D,) share of the boxes that were found by then."""
        return np.cumsum(self.hits) / max(self.positives, 1)

    @property
    def precision(self) -> np.ndarray:
        """(D,) share of the detections by then that are hits."""
        return np.cumsum(self.hits) / np.arange(1, len(self.hits) + 1)


def rank(truths: list[ClassTruth], detections: ClassDetections, threshold: float = 0.5) -> Ranked:
    """Decide of each detection whether it is a hit, as `voc_ap` counts it.

    Args:
        truths: one per image.
        detections: of the same images.
        threshold: of the IoU, exclusive.
    """
    order = np.argsort(-detections.scores, kind="stable")
    difficult = np.concatenate([truth.difficult for truth in truths]) if truths else np.zeros(0, dtype=bool)
    best = _best_overlaps(truths, detections, threshold)[order]
    overlapping = best >= 0
    counted = ~(overlapping & difficult[best]) if len(difficult) else np.ones(len(best), dtype=bool)
    counted &= overlapping | ~_in_crowds(truths, detections, threshold)[order]
    best, overlapping = best[counted], overlapping[counted]
    hits = np.zeros(len(best), dtype=bool)
    hits[overlapping.nonzero()[0][np.unique(best[overlapping], return_index=True)[1]]] = True  # the first of each box
    return Ranked(detections.scores[order][counted], hits, int((~difficult).sum()))


def _in_crowds(truths: list[ClassTruth], detections: ClassDetections, threshold: float) -> np.ndarray:
    """(D,) bool: which detections lie in a crowd of their image."""
    inside = np.zeros(len(detections.images), dtype=bool)
    for index, truth in enumerate(truths):
        if len(truth.crowds):
            of_image = (detections.images == index).nonzero()[0]
            shares = overlaps(detections.boxes[of_image], truth.crowds, np.ones(len(truth.crowds), dtype=bool))
            inside[of_image] = (shares > threshold).any(axis=1)
    return inside


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
