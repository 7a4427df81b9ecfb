"""The built-in data sets: published ones whose layout is known, so that their name is enough.

They lie below `datasets_root`; datasets/README.md shows how.
"""

from __future__ import annotations

import os
from pathlib import Path

from lossmix_det.config import DatasetConfig

VOC_CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
PAINTED_CLASSES = ["bicycle", "bird", "car", "cat", "dog", "person"]  # Watercolor2k and Comic2k
CITYSCAPES_CLASSES = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
CITYSCAPES_IMAGES = {  # folder of the images, by the name of the data set without its split
    "cityscapes": "leftImg8bit",
    "foggy_cityscapes": "leftImg8bit_foggy",
    "foggy_cityscapes_all": "leftImg8bit_foggy",
}


def datasets_root() -> Path:
    """$LOSSMIX_DATASETS, else $DETECTRON2_DATASETS, else ``datasets``."""
    return Path(os.environ.get("LOSSMIX_DATASETS") or os.environ.get("DETECTRON2_DATASETS") or "datasets")


def builtin_root(folder: str) -> Path:
    """The folder of a built-in data set; it may lie below VOCdevkit, as the official archives unpack."""
    root = datasets_root()
    below = root / "VOCdevkit" / folder
    return below if below.is_dir() and not (root / folder).is_dir() else root / folder


def builtin_datasets() -> dict[str, DatasetConfig]:
    """Every built-in data set by its name; ``root`` is relative to `datasets_root`."""
    return _voc() | _painted() | _cityscapes() | _coco() | _people() | _single()


def _voc() -> dict[str, DatasetConfig]:
    return {
        f"voc_{year}_{split}": DatasetConfig(format="voc", root=f"VOC{year}", split=split, classes=VOC_CLASSES)
        for year in (2007, 2012)
        for split in ("train", "val", "trainval", "test")
    }


def _painted() -> dict[str, DatasetConfig]:
    table = {}
    for name, folder, classes in (
        ("clipart1k", "clipart", VOC_CLASSES),
        ("watercolor2k", "watercolor", PAINTED_CLASSES),
        ("comic2k", "comic", PAINTED_CLASSES),
    ):
        for split in ("train", "test"):
            table[f"{name}_{split}"] = DatasetConfig(format="voc", root=folder, split=split, classes=classes)
        table[f"{name}_all"] = DatasetConfig(format="voc", root=folder, classes=classes)
    return table


def _cityscapes() -> dict[str, DatasetConfig]:
    return {
        f"{name}_{split}": DatasetConfig(
            format="coco",
            root="cityscapes",
            annotations=f"annotations/{name}_{split}.json",
            images=f"{folder}/{split}",
            classes=CITYSCAPES_CLASSES,
        )
        for split in ("train", "val")
        for name, folder in CITYSCAPES_IMAGES.items()
    }


def _coco() -> dict[str, DatasetConfig]:
    return {
        f"coco_2017_{split}": DatasetConfig(
            format="coco", root="coco", annotations=f"annotations/instances_{split}2017.json", images=f"{split}2017"
        )
        for split in ("train", "val")
    }


def _people() -> dict[str, DatasetConfig]:
    names = ("photos_train", "art_train", "art_test", "art_test_people", "art_test_small")
    return {
        f"people_{name}": DatasetConfig(
            format="coco", root="people_art", annotations=f"annotations/{name}.json", images=".", classes=["person"]
        )
        for name in names
    }


def _single() -> dict[str, DatasetConfig]:
    """Those with one list of images."""
    return {
        "sim10k_train": DatasetConfig(
            format="voc", root="sim10k", split="trainval10k", classes=["car"], ignore_classes=["motorbike", "person"]
        ),
        "kitti_train": DatasetConfig(
            format="coco", root="kitti", annotations="annotations/kitti_train.json", images="training/image_2"
        ),
    }
