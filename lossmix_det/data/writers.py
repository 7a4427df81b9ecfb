"""Writing data sets as VOC, COCO or YOLO."""

from __future__ import annotations

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree  # writes only; what is read goes through defusedxml

import numpy as np
import yaml

from lossmix_det.data.packed import ImageRecord
from lossmix_det.data.records import ImageSet
from lossmix_det.errors import UserError

ALL = "all"  # the name of the one split of a data set without splits


def _link(source: Path, target: Path) -> None:
    os.symlink(os.path.abspath(source), target)


# How an image comes into the new folder.
PUT: dict[str, Callable[[Path, Path], Any]] = {"link": _link, "copy": shutil.copyfile}


class Writer(ABC):
    """Writes the splits of a data set below one folder, one after the other.

    Args:
        folder: new and empty.
        classes: names of the K classes of all splits, in order.
        put: brings an image to its place, one of `PUT`.

    Attributes:
        losses: what the format cannot hold, and how many boxes had it.
    """

    def __init__(self, folder: Path, classes: list[str], put: Callable[[Path, Path], Any]) -> None:
        self.folder, self.classes, self.put = folder, classes, put
        self.losses: Counter[str] = Counter()

    @abstractmethod
    def write(self, split: str, image_set: ImageSet) -> None:
        """Write one split.

        Args:
            split: its name.
            image_set: its images and boxes; its classes are among those of the writer.
        """

    def finish(self) -> None:
        """Write what belongs to all splits."""
        return

    def put_image(self, image_set: ImageSet, record: ImageRecord, folder: str) -> str:
        """Bring an image into a folder below the new one, keeping its sub-folders.

        Returns:
            Its path below that folder.

        Raises:
            UserError: another image has the same path.
        """
        name = image_set.file_name(record.path)
        target = self.folder / folder / name
        if os.path.lexists(target):
            raise UserError(f"{record.path}: another image is written to {folder}/{name} too; rename one of the two")
        target.parent.mkdir(parents=True, exist_ok=True)
        self.put(record.path, target)
        return name

    @property
    def lost(self) -> list[str]:
        """A line for each kind of thing that the format cannot hold."""
        return [f"lost: {count} {what}" for what, count in self.losses.items() if count]

    def lose(self, what: str, flags: Iterable[Any]) -> None:
        """Count what cannot be written."""
        self.losses[what] += sum(map(bool, flags))

    def lose_ids(self, image_set: ImageSet) -> None:
        """Count the images whose id is not their place in the list, where the format has no ids."""
        ids = (image_set.id_of(number) for number in image_set.records.image_ids.tolist())
        self.lose("ids of images", (image_id != place for place, image_id in enumerate(ids, start=1)))


class VocWriter(Writer):
    """JPEGImages, Annotations, ImageSets/Main. Crowds, areas and numbers of images and classes have no place."""

    def write(self, split: str, image_set: ImageSet) -> None:
        """As `Writer.write`."""
        names = []
        self.lose_ids(image_set)
        for record in image_set.records:
            name = _as_text(self.put_image(image_set, record, "JPEGImages"))
            stem = os.path.splitext(name)[0]
            path = self.folder / "Annotations" / f"{stem}.xml"
            if path.exists():
                raise UserError(
                    f"{record.path}: another image has its name without suffix, which VOC goes by; rename one"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._xml(image_set, record, name))
            names.append(stem)
            self.lose("boxes of crowds, for which VOC has no flag", record.crowd)
            sides = (record.boxes[:, 2:] - record.boxes[:, :2]).min(1, initial=np.inf)
            self.lose("boxes of at most one pixel, which are faults in VOC files", (sides <= 1) & ~record.crowd)
            self.lose("areas that are not those of the box", _own_areas(record))
        listing = self.folder / "ImageSets" / "Main" / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")

    def finish(self) -> None:
        """Count the classes that will be read in another order, which is that of the alphabet."""
        self.lose(
            "places of classes in their order; list them in data.classes",
            map(_differ, self.classes, sorted(self.classes)),
        )

    def _xml(self, image_set: ImageSet, record: ImageRecord, name: str) -> bytes:
        root = ElementTree.Element("annotation")
        folder, _, file = name.rpartition("/")
        for key, text in (("folder", folder), ("filename", file)):
            ElementTree.SubElement(root, key).text = text
        size = ElementTree.SubElement(root, "size")
        for key, number in (("width", record.size[1]), ("height", record.size[0]), ("depth", 3)):
            ElementTree.SubElement(size, key).text = str(number)
        for box, label, difficult, crowd in zip(
            record.boxes, record.classes, record.difficult, record.crowd, strict=True
        ):
            x1, y1, x2, y2 = _decimals(box)
            if not crowd and min(x2 - x1, y2 - y1) > 1:  # else the last pixel would be the first or lie before it
                item = ElementTree.SubElement(root, "object")
                ElementTree.SubElement(item, "name").text = _as_text(image_set.classes[label])
                ElementTree.SubElement(item, "difficult").text = str(int(difficult))
                edges = ElementTree.SubElement(item, "bndbox")
                # The first pixel of VOC is 1, and the last one counts.
                for key, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
                    ElementTree.SubElement(edges, key).text = f"{round(value, 6):.15g}"
        ElementTree.indent(root)
        return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


