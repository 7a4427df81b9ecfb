"""What a data set says about its images, in any format, and how its faults are reported.

A format gives `RawImage`s, with names and numbers as they stand in the files. `build` checks them and makes an
`ImageSet`.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from lossmix_det.data.images import probe
from lossmix_det.data.packed import ImageRecord, Records
from lossmix_det.errors import UserError, nearest

ROUNDING = 2.0  # pixels; a box that reaches out of the image by no more was rounded by the annotation tool

CANNOT_BE_READ = ": image cannot be read ("


@dataclass(frozen=True)
class RawObject:
    """One annotated object as it stands in its file.

    Attributes:
        where: file and line or index, for messages.
        name: of its class.
        box: ``xyxy`` float pixels; the first pixel begins at 0.
        difficult: VOC: never scored, and trained on only if wanted.
        crowd: COCO: a group of objects; neither trained on nor scored.
        area: in square pixels; None takes the area of the box.
    """

    where: str
    name: str
    box: tuple[float, float, float, float]
    difficult: bool = False
    crowd: bool = False
    area: float | None = None


@dataclass(frozen=True)
class RawImage:
    """One image and its objects as they stand in the files.

    Attributes:
        where: file and line or index, for messages.
        path: of the image file, which need not exist.
        objects: empty if nothing is annotated, or the image is not labelled.
        size: (width, height) in pixels as declared; None if it is not.
        image_id: its number in a COCO file; None counts from 1.
    """

    where: str
    path: Path
    objects: list[RawObject]
    size: tuple[int, int] | None = None
    image_id: int | None = None


@dataclass
class ImageSet:
    """A loaded data set.

    Attributes:
        name: as in the configuration.
        classes: the K names that the detector learns, in order.
        records: its images; a list is packed.
        labelled: whether the boxes are known; else every record is without boxes.
        category_ids: (K) the number of each class in the COCO file, else from 1.
        fingerprint: 16 hexadecimal digits that change with files, sizes, boxes or classes.
        problems: what was left out or noted.
    """

    name: str
    classes: list[str]
    records: Records
    labelled: bool
    category_ids: list[int]
    fingerprint: str
    problems: Problems

    def __post_init__(self) -> None:
        if not isinstance(self.records, Records):
            self.records = Records.pack(self.records)

    def __len__(self) -> int:
        return len(self.records)


@dataclass
class Problems:
    """Faults found in the data. The first one is raised."""

    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fail(self, message: str) -> None:
        """Report that an image or a box cannot be used.

        Raises:
            UserError: always; `SkippedProblems` lists the fault instead.
        """
        raise UserError(f"{message}; correct it, or set data.on_error=skip to leave it out")

    def note(self, message: str) -> None:
        """List something worth knowing that leaves nothing out."""
        self.notes.append(message)


class SkippedProblems(Problems):
    """Faults found in the data. Images and boxes that cannot be used are left out and listed."""

    def fail(self, message: str) -> None:
        """List an image or a box as left out."""
        self.skipped.append(message)


ON_ERROR: dict[str, type[Problems]] = {"raise": Problems, "skip": SkippedProblems}


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read when it was needed, although its header could when the data set was loaded.

    Attributes:
        path: of the file, as in its record.
        reason: what the decoder says.
    """

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}{CANNOT_BE_READ}{self.reason})"

    @classmethod
    def from_text(cls, text: str) -> Unreadable:
        """The inverse of ``str``: checkpoints hold plain text."""
        path, _, reason = text.partition(CANNOT_BE_READ)
        return cls(Path(path), reason.removesuffix(")"))


def contained(root: Path, relative: str, where: str) -> Path:
    """Join a path that a file names to its root.

    Raises:
        UserError: the path is absolute or climbs out of the root.
    """
    parts = PurePosixPath(relative.replace("\\", "/"))
    normal = os.path.normpath(str(parts))
    if parts.is_absolute() or Path(relative).is_absolute() or normal.split(os.sep)[0] == os.pardir:
        raise UserError(f"{where}: path {relative!r} leads out of {root}; use a path inside that folder")
    return root / normal


def class_names(images: list[RawImage]) -> list[str]:
    """The names of the classes that objects have, sorted."""
    return sorted({item.name for image in images for item in image.objects})


