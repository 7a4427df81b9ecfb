"""KITTI's object labels (Geiger et al., CVPR 2012) as COCO instance annotations."""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path
from typing import Any

from rich.progress import track

from lossmix_det.data.catalog import datasets_root
from lossmix_det.data.formats.coco import write_coco
from lossmix_det.data.images import probe
from lossmix_det.data.sums import add_checksums, check_sums
from lossmix_det.errors import UserError

log = logging.getLogger(__name__)

CLASSES = ["car", "van", "truck", "pedestrian", "person_sitting", "cyclist", "tram", "misc"]
IMAGES = 7481  # of the training set, the only one with labels


def main() -> int:
    parser = argparse.ArgumentParser(description="Write COCO annotations of KITTI's object training set.")
    parser.add_argument("root", type=Path, nargs="?", default=None, help="holds training; default: the named data set")
    add_checksums(parser)
    options = parser.parse_args()
    root = options.root or datasets_root() / "kitti"
    check_sums(options.checksums)
    content = convert(root)
    path = root / "annotations" / "kitti_train.json"
    write_coco(path, content, expected=IMAGES)
    return 0


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
    images, annotations = [], []
    for number, path in enumerate(track(paths, "kitti", transient=True), start=1):
        image = root / "training" / "image_2" / f"{path.stem}.png"
        try:
            width, height = probe(image)
        except OSError as error:
            raise UserError(f"{image}: cannot be read ({error}); unpack data_object_image_2.zip again") from None
        images.append({"id": number, "file_name": image.name, "width": width, "height": height})
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error}); unpack data_object_label_2.zip again") from None
        for place, line in enumerate(lines, start=1):
            entry = _annotation(line, f"{path}:{place}")
            if entry:
                annotations.append({"id": len(annotations) + 1, "image_id": number, **entry})
    categories = [{"id": index, "name": name} for index, name in enumerate(CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotation(line: str, where: str) -> dict[str, Any] | None:
    """One object from ``type truncated occluded alpha left top right bottom …``, in pixels from 0."""
    words = line.split()
    try:
        x1, y1, x2, y2 = map(float, words[4:8])
        name = words[0].lower()
        if name != "dontcare" and not (0 < x2 - x1 < math.inf and 0 < y2 - y1 < math.inf):
            raise ValueError
    except (ValueError, IndexError):
        raise UserError(f"{where}: not a label of KITTI ({line[:60]!r}); unpack it again") from None
    if name == "dontcare":
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
