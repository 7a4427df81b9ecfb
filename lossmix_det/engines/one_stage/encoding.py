"""What a one-stage detector has computed of its images: anchors, and what its heads say of each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lossmix_det.engines.canvases import in_order
from lossmix_det.engines.contract import Encoding
from lossmix_det.structures import ImageBatch, Size


@dataclass(frozen=True)
class EncodedCanvas:
    """What a network has computed of b images on one canvas: A anchors per image, level after level.

    Args:
        features: pyramid levels (b, C, h, w) by name.
        inputs: the normalised images as the engine holds them.
        size: (height, width) in pixels that the levels cover.
        anchors: (A, 4) per image.
        logits: (b, A, K + 1) of the classes.
        localization: what else the heads say of each anchor, (b, A, …) by the engine's names: offsets, centerness.
        per_level: anchors of each level.
        indices: of the images in the batch; absent: the canvas holds all of it.
    """

    features: dict[str, Tensor]
    inputs: Any
    size: Size
    anchors: list[Tensor]
    logits: Tensor
    localization: dict[str, Tensor]
    per_level: list[int]
    indices: tuple[int, ...] = ()


class Matched(NamedTuple):
    """What the anchors were matched to by one supervision, for each of the I images that it teaches.

    ``matches`` (A,) as `OneStageDetector.match`; ``counts`` (I,) of those in the foreground, on the CPU.
    """

    matches: list[Tensor]
    counts: Tensor


class OneStageEncoding(Encoding):
    """What a network has computed of a batch, canvas by canvas; the number of anchors differs per canvas.

    Args:
        images: that were encoded.
        canvases: that they lie on.
    """

    def __init__(self, images: ImageBatch, canvases: list[EncodedCanvas]) -> None:
        self.images, self.canvases = images, canvases
        self.indices = [canvas.indices or tuple(range(len(images))) for canvas in canvases]
        self.matched: dict[int, Matched] = {}  # of the supervisions that were announced, by their identity
        self.average: float | None = None  # foreground anchors of an image, by what was announced

    @cached_property
    def anchors(self) -> list[Tensor]:
        """(A, 4) per image."""
        return in_order(self.indices, [canvas.anchors for canvas in self.canvases])

    def rows(self, values: list[Tensor], images: list[int]) -> Tensor:
        """(S, …) values in float32 of every anchor of some images, image after image.

        Args:
            values: (b, A, …) of all images of each canvas.
            images: chosen from the batch.
        """
        if len(values) > 1:
            by_image = in_order(self.indices, [of_canvas.unbind() for of_canvas in values])
            return torch.cat([by_image[image] for image in images]).float()
        only = values[0]
        if len(images) < len(only):
            only = only.index_select(0, torch.tensor(images, device=only.device))
        return only.flatten(0, 1).float()

    @property
    def logits(self) -> list[Tensor]:
        """(b, A, K + 1) of each canvas."""
        return [canvas.logits for canvas in self.canvases]

    @property
    def localization(self) -> dict[str, list[Tensor]]:
        """What else the heads say, (b, A, …) of each canvas by the engine's names."""
        names = self.canvases[0].localization
        return {name: [canvas.localization[name] for canvas in self.canvases] for name in names}
