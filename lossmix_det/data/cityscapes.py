"""Cityscapes' polygons (Cordts et al., CVPR 2016) as COCO instance annotations."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from rich.progress import track

from lossmix_det.data.catalog import CITYSCAPES_CLASSES, datasets_root
from lossmix_det.data.coco import write_coco
from lossmix_det.data.sums import add_checksums, check_sums
from lossmix_det.errors import UserError

log = logging.getLogger(__name__)

# Foggy Cityscapes (Sakaridis et al., IJCV 2018) comes in three densities.
FOG_LEVELS = ("0.005", "0.01", "0.02")
FOG = "_foggy_beta_{}"
IMAGES = {"train": 2975, "val": 500}


def main() -> int:
    parser = argparse.ArgumentParser(description="Write COCO annotations of (Foggy) Cityscapes from gtFine.")
    parser.add_argument("root", type=Path, nargs="?", default=None, help="holds gtFine; default: the named data set")
    parser.add_argument("--fog", choices=FOG_LEVELS, default="0.02", help="density of foggy_cityscapes_{train,val}")
    add_checksums(parser)
    options = parser.parse_args()
    root = options.root or datasets_root() / "cityscapes"
    check_sums(options.checksums)
    kinds = {"cityscapes": [""], "foggy_cityscapes": [FOG.format(options.fog)]}
    kinds["foggy_cityscapes_all"] = [FOG.format(level) for level in FOG_LEVELS]
    for split, count in IMAGES.items():
        for name, suffixes in kinds.items():
            content = convert(root, split, suffixes)
            write_coco(root / "annotations" / f"{name}_{split}.json", content, expected=count * len(suffixes))
            _check_images(root, name, split, content)
    return 0


def _check_images(root: Path, name: str, split: str, content: dict[str, Any]) -> None:
    """Say how many of the images are there; none is needed to convert."""
    folder = root / ("leftImg8bit" if name == "cityscapes" else "leftImg8bit_foggy") / split
    absent = [entry["file_name"] for entry in content["images"] if not (folder / entry["file_name"]).is_file()]
    if absent:
        total = len(content["images"])
        log.warning(
            "%s_%s: %d of %d images are not in %s, %s for one", name, split, len(absent), total, folder, absent[0]
        )


def convert(root: Path, split: str, suffixes: list[str]) -> dict[str, Any]:
    """COCO content of one split.

    A polygon's box is in whole pixels clipped to the image; groups of objects ("cargroup") become crowds.

    Args:
        root: holds gtFine.
        split: train or val.
        suffixes: behind ``_leftImg8bit`` in the names of the images; every polygon file is of one image for each.

    Raises:
        UserError: a folder is missing, or a file is not of Cityscapes' layout.
    """
    paths = sorted((root / "gtFine" / split).glob("*/*_gtFine_polygons.json"))
    if not paths:
        raise UserError(f"{root / 'gtFine' / split}: no */*_gtFine_polygons.json; unpack gtFine_trainvaltest.zip there")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for path in track(paths, f"{split}{'/'.join(suffixes)}", transient=True):
        try:
            content = json.loads(path.read_text())
            size = {"width": content["imgWidth"], "height": content["imgHeight"]}
            objects = [entry for item in content["objects"] if (entry := _annotation(item, size))]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a polygon file of Cityscapes ({error}); unpack it again") from None
        for suffix in suffixes:
            number = len(images) + 1
            name = path.name.replace("_gtFine_polygons.json", f"_leftImg8bit{suffix}.png")
            images.append({"id": number, "file_name": f"{path.parent.name}/{name}", **size})
            annotations += [
                {"id": len(annotations) + i, "image_id": number, **e} for i, e in enumerate(objects, start=1)
            ]
    categories = [{"id": index, "name": name} for index, name in enumerate(CITYSCAPES_CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotation(item: dict[str, Any], size: dict[str, int]) -> dict[str, Any] | None:
    """One object; None if it is of none of the eight classes, or deleted, or outside."""
    label = item["label"].removesuffix("group")
    if label not in CITYSCAPES_CLASSES or item.get("deleted"):
        return None
    xs, ys = zip(*item["polygon"], strict=True)
    x1, y1 = max(min(xs), 0), max(min(ys), 0)
    x2, y2 = min(max(xs) + 1, size["width"]), min(max(ys) + 1, size["height"])
    if x2 <= x1 or y2 <= y1:
        return None
    return {
        "category_id": CITYSCAPES_CLASSES.index(label) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": int(label != item["label"]),
    }
