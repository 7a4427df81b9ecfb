"""Small pictures with boxes, as text that a page holds within itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lossmix_det.evaluation.pictures import Mark, draw_marks

SIDE = 352  # pixels
QUALITY = 78  # of JPEG
HEAD = "data:image/jpeg;base64,"

TRUTH, DETECTED = "#009E73", "#D55E00"


@dataclass(frozen=True)
class Thumbnail:
    """A picture of a page.

    Args:
        source: data URI of a JPEG.
        text: what it shows in words, for those who cannot see it.
        caption: below it; may have several lines.
    """

    source: str
    text: str
    caption: str

    @property
    def jpeg(self) -> bytes:
        """The picture as a file."""
        return base64.b64decode(self.source.removeprefix(HEAD))


def thumbnail(pixels: np.ndarray, marks: Sequence[Mark], classes: Sequence[str], caption: str, text: str) -> Thumbnail:
    """An image with boxes.

    Args:
        pixels: (H, W, 3) bytes.
        marks: in pixels of the image.
        classes: names.
        caption, text: as in `Thumbnail`.
    """
    content = io.BytesIO()
    picture = Image.fromarray(draw_marks(pixels, marks, classes, SIDE))
    picture.save(content, format="JPEG", quality=QUALITY, optimize=True)
    return Thumbnail(HEAD + base64.b64encode(content.getvalue()).decode("ascii"), text, caption)
