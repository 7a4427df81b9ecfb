"""How far AP50 would move with other test images of the same kind: a bootstrap over images, for a single seed.

Detections are matched to truths once, because images are matched one by one. A resample then only counts every image as
often as it was drawn (Efron & Tibshirani, An Introduction to the Bootstrap, 1993).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runs import Run
from lossmix_det.config import load_config
from lossmix_det.data.boxes import overlaps
from lossmix_det.data.catalog import load_test_sets
from lossmix_det.data.records import ImageSet
from lossmix_det.errors import UserError
from lossmix_det.report.run_folder import RunFolder, is_as_recorded, unreadable_of

log = logging.getLogger(__name__)

# By method and test set: AP50 of each resample, of the same images for every method.
Resamples = dict[tuple[str, str], np.ndarray]
RESAMPLES = 1000
RECALLS = np.linspace(0, 1, 101)  # of COCO's average
LEAST_IOU = 0.5


@dataclass(frozen=True)
class Matches:
    """What COCO makes of the detections of one class at IoU 0.5.

    Args:
        images: (D,) number of the image of each detection that counts, best first.
        hits: (D,) bool, whether it is of a truth.
        truths: (I,) how many truths count in each image.
    """

    images: np.ndarray
    hits: np.ndarray
    truths: np.ndarray


def match(image_set: ImageSet, detections: list[dict[str, Any]]) -> list[Matches]:
    """The matches of every class, as COCO's evaluation makes them.

    Args:
        image_set: I images with truths.
        detections: COCO results of its images.
    """
    found: dict[tuple[int, int], list[tuple[float, list[float]]]] = defaultdict(list)
    numbers = {image_set.id_of(record.image_id): number for number, record in enumerate(image_set.records)}
    for row in detections:
        found[numbers[row["image_id"]], row["category_id"]].append((row["score"], row["bbox"]))
    return [_of_class(image_set, found, label, number) for label, number in enumerate(image_set.category_ids)]


def _of_class(
    image_set: ImageSet, found: dict[tuple[int, int], list[tuple[float, list[float]]]], label: int, category: int
) -> Matches:
    rows, truths = [], np.zeros(len(image_set), dtype=np.int64)
    for number, record in enumerate(image_set.records):
        of_class = record.classes == label
        crowd, ignored = record.crowd[of_class], (record.crowd | record.difficult)[of_class]
        truths[number] = (~ignored).sum()
        best_first = sorted(found.get((number, category), []), key=lambda row: -row[0])
        boxes = np.array([box for _, box in best_first], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        outcome = _match_image(overlaps(boxes, record.boxes[of_class], crowd), crowd, ignored)
        rows += [(score, number, hit) for (score, _), hit in zip(best_first, outcome, strict=True) if hit is not None]
    rows.sort(key=lambda row: -row[0])
    images, hits = (np.array([row[place] for row in rows], dtype=kind) for place, kind in ((1, np.int64), (2, bool)))
    return Matches(images, hits, truths)


def _match_image(iou: np.ndarray, crowd: np.ndarray, ignored: np.ndarray) -> list[bool | None]:
    """For each detection, best first: whether it is of a truth; None: of one that does not count."""
    taken, outcome = np.zeros(iou.shape[1], dtype=bool), []
    for row in iou:
        hit: bool | None = False
        for of_kind, result in ((~ignored, True), (ignored, None)):  # truths that count come first
            free = np.where(of_kind & (~taken | crowd) & (row >= LEAST_IOU))[0]
            if len(free):
                best = free[len(free) - 1 - row[free][::-1].argmax()]  # the last of equals, as in COCO
                taken[best], hit = True, result
                break
        outcome.append(hit)
    return outcome


def ap50(matches: Iterable[Matches], counts: np.ndarray) -> float:
    """AP50 in percent where every image counts so many times, (I,); nan if no truth counts."""
    values = []
    for of_class in matches:
        truths = float((counts * of_class.truths).sum())
        if truths:
            weights = counts[of_class.images]
            right, wrong = (weights * of_class.hits).cumsum(), (weights * ~of_class.hits).cumsum()
            precision = right / np.maximum(right + wrong, 1e-12)
            envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
            values.append(envelope[np.searchsorted(right / truths, RECALLS)].mean())
    return 100 * float(np.mean(values)) if values else float("nan")


def resampled(matches: Sequence[Matches], images: int, seed: int = 0) -> np.ndarray:
    """(`RESAMPLES`,) AP50 of as many images drawn with replacement; alike for every method on the same images."""
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    return np.array([ap50(matches, counts) for counts in draws])


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile, resamples without a truth left out."""
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(low), float(high)


def resamples_of(run: Run, overrides: list[str]) -> dict[str, np.ndarray]:
    """By test set of a finished run: AP50 of the reported model on resampled images; none where data is gone."""
    return _resamples_in(run.folder, run.config, tuple(run.words(overrides)))


@cache
def _resamples_in(folder: Path, config: Path, words: tuple[str, ...]) -> dict[str, np.ndarray]:
    found = {}
    try:
        run = RunFolder(folder)
        for image_set in load_test_sets(load_config(config, list(words))):
            if not is_as_recorded(run, image_set):
                raise UserError(f"the images or labels of {image_set.name} have changed since the run")
            detections = run.detections(image_set.name)
            if image_set.labelled and detections is not None:
                read = image_set.without(unreadable_of(run, image_set.name))
                found[image_set.name] = resampled(match(read, detections), len(read))
    except (UserError, KeyError) as error:
        log.warning("%s: no intervals, because its test images are not those of the run (%s)", folder, error)
        return {}
    return found
