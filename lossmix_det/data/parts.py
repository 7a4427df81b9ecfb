"""Which parts a folder of data has, where nothing but the folder is known."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lossmix_det.config import DatasetConfig
from lossmix_det.data.formats import FORMATS
from lossmix_det.data.formats.auto import recognise
from lossmix_det.data.formats.voc_folders import LISTS
from lossmix_det.data.paths import visible
from lossmix_det.data.problems import SkippedProblems
from lossmix_det.data.records import RawImage
from lossmix_det.errors import LostSplit, NoSuchSplit, UserError

log = logging.getLogger(__name__)

# Names of the parts to train on, to choose by, and to test on, the usual one first.
TRAIN, VALIDATION, TEST = ("train", "trainval", "training"), ("val", "valid", "validation"), ("test", "testing")
SEPARATOR = ":"  # between a folder and its split on a command line


@dataclass(frozen=True)
class Place:
    """A folder of data, and the split that is meant; empty: nobody has named one.

    Args:
        root: absolute.
        split: as people name it.
    """

    root: Path
    split: str = ""

    @classmethod
    def parse(cls, word: str) -> Place:
        """A folder, or ``FOLDER:SPLIT``.

        Raises:
            UserError: there is no such folder, or it is a file.
        """
        folder = Path(word).expanduser()
        before, _, split = word.rpartition(SEPARATOR)
        if not folder.is_dir() and before:
            folder = Path(before).expanduser()
        else:
            split = ""
        if not folder.is_dir():
            raise UserError(f"{word}: " + ("is a file; give its folder" if folder.exists() else "no such folder"))
        return cls(Path(os.path.abspath(folder)), split)

    def part(self, names: tuple[str, ...], *, labelled: bool = False) -> DatasetConfig | None:
        """The first of some splits that is there; None if none is.

        Args:
            names: of the splits.
            labelled: only one in which some image has a box.

        Raises:
            UserError: it is there, but cannot be read.
        """
        lost = set()
        for name in names:
            try:
                entry = self._recognised(name)
            except UserError:
                continue
            try:
                if FORMATS[entry.format].read_images(entry, SkippedProblems()) and (not labelled or _has_boxes(entry)):
                    return entry
            except LostSplit as error:
                lost.add(str(error))
            except NoSuchSplit:
                continue
        for message in sorted(lost):
            log.warning("%s; this split is left out", message)
        return None

    def whole(self) -> DatasetConfig:
        """The split that is named, else all of it.

        Raises:
            UserError: its format cannot be told, or its splits have names that nobody can guess.
        """
        try:
            entry = self._recognised(self.split)
        except UserError as error:
            raise UserError(f"{error}; or name a split behind a colon, such as {self.root}{SEPARATOR}train") from None
        lists = [] if self.split or entry.format != "voc" else visible(self.root / LISTS[0], "*.txt")
        if lists:
            names = ", ".join(path.stem for path in lists)
            raise UserError(
                f"{self.root}: its splits are {names}; name one behind a colon: {self.root}{SEPARATOR}{lists[0].stem}"
            )
        return entry

    def _recognised(self, split: str) -> DatasetConfig:
        return recognise(self.root.name, DatasetConfig(root=str(self.root), split=split))


def _has_boxes(entry: DatasetConfig) -> bool:
    """Whether some image of a declaration has a box; false where its labels are missing, or cannot be read."""
    return any(image.objects for image in _images(entry, labelled=False))


def settled(entries: Sequence[DatasetConfig], *, labelled: bool = True) -> list[tuple[DatasetConfig, list[RawImage]]]:
    """Declarations completed with what their annotations tell, and their images as they stand in the files.

    VOC files that have a box at pixel 0 count from 0, and so do all parts of their data set: one tool wrote them, and
    in a part no box may happen to lie at the edge.

    Args:
        entries: the declarations.
        labelled: all need labels; otherwise one whose labels are missing or cannot be read has no image here.

    Raises:
        UserError: a data set as a whole cannot be read.
    """
    found = [(entry, _images(entry, labelled)) for entry in entries]
    from_zero = {_files(entry) for entry, images in found if entry.format == "voc" and any(map(_begins_before, images))}
    at_zero = [
        replace(entry, pixel_origin=0) if entry.format == "voc" and _files(entry) in from_zero else entry
        for entry in entries
    ]
    return [
        (after, images if after == before else _images(after, labelled))
        for after, (before, images) in zip(at_zero, found, strict=True)
    ]


def _images(entry: DatasetConfig, labelled: bool) -> list[RawImage]:
    file_format = FORMATS[entry.format]
    try:
        return file_format.read(entry, SkippedProblems())[0] if file_format.labelled else []
    except UserError:
        if labelled:
            raise
        return []


def _files(entry: DatasetConfig) -> tuple[str, str]:
    return entry.root, entry.annotations


def _begins_before(image: RawImage) -> bool:
    """Whether a box, taken to count from 1, begins at the pixel before the first, and does not reach out elsewhere."""
    width, height = image.size or (float("inf"), float("inf"))
    return any(
        min(item.box[:2]) == -1 and item.box[2] <= width and item.box[3] <= height  # as `voc_xml` notes them
        for item in image.objects
    )
