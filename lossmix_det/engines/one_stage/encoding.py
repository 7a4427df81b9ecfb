"""What a one-stage detector has computed of its images: anchors, and what its heads say of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lossmix_det.engines.contract import Encoding
from lossmix_det.structures import ImageBatch


@dataclass(frozen=True)
class OneStageEncoding(Encoding):
    """A anchors per image, level after level.

    Args:
        features: pyramid levels (B, C, h, w) by name.
        anchors: (A, 4) per image.
        logits: (B, A, K + 1) of the classes.
        localization: what else the heads say of each anchor, (B, A, …) by the engine's names: offsets, centerness.
        per_level: anchors of each level.
        inputs: the normalised images as the engine holds them.
        images: that were encoded.
    """

    features: dict[str, Tensor]
    anchors: list[Tensor]
    logits: Tensor
    localization: dict[str, Tensor]
    per_level: list[int]
    inputs: Any
    images: ImageBatch

    def rows(self, values: Tensor, images: list[int]) -> Tensor:
        """(S, …) values in float32 of every anchor of some images, image after image, from (B, A, …) of all images."""
        if len(images) < len(values):
            values = values.index_select(0, torch.tensor(images, device=values.device))
        return values.flatten(0, 1).float()
