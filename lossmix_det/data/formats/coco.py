"""COCO instance annotations (Lin et al., ECCV 2014): one JSON file and one or several folders of images."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lossmix_det.config import DatasetConfig
from lossmix_det.data.boxes import Box, around, around_rotated
from lossmix_det.data.formats.contract import Format
from lossmix_det.data.formats.splits import choose
from lossmix_det.data.paths import ImageFolder, contained, has_image, is_absolute, read_text, visible
from lossmix_det.data.problems import Problems
from lossmix_det.data.records import RawImage, RawObject
from lossmix_det.data.repeats import once
from lossmix_det.errors import UserError, nearest
from lossmix_det.files import write_atomically

log = logging.getLogger(__name__)

Id = int | str
Entry = dict[str, Any]

FLAG = (1, "1")  # a flag that is set; some tools write text
PLACES = ("*.json", "*/*.json")  # where the files of a data set are looked for
KEYS = (b'"annotations"', b'"file_name"')  # one of these tells a COCO file, with "images", at its start or end
ENDS = 1 << 16  # bytes
INSTANCES, OTHER_TASKS = "instances_", ("captions_", "person_keypoints_")  # how COCO calls its files
LARGEST_CATEGORY = 2**31 - 1


class Coco(Format):
    """``annotations`` is the JSON file; its ``file_name``s are relative to ``images``.

    Images that are not there are looked for in all folders below.
    """

    looks_for = "a JSON file with images and annotations, in the root, in annotations or in a folder per split (coco)"

    def claims(self, entry: DatasetConfig) -> DatasetConfig | None:
        """The declaration with its JSON file, if one is named, or lies where it usually does."""
        if entry.annotations:
            return entry if entry.annotations.lower().endswith(".json") else None
        root = Path(entry.root)
        paths = [path for place in PLACES for path in visible(root, place) if _is_coco(path)]
        if not paths:
            return None
        names = _of_instances([path.relative_to(root).as_posix() for path in paths])
        path = choose(root, names, entry.split, "annotations")
        folder = path.rpartition("/")[0]
        beside = folder if has_image(root / folder) else ""
        return replace(entry, annotations=path, images=entry.images or beside)

    def read(self, entry: DatasetConfig, problems: Problems) -> tuple[list[RawImage], dict[str, int]]:
        """Every image that the file lists, also those without a box, in its order; categories by their numbers.

        Raises:
            UserError: the file is missing, not JSON, or not of the COCO layout.
        """
        path = _annotation_file(entry)
        content = _load(path)
        reader = _Reader(path, problems)
        used = {annotation.get("category_id") for annotation in content["annotations"] if _is_annotation(annotation)}
        reader.read_categories(content["categories"], used)
        reader.read_images(content["images"])
        reader.read_objects(content["annotations"])
        images = reader.raw_images(self.image_folder(entry))
        return images, {name: number for number, name in sorted(reader.numbers.items())}

    def sources(self, entry: DatasetConfig) -> list[Path]:
        """The JSON file."""
        return [_annotation_file(entry)]

    def read_images(self, entry: DatasetConfig, problems: Problems) -> list[RawImage]:
        """Every image that the file lists; it need not have annotations or categories.

        Raises:
            UserError: the file is missing, not JSON, or lists no images.
        """
        path = _annotation_file(entry)
        reader = _Reader(path, problems)
        reader.read_images(_load(path, ("images",))["images"])
        return reader.raw_images(self.image_folder(entry))


def _of_instances(paths: list[str]) -> list[str]:
    """Paths without those of COCO's other tasks, where the file of instances of the same images lies beside them."""
    there = set(paths)
    other = {path for path in paths for task in OTHER_TASKS if path.replace(task, INSTANCES) in there - {path}}
    return [path for path in paths if path not in other]


def _annotation_file(entry: DatasetConfig) -> Path:
    if not entry.annotations:
        raise UserError(f"{entry.root}: format coco needs annotations, the path of its JSON file below root")
    return Path(entry.root) / entry.annotations


def _is_coco(path: Path) -> bool:
    """Whether the start and the end of a file have the words of a COCO file."""
    with path.open("rb") as file:
        ends = file.read(ENDS)
        file.seek(max(0, path.stat().st_size - ENDS))
        ends += file.read(ENDS)
    return b'"images"' in ends and any(key in ends for key in KEYS)


def _load(path: Path, keys: tuple[str, ...] = ("images", "annotations", "categories")) -> Entry:
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: malformed JSON ({error.msg}); was the file copied whole?") from None
    except UserError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    for key in keys:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path}: no list named {key!r}; a COCO file has images, annotations and categories")
    return content


