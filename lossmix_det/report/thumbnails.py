"""Small pictures with boxes, as text that a page holds within itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

from lossmix_det.evaluation.drawing import draw_instances, hide_ticks
from lossmix_det.structures import Instances

INCHES = 3.2  # longer side
DPI = 110
QUALITY = 78  # of JPEG

TRUTH, DETECTED = "#009E73", "#D55E00"


@dataclass(frozen=True)
class Thumbnail:
    """A picture of a page.

    Args:
        source: data URI of a JPEG.
        text: what it shows in words, for those who cannot see it.
        caption: below it.
    """

    source: str
    text: str
    caption: str


def thumbnail(
    pixels: np.ndarray, drawn: Sequence[tuple[Instances, str]], classes: list[str], caption: str, text: str
) -> Thumbnail:
    """An image with boxes.

    Args:
        pixels: (H, W, 3) bytes.
        drawn: instances in pixels of the image, each with the colour of their boxes.
        classes: names.
        caption, text: as in `Thumbnail`.
    """
    height, width = pixels.shape[:2]
    scale = INCHES / max(height, width)
    figure = plt.figure(figsize=(max(width * scale, 0.6), max(height * scale, 0.6)), dpi=DPI)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(pixels)
    hide_ticks(axis)
    axis.set_axis_off()
    for instances, colour in drawn:
        draw_instances(axis, instances, classes, colour)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    plt.close(figure)
    return Thumbnail(_jpeg(content), text, caption)


def _jpeg(content: io.BytesIO) -> str:
    jpeg = io.BytesIO()
    Image.open(content).convert("RGB").save(jpeg, format="JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode("ascii")
