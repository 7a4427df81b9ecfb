"""Converts KITTI's object labels (Geiger et al., CVPR 2012) to COCO instance annotations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lossmix_det.data.images import probe
from lossmix_det.data.progress import progress
from lossmix_det.errors import UserError

CLASSES = ["car", "van", "truck", "pedestrian", "person_sitting", "cyclist", "tram", "misc"]
IMAGES = 7481  # of the training set, the only one with labels
DONT_CARE = "dontcare"  # regions with objects that nobody labelled


def convert(root: Path) -> dict[str, Any]:
    """COCO content of the training set; ``DontCare`` regions are left out.

    Args:
        root: holds ``training/image_2`` and ``training/label_2``.

    Raises:
        UserError: a folder or an image is missing, or a label file is not of KITTI's layout.
    """
    folder = root / "training" / "label_2"
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise UserError(f"{folder}: no *.txt; unpack data_object_label_2.zip and data_object_image_2.zip in {root}")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, path in enumerate(progress(paths, "kitti"), start=1):
        images.append(_image(root / "training" / "image_2" / f"{path.stem}.png", number))
        for entry in _annotations(path):
            annotations.append({"id": len(annotations) + 1, "image_id": number, **entry})
    categories = [{"id": index, "name": name} for index, name in enumerate(CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _image(path: Path, number: int) -> dict[str, Any]:
    try:
        width, height = probe(path).upright
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); unpack data_object_image_2.zip again") from None
    return {"id": number, "file_name": path.name, "width": width, "height": height}


def _annotations(path: Path) -> list[dict[str, Any]]:
    """The objects of one label file."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); unpack data_object_label_2.zip again") from None
    entries = [_annotation(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    return [entry for entry in entries if entry is not None]


def _annotation(line: str, where: str) -> dict[str, Any] | None:
    """One object from ``type truncated occluded alpha left top right bottom …``, in pixels from 0."""
    words = line.split()
    try:
        x1, y1, x2, y2 = map(float, words[4:8])
        name = words[0].lower()
        if name != DONT_CARE and not (0 < x2 - x1 < math.inf and 0 < y2 - y1 < math.inf):
            raise ValueError
    except (ValueError, IndexError):
        raise UserError(f"{where}: not a label of KITTI ({line[:60]!r}); unpack it again") from None
    if name == DONT_CARE:
        return None
    if name not in CLASSES:
        raise UserError(f"{where}: unknown type {words[0]!r}; unpack it again")
    width, height = x2 - x1, y2 - y1
    return {
        "category_id": CLASSES.index(name) + 1,
        "bbox": [x1, y1, width, height],
        "area": width * height,
        "iscrowd": 0,
    }
