"""Outlines of objects, as polygons or run lengths, become small masks over the boxes of the objects."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from lossmix_det.data.boxes import Box
from lossmix_det.data.packed import Records
from lossmix_det.data.problems import Problems
from lossmix_det.data.raw import RawObject
from lossmix_det.instances import MASK_SIDE

FINE = 4  # points that are looked at along each side of a cell
POINTS = FINE * MASK_SIDE  # and of a box
SHIFT = 8  # bits behind the point of the corners of polygons that OpenCV fills
FARTHEST = 1e4  # boxes that a corner may be away from its box, so that numbers stay small
WHOLE = np.packbits(np.ones(MASK_SIDE**2, dtype=bool))  # of an object whose outline is not known: its box
TAIL, SIGN = 0x20, 0x10  # bits of a letter of compressed run lengths: another one follows; the number is negative


@dataclass
class Outlines:
    """Makes the masks of a data set, and keeps account of outlines that are none."""

    unusable: list[str] = field(default_factory=list)
    count: int = 0

    def masks(self, objects: list[tuple[RawObject, Box]], size: tuple[int, int]) -> np.ndarray:
        """(N, S·S / 8) uint8, the bits of a mask over each box.

        Args:
            objects: as they stand in their files, each with its box in pixels after it was checked.
            size: (width, height) of their image.
        """
        rows = [self._bits(item, box, size) for item, box in objects]
        return np.array(rows, dtype=np.uint8).reshape(-1, len(WHOLE))

    def _bits(self, item: RawObject, box: Box, size: tuple[int, int]) -> np.ndarray:
        if not item.outline or item.crowd:  # crowds are not taught
            return WHOLE
        try:
            bits = np.packbits(mask_of(item.outline, box, size, relative=item.relative))
        except (ValueError, TypeError, KeyError, OverflowError):
            self.unusable.append(item.where)
            return WHOLE
        self.count += 1
        return bits

    def report(self, name: str, problems: Problems, records: Records) -> Records:
        """Note what was odd; the records without masks if no object has an outline."""
        problems.note_all(
            self.unusable, f"{name}: {{count}} outlines cannot be used, and the box stands for the object"
        )
        return records if self.count else replace(records, masks=None)


def unpacked(bits: np.ndarray) -> np.ndarray:
    """(N, S, S) bool of the bits of N masks."""
    return np.unpackbits(bits, axis=1).reshape(-1, MASK_SIDE, MASK_SIDE).astype(bool)


def mask_of(outline: Any, box: Box, size: tuple[int, int], *, relative: bool = False) -> np.ndarray:
    """(S, S) bool over a box: the cells of which at least half lies inside of an outline; if there are none, any part.

    Args:
        outline: as of `RawObject`.
        box: in pixels.
        size: (width, height) of the image.
        relative: corners are in shares of it.

    Raises:
        ValueError: it is no outline, or nothing of it lies in the box.
    """
    if isinstance(outline, dict):
        inside = _sampled(decoded(outline, size), box)
    else:
        scale = size if relative else (1, 1)
        inside = _filled([polygon * scale for polygon in _polygons(outline)], box)
    covered = inside.reshape(MASK_SIDE, FINE, MASK_SIDE, FINE).mean((1, 3))
    mask = covered >= 0.5
    if not mask.any():
        mask = covered > 0
    if not mask.any():
        raise ValueError("lies outside of its box")
    return mask


def _polygons(outline: list[Any]) -> list[np.ndarray]:
    """(n, 2) corners of each polygon that has an area."""
    if not isinstance(outline[0], list | tuple):
        outline = [outline]
    polygons = [np.asarray(values, dtype=np.float64).reshape(-1, 2) for values in outline if len(values) >= 6]
    if not polygons or not all(np.isfinite(polygon).all() for polygon in polygons):
        raise ValueError("has no polygon of three corners")
    return polygons


def _filled(polygons: list[np.ndarray], box: Box) -> np.ndarray:
    """(POINTS, POINTS) bool over a box: inside of any of the polygons."""
    corner, sides = np.array(box[:2]), np.array(box[2:]) - box[:2]
    inside = np.zeros((POINTS, POINTS), dtype=np.uint8)
    for polygon in polygons:
        points = ((polygon - corner) / sides).clip(-FARTHEST, FARTHEST) * POINTS - 0.5
        cv2.fillPoly(inside, [np.round(points * 2**SHIFT).astype(np.int32)], 1, shift=SHIFT)
    return inside > 0


def _sampled(mask: np.ndarray, box: Box) -> np.ndarray:
    """(POINTS, POINTS) bool over a box, of a (H, W) mask over the image."""
    steps = (np.arange(POINTS) + 0.5) / POINTS
    x1, y1, x2, y2 = box
    columns, rows = (
        (low + steps * (high - low)).astype(int).clip(0, side - 1)
        for low, high, side in ((x1, x2, mask.shape[1]), (y1, y2, mask.shape[0]))
    )
    return mask[rows[:, None], columns]


def decoded(outline: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of COCO's run lengths, which go down one column after the other and begin outside of the object.

    Args:
        outline: ``size`` [height, width], and ``counts`` as numbers or as compressed text.
        size: (width, height) of the image.

    Raises:
        ValueError: they are not of this image.
        KeyError: one of them is missing.
    """
    width, height = size
    if list(outline["size"]) != [height, width]:
        raise ValueError(f"is of size {outline['size']}")
    counts = outline["counts"]
    runs = np.asarray(_run_lengths(counts) if isinstance(counts, str) else counts, dtype=np.int64)
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError("does not fill its image")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _run_lengths(text: str) -> list[int]:
    """The numbers of compressed run lengths: five bits in a letter; from the fourth on less the one before the last."""
    runs: list[int] = []
    value = bits = 0
    for letter in text:
        code = ord(letter) - 48
        value |= (code & (TAIL - 1)) << bits
        bits += 5
        if code & TAIL:
            continue
        if code & SIGN:
            value -= 1 << bits
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = bits = 0
    return runs
