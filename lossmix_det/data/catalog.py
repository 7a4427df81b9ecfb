"""Data sets by name: declared in the YAML, the generated benchmark, known by heart, or registered with Detectron2."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

from lossmix_det.config import Config, DatasetConfig
from lossmix_det.data import shapes
from lossmix_det.data.formats.coco import read_coco, read_coco_images
from lossmix_det.data.formats.detectron2 import (
    detectron2_classes,
    detectron2_names,
    import_modules,
    read_detectron2,
    read_detectron2_images,
)
from lossmix_det.data.formats.folder import read_folder
from lossmix_det.data.formats.voc import read_voc, read_voc_images
from lossmix_det.data.records import ImageSet, Problems, RawImage, build, found_classes
from lossmix_det.errors import UserError, nearest

log = logging.getLogger(__name__)

VOC_CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
PAINTED_CLASSES = ["bicycle", "bird", "car", "cat", "dog", "person"]  # Watercolor2k and Comic2k
CITYSCAPES_CLASSES = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]


def datasets_root() -> Path:
    """$LOSSMIX_DATASETS, else $DETECTRON2_DATASETS, else ``datasets``."""
    return Path(os.environ.get("LOSSMIX_DATASETS") or os.environ.get("DETECTRON2_DATASETS") or "datasets")


def builtin_datasets() -> dict[str, DatasetConfig]:
    """The data sets known by name, relative to `datasets_root`; datasets/README.md shows their layout."""
    table = {}
    for year in (2007, 2012):
        for split in ("train", "val", "trainval", "test"):
            table[f"voc_{year}_{split}"] = DatasetConfig(root=f"VOC{year}", split=split, classes=VOC_CLASSES)
    for name, folder, classes in (
        ("clipart1k", "clipart", VOC_CLASSES),
        ("watercolor2k", "watercolor", PAINTED_CLASSES),
        ("comic2k", "comic", PAINTED_CLASSES),
    ):
        for split in ("train", "test"):
            table[f"{name}_{split}"] = DatasetConfig(root=folder, split=split, classes=classes)
        table[f"{name}_all"] = DatasetConfig(root=folder, classes=classes)
    for split in ("train", "val"):
        for name, folder in (
            ("cityscapes", "leftImg8bit"),
            ("foggy_cityscapes", "leftImg8bit_foggy"),
            ("foggy_cityscapes_all", "leftImg8bit_foggy"),
        ):
            table[f"{name}_{split}"] = DatasetConfig(
                format="coco",
                root="cityscapes",
                annotations=f"annotations/{name}_{split}.json",
                images=f"{folder}/{split}",
                classes=CITYSCAPES_CLASSES,
            )
        table[f"coco_2017_{split}"] = DatasetConfig(
            format="coco", root="coco", annotations=f"annotations/instances_{split}2017.json", images=f"{split}2017"
        )
    table["sim10k_train"] = DatasetConfig(
        root="sim10k", split="trainval10k", classes=["car"], ignore_classes=["motorbike", "person"]
    )
    table["kitti_train"] = DatasetConfig(
        format="coco", root="kitti", annotations="annotations/kitti_train.json", images="training/image_2"
    )
    return table


def find(name: str, config: Config) -> DatasetConfig:
    """The declaration of a data set, its root made absolute; the benchmark is generated when first asked for.

    Raises:
        UserError: nobody knows the name, or its folder does not exist.
    """
    if name in config.datasets:
        entry = config.datasets[name]
        if not entry.root:
            raise UserError(f"datasets.{name}.root is empty; give the folder of the data set")
        entry = replace(entry, root=str(Path(entry.root).expanduser()))
    elif name in shapes.NAMES:
        domain, split = name.split("_")[1:]
        root = shapes.generate(config.shapes, datasets_root()) / domain
        entry = DatasetConfig(root=str(root), split=split, classes=list(shapes.CLASSES))
    else:
        table = builtin_datasets()
        if name not in table:
            registered = detectron2_names(config.data.imports)
            if name in registered:
                return DatasetConfig(format="detectron2", split=name, classes=detectron2_classes(name))
            known = [*config.datasets, *shapes.NAMES, *table, *registered]
            raise UserError(f"unknown data set {name!r}{nearest(name, known)}; declare it in the YAML under datasets")
        entry = replace(table[name], root=str(_builtin_root(table[name].root)))
    if not Path(entry.root).is_dir():
        raise UserError(f"data set {name!r}: folder {entry.root} does not exist; see datasets/README.md")
    return entry


def _builtin_root(folder: str) -> Path:
    """The folder itself, or the one below VOCdevkit, as the official archives unpack."""
    root = datasets_root()
    below = root / "VOCdevkit" / folder
    return below if below.is_dir() and not (root / folder).is_dir() else root / folder


def load(name: str, config: Config, classes: list[str] | None = None) -> ImageSet:
    """Read and check one data set.

    Args:
        name: of the data set.
        config: its ``datasets``, ``shapes`` and ``data`` say where and how.
        classes: the names that the detector learns; absent takes those of this data set.

    Raises:
        UserError: something is missing or wrong and ``data.on_error`` is ``raise``.
    """
    entry, problems = find(name, config), Problems(skip=config.data.on_error == "skip")
    images, numbers = _read(entry, problems)
    if not images:
        raise UserError(f"data set {name!r} lists no image; check its split, {entry.split or 'all annotations'!r}")
    known = entry.classes or (list(numbers) if numbers else None)
    classes = classes or config.data.classes or known or found_classes(images)
    labelled = entry.format != "folder"
    _check_names(name, classes, known if labelled else None)
    result = build(name, images, classes, known, problems, ignore=entry.ignore_classes, labelled=labelled)
    if any(image.objects for image in images) and not any(len(record.classes) for record in result.records):
        raise UserError(
            f"data set {name!r} has no box of the classes {', '.join(classes)} that could be used; the first: "
            f"{(problems.skipped or ['left out by ignore_classes'])[0]}"
        )
    unused = max(numbers.values(), default=0)
    result.category_ids = [numbers.get(label, unused + 1 + index) for index, label in enumerate(classes)]
    return result


def _read(entry: DatasetConfig, problems: Problems) -> tuple[list[RawImage], dict[str, int]]:
    """The images of a declared data set, and the category numbers that its file gives."""
    root = Path(entry.root)
    if entry.format == "detectron2":
        images = read_detectron2(entry.split, problems)
        return images, {label: index for index, label in enumerate(detectron2_classes(entry.split) or (), start=1)}
    if entry.format == "coco":
        if not entry.annotations:
            raise UserError(f"{root}: format coco needs annotations, the path of its JSON file below root")
        return read_coco(root / entry.annotations, root / entry.images, problems)
    if entry.format == "folder":
        return read_folder(root / entry.images), {}
    folders = {"images": entry.images, "annotations": entry.annotations}
    return read_voc(root, entry.split, problems, **folders, pixel_origin=entry.pixel_origin), {}


def _check_names(name: str, classes: list[str], known: list[str] | None) -> None:
    """Refuse a class list that shares no name with the data set: a misspelling would train on nothing."""
    if not classes:
        raise UserError(f"data set {name!r} names no class; list them in data.classes")
    if known and not set(classes) & set(known):
        raise UserError(
            f"data set {name!r} has none of the classes {', '.join(classes)}{nearest(classes[0], known)}; "
            f"its own are {', '.join(known)}"
        )


def load_target(name: str, config: Config, classes: list[str]) -> ImageSet:
    """Read every image of a target set, and its labels where all of them have usable ones, to measure with.

    Raises:
        UserError: there are no images, or one is missing.
    """
    entry, problems = find(name, config), Problems(skip=config.data.on_error == "skip")
    images = _read_images(entry, problems)
    if not images:
        raise UserError(f"data set {name!r} lists no image; check its split, {entry.split or 'all images'!r}")
    result = build(name, images, classes, None, problems, labelled=False)
    result.category_ids = list(range(1, len(classes) + 1))
    if entry.format == "folder":
        return result
    try:
        labelled = load(name, config, classes)
        records = {record.path: record for record in labelled.records}
        absent = [record.path.name for record in result.records if record.path not in records]
        if absent:
            raise UserError(f"{len(absent)} of {len(result)} images have none, {absent[0]} for one")
    except UserError as error:
        log.warning("target %s: its labels are of no use (%s), so pseudo-labels are not measured", name, error)
        return result
    return replace(labelled, records=[records[record.path] for record in result.records])


def _read_images(entry: DatasetConfig, problems: Problems) -> list[RawImage]:
    """The images of a declared data set, whatever its labels are like."""
    root = Path(entry.root)
    if entry.format == "detectron2":
        return read_detectron2_images(entry.split, problems)
    if entry.format == "coco":
        return read_coco_images(root / entry.annotations, root / entry.images, problems)
    if entry.format == "folder":
        return read_folder(root / entry.images)
    return read_voc_images(root, entry.split, problems, images=entry.images)


def load_sets(config: Config) -> tuple[list[ImageSet], list[ImageSet]]:
    """The training and test sets of a configuration, all with the classes of the first training set.

    Raises:
        UserError: something is missing or wrong, or a class of ``data.classes`` is in no training set.
    """
    import_modules(config.data.imports)
    if not config.data.train:
        raise UserError("data.train is empty; name at least one data set")
    train = [load(config.data.train[0], config)]
    classes = train[0].classes
    train += [load(name, config, classes) for name in config.data.train[1:]]
    for image_set in train:
        if not image_set.labelled:
            raise UserError(f"data set {image_set.name!r} has no labels to train on; take it out of data.train")
    present = {int(label) for image_set in train for record in image_set.records for label in record.classes}
    absent = [label for index, label in enumerate(classes) if index not in present]
    where = f"no box in {', '.join(config.data.train)} is of class"
    if absent and (config.data.classes or known_classes(config.data.train[0], config)):
        raise UserError(f"{where} {absent[0]!r}; remove it from the classes")
    if absent:  # named by the file alone, as many exports do
        log.warning("%s %s; name the others in data.classes to leave it out", where, ", ".join(map(repr, absent)))
    return train, [load(name, config, classes) for name in config.data.test]


def load_test_sets(config: Config) -> list[ImageSet]:
    """The test sets alone; the training data is only read where nothing else tells the classes."""
    import_modules(config.data.imports)
    classes = config.data.classes
    if not classes and config.data.train:
        classes = known_classes(config.data.train[0], config) or load(config.data.train[0], config).classes
    return [load(name, config, classes) for name in config.data.test]


def known_classes(name: str, config: Config) -> list[str] | None:
    """The classes of a data set as declared, without reading it."""
    if name in config.datasets:
        return config.datasets[name].classes
    if name in shapes.NAMES:
        return list(shapes.CLASSES)
    table = builtin_datasets()
    if name not in table and name in detectron2_names(config.data.imports):
        return detectron2_classes(name)
    return table.get(name, DatasetConfig()).classes
