"""A bare folder of images without annotations: a target domain, or pictures to detect on."""

from __future__ import annotations

from pathlib import Path

from lossmix_det.data.images import SUFFIXES
from lossmix_det.data.records import RawImage
from lossmix_det.errors import UserError


def read_folder(root: Path) -> list[RawImage]:
    """List every image under a folder, in sub-folders too, sorted by path; hidden files are left out.

    Raises:
        UserError: the folder is missing or holds no image.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of images")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
    if not paths:
        raise UserError(f"{root}: holds no image ({', '.join(sorted(SUFFIXES))})")
    return [RawImage(str(path), path, []) for path in paths]
