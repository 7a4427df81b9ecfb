"""COCO average precision (Lin et al., ECCV 2014) by faster-coco-eval, whose numbers are those of pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from lossmix_det.data.records import ImageSet

COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class _IgnoringDifficult(COCOeval_faster):
    """Does not count VOC's difficult boxes; the stock class overwrites their ``ignore`` flag."""

    def _prepare(self) -> None:
        super()._prepare()
        for box in self.cocoGt.anns.values():
            box["ignore"] = int(box["ignore"] or box["difficult"])


def coco_metrics(image_set: ImageSet, detections: list[dict[str, Any]]) -> dict[str, Any]:
    """AP over IoU 0.5…0.95, at 0.5 and 0.75, by size, and AP and AP50 of each class, in percent.

    Args:
        image_set: with its truths.
        detections: COCO results (`coco_results`) of these images.

    Returns:
        The names in `COCO_METRICS`, and ``classes``: name to its AP and AP50; nan where no box counts.
    """
    truth = COCO(_truth(image_set))
    detected = truth.loadRes([dict(row) for row in detections]) if detections else _no_detections(image_set)
    evaluation = _IgnoringDifficult(truth, detected, "bbox", print_function=lambda line: None)
    evaluation.params.catIds = image_set.category_ids
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    metrics: dict[str, Any] = dict(zip(COCO_METRICS, (_percent(value) for value in evaluation.stats), strict=False))
    precision = evaluation.eval["precision"]  # (IoU, recall, class, area, detections)
    # Categories are scored in the order of their numbers.
    place = {number: index for index, number in enumerate(sorted(image_set.category_ids))}
    metrics["classes"] = {
        name: {"AP": _mean(precision[:, :, place[number], 0, -1]), "AP50": _mean(precision[0, :, place[number], 0, -1])}
        for name, number in zip(image_set.classes, image_set.category_ids, strict=True)
    }
    return metrics


def _truth(image_set: ImageSet) -> dict[str, Any]:
    """The annotations as a COCO file would have them."""
    annotations = []
    for record in image_set.records:
        for index, (x1, y1, x2, y2) in enumerate(record.boxes.tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": image_set.category_ids[record.classes[index]],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(record.areas[index]),
                    "iscrowd": int(record.crowd[index]),
                    "difficult": int(record.difficult[index]),
                }
            )
    categories = [
        {"id": number, "name": name} for number, name in zip(image_set.category_ids, image_set.classes, strict=True)
    ]
    return {"images": _images(image_set), "annotations": annotations, "categories": categories, "info": {}}


def _images(image_set: ImageSet) -> list[dict[str, Any]]:
    return [
        {"id": record.image_id, "file_name": record.path.name, "height": record.size[0], "width": record.size[1]}
        for record in image_set.records
    ]


def _no_detections(image_set: ImageSet) -> COCO:
    """An empty result; `loadRes` does not take an empty list."""
    return COCO({"images": _images(image_set), "annotations": [], "categories": []})


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(values.mean() * 100) if values.size else float("nan")


def _percent(value: float) -> float:
    return float(value * 100) if value >= 0 else float("nan")
