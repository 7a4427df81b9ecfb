"""What a data set says about its images, in any format, and how its faults are reported.

A format gives `RawImage`s, with names and numbers as they stand in the files. `build` checks them and makes an
`ImageSet`.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lossmix_det.config import DatasetConfig
from lossmix_det.data.doubts import REACHES_OUT, doubt_boxes
from lossmix_det.data.images import Header, probe
from lossmix_det.data.outlines import Outlines
from lossmix_det.data.packed import ImageRecord, Records
from lossmix_det.data.paths import ImageFolder, look_alike
from lossmix_det.data.problems import Problems
from lossmix_det.data.raw import RawImage, RawObject
from lossmix_det.errors import UserError, nearest

ROUNDING = 2.0  # pixels; a box that reaches out of the image by no more was rounded by the annotation tool
THINNEST = 0.01  # pixels; thinner boxes are slips of the mouse, and have no area in the single precision of training
LARGEST_ID = 2**53  # up to here COCO's evaluation, which counts in doubles, tells neighbours apart

CANNOT_BE_READ = ": image cannot be read ("


@dataclass
class ImageSet:
    """A loaded data set.

    Attributes:
        name: as in the configuration.
        classes: the K names that the detector learns, in order.
        records: its images; a list is packed.
        labelled: whether the boxes are known; else every record is without boxes.
        category_ids: (K) the number of each class in the COCO file, else from 1.
        fingerprint: 16 hexadecimal digits that change with files, sizes, boxes, classes or masks.
        problems: what was left out or noted.
        root: the folder that names of its images are relative to; empty: they are given without a folder.
        ids: what the file calls images whose id is no usual whole number, by their number in the records.
    """

    name: str
    classes: list[str]
    records: Records
    labelled: bool
    category_ids: list[int]
    fingerprint: str
    problems: Problems
    root: str = ""
    ids: dict[int, int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.records, Records):
            self.records = Records.pack(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def file_name(self, path: Path) -> str:
        """The path of an image below the folder of images, with slashes; its name alone if it lies elsewhere."""
        return path.relative_to(self.root).as_posix() if self.root and path.is_relative_to(self.root) else path.name

    def without(self, names: Collection[str]) -> ImageSet:
        """The set without some images, by their `file_name`."""
        kept = [number for number, record in enumerate(self.records) if self.file_name(record.path) not in names]
        return replace(self, records=self.records.take(np.array(kept, dtype=np.int64))) if names else self

    def id_of(self, number: int) -> int | str:
        """The id of an image in its file, given that of its record."""
        return self.ids.get(number, number)


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


def class_names(images: list[RawImage]) -> list[str]:
    """The names of the classes that objects have, sorted."""
    return sorted({item.name for image in images for item in image.objects})


@dataclass(frozen=True)
class Reading:
    """How a data set is read.

    Args:
        entry: further names, whose boxes are left out without being counted, and whether EXIF orientations are applied.
        folder: that the images lie in; those that are not where their annotation says are looked for below it. None: it
            is not known.
        labelled: false if only the images are known.
        masks: keep the outlines of objects, as masks.
    """

    entry: DatasetConfig
    folder: Path | None
    labelled: bool = True
    masks: bool = False


def build(
    name: str,
    images: list[RawImage],
    classes: list[str],
    known: list[str] | None,
    problems: Problems,
    reading: Reading,
) -> ImageSet:
    """Check every image and object, and match classes by name.

    Args:
        name: of the data set, for messages.
        images: as read from its files.
        classes: the names that the detector learns, in order.
        known: the names that the data set may use; boxes of those that are not in ``classes`` are left out and
            counted. None: the same as ``classes``.
        problems: raises or collects what is wrong.
        reading: how.

    Raises:
        UserError: something is wrong and is not to be skipped, or no image is left.
    """
    label_of = {label: index for index, label in enumerate(classes)}
    names = _Names(set(known or classes), set(reading.entry.ignore_classes))
    files = _Files(ImageFolder(reading.folder), problems, name, reading.entry.exif)
    outlines = Outlines() if reading.masks else None
    left_out: Counter[str] = Counter()
    ids = _Ids(images)

    def checked() -> Iterator[ImageRecord]:
        for image in images:
            found = files.open(image)
            if found is None:
                continue
            path, size = found
            kept = [(item, _checked_object(item, size, names, problems)) for item in image.objects]
            left_out.update(clean.name for _, clean in kept if clean is not None and clean.name not in label_of)
            pairs = [(item, clean) for item, clean in kept if clean is not None and clean.name in label_of]
            about = {"path": path, "image_id": ids.number(image), "size": size[::-1], "exif": files.exif}
            masks = outlines and outlines.masks([(item, clean.box) for item, clean in pairs], size)
            objects = [clean for _, clean in pairs]
            yield ImageRecord(**about, **_arrays(objects, [label_of[item.name] for item in objects]), masks=masks)

    records = Records.pack(checked())
    if outlines is not None:
        records = outlines.report(name, problems, records)
    files.report(reading.labelled)
    if left_out:
        counts = ", ".join(f"{count} {label}" for label, count in sorted(left_out.items()))
        problems.note(f"{name}: boxes left out because their class is not in data.classes: {counts}")
    if not records:
        reason = problems.first() or "; check its root, split and format"
        raise UserError(f"data set {name!r} has no usable image{reason}")
    doubt_boxes(name, len(records.boxes), float(records.boxes.max(initial=0)), problems)
    fingerprint = _fingerprint(records, classes)
    root = str(reading.folder or "")
    return ImageSet(name, classes, records, reading.labelled, [], fingerprint, problems, root, ids.unusual)


class _Ids:
    """Gives every image a number: its id if that is one, else one that no image has."""

    def __init__(self, images: list[RawImage]) -> None:
        usual = (image.image_id for image in images if _is_number(image.image_id))
        self.last = max(usual, default=0)
        self.count = 0
        self.unusual: dict[int, int | str] = {}

    def number(self, image: RawImage) -> int:
        self.count += 1
        if image.image_id is None:
            return self.count
        if _is_number(image.image_id):
            return image.image_id
        number = self.last + 1 + len(self.unusual)
        self.unusual[number] = image.image_id
        return number


def _is_number(image_id: int | str | None) -> bool:
    return type(image_id) is int and -LARGEST_ID <= image_id <= LARGEST_ID // 2  # above is room for more


class _Files:
    """Opens the image files of a data set, and keeps account of what is odd about them."""

    def __init__(self, folder: ImageFolder, problems: Problems, name: str, exif: str) -> None:
        self.folder, self.problems, self.name = folder, problems, name
        self.exif = exif == "apply"
        self.elsewhere: list[str] = []
        self.repeated: list[str] = []
        self.unsaid: list[str] = []  # turned by EXIF, and nothing says whether the boxes are
        self.seen: set[Path] = set()

    def open(self, image: RawImage) -> tuple[Path, tuple[int, int]] | None:
        """The file and its (width, height), or None if the image is left out."""
        try:
            path, header = self._probe(image)
        except FileNotFoundError:
            hint = self.folder.hint(image.path)
            self.problems.fail(f"{image.where}: image {image.path} is missing{hint}")
            return None
        except OSError as error:
            self.problems.fail(f"{image.where}: image {image.path} cannot be read ({error})")
            return None
        size = header.size(self.exif)
        if image.size is not None and image.size != size:
            self.problems.fail(f"{image.where}: {_size_message(image.size, header, path.name, self.name, self.exif)}")
            return None
        if path in self.seen:
            self.repeated.append(f"{image.where}: {path}")
        self.seen.add(path)
        if header.orientation != 1 and image.objects and (image.size is None or header.upright == header.stored):
            self.unsaid.append(str(path))
        return path, size

    def _probe(self, image: RawImage) -> tuple[Path, Header]:
        try:
            return image.path, probe(image.path)
        except FileNotFoundError:
            path = self.folder.find(image.path)
            if path is None:
                raise
            self.elsewhere.append(f"{image.where}: {image.path} is {path}")
            return path, probe(path)

    def report(self, labelled: bool) -> None:
        """Note what was odd."""
        note_all = self.problems.note_all
        note_all(
            self.elsewhere,
            f"{self.name}: {{count}} images were found by their name in another folder, or with accents stored "
            "otherwise",
        )
        note_all(self.repeated, f"{self.name}: {{count}} images are listed more than once and count as often")
        how = "upright image; set exif: ignore" if self.exif else "image as stored; set exif: apply"
        other = "without" if self.exif else "with"
        note_all(
            self.unsaid if labelled else [],
            f"{self.name}: {{count}} images have an EXIF orientation, and boxes are taken to be those of the {how} for "
            f"this data set if they were drawn {other} it",
        )


def _size_message(declared: tuple[int, int], header: Header, file: str, name: str, exif: bool) -> str:
    """Why the size in an annotation is not that of the image, as far as the numbers tell."""
    (width, height), stored = header.size(exif), header.stored
    message = f"says {declared[0]}×{declared[1]} pixels, but {file} has {width}×{height}"
    if declared == header.size(not exif):
        value, made = ("ignore", "without") if exif else ("apply", "with")
        return (
            f"{message}: its EXIF orientation {header.orientation} turns the {stored[0]}×{stored[1]} pixels of the "
            f"file, and the annotation was made {made} turning them; set datasets.{name}.exif={value}"
        )
    if declared == (height, width):
        return f"{message}: width and height seem to be exchanged, and no EXIF rotation of the file explains it"
    return message


@dataclass(frozen=True)
class _Names:
    """The class names that a data set may use, and those whose boxes are left out in silence."""

    known: set[str]
    ignored: set[str]


def _checked_object(item: RawObject, size: tuple[int, int], names: _Names, problems: Problems) -> RawObject | None:
    """The object with its box clipped to the image, or None if it is left out."""
    if item.name in names.ignored:
        return None
    if item.name not in names.known:
        known = sorted(names.known)
        hint = look_alike(item.name, known) or nearest(item.name, known)
        problems.fail(f"{item.where}: unknown class {item.name!r}{hint}; declare it in classes or in ignore_classes")
        return None
    box = _checked_box(item, size, problems)
    if box is None or box == item.box:
        return item if box else None
    return RawObject(item.where, item.name, box, item.difficult, item.crowd, item.area)


def _checked_box(
    item: RawObject, size: tuple[int, int], problems: Problems
) -> tuple[float, float, float, float] | None:
    """The box in pixels, clipped to the image, or None if it has no area or lies outside."""
    width, height = size
    x1, y1, x2, y2 = item.box
    if item.relative:
        x1, y1, x2, y2 = x1 * width, y1 * height, x2 * width, y2 * height
    if 0.0 <= x1 <= x2 - THINNEST and x2 <= width and 0.0 <= y1 <= y2 - THINNEST and y2 <= height:
        return x1, y1, x2, y2  # as nearly all are
    text = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    if not all(math.isfinite(value) for value in (x1, y1, x2, y2)):
        problems.fail(f"{item.where}: box {text} is not finite")
        return None
    if x2 <= x1 or y2 <= y1:
        problems.fail(f"{item.where}: box {text} has no area")
        return None
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        problems.fail(f"{item.where}: box {text} lies outside of the {width}×{height} image")
        return None
    if min(clipped[2] - clipped[0], clipped[3] - clipped[1]) < THINNEST:
        problems.fail(
            f"{item.where}: box {text} has no area to learn: inside the image it is thinner than {THINNEST} px"
        )
        return None
    if max(abs(a - b) for a, b in zip(clipped, (x1, y1, x2, y2), strict=True)) > ROUNDING:
        problems.note(f"{item.where}: box {text} reaches out of the {width}×{height} image {REACHES_OUT}")
    return clipped


def _arrays(objects: list[RawObject], labels: list[int]) -> dict[str, np.ndarray]:
    """What a record says about each box."""
    boxes = np.array([item.box for item in objects], dtype=np.float32).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    given = [area if item.area is None else item.area for item, area in zip(objects, areas, strict=True)]
    return {
        "boxes": boxes,
        "classes": np.array(labels, dtype=np.int64),
        "difficult": np.array([item.difficult for item in objects], dtype=bool),
        "crowd": np.array([item.crowd for item in objects], dtype=bool),
        "areas": np.array(given, dtype=np.float64),
    }


def _fingerprint(records: Records, classes: list[str]) -> str:
    """SHA-256 over names, byte counts, sizes, annotations and masks: 16 digits, the same wherever the data lies."""
    digest = hashlib.sha256("\n".join(classes).encode("utf-8", "surrogatepass"))
    for record in records:
        size = f" {record.path.stat().st_size} {record.size}{'' if record.exif else ' as stored'}"
        digest.update(os.fsencode(record.path.name) + size.encode())
        for values in (record.boxes, record.classes, record.difficult, record.crowd):
            digest.update(np.ascontiguousarray(values).tobytes())
    if records.masks is not None:  # as what a run learns depends on them; without, it is what it always was
        digest.update(np.ascontiguousarray(records.masks).tobytes())
    return digest.hexdigest()[:16]