def build(
    name: str,
    images: list[RawImage],
    classes: list[str],
    known: list[str] | None,
    problems: Problems,
    *,
    ignore: list[str] | None = None,
    labelled: bool = True,
) -> ImageSet:
    """Check every image and object, and match classes by name.

    Args:
        name: of the data set, for messages.
        images: as read from its files.
        classes: the names that the detector learns, in order.
        known: the names that the data set may use; boxes of those that are not in ``classes`` are left out and
            counted. None: the same as ``classes``.
        problems: raises or collects what is wrong.
        ignore: further names, whose boxes are left out without being counted.
        labelled: false if only the images are known.

    Raises:
        UserError: something is wrong and is not to be skipped, or no image is left.
    """
    known_names, ignored = set(known or classes), set(ignore or ())
    left_out: Counter[str] = Counter()

    def checked() -> Iterator[ImageRecord]:
        number = 0
        for image in images:
            size = _checked_size(image, problems)
            if size is None:
                continue
            kept = [_checked_object(item, size, known_names, ignored, problems) for item in image.objects]
            objects = [item for item in kept if item is not None]
            left_out.update(item.name for item in objects if item.name not in classes)
            number += 1
            yield _record(image, size, [item for item in objects if item.name in classes], classes, number)

    records = Records.pack(checked())
    if left_out:
        counts = ", ".join(f"{count} {label}" for label, count in sorted(left_out.items()))
        problems.note(f"{name}: boxes left out because their class is not in data.classes: {counts}")
    if not records:
        raise UserError(f"data set {name!r} has no usable image; check its root, split and format")
    return ImageSet(name, classes, records, labelled, [], _fingerprint(records, classes), problems)


def _checked_size(image: RawImage, problems: Problems) -> tuple[int, int] | None:
    """(height, width) of the file after EXIF rotation, or None if the image is left out."""
    try:
        width, height = probe(image.path)
    except FileNotFoundError:
        problems.fail(f"{image.where}: image {image.path} is missing")
        return None
    except OSError as error:
        problems.fail(f"{image.where}: image {image.path} cannot be read ({error})")
        return None
    if image.size is not None and image.size != (width, height):
        declared = f"{image.size[0]}×{image.size[1]}"
        problems.fail(f"{image.where}: says {declared} pixels, but {image.path.name} has {width}×{height}")
        return None
    return height, width


def _checked_object(
    item: RawObject, size: tuple[int, int], known: set[str], ignore: set[str], problems: Problems
) -> RawObject | None:
    """The object with its box clipped to the image, or None if it is left out."""
    if item.name in ignore:
        return None
    if item.name not in known:
        hint = nearest(item.name, sorted(known))
        problems.fail(f"{item.where}: unknown class {item.name!r}{hint}; declare it in classes or in ignore_classes")
        return None
    box = _checked_box(item, size, problems)
    return None if box is None else RawObject(item.where, item.name, box, item.difficult, item.crowd, item.area)


def _checked_box(
    item: RawObject, size: tuple[int, int], problems: Problems
) -> tuple[float, float, float, float] | None:
    """The box clipped to the image, or None if it has no area or lies outside."""
    height, width = size
    x1, y1, x2, y2 = item.box
    text = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    if not all(math.isfinite(value) for value in item.box):
        problems.fail(f"{item.where}: box {text} is not finite")
        return None
    if x2 <= x1 or y2 <= y1:
        problems.fail(f"{item.where}: box {text} has no area")
        return None
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        problems.fail(f"{item.where}: box {text} lies outside of the {width}×{height} image")
        return None
    if max(abs(a - b) for a, b in zip(clipped, item.box, strict=True)) > ROUNDING:
        problems.note(f"{item.where}: box {text} reaches out of the {width}×{height} image and was clipped")
    return clipped


def _record(
    image: RawImage, size: tuple[int, int], objects: list[RawObject], classes: list[str], number: int
) -> ImageRecord:
    boxes = np.array([item.box for item in objects], dtype=np.float32).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    given = [area if item.area is None else item.area for item, area in zip(objects, areas, strict=True)]
    return ImageRecord(
        path=image.path,
        image_id=number if image.image_id is None else image.image_id,
        size=size,
        boxes=boxes,
        classes=np.array([classes.index(item.name) for item in objects], dtype=np.int64),
        difficult=np.array([item.difficult for item in objects], dtype=bool),
        crowd=np.array([item.crowd for item in objects], dtype=bool),
        areas=np.array(given, dtype=np.float64),
    )


def _fingerprint(records: Records, classes: list[str]) -> str:
    """SHA-256 over names, byte counts, sizes and annotations: 16 digits that are the same wherever the data lies."""
    digest = hashlib.sha256("\n".join(classes).encode())
    for record in records:
        digest.update(f"{record.path.name} {record.path.stat().st_size} {record.size}".encode())
        for values in (record.boxes, record.classes, record.difficult, record.crowd):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]
