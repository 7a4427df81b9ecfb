"""Batches of images: without end for training, once and in order for evaluation.

The batch of a step depends on the seed and the step alone. So a run resumes by starting at another step, and each
process of a distributed run takes its slice of the joint batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lossmix_det.config import DataConfig
from lossmix_det.data.augment import Augment, resize
from lossmix_det.data.images import read
from lossmix_det.data.outlines import unpacked
from lossmix_det.data.packed import ImageRecord, Records
from lossmix_det.data.records import ImageSet, Unreadable
from lossmix_det.data.workers import loading
from lossmix_det.errors import UserError, first_line
from lossmix_det.structures import ImageBatch, Instances, Uncounted, Views, is_wide, smallest_canvas

log = logging.getLogger(__name__)

BLANK = torch.zeros((3, 32, 32), dtype=torch.uint8)  # where no image can be read; who asked for it gives up
WINDOW = 8  # batches that a stream looks ahead for one that meets the other stream


@dataclass(frozen=True)
class Draw:
    """A request for one image.

    Attributes:
        index: of the image in its data set.
        key: the seed of everything that is random about it; different for every draw of a run.
    """

    index: int
    key: int


@dataclass(frozen=True)
class Sample:
    """One loaded image.

    Attributes:
        weak, strong: its views, (3, H, W) uint8 RGB; None if not asked for.
        truth: the boxes to train on or to measure against, in pixels of the views.
        key, index: as in `Draw`.
        problems: the files that could not be read, which this image takes the place of.
        uncounted: the boxes not to measure against; absent where the truth is trained on.
    """

    weak: torch.Tensor | None
    strong: torch.Tensor | None
    truth: Instances
    key: int
    index: int
    problems: tuple[Unreadable, ...] = ()
    uncounted: Uncounted | None = None


class TrainingImages(Dataset):
    """The images of one or more data sets, to be had by `Draw`.

    Args:
        sets: their images in a row.
        config: views, augmentation and which boxes and images to leave out.
        measured: the boxes are not trained on but measured against: those that count are the truth, whatever
            ``config.keep_difficult`` is, and the others come beside it.

    Raises:
        UserError: no image has a box to learn.
    """

    def __init__(self, sets: list[ImageSet], config: DataConfig, *, measured: bool = False) -> None:
        self.records = Records.cat([image_set.records for image_set in sets])
        if config.drop_empty and any(image_set.labelled for image_set in sets):
            _list_empty(sets, config.keep_difficult)
            self.records = self.records.take(_with_boxes(self.records, config.keep_difficult))
        if not self.records:
            names = ", ".join(image_set.name for image_set in sets)
            raise UserError(f"no image of {names} has a box to learn; see data.keep_difficult and data.drop_empty")
        self.config, self.measured = config, measured
        self.augment = Augment(config.augment, config.views)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> Sample:
        """The image drawn, or the next one that can be read; black if none can."""
        problems: list[Unreadable] = []
        for step in range(len(self.records)):
            record = self.records[(draw.index + step) % len(self.records)]
            try:
                return self._sample(record, draw, tuple(problems))
            except Exception as error:  # a decoder or an augmentation, which raise almost anything
                problems.append(Unreadable(record.path, _reason(error)))
        weak, strong = (BLANK if name in self.config.views else None for name in ("weak", "strong"))
        uncounted = Uncounted(Instances.empty(), torch.zeros(0, dtype=torch.bool)) if self.measured else None
        return Sample(weak, strong, Instances.empty(), draw.key, draw.index, tuple(problems), uncounted)

    def _sample(self, record: ImageRecord, draw: Draw, problems: tuple[Unreadable, ...]) -> Sample:
        image = read(record.path, self.config.high_bit_depth, exif=record.exif)
        shown = np.flatnonzero(teaches(record, self.config.keep_difficult) | self.measured)
        masks = None if record.masks is None else unpacked(record.masks[shown])
        views = self.augment(image, record.boxes[shown], draw.key, masks)
        shown = shown[views.kept]
        masks = None if views.masks is None else torch.from_numpy(views.masks)
        truth = Instances(torch.from_numpy(views.boxes), torch.from_numpy(record.classes[shown]), masks=masks)
        uncounted = None
        if self.measured:
            crowd = torch.from_numpy(record.crowd[shown])
            counted = torch.from_numpy(teaches(record, keep_difficult=False)[shown])
            uncounted, truth = Uncounted(truth[~counted], crowd[~counted]), truth[counted]
        weak, strong = (None if view is None else _channels_first(view) for view in (views.weak, views.strong))
        return Sample(weak, strong, truth, draw.key, draw.index, problems, uncounted)


class EvaluationImages(Dataset):
    """The images of one data set by their index, resized for testing; nothing is random.

    Args:
        image_set: whose images.
        config: the size, and how images of 16 bits are read.
    """

    def __init__(self, image_set: ImageSet, config: DataConfig) -> None:
        self.records, self.config = image_set.records, config
        self.short_side = config.augment.test_size or config.augment.min_sizes[-1]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        problems: tuple[Unreadable, ...] = ()
        try:
            image = read(record.path, self.config.high_bit_depth, exif=record.exif)
            image, _ = resize(image, record.boxes, self.short_side, self.config.augment.max_size)
            pixels = _channels_first(image)
        except Exception as error:  # a decoder or the resizing, which raise almost anything
            problems, pixels = (Unreadable(record.path, _reason(error)),), BLANK
        return Sample(pixels, None, Instances.empty(), 0, index, problems)


class StreamSampler(Sampler):
    """Batches of `Draw`s without end; every pass over the data has an order of its own.

    Args:
        sizes: (height, width) of every image, for grouping.
        batch_size: images per batch over all processes.
        seed: of the order, and of everything random about the images.
        stream: streams of the same seed differ.
        start: number of batches to leave out at the beginning.
        rank, world: number of this process and of all; each takes its slice of the joint batch.
        group_by_shape: keep wide images apart from the others.

    Attributes:
        meets: another stream of the same run. Batches change places with one of the next `WINDOW`, so that as many as
            possible are of the shape of the other's batch of the same step.

    Raises:
        ValueError: the processes cannot have equal slices.
    """

    meets: StreamSampler | None = None

    def __init__(
        self,
        sizes: list[tuple[int, int]],
        batch_size: int,
        *,
        seed: int,
        stream: int = 0,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        group_by_shape: bool = True,
    ) -> None:
        if batch_size % world:
            raise ValueError(f"batch_size {batch_size} cannot be shared evenly by {world} processes")
        self.wide = [group_by_shape and is_wide(size) for size in sizes]
        self.batch_size, self.seed, self.stream, self.start = batch_size, seed, stream, start
        share = batch_size // world
        self.slice = slice(rank * share, (rank + 1) * share)

    def __iter__(self) -> Iterator[list[Draw]]:
        batches = self._in_order() if self.meets is None else self._meeting(self.meets)
        for batch in islice(batches, self.start, None):
            yield [Draw(image, self._key(drawn_at)) for drawn_at, image in batch[self.slice]]

    def shapes(self) -> Iterator[bool]:
        """Whether the images of each batch are wide."""
        return (self._is_wide(batch) for batch in self._in_order())

    def _is_wide(self, batch: list[tuple[int, int]]) -> bool:
        return self.wide[batch[0][1]]

    def _in_order(self) -> Iterator[list[tuple[int, int]]]:
        """Batches of (position in the stream, index) as they become full, from the first on."""
        groups: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        for position, index in enumerate(self._order()):
            group = groups[self.wide[index]]
            group.append((position, index))
            if len(group) == self.batch_size:
                yield group.copy()
                group.clear()

    def _meeting(self, other: StreamSampler) -> Iterator[list[tuple[int, int]]]:
        """The same batches; of those that are next, the first of the shape that the other stream has now."""
        batches = self._in_order()
        waiting = list(islice(batches, WINDOW))
        for wide in other.shapes():
            fitting = (number for number, batch in enumerate(waiting) if self._is_wide(batch) == wide)
            yield waiting.pop(next(fitting, 0))
            waiting.append(next(batches))

    def _order(self) -> Iterator[int]:
        epoch = 0
        while True:
            yield from np.random.default_rng([self.seed, self.stream, epoch]).permutation(len(self.wide)).tolist()
            epoch += 1

    def _key(self, position: int) -> int:
        sequence = np.random.SeedSequence([self.seed, self.stream, 1 << 20, position])
        return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(2))


def training_loader(sets: list[ImageSet], config: DataConfig, **where: int) -> DataLoader:
    """Batches of the source: (`Views`, files that could not be read), without end.

    Args:
        sets: to draw from.
        config: of the data.
        where: ``seed``, ``stream``, ``start``, ``rank`` and ``world``, as for `StreamSampler`.

    Raises:
        UserError: no image has a box to learn.
    """
    return _endless(sets, replace(config, augment=config.augment.of_source()), **where)


def _endless(sets: list[ImageSet], config: DataConfig, *, measured: bool = False, **where: int) -> DataLoader:
    images = TrainingImages(sets, config, measured=measured)
    sizes = list(map(tuple, images.records.sizes.tolist()))
    sampler = StreamSampler(sizes, config.batch_size, group_by_shape=config.group_by_shape, **where)
    return DataLoader(images, batch_sampler=sampler, collate_fn=collate_views, **loading(config.workers))


def target_loader(
    sets: list[ImageSet], config: DataConfig, *, source: DataLoader | None = None, **where: int
) -> DataLoader:
    """Batches of the target, as from `training_loader`: both views of every image, with boxes or without.

    Args:
        sets: of the target domain.
        config: of the data.
        source: the loader whose batches these meet in shape, if they are to.
        where: ``seed``, ``start``, ``rank`` and ``world``, as for `training_loader`.
    """
    size = config.target_batch_size or config.batch_size
    augment = config.augment.of_target()
    config = replace(config, views=["weak", "strong"], drop_empty=False, batch_size=size, augment=augment)
    loader = _endless(sets, config, measured=True, stream=1, **where)
    loader.batch_sampler.meets = None if source is None else source.batch_sampler
    return loader


def evaluation_loader(image_set: ImageSet, config: DataConfig, *, rank: int = 0, world: int = 1) -> DataLoader:
    """Every image once, in batches of `collate_images`.

    Args:
        image_set: to evaluate on.
        config: of the data.
        rank, world: number of this process and of all; it takes every ``world``-th image, beginning at ``rank``.
    """
    indices = range(rank, len(image_set), world)
    return DataLoader(
        EvaluationImages(image_set, config),
        batch_size=config.test_batch_size,
        sampler=indices,
        collate_fn=collate_images,
        **loading(config.workers),
    )


def collate_views(samples: list[Sample]) -> tuple[Views, list[Unreadable]]:
    """The views of several images as batches, and the files that could not be read."""
    keys = tuple(sample.key for sample in samples)
    weak, strong = (
        None if views[0] is None else to_batch(views, keys)
        for views in ([sample.weak for sample in samples], [sample.strong for sample in samples])
    )
    problems = [problem for sample in samples for problem in sample.problems]
    uncounted = None
    if all(sample.uncounted is not None for sample in samples):
        uncounted = tuple(sample.uncounted for sample in samples)
    return Views(weak, strong, tuple(sample.truth for sample in samples), uncounted), problems


def collate_images(samples: list[Sample]) -> tuple[ImageBatch, list[int], dict[int, Unreadable]]:
    """The images as one batch, their indices, and by index what is wrong with those that cannot be read (black)."""
    problems = {sample.index: sample.problems[0] for sample in samples if sample.problems}
    return to_batch([sample.weak for sample in samples]), [sample.index for sample in samples], problems


def to_batch(images: list[torch.Tensor], keys: tuple[int, ...] | None = None) -> ImageBatch:
    """Lay images on the smallest common canvas whose sides are multiples of 32.

    Args:
        images: (3, h, w) each, of any sizes.
        keys: of their draws.
    """
    sizes = tuple((image.shape[1], image.shape[2]) for image in images)
    pixels = images[0].new_zeros((len(images), 3, *smallest_canvas(sizes)))
    for image, canvas in zip(images, pixels, strict=True):
        canvas[:, : image.shape[1], : image.shape[2]] = image
    return ImageBatch(pixels, sizes, keys)


def _with_boxes(records: Records, keep_difficult: bool) -> np.ndarray:
    """Numbers of the images that have a box to learn."""
    taught = np.cumsum(np.concatenate([[0], teaches(records, keep_difficult)]))
    return np.flatnonzero(np.diff(taught[np.concatenate([[0], records.ends])]))


def _list_empty(sets: list[ImageSet], keep_difficult: bool) -> None:
    """List the images without a box to learn as left out, once."""
    for image_set in sets:
        records = image_set.records
        empty = np.setdiff1d(np.arange(len(records)), _with_boxes(records, keep_difficult))
        lines = (f"{records.name(number)}: not trained on, because it has no box to learn" for number in empty)
        known = set(image_set.problems.left_out)
        new = [line for line in lines if line not in known]
        image_set.problems.leave_out(new)
        if new:
            log.info(
                "data set %s: %d of %d images have no box to learn, and are left out",
                image_set.name,
                len(new),
                len(records),
            )


def teaches(record: ImageRecord | Records, keep_difficult: bool) -> np.ndarray:
    """Which boxes of an image, or of all, are trained on, (N,) bool: no crowds, and difficult ones only if wanted."""
    return ~record.crowd if keep_difficult else ~(record.crowd | record.difficult)


def _reason(error: Exception) -> str:
    """Why an image cannot be used; an error that is not of a file is named by its kind, which says where to look."""
    return str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {first_line(error)}"


def _channels_first(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
