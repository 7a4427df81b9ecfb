"""The records of a data set in a few arrays, whatever their number.

A list of Python objects is copied bit by bit into every loading process, because touching an object counts its
references. Arrays stay shared, and are quickly written and read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import overload

import numpy as np


@dataclass(frozen=True)
class ImageRecord:
    """One checked image.

    Attributes:
        path: of the image file.
        image_id: unique in its data set.
        size: (height, width) in pixels, after EXIF rotation.
        boxes: (N, 4) float32 ``xyxy`` pixels inside the image.
        classes: (N,) int64 in 0…K-1.
        difficult, crowd: (N,) bool, as in `RawObject`.
        areas: (N,) float64 in square pixels.
        exif: whether the image is turned by its EXIF orientation.
        masks: (N, S·S / 8) uint8, the bits of an S×S mask over each box (`instances.MASK_SIDE`); None: not read.
    """

    path: Path
    image_id: int
    size: tuple[int, int]
    boxes: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    exif: bool = True
    masks: np.ndarray | None = None


@dataclass(frozen=True)
class Records(Sequence[ImageRecord]):
    """N images with M boxes; a record is made when it is asked for.

    Args:
        names: (P,) uint8, the paths one after the other.
        name_ends: (N,) int64, where each path ends.
        image_ids: (N,) int64.
        sizes: (N, 2) int64, height and width.
        ends: (N,) int64, where the boxes of each image end.
        boxes, classes, difficult, crowd, areas: of all images, (M, …).
        exif: (N,) bool.
        masks: of all images, (M, S·S / 8); None: not read.
    """

    names: np.ndarray
    name_ends: np.ndarray
    image_ids: np.ndarray
    sizes: np.ndarray
    ends: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    exif: np.ndarray
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # also from the end; raises IndexError beyond
        boxes = slice(int(self.ends[number - 1]) if number else 0, int(self.ends[number]))
        height, width = self.sizes[number].tolist()
        return ImageRecord(
            Path(self.name(number)),
            int(self.image_ids[number]),
            (height, width),
            *(getattr(self, name)[boxes] for name in PER_BOX),
            bool(self.exif[number]),
            None if self.masks is None else self.masks[boxes],
        )

    def name(self, number: int) -> str:
        """The path of an image as text."""
        start = int(self.name_ends[number - 1]) if number else 0
        return os.fsdecode(self.names[start : int(self.name_ends[number])].tobytes())

    @staticmethod
    def pack(records: Iterable[ImageRecord]) -> Records:
        """From records, which may be made one by one."""
        buffers = {spec.name: bytearray() for spec in fields(Records) if spec.name != "masks"}
        names, boxes, masks = 0, 0, []
        for record in records:
            name = os.fsencode(record.path)
            names, boxes = names + len(name), boxes + len(record.boxes)
            of_boxes = (getattr(record, key) for key in PER_BOX)
            values = (name, names, record.image_id, record.size, boxes, *of_boxes, record.exif)
            for (key, buffer), value in zip(buffers.items(), values, strict=True):
                buffer += value if key == "names" else np.asarray(value, KINDS[key]).tobytes()
            if record.masks is not None:
                masks.append(record.masks)
        arrays = {key: np.frombuffer(buffer, KINDS[key]) for key, buffer in buffers.items()}
        arrays = {key: array.reshape(-1, *ROWS.get(key, ())) for key, array in arrays.items()}
        return Records(**arrays, masks=np.concatenate(masks) if masks else None)

    def take(self, indices: np.ndarray) -> Records:
        """Some of the images, given their (n,) numbers."""
        names, name_ends = _runs(self.name_ends, indices)
        boxes, ends = _runs(self.ends, indices)
        chosen = {"names": self.names[names], "name_ends": name_ends, "ends": ends}
        chosen |= {key: getattr(self, key)[indices] for key in ("image_ids", "sizes", "exif")}
        masks = None if self.masks is None else self.masks[boxes]
        return Records(**chosen, **{key: getattr(self, key)[boxes] for key in PER_BOX}, masks=masks)

    @staticmethod
    def cat(parts: Sequence[Records]) -> Records:
        """The images of several data sets in a row."""
        if len(parts) == 1:
            return parts[0]
        names = [spec.name for spec in fields(Records) if spec.name != "masks"]
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        for key, counted in (("name_ends", "names"), ("ends", "boxes")):
            starts = np.cumsum([0, *(len(getattr(part, counted)) for part in parts[:-1])])
            pairs = zip(parts, starts, strict=True)
            joined[key] = np.concatenate([getattr(part, key) + start for part, start in pairs])
        return Records(**joined, masks=_joined_masks(parts))


def _joined_masks(parts: Sequence[Records]) -> np.ndarray | None:
    """The masks of several data sets in a row; where one has none, the whole box."""
    width = next((part.masks.shape[1] for part in parts if part.masks is not None), None)
    if width is None:
        return None
    whole = np.full(width, 255, dtype=np.uint8)
    rows = (np.broadcast_to(whole, (len(part.boxes), width)) if part.masks is None else part.masks for part in parts)
    return np.concatenate(list(rows))


def _runs(ends: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of everything that belongs to some images, and where that of each ends then."""
    counts = np.diff(ends, prepend=0)[indices]
    new_ends = np.cumsum(counts)
    shift = ends[indices] - new_ends
    return np.arange(counts.sum()) + np.repeat(shift, counts), new_ends


PER_BOX = ("boxes", "classes", "difficult", "crowd", "areas")
ROWS = {"sizes": (2,), "boxes": (4,)}  # shape of a row; others are single numbers
KINDS = {
    "names": np.uint8,
    **dict.fromkeys(("name_ends", "image_ids", "sizes", "ends", "classes"), np.int64),
    "boxes": np.float32,
    **dict.fromkeys(("difficult", "crowd", "exif"), np.bool_),
    "areas": np.float64,
}
