"""The names of images that a VOC data set reads: those of a list, or of every annotation."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from lossmix_det.data.formats.voc_folders import Folders
from lossmix_det.data.images import SUFFIXES
from lossmix_det.data.paths import composed, contained, read_text, visible
from lossmix_det.data.problems import Problems
from lossmix_det.errors import NoSuchSplit, UserError

FLAG = re.compile(r"\s+(-1|0|1)$")
LONGEST_NAME = 255  # bytes that a file system takes


class Names:
    """The names of images, relative and without suffix.

    Args:
        folders: of the data set.
    """

    def __init__(self, folders: Folders) -> None:
        self.folders = folders

    @cached_property
    def name_of(self) -> dict[str, str]:
        """Every name that a list may use, by its form with composed accents."""
        return {composed(name): name for name in (*self.folders.images_of, *self.folders.xml_of)}

    def read(self, problems: Problems) -> Iterator[tuple[str, str]]:
        """(file, and line in a list; image name) for every image of the split, or every annotation without one."""
        if self.folders.list is not None:
            yield from self._listed(self.folders.list, problems)
            return
        problems.leave_out(sorted({*self.folders.annotation_files.left_out, *self.folders.image_files.left_out}))
        yield from ((str(path), name) for name, path in self.folders.xml_of.items())

    def _listed(self, listing: Path, problems: Problems) -> Iterator[tuple[str, str]]:
        seen: set[str] = set()
        for number, line in enumerate(_lines(listing), start=1):
            word, where = line.strip(), f"{listing}:{number}"
            if not word:
                continue
            try:
                name = self._name(word, where)
            except UserError as error:
                problems.fail(str(error))
                continue
            if name in seen:
                problems.leave_out([f"{where}: {name} is listed before, and taken once"])
                continue
            seen.add(name)
            yield where, name

    def _name(self, word: str, where: str) -> str:
        """The image that a line of a list names.

        Lists per class have a flag behind the name: 1, 0 or -1. Names may end like that too, so the flag is cut off
        only if there is neither an image nor an annotation of the whole name. The same holds for the suffix of an
        image, and for the folder of the images before the name.

        Raises:
            UserError: it is no name, or leads out of the folder.
        """
        bare = FLAG.sub("", word)
        for name in (word, bare):
            for candidate in self._ways_to_write(name):
                if composed(candidate) in self.name_of:
                    return self.name_of[composed(candidate)]
        if any(len(os.fsencode(part)) > LONGEST_NAME for part in bare.split("/")):
            raise UserError(f"{where}: {word[:40]!r} … is no name of an image (File name too long)")
        contained(self.folders.annotations, f"{bare}.xml", where)
        return bare

    def _ways_to_write(self, name: str) -> Iterator[str]:
        below = name.replace("\\", "/").removeprefix("./")
        for start in (f"{os.path.abspath(self.folders.images)}/", f"{self.folders.images.name}/"):
            below = below.removeprefix(start)
        for path in (name, below):
            yield path
            stem, suffix = os.path.splitext(path)
            if suffix.lower() in {*SUFFIXES, ".xml"}:
                yield stem


def _lines(listing: Path) -> list[str]:
    try:
        return read_text(listing).splitlines()
    except FileNotFoundError:
        splits = ", ".join(path.stem for path in visible(listing.parent, "*.txt")) or "none"
        raise NoSuchSplit(f"{listing}: no such split (found: {splits})") from None
