"""YOLO: a text file for each image, with a line ``class x y width height`` for each box in shares of the image.

A line may also give a polygon, ``class x1 y1 x2 y2 x3 y3 …``, which becomes the box around it, or, where ``data.yaml``
has ``kpt_shape``, a box and keypoints, which are not read. The names of the classes stand in ``data.yaml``, in
``classes.txt`` or in ``obj.names``.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from lossmix_det.config import DatasetConfig
from lossmix_det.data.boxes import Box, around
from lossmix_det.data.formats import splits
from lossmix_det.data.formats.contract import Format
from lossmix_det.data.formats.yolo_yaml import DataYaml, find_yaml
from lossmix_det.data.paths import ImageFolder, Listing, contained, is_image, listed, read_text
from lossmix_det.data.problems import Problems
from lossmix_det.data.records import RawImage, RawObject
from lossmix_det.errors import NoSuchSplit, UserError

NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "images/classes.txt", "train/classes.txt")
NO_LABELS = {"classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt"}  # text files that belong to no image
NO_IMAGE = ": not read, because it has no image"
SLACK = 0.5  # a share may be so far outside of 0…1 before the line is taken to be in pixels
LOOKED_AT = 20  # label files that are tried to tell the format; empty ones, of images without objects, tell nothing


class Yolo(Format):
    """Images in ``images``, text files in ``labels``, or both in one folder.

    ``annotations`` is the YAML file, or the folder of the text files. ``split`` is a key of the YAML, a list
    ``<split>.txt``, or a sub-folder. ``classes`` gives the names in the order of their numbers where no file does.
    """

    looks_for = "data.yaml with names, or images with a text file each (yolo)"

    def claims(self, entry: DatasetConfig) -> DatasetConfig | None:
        """The declaration with its YAML file, if there is one, or if text files beside the images are YOLO's."""
        root = Path(entry.root)
        if not entry.annotations:
            yaml = find_yaml(root)
            if yaml is not None:
                return replace(entry, annotations=yaml.relative_to(root).as_posix())
        elif not (root / entry.annotations).is_dir():
            return entry if entry.annotations.lower().endswith((".yaml", ".yml")) else None
        folders = _Folders(entry)
        verdicts = (_is_label_file(path) for path in folders.labels.values())
        if any(islice((each for each in verdicts if each is not None), LOOKED_AT)):
            return entry
        # With a file of names, text files of images are meant as labels: what is wrong with them is said on reading.
        named = any((root / name).is_file() for name in NAME_FILES)
        return entry if named and any(folders.label(root / name) for name in folders.listing.images()) else None

    def read(self, entry: DatasetConfig, problems: Problems) -> tuple[list[RawImage], dict[str, int]]:
        """The images of the split with their boxes; classes are numbered from 0, as in the text files.

        Raises:
            UserError: a folder, a list or the names of the classes are missing.
        """
        folders = _Folders(entry)
        paths = folders.images(problems)
        reader = _Reader(folders.names(), problems, folders.yaml.keypoints() if folders.yaml is not None else 0)
        label_of = {path: folders.label(path) for _, path in paths}
        times, images = Counter(label_of.values()), []
        for where, path in paths:
            label = label_of[path]
            if label is not None and times[label] > 1:
                problems.fail(
                    f"{path}: {times[label]} images have this name without suffix, and one text file, {label}"
                )
                continue
            images.append(RawImage(where if label is None else str(label), path, reader.read(label, path)))
        problems.leave_out(
            f"{path}{NO_IMAGE}" for path in folders.orphans({path for path in times if path is not None})
        )
        reader.report(entry.root, len(paths))
        return images, {name: number for number, name in enumerate(reader.names)}

    def sources(self, entry: DatasetConfig) -> Iterator[Path]:
        """The folders, every text file, and the files with names and lists."""
        folders = _Folders(entry)
        listing = folders.listing
        yield from listing.folders
        others = (".txt", ".names", ".yaml", ".yml")
        yield from (listing.root / name for name in listing.files if name.lower().endswith(others))

    def read_images(self, entry: DatasetConfig, problems: Problems) -> list[RawImage]:
        """The images of the split.

        Raises:
            UserError: a folder or a list is missing.
        """
        return [RawImage(where, path, []) for where, path in _Folders(entry).images(problems)]


