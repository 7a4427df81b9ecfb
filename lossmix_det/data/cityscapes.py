"""Converts Cityscapes' polygons (Cordts et al., CVPR 2016) to COCO instance annotations."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from lossmix_det.data.builtin import CITYSCAPES_CLASSES, CITYSCAPES_IMAGES
from lossmix_det.data.formats.coco import write_coco
from lossmix_det.data.progress import progress
from lossmix_det.errors import UserError

log = logging.getLogger(__name__)

# Foggy Cityscapes (Sakaridis et al., IJCV 2018) comes in three densities.
FOG_LEVELS = ("0.005", "0.01", "0.02")
FOG = "_foggy_beta_{}"
IMAGES = {"train": 2975, "val": 500}
POLYGONS = "_gtFine_polygons.json"
TRANSPARENT = "license plate"  # the one label that covers nothing


def convert_all(root: Path, fog: str) -> None:
    """Write ``annotations/<name>_<split>.json`` of all the built-in Cityscapes data sets; warn if images are missing.

    Args:
        root: holds gtFine.
        fog: density of ``foggy_cityscapes``, one of `FOG_LEVELS`; ``foggy_cityscapes_all`` has all of them.

    Raises:
        UserError: as `read`.
    """
    suffixes = {"cityscapes": [""], "foggy_cityscapes": [FOG.format(fog)]}
    suffixes["foggy_cityscapes_all"] = [FOG.format(level) for level in FOG_LEVELS]
    for split, count in IMAGES.items():
        frames = read(root, split)
        for name, endings in suffixes.items():
            content = convert(frames, endings)
            write_coco(root / "annotations" / f"{name}_{split}.json", content, expected=count * len(endings))
            _check_images(root / CITYSCAPES_IMAGES[name] / split, f"{name}_{split}", content["images"])


def _check_images(folder: Path, name: str, entries: list[dict[str, Any]]) -> None:
    """Say how many of the images are there; none is needed to convert."""
    absent = [entry["file_name"] for entry in entries if not (folder / entry["file_name"]).is_file()]
    if absent:
        log.warning("%s: %d of %d images are not in %s, %s for one", name, len(absent), len(entries), folder, absent[0])


@dataclass(frozen=True)
class Frame:
    """One annotated frame.

    Attributes:
        stem: ``city/name``, to which the names of all its files add an ending.
        size: (width, height) in pixels.
        objects: COCO annotations without ``id`` and ``image_id``.
    """

    stem: str
    size: tuple[int, int]
    objects: list[dict[str, Any]]


def read(root: Path, split: str) -> list[Frame]:
    """All frames of a split, by name.

    Args:
        root: holds gtFine.
        split: train or val.

    Raises:
        UserError: a folder is missing, or a file is not of Cityscapes' layout.
    """
    paths = sorted((root / "gtFine" / split).glob(f"*/*{POLYGONS}"))
    if not paths:
        raise UserError(f"{root / 'gtFine' / split}: no */*{POLYGONS}; unpack gtFine_trainvaltest.zip there")
    frames = []
    for path in progress(paths, f"gtFine/{split}"):
        try:
            content = json.loads(path.read_text())
            size = (content["imgWidth"], content["imgHeight"])
            objects = _objects(content["objects"], size)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a polygon file of Cityscapes ({error}); unpack it again") from None
        frames.append(Frame(f"{path.parent.name}/{path.name.removesuffix(POLYGONS)}", size, objects))
    return frames


def convert(frames: list[Frame], suffixes: list[str]) -> dict[str, Any]:
    """COCO content of one split.

    Args:
        frames: as read.
        suffixes: behind ``_leftImg8bit`` in the names of the images; every frame is one image for each.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for frame in frames:
        width, height = frame.size
        for suffix in suffixes:
            number = len(images) + 1
            name = f"{frame.stem}_leftImg8bit{suffix}.png"
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            annotations += [
                {"id": len(annotations) + i, "image_id": number, **e} for i, e in enumerate(frame.objects, start=1)
            ]
    categories = [{"id": index, "name": name} for index, name in enumerate(CITYSCAPES_CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _objects(items: list[dict[str, Any]], size: tuple[int, int]) -> list[dict[str, Any]]:
    """What can be seen of the objects of the eight classes, in order.

    Later polygons cover earlier ones, as in the publisher's own masks; the box is around the pixels that are left, and
    an object without any has none. Groups of objects ("cargroup") become crowds.
    """
    picture = Image.new("I", size)
    draw = ImageDraw.Draw(picture)
    for number, item in enumerate(items, start=1):
        if "deleted" not in item and item["label"] != TRANSPARENT:
            draw.polygon([tuple(point) for point in item["polygon"]], fill=number)
    regions = ndimage.find_objects(np.asarray(picture, dtype=np.int32), max_label=len(items))
    entries = []
    for item, region in zip(items, regions, strict=True):
        label = item["label"].removesuffix("group")
        if region is None or label not in CITYSCAPES_CLASSES:
            continue
        (y1, y2), (x1, x2) = ((side.start, side.stop) for side in region)
        entries.append(
            {
                "category_id": CITYSCAPES_CLASSES.index(label) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": int(label != item["label"]),
            }
        )
    return entries
