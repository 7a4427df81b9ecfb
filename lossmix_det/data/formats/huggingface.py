"""Image folders of Hugging Face: ``metadata.jsonl``, a line of JSON for each image with its objects."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lossmix_det.config import DatasetConfig
from lossmix_det.data.formats.contract import Format
from lossmix_det.data.formats.splits import choose
from lossmix_det.data.paths import contained, read_text, visible
from lossmix_det.data.problems import Problems
from lossmix_det.data.records import RawImage, RawObject
from lossmix_det.data.repeats import once
from lossmix_det.errors import UserError

Row = dict[str, Any]  # of one image

FILE = "metadata.jsonl"
HEAD = 1 << 16  # bytes that are looked at to tell the format
BOXES = ("bbox", "bboxes", "boxes")
LABELS = ("categories", "category", "labels", "label")
MORE = ("difficult", "iscrowd", "area")  # of each object, if they are there


class HuggingFace(Format):
    """``objects: {bbox: [[x, y, width, height], …], categories: […]}`` for each image, in pixels from 0.

    ``iscrowd``, ``difficult`` and ``area`` are read where each object has one.

    ``annotations`` is the file; images are relative to its folder. Categories are names, or numbers from 0 of the names
    in ``classes``.
    """

    looks_for = f"{FILE} with objects (huggingface)"

    def claims(self, entry: DatasetConfig) -> DatasetConfig | None:
        """The declaration with its file, if one is in the root or in a folder per split."""
        root = Path(entry.root)
        if entry.annotations:
            return entry if entry.annotations.lower().endswith(".jsonl") else None
        paths = [path for place in (FILE, f"*/{FILE}") for path in visible(root, place) if _has_objects(path)]
        if not paths:
            return None
        return replace(
            entry,
            annotations=choose(root, [path.relative_to(root).as_posix() for path in paths], entry.split, "annotations"),
        )

    def image_folder(self, entry: DatasetConfig) -> Path:
        """The folder of the file."""
        return _file(entry).parent / entry.images

    def sources(self, entry: DatasetConfig) -> list[Path]:
        """The file."""
        return [_file(entry)]

    def read(self, entry: DatasetConfig, problems: Problems) -> tuple[list[RawImage], dict[str, int]]:
        """Every image with its boxes; categories that are numbers keep them.

        Raises:
            UserError: the file is missing or not of this layout.
        """
        rows = _rows(_file(entry), problems)
        images, numbers = [], _Numbers(entry.classes)
        for where, row, image in self._images(entry, rows, problems):
            try:
                found = _objects(row.get("objects"))
            except ValueError as error:
                problems.fail(f"{where}: {error}")
                continue
            images.append(image)
            for index, item in enumerate(found):
                place, bbox, label = f"{where}: objects[{index}]", item["bbox"], item["label"]
                try:
                    x, y, width, height = map(float, bbox)
                    flags = [item.get(name) in (1, "1") for name in ("difficult", "iscrowd")]  # True is 1
                    box, area = (x, y, x + width, y + height), _area(item.get("area"))
                    image.objects.append(RawObject(place, numbers.name(label), box, *flags, area))
                except UserError:
                    raise
                except (ValueError, TypeError, OverflowError):
                    pair = f"bbox {bbox!r:.60} and category {label!r:.40}"
                    problems.fail(f"{place} has {pair}, not four numbers and {numbers.meant}")
        return once(images, problems, _file(entry)), numbers.known

    def read_images(self, entry: DatasetConfig, problems: Problems) -> list[RawImage]:
        """Every image that the file lists.

        Raises:
            UserError: the file is missing or not of this layout.
        """
        images = [image for _, _, image in self._images(entry, _rows(_file(entry), problems), problems)]
        return once(images, problems, _file(entry))

    def _images(
        self, entry: DatasetConfig, rows: list[tuple[str, Row]], problems: Problems
    ) -> Iterator[tuple[str, Row, RawImage]]:
        folder = self.image_folder(entry)
        for where, row in rows:
            try:
                path = contained(folder, row["file_name"], where)
            except UserError as error:
                problems.fail(str(error))
            else:
                yield where, row, RawImage(where, path, [])


def _file(entry: DatasetConfig) -> Path:
    return contained(Path(entry.root), entry.annotations or FILE, "annotations")


def _has_objects(path: Path) -> bool:
    with path.open("rb") as file:
        return b'"objects"' in file.read(HEAD)


def _rows(path: Path, problems: Problems) -> list[tuple[str, Row]]:
    """(file and line, content) of every line with an image."""
    try:
        lines = read_text(path).split("\n")  # JSON may hold other ends of lines inside of texts
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.fail(f"{where}: malformed JSON ({error})")
            continue
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or not row["file_name"]:
            problems.fail(f"{where}: has no file_name")
        else:
            rows.append((where, row))
    return rows


def _objects(objects: Any) -> list[dict[str, Any]]:
    """``bbox``, ``label`` and what else is known of every object, from a table of lists or a list of tables."""
    if objects is None:
        return []
    if isinstance(objects, list) and all(isinstance(item, dict) for item in objects):
        return [{**item, "bbox": _first(item, BOXES), "label": _first(item, LABELS)} for item in objects]
    if not isinstance(objects, dict):
        raise ValueError("objects is neither a table of lists nor a list of tables")
    boxes, labels = _first(objects, BOXES), _first(objects, LABELS)
    if not isinstance(boxes, list) or not isinstance(labels, list) or len(boxes) != len(labels):
        raise ValueError("objects needs bbox and categories, two lists of one length")
    lists = {name: objects.get(name) for name in MORE}
    lists = {name: each for name, each in lists.items() if isinstance(each, list) and len(each) == len(boxes)}
    lists |= {"bbox": boxes, "label": labels}
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _area(value: Any) -> float | None:
    """In square pixels; None, which is the box's, where it is missing or none."""
    return float(value) if type(value) in (int, float) and 0 < value < math.inf else None


def _first(table: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((table[key] for key in keys if key in table), None)


class _Numbers:
    """Names of classes, by themselves or by their numbers."""

    def __init__(self, classes: list[str] | None) -> None:
        self.classes = classes or []
        self.known: dict[str, int] = {}

    @property
    def meant(self) -> str:
        """What a category may be."""
        last = len(self.classes) - 1
        return f"a class: its name, or its number from 0 to {last}" if self.classes else "a class"

    def name(self, label: Any) -> str:
        """The name of a category.

        Raises:
            UserError: it is a number, and the names are not given.
            ValueError: it is no class.
        """
        if type(label) is str and label.strip():
            return label.strip()
        if type(label) is not int:
            raise ValueError
        if not self.classes:
            raise UserError("categories are numbers; list their names under classes of this data set, in that order")
        if not 0 <= label < len(self.classes):
            raise ValueError
        self.known = {name: number for number, name in enumerate(self.classes)}
        return self.classes[label]
