"""What a format is: everything that is special about how one kind of data set is stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from lossmix_det.config import DatasetConfig
from lossmix_det.data.problems import Problems
from lossmix_det.data.records import RawImage


class Format(ABC):
    """Reads the data sets of one format.

    Attributes:
        labelled: whether its files hold boxes.
        declarable: whether a YAML may name it.
        looks_for: what tells a folder of this format, for messages; empty if a folder alone cannot tell.
    """

    labelled: bool = True
    declarable: bool = True
    looks_for: str = ""

    def claims(self, entry: DatasetConfig) -> DatasetConfig | None:
        """The declaration, completed with what the folder tells, if the folder surely is of this format.

        Args:
            entry: its ``root`` is an existing folder; what the user has set stays as it is.

        Raises:
            UserError: the folder is of this format, but the declaration leaves open which part of it is meant.
        """
        return None

    def image_folder(self, entry: DatasetConfig) -> Path | None:
        """The folder that names of images are relative to, and that missing images are looked for in; None: neither."""
        return Path(entry.root) / entry.images

    @abstractmethod
    def read(self, entry: DatasetConfig, problems: Problems) -> tuple[list[RawImage], dict[str, int]]:
        """Read every image with its boxes.

        Args:
            entry: says where the files are; each format uses the fields that it needs.
            problems: raises or collects what is wrong with single images and annotations.

        Returns:
            The images, and the category number of each class name if the files number them (else an empty dictionary).

        Raises:
            UserError: the data set as a whole cannot be read.
        """

    def sources(self, entry: DatasetConfig) -> Iterable[Path] | None:
        """The files and folders whose size and time tell whether reading would give the same again.

        Images need not be among them. None: that cannot be told, so that the data set is read on every start.
        """
        return None

    @abstractmethod
    def read_images(self, entry: DatasetConfig, problems: Problems) -> list[RawImage]:
        """Read every image without its boxes, which may be missing or damaged: for a target domain.

        Args:
            entry: says where the files are.
            problems: raises or collects what is wrong with single images.

        Raises:
            UserError: the data set as a whole cannot be read.
        """