class _Folders:
    """The images of one data set, and the text file of each."""

    def __init__(self, entry: DatasetConfig) -> None:
        self.entry, self.root = entry, Path(entry.root)
        is_yaml = entry.annotations.lower().endswith((".yaml", ".yml"))
        self.yaml = DataYaml(contained(self.root, entry.annotations, "annotations"), self.root) if is_yaml else None
        self.label_folder = "" if is_yaml or not entry.annotations else os.path.normpath(entry.annotations).strip("/")

    @cached_property
    def listing(self) -> Listing:
        """Everything below the root."""
        return listed(self.root)

    @cached_property
    def labels(self) -> dict[str, Path]:
        """Text files by their path without suffix; not those with names or lists, unless they hold boxes."""
        files = (name for name in self.listing.files if name.lower().endswith(".txt"))
        files = (name for name in files if name.rpartition("/")[2] not in NO_LABELS or _is_label_file(self.root / name))
        return {os.path.splitext(name)[0]: self.root / name for name in files}

    def label(self, path: Path) -> Path | None:
        """The text file of an image: in ``labels`` for an image in ``images``, else beside it, else of its name."""
        stem = os.path.splitext(path.relative_to(self.root).as_posix())[0]
        *folders, name = stem.split("/")
        ways = [stem]
        if "images" in folders:
            last = len(folders) - 1 - folders[::-1].index("images")
            ways.insert(0, "/".join([*folders[:last], "labels", *folders[last + 1 :], name]))
        if self.label_folder:
            below = stem.removeprefix(self.entry.images.strip("/") + "/")
            ways = [f"{self.label_folder}/{below}", f"{self.label_folder}/{name}"]
        return next((self.labels[way] for way in ways if way in self.labels), None)

    def orphans(self, used: set[Path]) -> list[Path]:
        """Text files beside those that are used, or anywhere without a split, that belong to no image at all."""
        places = {path.parent for path in used}
        beside = [path for path in self.labels.values() if path not in used and _is_label_file(path)]
        if self.entry.split:
            beside = [path for path in beside if path.parent in places]
        images = {self.label(self.root / name) for name in self.listing.images()} if beside else set()
        return [path for path in beside if path not in images or not self.entry.split]

    def images(self, problems: Problems) -> list[tuple[str, Path]]:
        """(where it is listed, file) of every image of the split."""
        split = self.entry.split
        if self.yaml is not None:
            places = self.yaml.places(split)
        elif split:
            places = [self._place(split)]
        else:
            places = [self.root / self.entry.images]
        problems.leave_out(self.listing.left_out)
        found: dict[Path, str] = {}
        for place in places:
            for where, path in self._listed(place) if place.is_file() else self._below(place):
                if path in found:
                    problems.leave_out([f"{where}: {path} is listed before, and taken once"])
                found.setdefault(path, where)
        return [(where, path) for path, where in found.items()]

    def _place(self, split: str) -> Path:
        """The folder or list of a split where no YAML says it."""
        names = sorted(splits.names(split))
        ways = [way for name in names for way in (f"{name}/images", f"images/{name}", f"{name}.txt", name)]
        places = [contained(self.root, way, "split") for way in ways]
        place = next((place for place in places if os.path.exists(place)), None)
        if place is None:
            raise NoSuchSplit(f"{self.root}: no split {split!r}; looked for {', '.join(ways)}")
        return place

    def _below(self, folder: Path) -> Iterator[tuple[str, Path]]:
        start = "" if folder == self.root else folder.relative_to(self.root).as_posix() + "/"
        paths = [self.root / name for name in self.listing.files if name.startswith(start) and is_image(name)]
        if not paths:
            raise UserError(f"{folder}: holds no image")
        return ((str(path), path) for path in paths)

    def _listed(self, file: Path) -> Iterator[tuple[str, Path]]:
        """The images of a list: a path in each line, from the folder of the list or from the root."""
        files = ImageFolder(self.root)
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            name, where = line.strip().replace("\\", "/"), f"{file}:{number}"
            if not name:
                continue
            beside = file.parent / os.path.normpath(name)
            known = beside.is_relative_to(self.root) and os.pardir not in beside.parts and os.path.isfile(beside)
            path = beside if known else files.find(Path(name))
            yield where, path or contained(self.root, name, where)

    def names(self) -> list[str]:
        """The names of the classes, in the order of their numbers."""
        if self.yaml is not None and self.yaml.names():
            return self.yaml.names()
        files = (self.root / name for name in NAME_FILES if (self.root / name).is_file())
        file = next((file for file in files if not _is_label_file(file)), None)  # of an image called classes
        if file is not None:
            names = [line.strip() for line in read_text(file).strip().splitlines()]
            odd = next((name for name in names if not name or names.count(name) > 1), None)
            if odd is not None:
                fault = f"names {odd!r} twice" if odd else "has an empty line"
                raise UserError(f"{file} {fault}; the name of class n stands in line n + 1, each name once")
            return names
        if self.entry.classes:
            return list(self.entry.classes)
        raise UserError(
            f"{self.root}: YOLO files give classes as numbers, and neither data.yaml nor {NAME_FILES[0]} names them; "
            "list their names under classes of this data set, in the order of the numbers"
        )


