"""Holding out a part of a data set that comes without splits."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from lossmix_det.config import DatasetConfig
from lossmix_det.data.records import RawImage
from lossmix_det.errors import UserError


def part_of(images: list[RawImage], entry: DatasetConfig, folder: Path | None) -> list[RawImage]:
    """The images that a declaration with ``holdout`` means, in their order; without it all.

    The images are ranked by a hash of their path below the folder, so that the same ones are held out wherever the data
    lies and in whatever order it is listed. At least one is held out, and at least one is not, where there are two.

    Args:
        images: of the data set.
        entry: its declaration.
        folder: of the images; None: it is not known.

    Raises:
        UserError: there is one image, which cannot be parted.
    """
    if not entry.holdout:
        return images
    if len(images) == 1:
        raise UserError(
            f"{images[0].path} is the only image, so that holdout={entry.holdout:g} cannot part the data set; add "
            "images, or name a part to validate on"
        )
    ranked = sorted({image.path for image in images}, key=lambda path: _rank(path, folder))
    count = min(max(1, round(entry.holdout * len(ranked))), len(ranked) - 1)
    held_out = set(ranked[: max(count, 0)])
    return [image for image in images if (image.path in held_out) == entry.held_out]


def _rank(path: Path, folder: Path | None) -> bytes:
    name = path.relative_to(folder) if folder is not None and path.is_relative_to(folder) else path
    return hashlib.sha256(os.fsencode(name.as_posix())).digest()
