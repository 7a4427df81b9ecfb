"""A bare folder of images without annotations: a target domain, or pictures to detect on."""

from __future__ import annotations

from pathlib import Path

from lossmix_det.config import DatasetConfig
from lossmix_det.data.formats.contract import Format
from lossmix_det.data.images import SUFFIXES
from lossmix_det.data.paths import Listing, contained, listed
from lossmix_det.data.problems import Problems
from lossmix_det.data.records import RawImage
from lossmix_det.errors import NoSuchSplit, UserError


class Folder(Format):
    """Every image under a folder, in sub-folders too, sorted by path; links are followed, hidden files left out.

    ``split`` names a sub-folder.
    """

    labelled = False
    looks_for = "images alone (folder)"

    def claims(self, entry: DatasetConfig) -> DatasetConfig | None:
        """The declaration, if there is an image; asked after all formats with labels."""
        folder = self.image_folder(entry)
        return entry if folder.is_dir() and listed(folder).images() else None

    def image_folder(self, entry: DatasetConfig) -> Path:
        """``images`` below the root, and ``split`` below that."""
        return (
            contained(Path(entry.root) / entry.images, entry.split, "split")
            if entry.split
            else super().image_folder(entry)
        )

    def read(self, entry: DatasetConfig, problems: Problems) -> tuple[list[RawImage], dict[str, int]]:
        """The images; none has a box."""
        return self.read_images(entry, problems), {}

    def sources(self, entry: DatasetConfig) -> list[Path]:
        """The folder and its sub-folders, whose time changes as files come and go."""
        return self._listing(entry).folders

    def read_images(self, entry: DatasetConfig, problems: Problems) -> list[RawImage]:
        """The images.

        Raises:
            UserError: the folder is missing or holds no image.
        """
        listing = self._listing(entry)
        problems.leave_out([*listing.left_out, *listing.others()])
        paths = [listing.root / name for name in listing.images()]
        if not paths:
            others, known = len(listing.left_out) + len(listing.others()), ", ".join(sorted(SUFFIXES))
            raise UserError(f"{listing.root}: holds no image ({known}); {others} other files were passed over")
        return [RawImage(str(path), path, []) for path in paths]

    def _listing(self, entry: DatasetConfig) -> Listing:
        folder = self.image_folder(entry)
        if not folder.is_dir():
            raise NoSuchSplit(f"{folder}: no such folder of images")
        return listed(folder)