@dataclass
class _Reader:
    """Reads the text files of a data set, and keeps account of what is odd about them."""

    names: list[str]
    problems: Problems
    keypoints: int = 0  # numbers behind each box that are not read
    surrounded: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)

    def read(self, label: Path | None, image: Path) -> list[RawObject]:
        """The objects of one image; none if it has no text file."""
        if label is None:
            self.unlabelled.append(str(image))
            return []
        try:
            lines = read_text(label).splitlines()
        except (UserError, FileNotFoundError) as error:
            self.problems.fail(str(error))
            return []
        objects = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                objects.append(self._object(line.split(), f"{label}:{number}"))
            except ValueError as error:
                self.problems.fail(f"{label}:{number}: {line.strip():.60} {error}")
        return objects

    def _object(self, words: list[str], where: str) -> RawObject:
        try:
            number, *values = map(float, words)
        except ValueError:
            raise ValueError("is not a class number and four numbers x y width height") from None
        if not number.is_integer() or not 0 <= number < len(self.names):
            raise ValueError(f"is of class {words[0]:.20}, but the {len(self.names)} names are numbered from 0")
        if self.keypoints and len(values) == 4 + self.keypoints:
            values = values[:4]
        if any(not -SLACK <= value <= 1 + SLACK for value in values if math.isfinite(value)):
            raise ValueError("is not in shares of the image, from 0 to 1; is it in pixels?")
        box, outline = self._box(values, where), None if len(values) == 4 else [values]
        return RawObject(where, self.names[int(number)], box, relative=True, outline=outline)

    def _box(self, values: list[float], where: str) -> Box:
        if len(values) == 4:
            x, y, width, height = values
            return x - width / 2, y - height / 2, x + width / 2, y + height / 2
        if len(values) < 6 or len(values) % 2:
            raise ValueError(f"has {len(values)} numbers behind the class, not four of a box or the pairs of a polygon")
        self.surrounded.append(where)
        return around(zip(values[::2], values[1::2], strict=True))

    def report(self, root: str, images: int) -> None:
        """Note what was odd.

        Raises:
            UserError: no image has a text file.
        """
        if len(self.unlabelled) == images:
            raise UserError(
                f"{root}: no image has a text file, {self.unlabelled[0]} for one; it is looked for in labels"
            )
        note_all = self.problems.note_all
        note_all(self.surrounded, f"{root}: {{count}} polygons became the upright box around them")
        note_all(self.unlabelled, f"{root}: {{count}} images have no text file, and count as images without objects")


def _is_label_file(path: Path) -> bool | None:
    """Whether the first line has a class number and at least four shares; None if the file is empty."""
    try:
        text = read_text(path).strip()
        if not text:
            return None
        number, *values = map(float, text.split("\n", 1)[0].split())
    except (ValueError, OSError):
        return False
    return number.is_integer() and len(values) >= 4 and all(-SLACK <= value <= 1 + SLACK for value in values)
