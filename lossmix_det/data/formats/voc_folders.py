"""The folders of a VOC data set, and which files in them belong together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from lossmix_det.config import DatasetConfig
from lossmix_det.data.images import SUFFIXES
from lossmix_det.data.paths import Listing, composed, contained, listed
from lossmix_det.data.problems import Problems
from lossmix_det.errors import UserError

NO_FOLDER = "{}: no such folder; a VOC data set has JPEGImages and Annotations in its root"
# How people call the two folders; both are the root where images and XML files lie together.
IMAGES = ("JPEGImages", "images", "Images")
ANNOTATIONS = ("Annotations", "annotations")
LISTS = ("ImageSets/Main", "ImageSets", "")


class Folders:
    """The folders of one data set, and its images and annotations by the names that lists call them."""

    def __init__(self, entry: DatasetConfig) -> None:
        root = Path(entry.root)
        self.list: Path | None = None
        if entry.split:
            lists = [contained(root / folder, f"{entry.split}.txt", "split") for folder in LISTS]
            self.list = next((path for path in lists if path.is_file()), lists[0])
            if not self.list.is_file() and contained(root, entry.split, "split").is_dir():
                root, self.list = root / entry.split, None
        self.annotations = _folder(root, entry.annotations, ANNOTATIONS, "annotations")
        self.images = _folder(root, entry.images, IMAGES, "images")

    def checked(self) -> Folders:
        """The folders themselves.

        Raises:
            UserError: there is no folder of images.
        """
        if not self.images.is_dir():
            raise UserError(NO_FOLDER.format(self.images))
        return self

    @cached_property
    def image_files(self) -> Listing:
        """Everything below the folder of images; empty if there is none."""
        return listed(self.images) if self.images.is_dir() else Listing(self.images)

    @cached_property
    def annotation_files(self) -> Listing:
        """Everything below the folder of annotations; empty if there is none."""
        if self.annotations == self.images:
            return self.image_files
        return listed(self.annotations) if self.annotations.is_dir() else Listing(self.annotations)

    @cached_property
    def images_of(self) -> dict[str, list[str]]:
        """The relative paths of images, by that path without suffix: one, or several of different suffixes."""
        table: dict[str, list[str]] = {}
        for path in self.image_files.images():
            table.setdefault(os.path.splitext(path)[0], []).append(path)
        return table

    @cached_property
    def xml_of(self) -> dict[str, Path]:
        """Annotations by their relative path without suffix."""
        parts = (os.path.splitext(path) for path in self.annotation_files.files)
        return {stem: self.annotations / f"{stem}{suffix}" for stem, suffix in parts if suffix.lower() == ".xml"}

    def annotation(self, name: str) -> Path | None:
        """The XML file of an image, if there is one; its accents may be stored in another way than the image's."""
        return self.xml_of.get(name) or self._xml_by_composed.get(composed(name))

    @cached_property
    def _xml_by_composed(self) -> dict[str, Path]:
        return {composed(name): path for name, path in self.xml_of.items()}

    def image(self, name: str, declared: str | None, where: str, problems: Problems) -> Path | None:
        """The file of an image, which need not exist; None if it cannot be told which one.

        Args:
            name: of the annotation, relative and without suffix.
            declared: the name of the file that the annotation gives.
            where: for messages.
            problems: told where two files have the name.
        """
        variants = self.images_of_name(name)
        named = [path for path in variants if path.rpartition("/")[2] == declared]
        if len(variants) == 1 or len(named) == 1:
            return self.images / (named or variants)[0]
        if variants:
            problems.fail(
                f"{where}: {' and '.join(variants)} are both there, and its <filename> {declared!r} is neither"
            )
            return None
        if declared and os.path.splitext(declared)[1].lower() in SUFFIXES:
            return self.images / os.path.dirname(name) / declared
        return self.images / f"{name}.jpg"

    def is_other_image(self, declared: str | None, path: Path) -> bool:
        """Whether an annotation gives the name of an image that is there, and is not the one that it is taken for."""
        name = composed(declared or "")
        return name != composed(path.name) and name in self._image_names

    @cached_property
    def _image_names(self) -> set[str]:
        return {composed(path.rpartition("/")[2]) for path in self.image_files.images()}

    def without_annotation(self, taken: set[Path]) -> Iterator[str]:
        """A line for each image that no annotation is of.

        Args:
            taken: the images of all annotations; those that are not there will be found by their name.
        """
        files = {self.images / name for name in self.image_files.images()}
        sought = {path.name for path in taken - files}
        left = sorted(path for path in files - taken if path.name not in sought)
        return (f"{path}: not read, because it has no annotation" for path in left)

    def images_of_name(self, name: str) -> list[str]:
        """The relative paths of the images that a name without suffix means."""
        return self.images_of.get(name) or self._images_by_composed.get(composed(name), [])

    @cached_property
    def _images_by_composed(self) -> dict[str, list[str]]:
        return {composed(name): paths for name, paths in self.images_of.items()}


def _folder(root: Path, given: str, usual: tuple[str, ...], key: str) -> Path:
    """The folder that a setting names, else the first usual one that is there, else the root if XML lies there."""
    if given:
        return contained(root, given, key)
    present = [name for name in usual if (root / name).is_dir()]
    if present:
        return root / present[0]
    together = root.is_dir() and any(name.lower().endswith(".xml") for name in listed(root).files)
    return root if together else root / usual[0]
