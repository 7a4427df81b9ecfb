"""What travels between the parts: images, supervisions, batches; and `Instances`, which have a file of their own.

Shapes: B images, N instances, H×W padded pixels. Boxes are float ``xyxy`` pixels of the image they belong to, with
the origin at its top-left corner; classes run from 0 to K-1 without a background class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lossmix_det.instances import Instances, moved_to

Size = tuple[int, int]  # (height, width) in pixels
STRIDE = 32  # canvases are multiples of the coarsest backbone stride
MAP_CELL = 8  # pixels to a side of a cell of `Domains.maps`


@dataclass(frozen=True)
class ImageBatch:
    """Images of unequal size on one canvas, aligned at the top-left corner and padded with zeros.

    Args:
        pixels: (B, 3, H, W) RGB; float in [0, 1], or uint8 in 0…255 until `to_float`.
        sizes: (height, width) of each image inside the canvas.
        keys: one integer per image that fixes the detector's random sampling of anchors and proposals, whatever
            batch the image is in; absent means that sampling draws from torch's global generator.
        canvases: (height, width) of the canvas on which each image passes through the network, as planned for a batch
            that this one is a part of; absent: the detector plans it.

    Raises:
        ValueError: shapes or counts disagree, or an image is larger than the canvas.
    """

    pixels: Tensor
    sizes: tuple[Size, ...]
    keys: tuple[int, ...] | None = None
    canvases: tuple[Size, ...] | None = None

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[1] != 3:
            raise ValueError(f"pixels must have shape (B, 3, H, W), got {tuple(self.pixels.shape)}")
        if len(self.sizes) != len(self.pixels):
            raise ValueError(f"sizes must name {len(self.pixels)} images, got {len(self.sizes)}")
        for name in ("keys", "canvases"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.pixels):
                raise ValueError(f"{name} must name {len(self.pixels)} images, got {len(values)}")
        height, width = self.pixels.shape[2:]
        for size in self.sizes:
            if not (0 < size[0] <= height and 0 < size[1] <= width):
                raise ValueError(f"image of size {size} does not fit a canvas of {(height, width)}")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def canvas(self) -> Size:
        """(height, width) that all images lie on."""
        return self.pixels.shape[2], self.pixels.shape[3]

    def to(self, device: torch.device | str) -> ImageBatch:
        """The same images on another device."""
        return replace(self, pixels=moved_to(self.pixels, device))

    def pin_memory(self) -> ImageBatch:
        """The same images in page-locked memory, from which a GPU copies while it computes; torch's loader asks."""
        return replace(self, pixels=self.pixels.pin_memory())

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

    def take(self, indices: Sequence[int]) -> ImageBatch:
        """Some of the images, on the same canvas."""
        keys, canvases = (
            None if values is None else tuple(values[index] for index in indices)
            for values in (self.keys, self.canvases)
        )
        return ImageBatch(self.pixels[list(indices)], tuple(self.sizes[index] for index in indices), keys, canvases)

    def cropped(self, height: int, width: int) -> ImageBatch:
        """The same images on a smaller canvas that holds them."""
        return replace(self, pixels=self.pixels[:, :, :height, :width], canvases=None)

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
        mean_over: number of images that the loss is a mean over; absent: all B. It is less where the other images of
            the batch have supervisions of their own, and each kind is normalised as if it were a batch by itself.

    Raises:
        ValueError: counts or shapes disagree, or a weight is negative or not finite.
    """

    truths: tuple[Instances, ...]
    class_weights: Tensor
    box_weights: Tensor
    background_weight: float = 1.0
    mean_over: float | None = None

    def __post_init__(self) -> None:
        for name in ("class_weights", "box_weights"):
            weights = getattr(self, name)
            if weights.shape != (len(self.truths),):
                raise ValueError(f"{name} must have shape ({len(self.truths)},), got {tuple(weights.shape)}")
            if not ((weights >= 0) & weights.isfinite()).all():
                raise ValueError(f"{name} must be finite and not negative, got {weights.tolist()}")
        if not 0 <= self.background_weight < math.inf:
            raise ValueError(f"background_weight must be finite and not negative, got {self.background_weight}")

    def __len__(self) -> int:
        return len(self.truths)

    @property
    def active(self) -> list[int]:
        """Indices of the images that teach anything."""
        return torch.nonzero((self.class_weights > 0) | (self.box_weights > 0)).flatten().tolist()

    def to(self, device: torch.device | str) -> Supervision:
        """The same supervision, its truths on another device."""
        return replace(self, truths=tuple(truth.to(device) for truth in self.truths))

    def take(self, indices: Sequence[int]) -> Supervision:
        """The supervision of some of the images; ``mean_over`` shrinks in proportion."""
        mean_over = None if self.mean_over is None else self.mean_over * len(indices) / len(self)
        chosen = list(indices)
        return replace(
            self,
            truths=tuple(self.truths[index] for index in chosen),
            class_weights=self.class_weights[chosen],
            box_weights=self.box_weights[chosen],
            mean_over=mean_over,
        )

    def scaled(self, factors: Tensor | float, mean_over: float | None = None) -> Supervision:
        """The weights times a factor per image."""
        return replace(
            self,
            class_weights=self.class_weights * factors,
            box_weights=self.box_weights * factors,
            mean_over=mean_over if mean_over is not None else self.mean_over,
        )

    @staticmethod
    def cat(supervisions: Sequence[Supervision]) -> Supervision:
        """Supervisions of several batches, alike in kind, as one of all their images.

        Raises:
            ValueError: their ``background_weight`` or ``mean_over`` differ.
        """
        for name in ("background_weight", "mean_over"):
            values = [getattr(supervision, name) for supervision in supervisions]
            if any(value != values[0] for value in values):
                raise ValueError(f"supervisions differ in {name}, {values}, which holds for all images of one")
        return Supervision(
            tuple(truth for supervision in supervisions for truth in supervision.truths),
            torch.cat([supervision.class_weights for supervision in supervisions]),
            torch.cat([supervision.box_weights for supervision in supervisions]),
            supervisions[0].background_weight,
            supervisions[0].mean_over,
        )

    @staticmethod
    def full(truths: Sequence[Instances], weight: float = 1.0) -> Supervision:
        """Every image teaches its own truth with one weight: ordinary supervised training at weight 1."""
        weights = torch.full((len(truths),), float(weight))
        return Supervision(tuple(truths), weights, weights)


@dataclass(frozen=True)
class Uncounted:
    """Objects of one image that are neither found nor missed when pseudo-labels are measured, as in AP.

    They stay on the CPU, where pseudo-labels are measured.

    Args:
        objects: N objects that are hard to see, or groups of objects under one box.
        crowd: (N,) bool, which are groups.
    """

    objects: Instances
    crowd: Tensor


@dataclass(frozen=True)
class Views:
    """Weak and strong views of the same images; one geometry, hence one truth for both.

    A view that the configuration does not ask for is absent. ``truths`` is absent for unlabelled images; ``uncounted``
    is known of the target's images alone, whose truths are measured against.
    """

    weak: ImageBatch | None
    strong: ImageBatch | None
    truths: tuple[Instances, ...] | None
    uncounted: tuple[Uncounted, ...] | None = None

    def unlabelled(self) -> Views:
        """The same views without what is known of their objects."""
        return Views(self.weak, self.strong, None)

    def to(self, device: torch.device | str) -> Views:
        """The same views on another device."""
        return self._map(lambda part: part.to(device))

    def pin_memory(self) -> Views:
        """The same views in page-locked memory."""
        return self._map(lambda part: part.pin_memory())

    def _map(self, function) -> Views:
        views = (None if view is None else function(view) for view in (self.weak, self.strong))
        truths = None if self.truths is None else tuple(map(function, self.truths))
        return Views(*views, truths, self.uncounted)


@dataclass(frozen=True)
class StepBatch:
    """All that one step learns from: labelled source images and, in adaptation, unlabelled target images."""

    source: Views
    target: Views | None = None

    def to(self, device: torch.device | str) -> StepBatch:
        """The same batch on another device."""
        return StepBatch(self.source.to(device), self.target and self.target.to(device))


class Domains:
    """How far each student image is of the target domain, for alignment.

    Args:
        shares: (N,) weight of target pixels in each image: 0 source, 1 target, between for mixed ones.
        weights: (N,) weight of each image; those of each domain's slots add up to 1, so that both count alike.
        unmixed_weights: (N,) the same, if mixed images are left out.
        maps: (N, h, w) weight of target pixels in each cell of ``MAP_CELL`` pixels, over the canvas of all images, from
            its top-left corner; absent: the share everywhere.
    """

    def __init__(self, shares: Tensor, weights: Tensor, unmixed_weights: Tensor, maps: Tensor | None = None) -> None:
        self.shares, self.weights, self.unmixed_weights, self.maps = shares, weights, unmixed_weights, maps

    def take(self, indices: list[int]) -> Domains:
        """Some of the images, their weights grown so that each domain still adds up to 1 on average."""
        scale = len(self.weights) / len(indices)
        weights = self.weights[indices] * scale, self.unmixed_weights[indices] * scale
        return Domains(self.shares[indices], *weights, None if self.maps is None else self.maps[indices])


def rounded(side: int, multiple: int = STRIDE) -> int:
    """The side of the smallest canvas that holds an image's side."""
    return -(-side // multiple) * multiple


def is_wide(size: Size) -> bool:
    """Whether an image is wider than high: the shape by which images are kept together."""
    return size[1] > size[0]


def smallest_canvas(sizes: Sequence[Size], multiple: int = STRIDE) -> Size:
    """(height, width) of the smallest canvas that holds images of these sizes, multiples of a number of pixels."""
    height, width = (rounded(max(sides), multiple) for sides in zip(*sizes, strict=True))
    return height, width


def pad_to(pixels: Tensor, height: int, width: int) -> Tensor:
    """Zero-pad (…, h, w) at the bottom and the right to (…, height, width)."""
    return torch.nn.functional.pad(pixels, (0, width - pixels.shape[-1], 0, height - pixels.shape[-2]))
