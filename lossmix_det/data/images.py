"""Reading image files of every usual kind as 8-bit RGB, upright."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
EXIF_ORIENTATION = 0x0112
TURNED = {5, 6, 7, 8}  # EXIF orientations that exchange width and height


def probe(path: Path) -> tuple[int, int]:
    """(width, height) in upright pixels, read from the header alone.

    Raises:
        OSError: the file is missing, or no image.
    """
    with _decoding(), Image.open(path) as image:
        width, height = image.size
        return (height, width) if _orientation(image) in TURNED else (width, height)


def read(path: Path, high_bit_depth: str = "full") -> np.ndarray:
    """Read an image as upright (H, W, 3) uint8 RGB; transparency is dropped.

    Args:
        path: of the file.
        high_bit_depth: how 16-bit images become 8-bit: ``full`` divides the whole range by 257
            (floats are taken as 0…1 or 0…255 if they fit); ``stretch`` maps the
            1st to 99th percentile of this image to 0…255 (thermal and X-ray images often use a sliver of the range).

    Raises:
        OSError: the file is missing, truncated, or no image.
    """
    with _decoding(), Image.open(path) as image:
        turned = _orientation(image) != 1
        image.load()
        upright = ImageOps.exif_transpose(image) if turned else image
        if upright.mode[0] in "IF":
            grey = _to_eight_bits(np.asarray(upright), RANGES[high_bit_depth])
            return np.repeat(grey[:, :, None], 3, axis=2)
        if upright.mode == "P" and "transparency" in upright.info:
            upright = upright.convert("RGBA")  # Pillow warns otherwise
        return np.array(upright.convert("RGB"))


@contextmanager
def _decoding() -> Iterator[None]:
    """Pillow's decoders raise many things on damaged files; all of them become an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(str(error) or type(error).__name__) from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 if upright. Asking a PNG that has none in its header would decode all of it."""
    if isinstance(image, PngImageFile) and "exif" not in image.info:
        return 1
    return image.getexif().get(EXIF_ORIENTATION, 1)


def _full_range(values: np.ndarray) -> tuple[float, float]:
    """16 bits, unless the file holds floats of another usual range."""
    is_float = np.issubdtype(values.dtype, np.floating)
    return 0.0, next((top for top in (1.0, 255.0, 65535.0) if is_float and values.max() <= top), 65535.0)


def _used_range(values: np.ndarray) -> tuple[float, float]:
    """From the 1st to the 99th percentile."""
    low, high = np.percentile(values.astype(np.float64), (1, 99))
    return low, high


# What becomes black and white in an image of more than 8 bits, by data.high_bit_depth.
RANGES: dict[str, Callable[[np.ndarray], tuple[float, float]]] = {"full": _full_range, "stretch": _used_range}


def _to_eight_bits(values: np.ndarray, range_of: Callable[[np.ndarray], tuple[float, float]]) -> np.ndarray:
    low, high = range_of(values)
    return np.clip((values.astype(np.float64) - low) / max(high - low, 1e-9) * 255 + 0.5, 0, 255).astype(np.uint8)
