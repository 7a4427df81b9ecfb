"""Upright boxes around what is none, and what boxes have in common. Boxes are ``xyxy``."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from faster_coco_eval import mask

Box = tuple[float, float, float, float]


def around(points: Iterable[tuple[float, float]]) -> Box:
    """The upright box around points (x, y), of which there is at least one.

    Raises:
        ValueError: a coordinate is not finite.
    """
    xs, ys = zip(*points, strict=True)
    if not all(map(math.isfinite, (*xs, *ys))):  # min and max would pass over it
        raise ValueError("has a point that is not finite")
    return min(xs), min(ys), max(xs), max(ys)


def around_rotated(cx: float, cy: float, width: float, height: float, degrees: float) -> Box:
    """The upright box around a box that is rotated about its centre.

    Args:
        cx, cy: the centre.
        width, height: before the rotation.
        degrees: of the rotation; either direction gives the same box.

    Raises:
        ValueError: the angle is not finite.
    """
    if not math.isfinite(degrees):
        raise ValueError(f"is rotated by {degrees} degrees")
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    half_width, half_height = (width * cos + height * sin) / 2, (width * sin + height * cos) / 2
    return cx - half_width, cy - half_height, cx + half_width, cy + half_height


def overlaps(boxes: np.ndarray, truths: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(D, T) intersection over union as COCO computes it: of a crowd over the detection alone.

    Args:
        boxes, truths: (D, 4) and (T, 4) ``xyxy``.
        crowd: (T,) bool.
    """
    sized = (np.hstack([of[:, :2], of[:, 2:] - of[:, :2]]) for of in (boxes.astype(float), truths.astype(float)))
    return np.reshape(mask.iou(*sized, crowd.tolist()), (len(boxes), len(truths)))
