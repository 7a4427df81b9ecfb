"""COCO's scores are held against pycocotools, boxes that do not count included."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lossmix_det.data.packed import ImageRecord
from lossmix_det.data.records import ImageSet, Problems
from lossmix_det.evaluation.coco import COCO_METRICS, coco_metrics

NUMBERS = [7, 3, 90]  # of the classes; not in order


class IgnoringDifficult(COCOeval):
    """pycocotools, told after it has prepared that difficult boxes do not count."""

    def _prepare(self):
        super()._prepare()
        for boxes in self._gts.values():
            for box in boxes:
                box["ignore"] = int(box["ignore"] or box["difficult"])


def random_set(seed: int, images: int = 12) -> tuple[ImageSet, list[dict]]:
    """Small, middling and large boxes, a third of them crowds or difficult; detections near them, doubled and equal."""
    rng = np.random.default_rng(seed)
    records, rows = [], []
    for index in range(images):
        count = int(rng.integers(0, 6))
        corners, sides = rng.uniform(0, 300, (count, 2)), rng.choice([12, 60, 180], (count, 1)) * rng.uniform(0.7, 1.4)
        boxes = np.concatenate([corners, corners + sides * rng.uniform(0.6, 1.5, (count, 2))], axis=1)
        boxes = boxes.astype(np.float32)
        classes = rng.integers(0, 3, count)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64) * rng.uniform(0.5, 1.0, count)
        crowd, difficult = rng.random(count) < 0.15, rng.random(count) < 0.2
        records.append(
            ImageRecord(Path(f"{index}.jpg"), index + 1, (500, 500), boxes, classes, difficult, crowd, areas)
        )
        shifted = boxes + rng.normal(0, 4, boxes.shape)
        near = np.concatenate([boxes, shifted, shifted[::2]])
        for box, label in zip(near, [*classes, *classes, *classes[::2]], strict=True):
            rows.append(row(index + 1, label if rng.random() < 0.9 else rng.integers(3), box, rng))
        for _ in range(int(rng.integers(0, 500))):  # of one class more than the 100 that count, in some
            corner = rng.uniform(0, 300, 2)
            rows.append(row(index + 1, rng.integers(3), [*corner, *(corner + rng.uniform(5, 200, 2))], rng))
    return ImageSet("some", ["cat", "dog", "emu"], records, True, NUMBERS, "", Problems()), rows


def row(image_id: int, label: int, box, rng) -> dict:
    x1, y1, x2, y2 = map(float, box)
    score = round(float(rng.random()), 2)  # so that many are equal
    return {
        "image_id": image_id,
        "category_id": NUMBERS[int(label)],
        "bbox": [x1, y1, max(x2 - x1, 1.0), max(y2 - y1, 1.0)],
        "score": score,
    }


def by_pycocotools(image_set: ImageSet, rows: list[dict]) -> tuple[list[float], dict[str, np.ndarray]]:
    annotations = [
        {
            "image_id": record.image_id,
            "category_id": image_set.category_ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": area,
            "iscrowd": int(crowd),
            "difficult": int(difficult),
        }
        for record in image_set.records
        for (x1, y1, x2, y2), label, area, crowd, difficult in zip(
            record.boxes.tolist(), record.classes, record.areas, record.crowd, record.difficult, strict=True
        )
    ]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": record.image_id, "height": 500, "width": 500} for record in image_set.records],
        "annotations": [{"id": number, **entry} for number, entry in enumerate(annotations, start=1)],
        "categories": [{"id": number} for number in NUMBERS],
        "info": {},
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = IgnoringDifficult(truth, truth.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"]
    order = sorted(NUMBERS)
    classes = {
        name: precision[:, :, order.index(number), 0, -1]
        for name, number in zip(image_set.classes, NUMBERS, strict=True)
    }
    return list(evaluation.stats), classes


@pytest.mark.parametrize("seed", range(12))
def test_against_pycocotools(seed):
    image_set, rows = random_set(seed)
    found = coco_metrics(image_set, rows)
    stats, classes = by_pycocotools(image_set, rows)
    for name, value in zip(COCO_METRICS, stats, strict=False):
        assert found[name] == pytest.approx(value * 100, abs=1e-9), name
    assert 0.5 < found["AP"] < 99
    for name, precision in classes.items():
        assert found["classes"][name]["AP"] == pytest.approx(precision.mean() * 100, abs=1e-9)
        assert found["classes"][name]["AP50"] == pytest.approx(precision[0].mean() * 100, abs=1e-9)


def test_boxes_that_do_not_count_change_the_scores_of_this_test():
    """Otherwise the comparison above would not notice them."""
    image_set, rows = random_set(3)
    before = coco_metrics(image_set, rows)["AP"]
    for record in image_set.records:
        record.difficult[:] = False
    assert coco_metrics(image_set, rows)["AP"] != pytest.approx(before, rel=0.01)


def test_scoring_prints_and_logs_nothing(capsys, caplog):
    caplog.set_level("INFO")
    coco_metrics(*random_set(1))
    assert capsys.readouterr() == ("", "")
    assert not caplog.records