class CocoWriter(Writer):
    """``annotations/<split>.json`` and ``images/<split>``; loses numbers of classes, and outlines but their areas."""

    def write(self, split: str, image_set: ImageSet) -> None:
        """As `Writer.write`."""
        images, annotations = [], []
        category = {name: number for number, name in enumerate(self.classes, start=1)}
        numbers = map(category.get, image_set.classes)
        self.lose("numbers of classes; they count from 1", map(_differ, numbers, image_set.category_ids))
        for record in image_set.records:
            image_id = image_set.id_of(record.image_id)
            name = f"images/{split}/{self.put_image(image_set, record, f'images/{split}')}"
            images.append({"id": image_id, "file_name": name, "width": record.size[1], "height": record.size[0]})
            for index, box in enumerate(record.boxes):
                x1, y1, x2, y2 = _decimals(box)
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category[image_set.classes[record.classes[index]]],
                    "bbox": [x1, y1, round(x2 - x1, 6), round(y2 - y1, 6)],
                    "area": float(record.areas[index]),
                    "iscrowd": int(record.crowd[index]),
                }
                annotations.append(annotation | ({"ignore": 1} if record.difficult[index] else {}))
            self.lose("outlines, if there were any, but their areas", _own_areas(record))
        categories = [{"id": number, "name": name} for name, number in category.items()]
        path = self.folder / "annotations" / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"images": images, "annotations": annotations, "categories": categories}
        path.write_text(json.dumps(content), encoding="utf-8")


class YoloWriter(Writer):
    """``data.yaml``, ``images/<split>``, ``labels/<split>``. There are no flags, areas or numbers of images."""

    splits: tuple[str, ...] = ()

    def write(self, split: str, image_set: ImageSet) -> None:
        """As `Writer.write`."""
        self.splits = (*self.splits, split)
        self.lose_ids(image_set)
        image_set = _below_images(image_set)
        for record in image_set.records:
            name = self.put_image(image_set, record, f"images/{split}")
            path = self.folder / "labels" / split / f"{os.path.splitext(name)[0]}.txt"
            if path.exists():
                raise UserError(
                    f"{record.path}: another image has its name without suffix, which YOLO goes by; rename one"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(self._lines(image_set, record)), encoding="utf-8")
            self.lose("boxes of crowds, for which YOLO has no flag", record.crowd)
            self.lose("marks of difficult boxes, which are now usual ones", record.difficult & ~record.crowd)
            self.lose("areas that are not those of the box", _own_areas(record))

    def _lines(self, image_set: ImageSet, record: ImageRecord) -> list[str]:
        height, width = record.size
        lines = []
        for box, label in zip(record.boxes[~record.crowd], record.classes[~record.crowd], strict=True):
            x1, y1, x2, y2 = (float(value) for value in box)
            shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            number = self.classes.index(image_set.classes[label])
            lines.append(" ".join([str(number), *(f"{share:.12g}" for share in shares)]) + "\n")
        return lines

    def finish(self) -> None:
        """Write ``data.yaml``."""
        content = {split: f"images/{split}" for split in self.splits} | {"names": dict(enumerate(self.classes))}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (self.folder / "data.yaml").write_text(text, encoding="utf-8")


def below_shared(image_set: ImageSet) -> ImageSet:
    """The same images with names below the folder that all of them share."""
    folders = {os.path.dirname(image_set.records.name(number)) for number in range(len(image_set))}
    return replace(image_set, root=os.path.commonpath(folders)) if folders else image_set


def _below_images(image_set: ImageSet) -> ImageSet:
    """The same images with names in which no folder is called ``images``.

    Readers of YOLO find a label by putting ``labels`` for the last ``images`` of a path.

    Raises:
        UserError: there is such a folder below the one that all images share.
    """
    folders = {os.path.dirname(image_set.file_name(record.path)) for record in image_set.records}
    if not any("images" in folder.split("/") for folder in folders):
        return image_set
    moved = below_shared(image_set)
    for record in moved.records:
        if "images" in moved.file_name(record.path).split("/")[:-1]:
            raise UserError(
                f"{record.path}: YOLO finds labels by the folder called images, and this one is below another; "
                "rename it"
            )
    return moved


WRITERS: dict[str, type[Writer]] = {"voc": VocWriter, "coco": CocoWriter, "yolo": YoloWriter}
ONE_SPLIT = {"yolo": "train"}  # what the split of a data set without splits is called, where ``all`` would not be read


def _decimals(box: Any) -> tuple[float, ...]:
    """The shortest decimal numbers that are the same in single precision."""
    return tuple(float(str(value)) for value in box)


def _differ(first: Any, second: Any) -> bool:
    return first != second


def _as_text(name: str) -> str:
    """The name itself.

    Raises:
        UserError: XML cannot hold it.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name!r} is not UTF-8, which XML and lists need; rename it") from None
    if any(ord(letter) < ord(" ") for letter in name):
        raise UserError(f"{name!r} holds a control character, which XML cannot; rename it")
    return name


def _own_areas(record: ImageRecord) -> Any:
    """Which boxes have an area of their own, as outlines give it."""
    boxes = record.boxes.astype(float)
    of_boxes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return abs(record.areas - of_boxes) > 1e-3 * of_boxes
