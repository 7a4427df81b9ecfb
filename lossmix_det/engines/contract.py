"""The detector contract: encode images once, score the encoding against any truth, detect."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lossmix_det.structures import ImageBatch, Instances, Supervision

# Canonical names, whatever the engine calls them.
LOSSES = ("rpn_class", "rpn_box", "roi_class", "roi_box")


@dataclass(frozen=True)
class Encoding:
    """What one forward pass computed before any truth was known. R proposals and A anchors differ per image.

    Args:
        features: pyramid levels (B, C, h, w) by name.
        anchors: (A, 4) per image.
        objectness: (B, A) logits.
        deltas: (B, A, 4) predicted offsets of the anchors.
        proposals: (R, 4) per image, detached.
        images: the normalised input as the engine holds it.
        batch: the images encoded.
        scored: the engine's own store of what it has computed per proposal, so that several truths share it.
    """

    features: dict[str, Tensor]
    anchors: list[Tensor]
    objectness: Tensor
    deltas: Tensor
    proposals: list[Tensor]
    images: Any
    batch: ImageBatch
    scored: Any = None


class Scores(NamedTuple):
    """Head outputs of R boxes: features (R, D), class logits (R, K + 1), offsets (R, C, 4); what C and the place of the
    background are is the engine's."""

    features: Tensor
    logits: Tensor
    deltas: Tensor


@dataclass(frozen=True)
class Marker:
    """A teacher and what it saw, to score the student's samples by (soft pseudo-labels).

    Args:
        detector: the teacher, in inference mode.
        encoding: of its images, on the student's canvas.
        temperature: that its logits are divided by.
    """

    detector: Detector
    encoding: Encoding
    temperature: float = 1.0


class Detector(nn.Module, ABC):
    """Three verbs that every engine provides; the loop above them knows no engine."""

    model: nn.Module  # the engine's own
    num_classes: int
    norm: str  # of its backbone, as in `model.norm`
    roi_width: int  # D, features of a proposal

    @abstractmethod
    def encode(self, images: ImageBatch) -> Encoding:
        """Run the network up to the proposals, once, with gradients.

        Args:
            images: RGB, float in [0, 1] or uint8 in 0…255.
        """

    @abstractmethod
    def losses(self, encoding: Encoding, supervision: Supervision, marker: Marker | None = None) -> dict[str, Tensor]:
        """Score an encoding against one truth per image, each image with its own weight.

        With every weight 1 the four losses equal the engine's stock losses on the same samples. An image of weight 0
        counts as an image of the batch but contributes nothing, and its truth is not looked at.

        Args:
            encoding: of the images.
            supervision: their truths and weights.
            marker: the teacher whose scores stand for the truths that name a ``teacher_image``.

        Returns:
            Scalars under the names in `LOSSES`.
        """

    @abstractmethod
    def detections(self, encoding: Encoding) -> list[Instances]:
        """What a detector in inference mode finds in an encoding: instances in pixels of each image, best first."""

    def detect(self, images: ImageBatch) -> list[Instances]:
        """Detections of each image in its own pixels, best first; in inference mode, whatever the module's mode."""
        with inference_mode_of(self):
            return self.detections(self.encode(images))

    @abstractmethod
    def score(self, encoding: Encoding, boxes: list[Tensor]) -> Scores:
        """Head outputs of any boxes, (R, 4) per image, one image after the other; as part of the one forward pass."""

    @abstractmethod
    def score_proposals(self, encoding: Encoding, count: int) -> Scores:
        """Head outputs of the first ``count`` proposals of each image, those that truths had scored being reused."""

    @abstractmethod
    def levels(self) -> dict[str, int]:
        """Channels of each feature level, finest first, by its name in `Encoding.features`."""

    @abstractmethod
    def heads(self) -> dict[str, nn.Module]:
        """The last layer that each loss alone teaches, by the name of the loss."""

    def exported(self) -> dict[str, Tensor]:
        """The state dict that the engine's own library loads without any code of ours."""
        return self.model.state_dict()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load what `exported` gave.

        Raises:
            RuntimeError: it is of another model.
        """
        self.model.load_state_dict(state)


class inference_mode_of:  # noqa: N801 - used like a function
    """Within the block a module is in evaluation mode and records no gradient; afterwards each part is as it was."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.gradient = torch.no_grad()

    def __enter__(self) -> None:
        self.modes = [(part, part.training) for part in self.module.modules()]
        self.module.eval()
        self.gradient.__enter__()

    def __exit__(self, *error: object) -> None:
        self.gradient.__exit__(*error)
        for part, mode in self.modes:
            part.training = mode
