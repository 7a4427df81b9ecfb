"""COCO instance annotations (Lin et al., ECCV 2014): one JSON file and a folder of images."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from lossmix_det.config import DatasetConfig
from lossmix_det.data.formats.contract import Format
from lossmix_det.data.records import Problems, RawImage, RawObject, contained
from lossmix_det.errors import UserError
from lossmix_det.files import write_atomically

log = logging.getLogger(__name__)

Objects = dict[int, list[RawObject]]  # by image id

FLAG = (1, "1")  # a flag that is set; some tools write text


class Coco(Format):
    """``annotations`` is the JSON file; its ``file_name``s are relative to ``images``."""

    def read(self, entry: DatasetConfig, problems: Problems) -> tuple[list[RawImage], dict[str, int]]:
        """Every image that the file lists, also those without a box, in its order; categories by their numbers.

        Raises:
            UserError: the file is missing, not JSON, or not of the COCO layout.
        """
        path = _annotation_file(entry)
        content = _load(path)
        names = _categories(content["categories"], path)
        entries, objects = _images(content["images"], path, problems)
        _read_objects(content["annotations"], path, names, objects, problems)
        images = _raw_images(entries, objects, Path(entry.root) / entry.images, problems)
        return images, {name: number for number, name in sorted(names.items())}

    def sources(self, entry: DatasetConfig) -> list[Path]:
        """The JSON file."""
        return [_annotation_file(entry)]

    def read_images(self, entry: DatasetConfig, problems: Problems) -> list[RawImage]:
        """Every image that the file lists; it need not have annotations or categories.

        Raises:
            UserError: the file is missing, not JSON, or lists no images.
        """
        path = _annotation_file(entry)
        entries, objects = _images(_load(path, ("images",))["images"], path, problems)
        return _raw_images(entries, objects, Path(entry.root) / entry.images, problems)


def _annotation_file(entry: DatasetConfig) -> Path:
    if not entry.annotations:
        raise UserError(f"{entry.root}: format coco needs annotations, the path of its JSON file below root")
    return Path(entry.root) / entry.annotations


def _raw_images(
    entries: dict[int, tuple[str, dict[str, Any]]], objects: Objects, folder: Path, problems: Problems
) -> list[RawImage]:
    result = []
    for image_id, (where, entry) in entries.items():
        try:
            path = contained(folder, entry["file_name"], where)
        except UserError as error:
            problems.fail(str(error))
            continue
        size = (entry["width"], entry["height"]) if "width" in entry and "height" in entry else None
        result.append(RawImage(where, path, objects[image_id], size, image_id))
    return result


def _load(path: Path, keys: tuple[str, ...] = ("images", "annotations", "categories")) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: malformed JSON ({error.msg}); was the file copied whole?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    for key in keys:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path}: no list named {key!r}; a COCO file has images, annotations and categories")
    return content


def _categories(entries: list[Any], path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or not isinstance(entry.get("name"), str):
            raise UserError(f"{path}: categories[{index}] needs a whole number as id and a name, got {entry!r}")
        name = entry["name"].strip()  # as in VOC files; some tools leave spaces around
        if entry["id"] in names or name in names.values():
            raise UserError(f"{path}: categories[{index}] repeats id {entry['id']} or name {name!r}")
        names[entry["id"]] = name
    return names


def _images(
    entries: list[Any], path: Path, problems: Problems
) -> tuple[dict[int, tuple[str, dict[str, Any]]], Objects]:
    """By image id: where each entry stands and the entry, and its list of objects, still empty."""
    listed: dict[int, tuple[str, dict[str, Any]]] = {}
    for index, entry in enumerate(entries):
        where = f"{path}: images[{index}]"
        if (
            not isinstance(entry, dict)
            or type(entry.get("id")) is not int
            or not isinstance(entry.get("file_name"), str)
        ):
            problems.fail(f"{where} needs a whole number as id and a file_name")
        elif entry["id"] in listed:
            problems.fail(f"{where} repeats the id {entry['id']}")
        else:
            listed[entry["id"]] = (f"{where} ({entry['file_name']})", entry)
    return listed, {image_id: [] for image_id in listed}


def _read_objects(
    annotations: list[Any], path: Path, names: dict[int, str], objects: Objects, problems: Problems
) -> None:
    """Append every annotation to the objects of its image."""
    for index, entry in enumerate(annotations):
        where = f"{path}: annotations[{index}]"
        try:
            image_id, item = _read_object(entry, names, where)
            if image_id not in objects:
                raise ValueError(f"belongs to image_id {image_id}, which is not among the images")
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            problems.fail(f"{where} {_reason(error)}")
            continue
        objects[image_id].append(item)


def _read_object(entry: dict[str, Any], names: dict[int, str], where: str) -> tuple[int, RawObject]:
    if entry["category_id"] not in names:
        raise ValueError(f"has category_id {entry['category_id']}, which is not among the categories")
    bbox = entry["bbox"]
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(type(value) in (int, float) for value in bbox):
        raise ValueError(f"has bbox {bbox!r}, not four numbers [x, y, width, height]")
    x, y, width, height = map(float, bbox)
    item = RawObject(
        where=where,
        name=names[entry["category_id"]],
        box=(x, y, x + width, y + height),
        difficult=entry.get("ignore", 0) in FLAG,
        crowd=entry.get("iscrowd", 0) in FLAG,
        area=float(entry["area"]) if "area" in entry else None,
    )
    return entry["image_id"], item


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"has no {error.args[0]}"
    return str(error) if isinstance(error, ValueError) else "is not of the COCO layout"


def write_coco(path: Path, content: dict[str, Any], expected: int) -> None:
    """Write an annotation file atomically; log what is in it, and warn if the data set looks incomplete.

    Args:
        path: of the JSON file.
        content: images, annotations and categories.
        expected: the number of images of the published data set.
    """
    write_atomically(path, json.dumps(content))
    images, boxes = len(content["images"]), len(content["annotations"])
    log.info("%s: %d images, %d boxes", path, images, boxes)
    if images != expected:
        log.warning("%s: the published data set has %d images, this one %d; is it whole?", path, expected, images)
