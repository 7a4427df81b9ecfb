"""Data sets registered with Detectron2's ``DatasetCatalog``, and ours registered there. Detectron2 may be absent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lossmix_det.config import DatasetConfig
from lossmix_det.data.formats.contract import Format
from lossmix_det.data.problems import Problems
from lossmix_det.data.records import ImageSet, RawImage, RawObject
from lossmix_det.errors import UserError, first_line


def detectron2_names() -> list[str]:
    """The names registered with Detectron2; none if it is not installed."""
    try:
        from detectron2.data import DatasetCatalog
    except ModuleNotFoundError:
        return []
    return DatasetCatalog.list()


def detectron2_classes(name: str) -> list[str] | None:
    """The ``thing_classes`` of a registered data set; Detectron2 sets some of them only once it is read."""
    from detectron2.data import MetadataCatalog

    return list(MetadataCatalog.get(name).get("thing_classes", [])) or None


class Detectron2(Format):
    """A registered data set; ``split`` is the name that it is registered under."""

    declarable = False  # its name alone is enough in a YAML

    def read(self, entry: DatasetConfig, problems: Problems) -> tuple[list[RawImage], dict[str, int]]:
        """The images with their boxes; classes are numbered from 1.

        Raises:
            UserError: its files are not there, or it has no ``thing_classes``.
        """
        name = entry.split
        entries = _entries(name)
        classes = detectron2_classes(name)
        if classes is None:
            raise UserError(
                f"data set {name!r} has no thing_classes; set them with MetadataCatalog.get({name!r}).set(…)"
            )
        images = _images(name, entries)
        for item, image in zip(entries, images, strict=True):
            _read_objects(item.get("annotations", []), image, classes, problems)
        return images, {label: number for number, label in enumerate(classes, start=1)}

    def image_folder(self, entry: DatasetConfig) -> None:
        """Images may lie anywhere."""
        return

    def read_images(self, entry: DatasetConfig, problems: Problems) -> list[RawImage]:
        """The images; their annotations are not looked at.

        Raises:
            UserError: its files are not there.
        """
        return _images(entry.split, _entries(entry.split))


def _entries(name: str) -> list[dict[str, Any]]:
    from detectron2.data import DatasetCatalog

    try:
        return list(DatasetCatalog.get(name))
    except Exception as error:  # a function of anybody's
        raise UserError(
            f"data set {name!r}, registered with Detectron2, cannot be read ({type(error).__name__}: "
            f"{first_line(error)}); its built-in ones lie below $DETECTRON2_DATASETS"
        ) from error


def _images(name: str, entries: list[dict[str, Any]]) -> list[RawImage]:
    """The images, numbered as in their entries; anew if some have no number, or two have the same."""
    images = [_image(name, index, entry) for index, entry in enumerate(entries)]
    if len({image.image_id for image in images} - {None}) < len(images):
        return [replace(image, image_id=None) for image in images]
    return images


def _image(name: str, index: int, entry: dict[str, Any]) -> RawImage:
    where = f"{name}[{index}]"
    if not entry.get("file_name"):
        raise UserError(f"{where} has no file_name")
    number = entry.get("image_id")
    size = (entry["width"], entry["height"]) if "width" in entry and "height" in entry else None
    path = Path(entry["file_name"])
    return RawImage(f"{where} ({path.name})", path, [], size, number if type(number) is int else None)


def _read_objects(annotations: list[Any], image: RawImage, classes: list[str], problems: Problems) -> None:
    for index, item in enumerate(annotations):
        where = f"{image.where}: annotations[{index}]"
        try:
            image.objects.append(_object(where, item, classes))
        except (KeyError, IndexError, TypeError, ValueError, AssertionError) as error:
            problems.fail(f"{where} is not of Detectron2's layout ({type(error).__name__}: {first_line(error)})")


def _object(where: str, item: dict[str, Any], classes: list[str]) -> RawObject:
    from detectron2.structures import BoxMode

    number = item["category_id"]
    if not 0 <= number < len(classes):
        raise IndexError(f"category_id {number} is not among the {len(classes)} thing_classes")
    box = BoxMode.convert([float(value) for value in item["bbox"]], item["bbox_mode"], BoxMode.XYXY_ABS)
    flags = (bool(item.get(name, 0)) for name in ("difficult", "iscrowd"))
    return RawObject(where, classes[number], tuple(box), *flags, outline=item.get("segmentation"))


def register(name: str, classes: list[str], load: Callable[[], ImageSet]) -> None:
    """Register a data set of ours with Detectron2.

    Args:
        name: to register it under; a data set of this name is replaced.
        classes: of the detector; they become ``thing_classes``.
        load: reads the data set when Detectron2 asks for it.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)
    DatasetCatalog.register(name, lambda: _dicts(load()))
    MetadataCatalog.get(name).set(thing_classes=list(classes), evaluator_type="coco")


def _dicts(images: ImageSet) -> list[dict[str, Any]]:
    from detectron2.structures import BoxMode

    return [
        {
            "file_name": str(record.path),
            "image_id": record.image_id,
            "height": record.size[0],
            "width": record.size[1],
            "annotations": [
                {
                    "bbox": [float(value) for value in box],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": int(label),
                    "iscrowd": int(crowd),
                    "difficult": int(difficult),
                }
                for box, label, crowd, difficult in zip(
                    record.boxes, record.classes, record.crowd, record.difficult, strict=True
                )
            ],
        }
        for record in images.records
    ]
