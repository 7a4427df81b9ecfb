"""Reading image files of every usual kind as 8-bit RGB, upright."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
EXIF_ORIENTATION = 0x0112
TURNED = {5, 6, 7, 8}  # EXIF orientations that exchange width and height


def probe(path: Path) -> tuple[int, int]:
    """(width, height) in upright pixels, read from the header alone.

    Raises:
        OSError: the file is missing, or no image.
    """
    with _open(path) as image:
        width, height = image.size
        turned = image.getexif().get(EXIF_ORIENTATION) in TURNED
    return (height, width) if turned else (width, height)


def read(path: Path, high_bit_depth: str = "full") -> np.ndarray:
    """Read an image as upright (H, W, 3) uint8 RGB; transparency is dropped.

    Args:
        path: of the file.
        high_bit_depth: how 16-bit images become 8-bit: ``full`` divides the whole range by 257; ``stretch`` maps the
            1st to 99th percentile of this image to 0…255 (thermal and X-ray images often use a sliver of the range).

    Raises:
        OSError: the file is missing, truncated, or no image.
    """
    with _open(path) as image:
        try:
            image.load()
        except (SyntaxError, ValueError, EOFError) as error:  # Pillow's decoders raise these on damaged files
            raise OSError(str(error)) from error
        upright = ImageOps.exif_transpose(image)
        if upright.mode[0] in "IF":
            grey = _to_eight_bits(np.asarray(upright), high_bit_depth)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if upright.mode == "P" and "transparency" in upright.info:
            upright = upright.convert("RGBA")  # Pillow warns otherwise
        return np.array(upright.convert("RGB"))


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise OSError(str(error)) from error


def _to_eight_bits(values: np.ndarray, high_bit_depth: str) -> np.ndarray:
    values = values.astype(np.float64)
    if high_bit_depth == "stretch":
        low, high = np.percentile(values, (1, 99))
    else:
        low, high = 0.0, 65535.0
    return np.clip((values - low) / max(high - low, 1e-9) * 255 + 0.5, 0, 255).astype(np.uint8)
