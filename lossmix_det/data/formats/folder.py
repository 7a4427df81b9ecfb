"""A bare folder of images without annotations: a target domain, or pictures to detect on."""

from __future__ import annotations

import os
from pathlib import Path

from lossmix_det.config import DatasetConfig
from lossmix_det.data.formats.contract import Format
from lossmix_det.data.images import SUFFIXES
from lossmix_det.data.records import Problems, RawImage
from lossmix_det.errors import UserError


class Folder(Format):
    """Every image under a folder, in sub-folders too, sorted by path; hidden files are left out."""

    labelled = False

    def read(self, entry: DatasetConfig, problems: Problems) -> tuple[list[RawImage], dict[str, int]]:
        """The images; none has a box."""
        return self.read_images(entry, problems), {}

    def sources(self, entry: DatasetConfig) -> list[Path]:
        """The folder and its sub-folders, whose time changes as files come and go."""
        return sorted(Path(folder) for folder, _, _ in os.walk(Path(entry.root) / entry.images))

    def read_images(self, entry: DatasetConfig, problems: Problems) -> list[RawImage]:
        """The images.

        Raises:
            UserError: the folder is missing or holds no image.
        """
        folder = Path(entry.root) / entry.images
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of images")
        visible = (path for path in folder.rglob("*") if not path.name.startswith("."))
        paths = sorted(path for path in visible if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise UserError(f"{folder}: holds no image ({', '.join(sorted(SUFFIXES))})")
        return [RawImage(str(path), path, []) for path in paths]
