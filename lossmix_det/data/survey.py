"""What is in a data set: every annotation and every pixel is read, and nothing that is wrong ends the reading."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from torch.utils.data import DataLoader, Dataset

from lossmix_det.config import Config, DatasetConfig
from lossmix_det.data.catalog import check_names, find
from lossmix_det.data.formats import FORMATS
from lossmix_det.data.formats.yolo import NO_IMAGE
from lossmix_det.data.holdout import part_of
from lossmix_det.data.images import read
from lossmix_det.data.packed import Records
from lossmix_det.data.problems import SkippedProblems
from lossmix_det.data.records import ImageSet, RawImage, RawObject, Reading, Unreadable, build, class_names
from lossmix_det.data.workers import batches, loading
from lossmix_det.errors import UserError, first_line

DIGEST = 16  # bytes
SAMPLED = 256  # rows and columns of an image that its colour is told from
DRAWN = 12  # images whose faulty boxes are kept to be drawn


@dataclass(frozen=True)
class Looks:
    """What the pixels of N images tell.

    Args:
        digests: (N,) void of 16 bytes, equal where all pixels are.
        colours: (N, 3) float32, mean red, green and blue of each in 0…255.
        readable: (N,) bool; of the others nothing is known.
    """

    digests: np.ndarray
    colours: np.ndarray
    readable: np.ndarray

    @property
    def brightness(self) -> np.ndarray:
        """(N,) float32 in 0…255 of the images that can be read."""
        return self.colours[self.readable].mean(axis=1)


@dataclass(frozen=True)
class Marked:
    """An image with boxes that cannot be used.

    Args:
        image: as its files have it.
        faults: what is wrong with which box; None: with one that is none.
    """

    image: RawImage
    faults: list[tuple[RawObject | None, str]]


@dataclass
class Survey:
    """What was found in a data set.

    Args:
        name: as in the configuration.
        use: train, target or test.
        entry: its declaration; None: it could not be found.
        image_set: what can be used of it; None: nothing.
        classes: that it was read with.
        names: boxes by class as they stand in its files.
        looks: of the images of the image set.
        faults: images and boxes that cannot be used, with file and line.
        notes: what can be used although it is odd.
        left_out: files that are not meant to be read.
        marked: images with faulty boxes, the first few.
    """

    name: str
    use: str
    entry: DatasetConfig | None = None
    image_set: ImageSet | None = None
    classes: list[str] = field(default_factory=list)
    names: Counter[str] = field(default_factory=Counter)
    looks: Looks | None = None
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    marked: list[Marked] = field(default_factory=list)

    @property
    def records(self) -> Records:
        """Of the images that can be used; empty if there are none."""
        return Records.pack([]) if self.image_set is None else self.image_set.records


def read_annotations(name: str, use: str, config: Config, classes: list[str] | None = None) -> Survey:
    """Read and check a data set, without the pixels of its images.

    Args:
        name: of the data set.
        use: train, target or test; a target may be without labels.
        config: says where it is.
        classes: that the detector learns; None: those of this data set.
    """
    result, problems = Survey(name, use, classes=list(classes or [])), SkippedProblems()
    try:
        result.entry = find(name, config)
        _read(result, config, problems)
    except (UserError, OSError) as error:
        result.faults.append(str(error))
    result.faults[:0] = problems.skipped
    result.faults += [line for line in problems.left_out if line.endswith(NO_IMAGE)]  # the image is lost
    result.notes = problems.notes
    result.left_out = [line for line in problems.left_out if not line.endswith(NO_IMAGE)]
    return result


def leave_to(survey: Survey, earlier: Survey) -> None:
    """Take out of a survey what another part of the same files, of which one is held out, has told already."""
    files = [(each.entry.root, each.entry.annotations, each.entry.split) for each in (survey, earlier) if each.entry]
    if len(files) < 2 or files[0] != files[1] or not survey.entry.holdout:
        return
    for lines, told in ((getattr(survey, name), getattr(earlier, name)) for name in ("faults", "notes", "left_out")):
        lines[:] = [line for line in lines if line not in set(told)]


def _read(result: Survey, config: Config, problems: SkippedProblems) -> None:
    entry, file_format = result.entry, FORMATS[result.entry.format]
    folder = file_format.image_folder(entry)
    images, numbers = _raw(result, problems)
    images = part_of(images, entry, folder)
    result.names = Counter(item.name for image in images for item in image.objects)
    labelled = file_format.labelled and (result.use != "target" or bool(result.names))
    known = (entry.classes or list(numbers) or None) if labelled else None
    result.classes = result.classes or config.data.classes or known or class_names(images)
    if labelled and config.data.classes and result.use != "target":
        try:
            check_names(result.name, result.classes, known or class_names(images))
        except UserError as error:  # a run ends there; here the rest is looked at too
            result.faults.append(str(error))
    if not images:
        raise UserError(f"data set {result.name!r} lists no image; check its root, split and format")
    try:
        result.image_set = build(result.name, images, result.classes, known, problems, Reading(entry, folder, labelled))
    finally:
        result.marked = _marked(images, problems.skipped)
    used = max(numbers.values(), default=0)
    result.image_set.category_ids = [numbers.get(label, used + 1 + at) for at, label in enumerate(result.classes)]
    _note_repeats(result.image_set, problems)


def _raw(result: Survey, problems: SkippedProblems) -> tuple[list[RawImage], dict[str, int]]:
    """Images with their boxes; of a target without usable files of labels, the images alone."""
    file_format = FORMATS[result.entry.format]
    try:
        return file_format.read(result.entry, problems)
    except UserError as error:
        if result.use != "target":
            raise
        problems.note(f"{result.name} is looked at without labels: {error}")
    return file_format.read_images(result.entry, problems), {}


def _marked(images: Iterable[RawImage], faults: list[str]) -> list[Marked]:
    """The first images that have a faulty box, which a message names by where it stands."""
    of_box: dict[str, str] = {}
    of_file: dict[str, list[str]] = {}
    for line in faults:  # "a.xml:7: box …", or "a.json: annotations[7]: box …"
        words = line.split(": ")
        of_box |= {": ".join(words[:count]): line for count in (1, 2)}
        of_file.setdefault(words[0].rpartition(":")[0], []).append(line)
    marked = []
    for image in images:
        found = [(item, of_box[item.where]) for item in image.objects if item.where in of_box]
        known = {line for _, line in found}
        found += [(None, line) for line in of_file.get(image.where, []) if line not in known]
        if found:
            marked.append(Marked(image, found))
        if len(marked) == DRAWN:
            break
    return marked


def _note_repeats(image_set: ImageSet, problems: SkippedProblems) -> None:
    """Note boxes that are the same as an earlier one of their image."""
    same, other = [], []
    for record in image_set.records:
        seen: dict[bytes, int] = {}
        for box, label in zip(record.boxes, record.classes.tolist(), strict=True):
            first = seen.get(box.tobytes())
            seen.setdefault(box.tobytes(), label)
            if first is not None:
                (same if first == label else other).append(str(record.path))
    problems.note_all(same, f"{image_set.name}: {{count}} boxes are the same as an earlier one of their image")
    problems.note_all(other, f"{image_set.name}: {{count}} boxes are the same as an earlier one of another class")


# ------------------------------------------------------------------------------------------------------------ pixels


class _Pixels(Dataset):
    """The images of some records, each as (index, digest, mean colour, what is wrong)."""

    def __init__(self, records: Records, high_bit_depth: str) -> None:
        self.records, self.high_bit_depth = records, high_bit_depth

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[int, bytes, np.ndarray, str]:
        record = self.records[index]
        try:
            pixels = read(record.path, self.high_bit_depth, exif=record.exif)
        except Exception as error:  # a decoder, which raises almost anything
            return index, bytes(DIGEST), np.zeros(3), str(error) or type(error).__name__
        if pixels.shape[:2] != record.size:
            said = f"its header says {record.size[1]}×{record.size[0]}, but it has {pixels.shape[1]}×{pixels.shape[0]}"
            return index, bytes(DIGEST), np.zeros(3), said
        digest = hashlib.blake2b(np.ascontiguousarray(pixels), digest_size=DIGEST, salt=str(pixels.shape[1]).encode())
        step = max(1, min(pixels.shape[:2]) // SAMPLED)
        return index, digest.digest(), pixels[::step, ::step].mean(axis=(0, 1)), ""


def read_pixels(survey: Survey, config: Config, workers: int, advance: Callable[[int], None]) -> None:
    """Decode every image of a survey in parallel; those that cannot be read become faults.

    Args:
        survey: gets its ``looks``.
        config: ``data.high_bit_depth``.
        workers: processes; 0: this one.
        advance: told the number of images done, for a progress bar.
    """
    records = survey.records
    digests = np.zeros(len(records), dtype=np.dtype((np.void, DIGEST)))
    colours, readable = np.zeros((len(records), 3), np.float32), np.zeros(len(records), dtype=bool)
    images = _Pixels(records, config.data.high_bit_depth)
    for batch in batches(DataLoader(images, batch_size=8, collate_fn=list, **loading(workers))):
        for index, digest, colour, fault in batch:
            digests[index], colours[index], readable[index] = np.void(digest), colour, not fault
            if fault:
                survey.faults.append(str(Unreadable(records[index].path, first_line(OSError(fault)))))
        advance(len(batch))
    survey.looks = Looks(digests, colours, readable)
