"""What travels between the parts: instances, images, supervisions, batches.

Shapes: B images, N instances, H×W padded pixels. Boxes are float ``xyxy`` pixels of the image they belong to, with
the origin at its top-left corner; classes run from 0 to K-1 without a background class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Instances:
    """Boxes and classes of one image, as annotated, detected or pseudo-labelled.

    Args:
        boxes: (N, 4) float, ``xyxy`` pixels.
        classes: (N,) int64 in 0…K-1.
        scores: (N,) float in [0, 1]; absent for annotated truths.
        weights: (N,) float ≥ 0, the share of the loss that each box teaches; absent means 1 (`lossmix_instance`).

    Raises:
        ValueError: a shape or type differs from the above.
    """

    boxes: Tensor
    classes: Tensor
    scores: Tensor | None = None
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4 or not self.boxes.is_floating_point():
            raise ValueError(
                f"boxes must be float of shape (N, 4), got {self.boxes.dtype} of shape {tuple(self.boxes.shape)}"
            )
        if self.classes.dtype != torch.int64:
            raise ValueError(f"classes must be int64, got {self.classes.dtype}")
        for name in ("classes", "scores", "weights"):
            value = getattr(self, name)
            if value is not None and value.shape != (len(self.boxes),):
                raise ValueError(f"{name} must have shape ({len(self.boxes)},), got {tuple(value.shape)}")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor | slice) -> Instances:
        """Keep the instances that a boolean mask, an index tensor or a slice selects."""
        return self._map(lambda value: value[index])

    def to(self, device: torch.device | str) -> Instances:
        return self._map(lambda value: value.to(device))

    def _map(self, function) -> Instances:
        fields = (self.boxes, self.classes, self.scores, self.weights)
        return Instances(*(None if value is None else function(value) for value in fields))

    @staticmethod
    def empty(device: torch.device | str = "cpu") -> Instances:
        return Instances(torch.zeros(0, 4, device=device), torch.zeros(0, dtype=torch.int64, device=device))

    @staticmethod
    def union(a: Instances, b: Instances, weight_a: float | None = None, weight_b: float | None = None) -> Instances:
        """Boxes of both, those of ``a`` first; with weights given, each box carries that of its image."""
        weights = None
        if weight_a is not None and weight_b is not None:
            weights = torch.cat([a.boxes.new_full((len(a),), weight_a), b.boxes.new_full((len(b),), weight_b)])
        return Instances(torch.cat([a.boxes, b.boxes]), torch.cat([a.classes, b.classes]), weights=weights)


@dataclass(frozen=True)
class ImageBatch:
    """Images of unequal size on one canvas, aligned at the top-left corner and padded with zeros.

    Args:
        pixels: (B, 3, H, W) RGB; float in [0, 1], or uint8 in 0…255 until `to_float`.
        sizes: (height, width) of each image inside the canvas.
        keys: one integer per image that fixes the detector's random sampling of anchors and proposals, whatever
            batch the image is in; absent means that sampling draws from torch's global generator.

    Raises:
        ValueError: shapes or counts disagree, or an image is larger than the canvas.
    """

    pixels: Tensor
    sizes: tuple[tuple[int, int], ...]
    keys: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[1] != 3:
            raise ValueError(f"pixels must have shape (B, 3, H, W), got {tuple(self.pixels.shape)}")
        if len(self.sizes) != len(self.pixels):
            raise ValueError(f"sizes must name {len(self.pixels)} images, got {len(self.sizes)}")
        if self.keys is not None and len(self.keys) != len(self.pixels):
            raise ValueError(f"keys must name {len(self.pixels)} images, got {len(self.keys)}")
        height, width = self.pixels.shape[2:]
        for size in self.sizes:
            if not (0 < size[0] <= height and 0 < size[1] <= width):
                raise ValueError(f"image of size {size} does not fit a canvas of {(height, width)}")

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device | str) -> ImageBatch:
        return replace(self, pixels=self.pixels.to(device, non_blocking=True))

    def to_float(self) -> ImageBatch:
        """Pixels as float in [0, 1]; a batch that already is float is returned as it is."""
        return self if self.pixels.is_floating_point() else replace(self, pixels=self.pixels.float() / 255)

    def valid(self) -> Tensor:
        """(B, 1, H, W) bool, true inside each image and false in its padding."""
        height, width = self.pixels.shape[2:]
        sizes = torch.tensor(self.sizes, device=self.pixels.device)
        rows = torch.arange(height, device=self.pixels.device) < sizes[:, :1]
        columns = torch.arange(width, device=self.pixels.device) < sizes[:, 1:]
        return (rows[:, :, None] & columns[:, None, :])[:, None]

    def split(self, count: int) -> list[ImageBatch]:
        """Cut into ``count`` equal parts that keep the canvas."""
        keys = split_evenly(self.keys, count) if self.keys is not None else [None] * count
        pixels, sizes = split_evenly(self.pixels, count), split_evenly(self.sizes, count)
        return [ImageBatch(*part) for part in zip(pixels, sizes, keys, strict=True)]

    @staticmethod
    def cat(batches: Sequence[ImageBatch]) -> ImageBatch:
        """Join batches on one canvas that holds the largest of them."""
        height, width = (max(batch.pixels.shape[side] for batch in batches) for side in (2, 3))
        pixels = [pad_to(batch.pixels, height, width) for batch in batches]
        keys = None
        if all(batch.keys is not None for batch in batches):
            keys = tuple(key for batch in batches for key in batch.keys or ())
        return ImageBatch(torch.cat(pixels), tuple(size for batch in batches for size in batch.sizes), keys)


@dataclass(frozen=True)
class Supervision:
    """One truth per image, and how much of the loss it teaches.

    A mixed image keeps all the truths it was made of: its loss is the sum over supervisions (Supervision
    Interpolation; LossMix has two, weighted lam and 1 - lam). The weights live on the CPU, because Python reads
    them to leave out images of weight 0.

    Args:
        truths: B instances.
        class_weights: (B,) float ≥ 0, for objectness and classification.
        box_weights: (B,) float ≥ 0, for box regression.
        background_weight: weight of background samples of images whose instances carry weights (`lossmix_instance`).

    Raises:
        ValueError: counts or shapes disagree, or a weight is negative.
    """

    truths: tuple[Instances, ...]
    class_weights: Tensor
    box_weights: Tensor
    background_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("class_weights", "box_weights"):
            weights = getattr(self, name)
            if weights.shape != (len(self.truths),):
                raise ValueError(f"{name} must have shape ({len(self.truths)},), got {tuple(weights.shape)}")
            if (weights < 0).any():
                raise ValueError(f"{name} must not be negative, got {weights.tolist()}")
        if self.background_weight < 0:
            raise ValueError(f"background_weight must not be negative, got {self.background_weight}")

    def __len__(self) -> int:
        return len(self.truths)

    @property
    def active(self) -> list[int]:
        """Indices of the images that teach anything."""
        return torch.nonzero((self.class_weights > 0) | (self.box_weights > 0)).flatten().tolist()

    def to(self, device: torch.device | str) -> Supervision:
        return replace(self, truths=tuple(truth.to(device) for truth in self.truths))

    def split(self, count: int) -> list[Supervision]:
        parts = (split_evenly(value, count) for value in (self.truths, self.class_weights, self.box_weights))
        return [Supervision(*part, self.background_weight) for part in zip(*parts, strict=True)]

    @staticmethod
    def cat(supervisions: Sequence[Supervision]) -> Supervision:
        """Supervisions of several batches, alike in kind, as one of all their images."""
        return Supervision(
            tuple(truth for supervision in supervisions for truth in supervision.truths),
            torch.cat([supervision.class_weights for supervision in supervisions]),
            torch.cat([supervision.box_weights for supervision in supervisions]),
            supervisions[0].background_weight,
        )

    @staticmethod
    def full(truths: Sequence[Instances], weight: float = 1.0) -> Supervision:
        """Every image teaches its own truth with one weight: ordinary supervised training at weight 1."""
        weights = torch.full((len(truths),), float(weight))
        return Supervision(tuple(truths), weights, weights)


@dataclass(frozen=True)
class Views:
    """Weak and strong views of the same images; one geometry, hence one truth for both.

    A view that the configuration does not ask for is absent. ``truths`` is absent for unlabelled images.
    """

    weak: ImageBatch | None
    strong: ImageBatch | None
    truths: tuple[Instances, ...] | None

    def to(self, device: torch.device | str) -> Views:
        views = (None if view is None else view.to(device) for view in (self.weak, self.strong))
        truths = None if self.truths is None else tuple(truth.to(device) for truth in self.truths)
        return Views(*views, truths)


@dataclass(frozen=True)
class StepBatch:
    """All that one step learns from: labelled source images and, in adaptation, unlabelled target images."""

    source: Views
    target: Views | None = None


def pad_to(pixels: Tensor, height: int, width: int) -> Tensor:
    """Zero-pad (…, h, w) at the bottom and the right to (…, height, width)."""
    return torch.nn.functional.pad(pixels, (0, width - pixels.shape[-1], 0, height - pixels.shape[-2]))


def split_evenly(values: T, count: int) -> list[T]:
    """Cut a sequence or tensor into ``count`` equal parts.

    Raises:
        ValueError: the length is no multiple of ``count``.
    """
    if len(values) % count:
        raise ValueError(f"{len(values)} images cannot be cut into {count} equal parts")
    size = len(values) // count
    return [values[start : start + size] for start in range(0, len(values), size)]
