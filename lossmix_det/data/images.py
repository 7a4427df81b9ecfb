"""Reading image files of every usual kind as 8-bit RGB, upright."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from lossmix_det.files import mistaken

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga", ".avif"),
}
NOT_READ = {".heic", ".heif", ".dng", ".raw", ".cr2", ".nef", ".arw", ".psd", ".svg", ".jxl", ".pdf"}  # by Pillow alone
EXIF_ORIENTATION = 0x0112
EXIF = ("apply", "ignore")  # values of the setting ``exif`` of a data set
# How the pixels of a TIFF are turned back after Pillow has turned them upright, by EXIF orientation.
TURN_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class Header:
    """What the header of an image file says.

    Attributes:
        stored: (width, height) in pixels of the file.
        orientation: EXIF orientation, 1…8; 1 is upright.
    """

    stored: tuple[int, int]
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) in pixels after the rotation that EXIF asks for; 5…8 exchange them."""
        width, height = self.stored
        return (height, width) if self.orientation > 4 else (width, height)

    def size(self, exif: bool = True) -> tuple[int, int]:
        """(width, height) of the image as it is read, given whether EXIF is applied."""
        return self.upright if exif else self.stored


def probe(path: str | Path) -> Header:
    """Read the header of an image alone.

    Raises:
        OSError: the file is missing, no regular file, or no image.
    """
    with _opened(path) as image:
        return Header(_stored_size(image), _orientation(image))


def read(path: Path, high_bit_depth: str = "full", *, exif: bool = True) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB; transparency is dropped.

    Args:
        path: of the file.
        exif: turn the image upright by its EXIF orientation; else its pixels stay as they are stored.
        high_bit_depth: how 16-bit images become 8-bit: ``full`` divides the whole range by 257
            (floats are taken as 0…1 or 0…255 if they fit); ``stretch`` maps the
            1st to 99th percentile of this image to 0…255 (thermal and X-ray images often use a sliver of the range).

    Raises:
        OSError: the file is missing, no regular file, truncated, or no image.
    """
    with _opened(path) as image:
        return to_rgb(image, high_bit_depth, exif=exif)


def to_rgb(image: Image.Image, high_bit_depth: str = "full", *, exif: bool = True) -> np.ndarray:
    """An opened image as (H, W, 3) uint8 RGB; arguments as of `read`."""
    upright = _turned(image, exif)
    if upright.mode[0] in "IF":
        grey = _to_eight_bits(np.asarray(upright), RANGES[high_bit_depth])
        return np.repeat(grey[:, :, None], 3, axis=2)
    if upright.mode == "P" and "transparency" in upright.info:
        upright = upright.convert("RGBA")  # Pillow warns otherwise
    return np.array(upright.convert("RGB"))


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """The image, its pixels not yet decoded. Pillow's many errors on damaged files all become an OSError."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for its writer
            raise OSError("it is no regular file")
        # Given a path, Pillow maps grey uncompressed TIFFs into memory, and mixes up their sides if they are turned.
        with open(path, "rb") as file, Image.open(file) as image:
            yield image
    except UnidentifiedImageError:
        raise OSError(mistaken(Path(path)) or "it is damaged, or no image of a kind that Pillow reads") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise OSError(f"it has more than {most} million pixels, the most that is read; cut it into parts") from None
    except OSError:
        raise
    except Exception as error:
        raise OSError(str(error) or type(error).__name__) from error


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the pixels in the file; of a TIFF, Pillow gives the size after turning."""
    return (image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]) if isinstance(image, TiffImageFile) else image.size


def _turned(image: Image.Image, exif: bool) -> Image.Image:
    """The decoded image, upright or as it is stored."""
    orientation = _orientation(image)
    image.load()
    if orientation == 1:
        return image
    if isinstance(image, TiffImageFile) and EXIF_ORIENTATION not in image.tag_v2:  # Pillow has turned it on loading
        return image if exif else image.transpose(TURN_BACK[orientation])
    return ImageOps.exif_transpose(image) if exif else image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 if upright or unknown. Asking a PNG that has none in its header would decode all of it."""
    if isinstance(image, PngImageFile) and "exif" not in image.info:
        return 1
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # a damaged block says nothing about the pixels; Pillow raises almost anything
        return 1
    return orientation if orientation in TURN_BACK else 1


def _full_range(values: np.ndarray) -> tuple[float, float]:
    """16 bits, unless the file holds floats of another usual range."""
    is_float = np.issubdtype(values.dtype, np.floating)
    highest = values.max(initial=0)
    return 0.0, next((top for top in (1.0, 255.0, 65535.0) if is_float and highest <= top), 65535.0)


def _used_range(values: np.ndarray) -> tuple[float, float]:
    """From the 1st to the 99th percentile."""
    low, high = np.percentile(values.astype(np.float64), (1, 99)) if values.size else (0.0, 1.0)
    return low, high


# What becomes black and white in an image of more than 8 bits, by data.high_bit_depth.
RANGES: dict[str, Callable[[np.ndarray], tuple[float, float]]] = {"full": _full_range, "stretch": _used_range}


def _to_eight_bits(values: np.ndarray, range_of: Callable[[np.ndarray], tuple[float, float]]) -> np.ndarray:
    """As 8 bits; what is no number is black, infinite ones are white and black."""
    low, high = range_of(values[np.isfinite(values)])
    scaled = (values.astype(np.float64) - low) / max(high - low, 1e-9) * 255 + 0.5
    return np.clip(np.nan_to_num(scaled, posinf=255.0, neginf=0.0), 0, 255).astype(np.uint8)
