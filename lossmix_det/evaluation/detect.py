"""From a detector and a data set to detections and scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from lossmix_det.data.records import ImageSet, Unreadable
from lossmix_det.data.workers import batches
from lossmix_det.engines.contract import Detector
from lossmix_det.evaluation.coco import COCO_METRICS, coco_metrics
from lossmix_det.evaluation.voc import VOC_METRICS, ClassDetections, ClassTruth, Ranked, rank, voc_ap
from lossmix_det.structures import Instances

METRICS = (*COCO_METRICS, *VOC_METRICS)


def detect_all(
    detector: Detector,
    image_set: ImageSet,
    loader: DataLoader,
    device: torch.device | str,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[list[dict[str, Any]], dict[int, Unreadable]]:
    """Detect on every image that the loader yields.

    Args:
        detector: on ``device``.
        image_set: that the loader was made of.
        loader: from `evaluation_loader`.
        device: where to run.
        advance: told the number of images done, for a progress bar.

    Returns:
        COCO results in pixels of the files. The images that could not be read, by index, with the reason; they have no
        results.
    """
    results: list[dict[str, Any]] = []
    unreadable: dict[int, Unreadable] = {}
    for images, indices, problems in batches(loader):
        unreadable |= problems
        detections = detector.detect(images.to(device).to_float())
        for index, size, instances in zip(indices, images.sizes, detections, strict=True):
            if index in problems:
                continue
            height, width = image_set.records[index].size
            scale = instances.boxes.new_tensor([width / size[1], height / size[0]] * 2)
            results += coco_results(image_set, index, instances.boxes * scale, instances)
        advance(len(indices))
    return results, unreadable


def coco_results(image_set: ImageSet, index: int, boxes: torch.Tensor, instances: Instances) -> list[dict[str, Any]]:
    """Detections of one image as COCO results: ``bbox`` is [x, y, width, height] in pixels of the file.

    ``image_id`` is the id in the annotation file, and ``file_name`` the path below the folder of images.

    Args:
        image_set: that the image is in.
        index: of the image.
        boxes: (N, 4) in pixels of the file.
        instances: N detections with scores; their own boxes are not read.
    """
    record = image_set.records[index]
    image_id, file_name = image_set.id_of(record.image_id), image_set.file_name(record.path)
    rows = zip(boxes.tolist(), instances.classes.tolist(), instances.scores.tolist(), strict=True)
    return [
        {
            "image_id": image_id,
            "file_name": file_name,
            "category_id": image_set.category_ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), label, score in rows
    ]


def evaluate(image_set: ImageSet, detections: list[dict[str, Any]], limit: int | None = None) -> dict[str, Any]:
    """All scores in percent, labelled; nan where the data set has nothing to score.

    Args:
        image_set: with truths.
        detections: COCO results of its images.
        limit: how many detections the detector gives of one image; None: as many as there are of any image. COCO
            counts up to 100; beyond that the limit is counted.

    Returns:
        ``AP, AP50, AP75, APs, APm, APl`` (COCO), ``VOC_AP50`` (area), ``VOC07_AP50`` (11 points), and ``classes``:
        name to ``AP, AP50, VOC_AP50, VOC07_AP50``; ``detections_per_image``, as many as COCO's AP counts.
    """
    most = max(Counter(row["image_id"] for row in detections).values(), default=0)
    metrics = coco_metrics(image_set, detections, limit or most)
    truths, found = _truths(image_set), _by_class(image_set, detections)
    for label, name in enumerate(image_set.classes):
        area, eleven = voc_ap(truths[label], found[label])
        metrics["classes"][name] |= dict(zip(VOC_METRICS, (area * 100, eleven * 100), strict=True))
    for key in VOC_METRICS:
        values = np.array([row[key] for row in metrics["classes"].values()])
        metrics[key] = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
    return metrics


def ranked_by_class(image_set: ImageSet, detections: list[dict[str, Any]]) -> dict[str, Ranked]:
    """Which detections are hits, by class, as VOC's AP50 counts them.

    Args:
        image_set: with truths.
        detections: COCO results of its images.
    """
    pairs = zip(_truths(image_set), _by_class(image_set, detections), strict=True)
    return dict(zip(image_set.classes, (rank(*pair) for pair in pairs), strict=True))


def _truths(image_set: ImageSet) -> list[list[ClassTruth]]:
    """Boxes by class and image, COCO's crowds apart."""
    nothing = ClassTruth(np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=bool))
    truths = [[nothing] * len(image_set) for _ in image_set.classes]
    for index, record in enumerate(image_set.records):
        for label in np.unique(record.classes):
            chosen, crowd = (record.classes == label) & ~record.crowd, (record.classes == label) & record.crowd
            truths[label][index] = ClassTruth(record.boxes[chosen], record.difficult[chosen], record.boxes[crowd])
    return truths


def _by_class(image_set: ImageSet, detections: list[dict[str, Any]]) -> list[ClassDetections]:
    """Detections of each class; those of other images or classes are left out."""
    index_of = {image_set.id_of(record.image_id): index for index, record in enumerate(image_set.records)}
    label_of = {number: label for label, number in enumerate(image_set.category_ids)}
    detections = [row for row in detections if row["image_id"] in index_of and row["category_id"] in label_of]
    boxes = np.array([row["bbox"] for row in detections], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    images = np.array([index_of[row["image_id"]] for row in detections], dtype=np.int64)
    labels = np.array([label_of[row["category_id"]] for row in detections], dtype=np.int64)
    scores = np.array([row["score"] for row in detections], dtype=np.float64)
    chosen = [labels == label for label in range(len(image_set.classes))]
    return [ClassDetections(images[mask], scores[mask], boxes[mask]) for mask in chosen]
