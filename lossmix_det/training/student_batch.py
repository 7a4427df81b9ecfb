"""One step's student images, and everything that they are taught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lossmix_det.engines import Detector, Encoding, FeatureMix, SoftTeacher
from lossmix_det.engines.canvases import plan
from lossmix_det.mixing import Mix, blend, mixed_sizes
from lossmix_det.structures import STRIDE, Domains, ImageBatch, Size, Supervision


class StudentBatch:
    """What a phase composes and the student learns from.

    A plain class: Fabric takes dataclasses among a module's inputs apart, and cannot rebuild frozen ones.

    Args:
        images: all that enter the network.
        supervisions: by the kind under which its losses are logged: source, target, mixed.
        blocks: sizes of the runs of images of one kind, each of which every micro-batch gets its share of.
        domains: absent while nothing is aligned.
        soft_teacher: scores the student's samples where truths are soft.
        features: how the network mixes the features of the images; then it is the mixed ones that are taught. Absent:
            the images are taught as they are.

    `mixed` is (S,) bool, which of the images that are taught were mixed, for those who look on; a micro-batch has none.
    """

    mixed: Tensor | None = None

    def __init__(
        self,
        images: ImageBatch,
        supervisions: dict[str, list[Supervision]],
        blocks: list[int] | None = None,
        domains: Domains | None = None,
        soft_teacher: SoftTeacher | None = None,
        features: FeatureMix | None = None,
    ) -> None:
        self.images, self.supervisions, self.features = images, supervisions, features
        self.blocks = blocks or [len(self.sizes)]
        self.domains, self.soft_teacher = domains, soft_teacher

    @property
    def sizes(self) -> tuple[Size, ...]:
        """(height, width) of the images that are taught."""
        return self.images.sizes if self.features is None else self.features.sizes

    def encode(self, detector: Detector) -> Encoding:
        """The detector's encoding of the images that are taught."""
        if self.features is None:
            return detector.encode(self.images)
        return detector.encode_mixed(self.images, self.features)

    def split(self, count: int, multiple: int = STRIDE) -> list[StudentBatch]:
        """Cut into micro-batches that are alike in kind, for gradient accumulation.

        Every image stays on the canvas that is planned for the whole batch, so that its losses stay what they are.

        Args:
            count: of micro-batches.
            multiple: of pixels, as `Detector.multiple`.

        Raises:
            ValueError: a block is no multiple of ``count``.
        """
        if count == 1:
            return [self]
        images = self.images
        if self.features is None:  # else all are on one canvas
            images = replace(images, canvases=plan(images, multiple))
        return [self._micro_batch(images, number, count) for number in range(count)]

    def _micro_batch(self, images: ImageBatch, number: int, count: int) -> StudentBatch:
        indices, start = [], 0
        for block in self.blocks:
            if block % count:
                raise ValueError(f"{block} images cannot be cut into {count} equal parts")
            share = block // count
            indices += range(start + number * share, start + (number + 1) * share)
            start += block
        supervisions = {
            kind: [supervision.take(indices) for supervision in of_kind] for kind, of_kind in self.supervisions.items()
        }
        blocks = [block // count for block in self.blocks]
        domains = self.domains and self.domains.take(indices)
        features, needed = (None, indices) if self.features is None else self.features.take(indices)
        return StudentBatch(images.take(needed), supervisions, blocks, domains, self.soft_teacher, features)


def mixed_images(pool: ImageBatch, mix: Mix) -> tuple[ImageBatch, FeatureMix | None]:
    """What a mix gives the network: mixed images, or images and how it is to mix their features.

    Args:
        pool: the images to mix first, then others that may be partners.
        mix: of pixels or of features.
    """
    if not mix.stage:
        return blend(pool, mix), None
    whole = FeatureMix(mix.stage, mix.sources, mix.shares, mixed_sizes(pool, mix))
    features, needed = whole.take(range(len(mix)))
    return pool.take(needed), features


def join_images(parts: Sequence[tuple[ImageBatch, FeatureMix | None]]) -> tuple[ImageBatch, FeatureMix | None]:
    """Several of what `mixed_images` gave, as one; features are mixed at one stage, or not at all."""
    images = ImageBatch.cat([images for images, _ in parts])
    mixes = [features or _as_they_are(images) for images, features in parts]
    stage = next((mix.stage for mix in mixes if mix.stage), "")
    if not any((mix.shares[:, 0] < 1).any() for mix in mixes):
        return images, None
    sources, start = [], 0
    for (of_part, _), mix in zip(parts, mixes, strict=True):
        sources.append(mix.sources + start)
        start += len(of_part)
    width = max(index.shape[1] for index in sources)
    shares = torch.cat([_widened(mix.shares, width) for mix in mixes])
    sizes = tuple(size for mix in mixes for size in mix.sizes)
    return images, FeatureMix(stage, torch.cat([_widened(index, width) for index in sources]), shares, sizes)


def _as_they_are(images: ImageBatch) -> FeatureMix:
    """A mix of each image with nothing."""
    return FeatureMix("", torch.arange(len(images))[:, None], torch.ones(len(images), 1), images.sizes)


def _widened(values: torch.Tensor, width: int) -> torch.Tensor:
    """(B, K) with columns of zeros up to a width."""
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))