@dataclass
class _Reader:
    """Reads the parts of one file, and keeps account of what is odd about them."""

    path: Path
    problems: Problems
    names: dict[Id, str] = field(default_factory=dict)  # of categories, by id as it is and as a number
    numbers: dict[int, str] = field(default_factory=dict)
    listed: dict[Id, tuple[str, Entry]] = field(default_factory=dict)  # by image id: where it stands, and its entry
    objects: dict[Id, list[RawObject]] = field(default_factory=dict)
    surrounded: list[str] = field(default_factory=list)
    areas: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def read_categories(self, entries: list[Any], used: set[Any]) -> None:
        """The names of categories; parents and repeats that no annotation uses are left out.

        Roboflow writes the project as category 0 and as the parent of all others, also where it is called like one.
        """
        rows = [entry if isinstance(entry, dict) else {} for entry in entries]
        parents = Counter(str(row.get("supercategory")) for row in rows)
        used_ids = {_plain(number) for number in used}
        numbered = [_category(entry, f"{self.path}: categories[{index}]") for index, entry in enumerate(entries)]
        used_names = {name for number, name in numbered if number in used_ids}
        taken: set[str] = set()
        for index, ((number, name), row) in enumerate(zip(numbered, rows, strict=True)):
            where = f"{self.path}: categories[{index}]"
            is_parent = parents[row["name"]] > (row.get("supercategory") == row["name"])
            if number not in used_ids and (is_parent or name in used_names):
                self.problems.note(
                    f"{where} {name!r} is left out: no annotation uses it, and it is a parent or a repeat"
                )
                continue
            if number in self.numbers or name in taken:
                what = f"id {number}" if number in self.numbers else f"name {name!r}"
                raise UserError(f"{where} repeats the {what}; give every category its own")
            taken.add(name)
            self.numbers[number] = self.names[number] = self.names[str(number)] = name

    def read_images(self, entries: list[Any]) -> None:
        """The images by their id, each with an empty list of objects."""
        for index, entry in enumerate(entries):
            where = f"{self.path}: images[{index}]"
            name = entry.get("file_name") if isinstance(entry, dict) else None
            image_id = _plain_image_id(entry.get("id")) if isinstance(entry, dict) else None
            if image_id is None or not isinstance(name, str) or not name:
                found = {key: entry.get(key) for key in ("id", "file_name")} if isinstance(entry, dict) else entry
                self.problems.fail(f"{where} needs a whole number or a text as id and a file_name, got {found!r:.100}")
            elif image_id in self.listed:
                self.problems.fail(f"{where} repeats the id {entry['id']}")
            else:
                self.listed[image_id] = (f"{where} ({name})", entry)
                self.objects[image_id] = []

    def read_objects(self, annotations: list[Any]) -> None:
        """Append every annotation to the objects of its image."""
        objects, start = self.objects, f"{self.path}: annotations["
        for index, entry in enumerate(annotations):
            where = f"{start}{index}]"
            try:
                item = self._object(entry, where)
                image_id = entry["image_id"]
                (objects.get(image_id) or self._objects_of(image_id)).append(item)
            except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
                self.problems.fail(f"{where} {_reason(error)}")

    def _objects_of(self, image_id: Any) -> list[RawObject]:
        """The objects of an image whose id may be text here and a number there, or the reverse."""
        for key in (image_id, _plain_image_id(image_id), _other_kind(image_id)):
            if key is not None and key in self.objects:
                return self.objects[key]
        hint = nearest(str(image_id), [str(key) for key in list(self.objects)[:1000]]) if type(image_id) is str else ""
        raise ValueError(f"belongs to image_id {image_id!r:.100}, which is not among the images{hint}")

    def _object(self, entry: Entry, where: str) -> RawObject:
        category = entry["category_id"]
        name = self.names.get(category)
        if name is None:
            raise ValueError(f"has category_id {category!r:.100}, which is not among the categories")
        return RawObject(
            where,
            name,
            self._box(entry, where),
            entry.get("ignore", 0) in FLAG,
            entry.get("iscrowd", 0) in FLAG,
            self._area(entry.get("area"), where),
            outline=entry.get("segmentation"),
        )

    def _box(self, entry: Entry, where: str) -> Box:
        bbox = entry["bbox"] if "segmentation" not in entry else entry.get("bbox")
        if isinstance(bbox, list) and len(bbox) == 4 and all(type(value) in (int, float) for value in bbox):
            x, y, width, height = map(float, bbox)
        elif not bbox and entry.get("segmentation"):
            self.surrounded.append(where)
            return _around_polygons(entry["segmentation"])
        else:
            x, y, width, height = _numbers(bbox)
        degrees = _rotation(entry.get("attributes"))
        if degrees:
            self.surrounded.append(where)
            return around_rotated(x + width / 2, y + height / 2, width, height, degrees)
        return x, y, x + width, y + height

    def _area(self, value: Any, where: str) -> float | None:
        """In square pixels; None where it is missing, null or 0, or no area, which is noted."""
        if value is None:
            return None
        try:
            area = float(value)
        except (ValueError, TypeError):
            raise ValueError(f"has area {value!r:.50}, which is no number") from None
        if 0 < area < math.inf:
            return area
        if area:
            self.areas.append(where)
        return None

    def raw_images(self, folder: Path) -> list[RawImage]:
        """The images with their objects; notes what was odd.

        Args:
            folder: that file names are relative to.
        """
        result, files = [], ImageFolder(folder)
        for image_id, (where, entry) in self.listed.items():
            try:
                path = self._path(entry["file_name"], folder, files, where)
                size = _size(entry)
            except UserError as error:
                self.problems.fail(str(error))
            except ValueError as error:
                self.problems.fail(f"{where} {error}")
            else:
                result.append(RawImage(where, path, self.objects[image_id], size, image_id))
        result = once(result, self.problems, self.path)
        note_all = self.problems.note_all
        note_all(
            self.surrounded, f"{self.path}: {{count}} polygons or rotated boxes became the upright box around them"
        )
        note_all(self.areas, f"{self.path}: {{count}} areas are negative or not finite; the box's is taken")
        note_all(self.elsewhere, f"{self.path}: {{count}} absolute paths of another place were found by their end")
        return result

    def _path(self, name: str, folder: Path, files: ImageFolder, where: str) -> Path:
        try:
            return contained(folder, name, where)
        except UserError:
            path = files.find(Path(name.replace("\\", "/"))) if is_absolute(name) else None
            if path is None:
                raise
            self.elsewhere.append(f"{where} is {path}")
            return path


