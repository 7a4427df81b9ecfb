"""What a detector gets wrong: curves, confusions and the images where it fails, at IoU 0.5."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossmix_det.data.boxes import overlaps
from lossmix_det.data.packed import ImageRecord
from lossmix_det.data.records import ImageSet
from lossmix_det.evaluation.detect import ranked_by_class
from lossmix_det.evaluation.voc import Ranked

OVERLAP = 0.5  # IoU above which a detection is of an object
SURE = 0.3  # least score of the detections that confusions and images are judged by
BINS = 10  # of scores, for calibration


@dataclass(frozen=True)
class Found:
    """The detections of one image.

    Args:
        boxes: (D, 4) ``xyxy`` pixels of the file.
        classes: (D,) in 0…K-1.
        scores: (D,).
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Judged:
    """One image beside its truth.

    Args:
        index: of the image.
        pairs: (P, 2) indices of an object and of the detection that overlaps it, whatever their classes.
        missed: indices of objects without a detection.
        extra: indices of detections without an object.
        right: how many pairs are of one class.
    """

    index: int
    pairs: np.ndarray
    missed: np.ndarray
    extra: np.ndarray
    right: int

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall of the image; 1 where there is nothing to find and nothing found."""
        wrong = 2 * (len(self.pairs) - self.right) + len(self.missed) + len(self.extra)
        return 2 * self.right / (2 * self.right + wrong) if self.right or wrong else 1.0


@dataclass(frozen=True)
class Diagnosis:
    """Of one detector on one test set.

    Args:
        curves: by class, detections by falling score.
        calibration: (B, 3) of the scores in each of `BINS` bins that has any: mean score, share of hits, count.
        confusion: (K + 1, K + 1) counts; rows are true classes and last the background, columns what was detected and
            last nothing.
        images: every image that has objects or detections, worst first.
    """

    curves: dict[str, Ranked]
    calibration: np.ndarray
    confusion: np.ndarray
    images: list[Judged]


def diagnose(image_set: ImageSet, detections: list[dict[str, Any]]) -> Diagnosis:
    """Hold detections against the truths of a data set.

    Args:
        image_set: with truths.
        detections: COCO results of its images.
    """
    curves = ranked_by_class(image_set, detections)
    judged, classes = [], len(image_set.classes)
    confusion = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    found = detections_by_image(image_set, detections)
    for index, record in enumerate(image_set.records):
        of_image = found[index]
        verdict = judge(index, record, of_image)
        np.add.at(confusion, (record.classes[verdict.pairs[:, 0]], of_image.classes[verdict.pairs[:, 1]]), 1)
        np.add.at(confusion, (record.classes[verdict.missed], classes), 1)
        np.add.at(confusion, (classes, of_image.classes[verdict.extra]), 1)
        judged += [verdict] if len(verdict.pairs) + len(verdict.missed) + len(verdict.extra) else []
    return Diagnosis(
        curves, _calibration(curves), confusion, sorted(judged, key=lambda one: (one.f1, -len(one.missed)))
    )


def judge(index: int, record: ImageRecord, found: Found) -> Judged:
    """Pair objects with detections that score at least `SURE`, those of the largest overlap first, each once.

    Objects that do not count (difficult, crowd) are no misses, and detections of them are no mistakes. Whatever lies in
    a crowd is a detection of it, as in COCO.

    Args:
        index: of the image.
        record: with the truth.
        found: in pixels of the file.
    """
    sure = (found.scores >= SURE).nonzero()[0]
    shared = overlaps(found.boxes[sure], record.boxes, record.crowd).T
    pairs: list[tuple[int, int]] = []
    free = np.where((shared > OVERLAP) & ~record.crowd[:, None], shared, 0.0)
    while free.size and free.max() > 0:
        row, column = np.unravel_index(free.argmax(), free.shape)
        pairs.append((int(row), int(sure[column])))
        free[row], free[:, column] = 0.0, 0.0
    counted = ~(record.difficult | record.crowd)
    chosen = np.array([pair for pair in pairs if counted[pair[0]]], dtype=np.int64).reshape(-1, 2)
    missed = np.setdiff1d(counted.nonzero()[0], chosen[:, 0])
    excused = (shared[~counted] > OVERLAP).any(axis=0)
    extra = np.setdiff1d(sure, [*chosen[:, 1], *sure[excused]]).astype(np.int64)
    right = int((record.classes[chosen[:, 0]] == found.classes[chosen[:, 1]]).sum())
    return Judged(index, chosen, missed, extra, right)


def detections_by_image(image_set: ImageSet, detections: list[dict[str, Any]]) -> list[Found]:
    """COCO results, image by image; rows of other images or classes are left out."""
    label_of = {number: label for label, number in enumerate(image_set.category_ids)}
    rows: dict[Any, list[tuple]] = defaultdict(list)
    for row in detections:
        if row["category_id"] in label_of:
            rows[row["image_id"]].append((*row["bbox"], label_of[row["category_id"]], row["score"]))
    return [_found(rows.get(image_set.id_of(record.image_id), [])) for record in image_set.records]


def _found(rows: list[tuple]) -> Found:
    values = np.array(rows, dtype=np.float64).reshape(-1, 6)
    boxes = np.concatenate([values[:, :2], values[:, :2] + values[:, 2:4]], axis=1)
    return Found(boxes, values[:, 4].astype(np.int64), values[:, 5])


def _calibration(curves: dict[str, Ranked]) -> np.ndarray:
    """Whether detections of a score are right as often as it says."""
    if not curves:
        return np.zeros((0, 3))
    scores, hits = (np.concatenate([getattr(one, name) for one in curves.values()]) for name in ("scores", "hits"))
    return np.array(list(_bins(scores, hits))).reshape(-1, 3)


def _bins(scores: np.ndarray, hits: np.ndarray) -> Iterator[tuple[float, float, int]]:
    numbers = np.minimum((scores * BINS).astype(int), BINS - 1)
    for number in np.unique(numbers):
        chosen = numbers == number
        yield float(scores[chosen].mean()), float(hits[chosen].mean()), int(chosen.sum())
