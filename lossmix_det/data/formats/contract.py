"""What a format is: everything that is special about how one kind of data set is stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from lossmix_det.config import DatasetConfig
from lossmix_det.data.records import Problems, RawImage


class Format(ABC):
    """Reads the data sets of one format.

    Attributes:
        labelled: whether its files hold boxes.
        declarable: whether a YAML may name it.
    """

    labelled: bool = True
    declarable: bool = True

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