def _is_annotation(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("category_id"), int | str | float)


def _category(entry: Any, where: str) -> tuple[int, str]:
    """The id and the name of a category; spaces around a name are no part of it, as in VOC files.

    Raises:
        UserError: it has none.
    """
    row = entry if isinstance(entry, dict) else {}
    number, name = _plain(row.get("id")), row.get("name")
    if type(number) is not int or abs(number) > LARGEST_CATEGORY or not isinstance(name, str):
        raise UserError(f"{where} needs a whole number as id and a name, got {entry!r:.100}")
    return number, name.strip()


def _plain(value: Any) -> Any:
    """A number that is written as text or with a decimal point as the whole number that it is; else the value."""
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is str and len(value) < 20 and value.strip().lstrip("-").isdecimal():
        return int(value)
    return value


def _plain_image_id(value: Any) -> Id | None:
    """The id of an image as a whole number or a text; None for what is none of them."""
    if type(value) is float:
        value = int(value) if value.is_integer() else None
    return value if type(value) in (int, str) else None


def _other_kind(value: Any) -> Id | None:
    """The text of a number, or the number of a text, where they agree: ``1`` and ``"1"``, never ``"01"``."""
    if type(value) is str:
        number = _plain(value)
        return number if str(number) == value else None
    return None if type(value) not in (int, float) else str(_plain(value))


def _numbers(bbox: Any) -> tuple[float, float, float, float]:
    """Four numbers, which may be texts."""
    if isinstance(bbox, list) and len(bbox) == 4 and all(type(value) in (int, float, str) for value in bbox):
        try:
            x, y, width, height = map(float, bbox)
        except ValueError:
            pass
        else:
            return x, y, width, height
    raise ValueError(f"has bbox {bbox!r:.100}, not four numbers [x, y, width, height]")


def _around_polygons(segmentation: Any) -> Box:
    """The box around all polygons [x, y, x, y, …] of an object."""
    if not isinstance(segmentation, list):
        raise ValueError("has no bbox, and its segmentation is no polygon")
    values = [float(value) for polygon in segmentation for value in polygon]
    if len(values) < 4:
        raise ValueError("has no bbox, and its segmentation is empty")
    return around(zip(values[::2], values[1::2], strict=False))


def _rotation(attributes: Any) -> float:
    """The rotation in degrees that CVAT gives beside the box before the rotation."""
    return float(attributes.get("rotation") or 0) if isinstance(attributes, dict) else 0.0


def _size(entry: Entry) -> tuple[int, int] | None:
    """(width, height) in pixels; None where one is missing, null or 0.

    Raises:
        ValueError: they are no whole numbers.
    """
    width, height = _plain(entry.get("width")), _plain(entry.get("height"))
    if not width or not height:
        return None
    if type(width) is not int or type(height) is not int:
        raise ValueError(f"has width {width!r:.50} and height {height!r:.50}, which are no whole numbers")
    return width, height


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"has no {error.args[0]}"
    return str(error) if isinstance(error, ValueError) else "is not of the COCO layout"


def write_coco(path: Path, content: Entry, expected: int) -> None:
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
