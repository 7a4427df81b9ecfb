"""COCO average precision (Lin et al., ECCV 2014) by faster-coco-eval, whose numbers are those of pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from lossmix_det.data.records import ImageSet

COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
COCO_LIMIT = 100  # detections of an image and class that count in COCO's own evaluation


class _IgnoringDifficult(COCOeval_faster):
    """Does not count VOC's difficult boxes; the stock class overwrites their ``ignore`` flag."""

    def _prepare(self) -> None:
        super()._prepare()
        for box in self.cocoGt.anns.values():
            box["ignore"] = int(box["ignore"] or box["difficult"])


def coco_metrics(image_set: ImageSet, detections: list[dict[str, Any]], limit: int = COCO_LIMIT) -> dict[str, Any]:
    """AP over IoU 0.5…0.95, at 0.5 and 0.75, by size, and AP and AP50 of each class, in percent.

    Args:
        image_set: with its truths.
        detections: COCO results (`coco_results`) of these images.
        limit: how many detections the detector gives of one image.

    Returns:
        The names in `COCO_METRICS`, and ``classes``: name to its AP and AP50; nan where no box counts.
        ``detections_per_image`` is how many detections of an image count: `COCO_LIMIT`, or the limit if that is more.
    """
    truth = COCO(_truth(image_set))
    detected = truth.loadRes(_numbered(image_set, detections)) if detections else _no_detections(image_set)
    evaluation = _IgnoringDifficult(truth, detected, "bbox", print_function=lambda line: None)
    evaluation.params.catIds = image_set.category_ids
    evaluation.params.maxDets = [1, 10, max(COCO_LIMIT, limit)]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    metrics: dict[str, Any] = dict(zip(COCO_METRICS, (_percent(value) for value in evaluation.stats), strict=False))
    metrics["detections_per_image"] = evaluation.params.maxDets[-1]
    precision = evaluation.eval["precision"]  # (IoU, recall, class, area, detections)
    # Categories are scored in the order of their numbers.
    place = {number: index for index, number in enumerate(sorted(image_set.category_ids))}
    metrics["classes"] = {
        name: {"AP": _mean(precision[:, :, place[number], 0, -1]), "AP50": _mean(precision[0, :, place[number], 0, -1])}
        for name, number in zip(image_set.classes, image_set.category_ids, strict=True)
    }
    return metrics


def _numbered(image_set: ImageSet, detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The detections with the numbers of the records in place of ids that are none."""
    numbers = {image_id: number for number, image_id in image_set.ids.items()}
    return [{**row, "image_id": numbers.get(row["image_id"], row["image_id"])} for row in detections]


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
        {
            "id": record.image_id,
            "file_name": image_set.file_name(record.path),
            "height": record.size[0],
            "width": record.size[1],
        }
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
