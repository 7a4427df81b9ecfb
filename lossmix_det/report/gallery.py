"""The pictures of a run's page: where the detector fails, and what the teacher labels as training goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lossmix_det.data.images import read
from lossmix_det.data.packed import ImageRecord
from lossmix_det.data.records import ImageSet
from lossmix_det.evaluation.diagnosis import SURE, Diagnosis, Found, Judged, detections_by_image
from lossmix_det.evaluation.pictures import marks_of
from lossmix_det.report.run_folder import RunFolder
from lossmix_det.report.thumbnails import DETECTED, TRUTH, Thumbnail, thumbnail
from lossmix_det.structures import Instances

SHOWN = 6  # pictures of a row
STEPS_SHOWN = 6  # evaluations that pseudo-labels are shown of
SNAPSHOTS = "pseudo_labels.json"  # of a run's folder


def gallery(
    image_set: ImageSet, detections: list[dict[str, Any]], diagnosis: Diagnosis | None, high_bit_depth: str
) -> dict[str, list[Thumbnail]]:
    """Rows of images by what they are: the worst and the best; without a diagnosis a few of them.

    Args:
        image_set: that was detected on.
        detections: COCO results.
        diagnosis: of them; absent where the truth is not known.
        high_bit_depth: how 16-bit images are read.
    """
    found = detections_by_image(image_set, detections)
    if diagnosis is None:
        chosen = {"A few images": [(index, "") for index in evenly(len(image_set), SHOWN)]}
    else:
        told = [(one.index, _verdict(one)) for one in diagnosis.images]
        worst, rest = told[:SHOWN], told[SHOWN:]
        chosen = {"Worst": worst, "Best": rest[::-1][:SHOWN]}
    rows = {
        title: _readable((image_set, index, found[index], words, high_bit_depth) for index, words in images)
        for title, images in chosen.items()
    }
    return {title: row for title, row in rows.items() if row}


def _verdict(one: Judged) -> str:
    confused = len(one.pairs) - one.right
    counts = {"right": one.right, "of another class": confused, "missed": len(one.missed), "too many": len(one.extra)}
    return f"F1 {one.f1:.2f}: " + ", ".join(f"{count} {words}" for words, count in counts.items() if count)


def snapshots_gallery(
    run: RunFolder, target_sets: Sequence[ImageSet], high_bit_depth: str
) -> dict[str, list[Thumbnail]]:
    """A row for each image that the teacher's labels were followed on, with a picture of each of some evaluations."""
    taken = read_snapshots(run.path)
    return _rows([taken[index] for index in evenly(len(taken), STEPS_SHOWN)], target_sets, high_bit_depth)


def _rows(
    snapshots: Sequence[dict[str, Any]], target_sets: Sequence[ImageSet], high_bit_depth: str
) -> dict[str, list[Thumbnail]]:
    known = {str(record.path): (image_set, record) for image_set in target_sets for record in _few(image_set)}
    rows: dict[str, list[Thumbnail]] = {}
    for snapshot in snapshots:
        for of_image in snapshot["images"]:
            if of_image["path"] not in known:
                continue
            image_set, record = known[of_image["path"]]
            picture = _labelled(image_set, record, of_image, snapshot["step"], high_bit_depth)
            rows.setdefault(image_set.file_name(record.path), []).extend(picture)
    return rows


def last_snapshots(folder: Path, target_sets: Sequence[ImageSet], high_bit_depth: str) -> list[Thumbnail]:
    """What the teacher labelled last on the images that are followed; empty before it has."""
    rows = _rows(read_snapshots(folder)[-1:], target_sets, high_bit_depth)
    return [picture for row in rows.values() for picture in row]


def on_followed(image_set: ImageSet, detections: list[dict[str, Any]], high_bit_depth: str) -> list[Thumbnail]:
    """Detections on the images of a test set that are followed."""
    chosen = replace(image_set, records=image_set.records.take(followed(image_set)))
    found = detections_by_image(chosen, detections)
    return _readable((chosen, index, one, "", high_bit_depth) for index, one in enumerate(found))


def read_snapshots(folder: Path) -> list[dict[str, Any]]:
    """What was written of the teacher's labels: by evaluation its ``step`` and ``images``; empty if unreadable."""
    try:
        content = json.loads((folder / SNAPSHOTS).read_text(encoding="utf-8"))
        return [one for one in content if {"step", "images"} <= one.keys()]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return []


def followed(image_set: ImageSet, count: int = 4) -> np.ndarray:
    """Indices of the images of a target that pseudo-labels are followed on: evenly spread, and always the same."""
    return np.array(evenly(len(image_set), count), dtype=np.int64)


def evenly(of: int, count: int) -> list[int]:
    """At most so many of the numbers below another, from the first to the last, evenly spread."""
    return np.unique(np.linspace(0, of - 1, min(count, of)).round().astype(int)).tolist()


def _few(image_set: ImageSet) -> list[ImageRecord]:
    return [image_set.records[int(index)] for index in followed(image_set)]


def _readable(wanted: Iterable[tuple[ImageSet, int, Found, str, str]]) -> list[Thumbnail]:
    """Pictures of the images that can be read."""
    pictures = []
    for image_set, index, found, words, high_bit_depth in wanted:
        record = image_set.records[index]
        try:
            pixels = read(record.path, high_bit_depth, exif=record.exif)
        except OSError:
            continue
        sure = found.scores >= SURE
        boxes, classes = torch.from_numpy(found.boxes[sure]), torch.from_numpy(found.classes[sure])
        detected = Instances(boxes.float(), classes, torch.from_numpy(found.scores[sure]).float())
        marks = marks_of(detected, DETECTED)
        if image_set.labelled:
            marks += marks_of(Instances(torch.from_numpy(record.boxes), torch.from_numpy(record.classes)), TRUTH)
        name = image_set.file_name(record.path)
        caption = f"{name}: {words}" if words else name
        text = f"{name} with {len(record.boxes)} objects and {int(sure.sum())} detections"
        pictures.append(thumbnail(pixels, marks, image_set.classes, caption, text))
    return pictures


def _labelled(
    image_set: ImageSet, record: ImageRecord, labels: dict[str, Any], step: int, high_bit_depth: str
) -> list[Thumbnail]:
    try:
        pixels = read(record.path, high_bit_depth, exif=record.exif)
        boxes = torch.tensor(labels["boxes"], dtype=torch.float32).reshape(-1, 4)
        classes = torch.tensor(labels["classes"], dtype=torch.int64)
        instances = Instances(boxes, classes, torch.tensor(labels["scores"], dtype=torch.float32))
    except (OSError, KeyError, ValueError, TypeError):
        return []
    text = f"{image_set.file_name(record.path)} with {len(boxes)} pseudo-labels at step {step}"
    return [thumbnail(pixels, marks_of(instances, DETECTED), image_set.classes, f"step {step}", text)]
