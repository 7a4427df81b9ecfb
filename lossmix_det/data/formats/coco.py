"""COCO instance annotations (Lin et al., ECCV 2014): one JSON file and a folder of images."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from lossmix_det.data.records import Problems, RawImage, RawObject, contained
from lossmix_det.errors import UserError
from lossmix_det.files import write_atomically

log = logging.getLogger(__name__)

FLAG = (1, "1")  # a flag that is set; some tools write text


def read_coco(annotations: Path, images: Path, problems: Problems) -> tuple[list[RawImage], dict[str, int]]:
    """Read every image that the file lists, also those without a box.

    Args:
        annotations: the JSON file.
        images: folder that its ``file_name``s are relative to.
        problems: raises or collects what is wrong with single images and annotations.

    Returns:
        The images in the order of the file, and the category number of each class name in the order of the numbers.

    Raises:
        UserError: the file is missing, not JSON, or not of the COCO layout.
    """
    content = _load(annotations)
    names = _categories(content["categories"], annotations)
    entries, objects = _images(content["images"], annotations, problems)
    for index, entry in enumerate(content["annotations"]):
        where = f"{annotations}: annotations[{index}]"
        try:
            image_id, item = _read_object(entry, names, where)
            if image_id not in objects:
                raise ValueError(f"belongs to image_id {image_id}, which is not among the images")
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            problems.fail(f"{where} {_reason(error)}")
            continue
        objects[image_id].append(item)
    result = _raw_images(entries, objects, images, problems)
    return result, {name: number for number, name in sorted(names.items())}


def read_coco_images(annotations: Path, images: Path, problems: Problems) -> list[RawImage]:
    """Every image that the file lists, without a look at its annotations or categories."""
    content = _load(annotations, ("images",))
    return _raw_images(*_images(content["images"], annotations, problems), images, problems)


def _raw_images(entries: Any, objects: Any, images: Path, problems: Problems) -> list[RawImage]:
    result = []
    for image_id, (where, entry) in entries.items():
        try:
            path = contained(images, entry["file_name"], where)
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


def _images(entries: list[Any], path: Path, problems: Problems):
    """Entries and empty object lists by image id."""
    found: dict[int, tuple[str, dict[str, Any]]] = {}
    for index, entry in enumerate(entries):
        where = f"{path}: images[{index}]"
        if (
            not isinstance(entry, dict)
            or type(entry.get("id")) is not int
            or not isinstance(entry.get("file_name"), str)
        ):
            problems.fail(f"{where} needs a whole number as id and a file_name")
        elif entry["id"] in found:
            problems.fail(f"{where} repeats the id {entry['id']}")
        else:
            found[entry["id"]] = (f"{where} ({entry['file_name']})", entry)
    return found, {image_id: [] for image_id in found}


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
    """Write an annotation file beside and rename it; say what is in it, and whether the data set is whole.

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
