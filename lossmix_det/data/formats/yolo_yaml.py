"""The ``data.yaml`` of a YOLO data set: the names of its classes, and where its splits are."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from lossmix_det.data.formats import splits
from lossmix_det.data.paths import contained, is_absolute, read_text, visible
from lossmix_det.errors import LostSplit, NoSuchSplit, UserError

KEYS = ("train", "val", "valid", "test")
OTHERS = ("names", "nc", "path", "kpt_shape", "flip_idx", "download", "channels")  # are no splits
NOTHING = ("", "~", "null", [])  # how YAML writes that there is no value
LARGEST = 1 << 20  # bytes; a file that names classes and folders is far smaller


def find_yaml(root: Path) -> Path | None:
    """The one YAML file in a folder that names classes; ``data.yaml`` if several do.

    Raises:
        UserError: several do, and none is called so.
    """
    found = [path for suffix in ("*.yaml", "*.yml") for path in visible(root, suffix) if _names_classes(path)]
    usual = [path for path in found if path.stem in ("data", "dataset")]
    if len(found) > 1 and len(usual) != 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{root}: several YAML files name classes: {names}; set annotations to one of them")
    return (usual or found or [None])[0]


def _names_classes(path: Path) -> bool:
    try:
        content = _load(path)
    except UserError:
        return False
    return "names" in content or ("nc" in content and "train" in content)


def _load(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path)
        content = yaml.load(text, yaml.BaseLoader) if len(text) < LARGEST else None  # names stay as they are written
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split()):.200}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a YAML file with names and the folders of the splits")
    return content


class DataYaml:
    """One such file.

    Args:
        path: of the file.
        root: of the data set, which no path may leave.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self.root = path, root

    @cached_property
    def content(self) -> dict[str, Any]:
        """All of the file."""
        return _load(self.path)

    def names(self) -> list[str]:
        """The names of the classes in the order of their numbers; empty if there are none.

        Raises:
            UserError: they are no list, and no table by numbers from 0 without gaps; or one is there twice.
        """
        given = self.content.get("names") or []
        if isinstance(given, dict):
            numbers = [str(number) for number in range(len(given))]
            if set(given) != set(numbers):
                raise UserError(f"{self.path}: names must be numbered 0, 1, 2, … without gaps")
            given = [given[number] for number in numbers]
        if not isinstance(given, list) or not all(isinstance(name, str) and name.strip() for name in given):
            raise UserError(f"{self.path}: names must be a list of names, or a table 0: name, 1: name, …")
        result = [name.strip() for name in given]
        twice = next((name for name in result if result.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{self.path}: names has {twice!r} twice")
        return result

    def keypoints(self) -> int:
        """How many numbers of keypoints follow the box of an object (``kpt_shape``); 0 if there are none."""
        shape = self.content.get("kpt_shape")
        if not shape:
            return 0
        try:
            count, numbers = map(int, shape)
        except (TypeError, ValueError):
            raise UserError(f"{self.path}: kpt_shape must be [keypoints, numbers of each], such as [17, 3]") from None
        return count * numbers

    def places(self, split: str) -> list[Path]:
        """The folders of images and lists of images of a split.

        Args:
            split: a key of the file, of any name; ``val`` and ``valid`` are one; empty: the only one of the usual.

        Raises:
            NoSuchSplit: there is no such split, or its folder is missing.
            UserError: there are several, and none is named.
        """
        own = [key for key in self.content if key == split and key not in (*KEYS, *OTHERS)]
        present = [key for key in (*KEYS, *own) if self.content.get(key, "") not in NOTHING]
        found = [key for key in present if (not split or key in splits.names(split))]
        if not split and len(found) > 1:
            raise UserError(f"{self.path}: has the splits {', '.join(found)}; set split to one of them")
        if not found:
            known = ", ".join(present) or "none"
            raise NoSuchSplit(f"{self.path}: no such split, {split!r} (found: {known})")
        given = self.content[found[0]]
        given = given if isinstance(given, list) else [given]
        return [self._place(str(value), found[0]) for value in given]

    def _place(self, value: str, key: str) -> Path:
        """Relative to ``path`` in the file, to the file itself, or, as Roboflow writes it, below the file's folder.

        An absolute path of another machine is found by its end, of at least two names.
        """
        start, here = str(self.content.get("path") or ""), self.path.parent.relative_to(self.root).as_posix()
        inside = value
        while inside.startswith("../"):
            inside = inside[3:]
        first = f"{start}/{value}" if start.startswith("/") else f"{here}/{start}/{value}"
        ends = (f"{here}/{end}" for end in _ends(value)) if is_absolute(value) else ()
        for way in (first, f"{here}/{value}", value, f"{here}/{inside}", *ends):
            try:
                place = contained(self.root, way, str(self.path))
                if place.exists():
                    return place
            except (UserError, ValueError, OSError):  # out of the root, or no path at all
                continue
        raise LostSplit(f"{self.path}: {key}: {value!r:.100} is no folder and no list of images below {self.root}")


def _ends(path: str) -> Iterator[str]:
    """The ends of a path, the longest first, down to two names."""
    names = path.replace("\\", "/").strip("/").split("/")
    return ("/".join(names[start:]) for start in range(1, len(names) - 1))
