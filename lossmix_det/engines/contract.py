"""The detector contract: encode images once, score the encoding against any truth, detect.

The loop above knows nothing else of a detector. What only some detectors can do is a capability that they declare by
having its methods: `HasFeatures`, `ScoresBoxes`, `MixesFeatures`, `HasBody`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lossmix_det.config import ModelConfig
from lossmix_det.engines import canvases
from lossmix_det.engines.feature_mixing import FeatureMix
from lossmix_det.engines.norms import KeepsFrozenStatistics
from lossmix_det.errors import UserError
from lossmix_det.structures import STRIDE, ImageBatch, Instances, Size, Supervision


class Encoding:
    """What one forward pass computed before any truth was known; only the detector that made it looks inside."""


@dataclass(frozen=True)
class SoftTeacher:
    """A teacher and what it saw, to score the student's samples by (soft pseudo-labels).

    Args:
        detector: the teacher, in inference mode.
        encoding: of its images.
        temperature: that its logits are divided by.
    """

    detector: Detector
    encoding: Encoding
    temperature: float = 1.0


@dataclass(frozen=True)
class Export:
    """A model as the engine's own library loads it.

    Args:
        content: what `torch.save` writes.
        about: which model it is of, for the JSON beside it.
        files: further text files beside it, by suffix.
    """

    content: Any
    about: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)


class Detector(KeepsFrozenStatistics, ABC):
    """Three verbs that every engine provides: encode, losses, detect."""

    model: nn.Module  # the engine's own
    num_classes: int
    norm: str  # of its backbone, as in `model.norm`
    loss_names: tuple[str, ...]
    layout: canvases.Layout = staticmethod(canvases.few)  # of `LAYOUTS`, as `model.canvases` names it
    multiple: int = STRIDE  # pixels that the sides of a canvas are multiples of
    left_out: frozenset[str] = frozenset()  # losses that nobody wants, which need not be computed

    @abstractmethod
    def encode(self, images: ImageBatch) -> Encoding:
        """Run the network up to where truths come in, once, with gradients.

        Args:
            images: RGB, float in [0, 1] or uint8 in 0…255.
        """

    def announce(self, encoding: Encoding, supervisions: Sequence[Supervision]) -> None:  # noqa: B027
        """Say for which supervisions `losses` will be asked, so that what these share can be computed at once.

        It also tells how many samples an image has on average. Detectors whose losses are divided by the number of
        samples that they find (FCOS) let an image of weight 0 count as one with this average.

        Args:
            encoding: of the images.
            supervisions: each is then given to `losses` once, the very object. Nothing else changes.
        """

    @abstractmethod
    def losses(
        self, encoding: Encoding, supervision: Supervision, soft_teacher: SoftTeacher | None = None
    ) -> dict[str, Tensor]:
        """Score an encoding against one truth per image, each image with its own weight.

        With every weight 1 the losses equal the engine's stock losses on the same samples. An image of weight 0 counts
        as an image of the batch but contributes nothing, and its truth is not looked at.

        Args:
            encoding: of the images.
            supervision: their truths and weights.
            soft_teacher: its scores stand for the truths that name a ``teacher_image``.

        Returns:
            Scalars under ``loss_names``; those that are ``left_out`` may be missing.
        """

    @abstractmethod
    def detections(self, encoding: Encoding) -> list[Instances]:
        """What a detector in inference mode finds in an encoding: instances in pixels of each image, best first."""

    def lay_out(self, images: ImageBatch) -> list[canvases.Canvas]:
        """The canvases that a batch passes through the network on; one where a norm learns from all of the batch."""
        learns = any(isinstance(part, _BatchNorm) and part.training for part in self.model.modules())
        return canvases.one(images) if learns else self.layout(images, self.multiple)

    def detect(self, images: ImageBatch) -> list[Instances]:
        """Detections of each image in its own pixels, best first; in inference mode, whatever the module's mode."""
        with inference_mode_of(self):
            return self.detections(self.encode(images))

    @abstractmethod
    def taught_only_by(self, losses: Collection[str]) -> list[nn.Module]:
        """The parts that learn nothing where these losses are left out."""

    @abstractmethod
    def export(self, state: dict[str, Tensor], config: ModelConfig, sizes: dict[str, int]) -> Export:
        """What is written so that the engine's own library loads the model.

        Args:
            state: of `exported`, on the CPU.
            config: the ``model`` branch.
            sizes: ``min_size`` and ``max_size`` of test images in pixels.
        """

    def exported(self) -> dict[str, Tensor]:
        """The state dict that the engine's own library loads without any code of ours."""
        return self.model.state_dict()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load what `exported` gave.

        Raises:
            RuntimeError: it is of another model.
        """
        self.model.load_state_dict(state)


# ---------------------------------------------------------------------------------------------------- capabilities


@dataclass(frozen=True)
class Features:
    """Feature levels of the images on one canvas.

    Args:
        indices: of the b images in the batch.
        levels: (b, C, h, w) each, by name.
        canvas: (height, width) in pixels that each level covers.
    """

    indices: tuple[int, ...]
    levels: dict[str, Tensor]
    canvas: Size


@runtime_checkable
class HasFeatures(Protocol):
    """Feature levels that can be looked at, for image alignment."""

    def levels(self) -> dict[str, int]:
        """Channels of each feature level by its name, finest first."""

    def features(self, encoding: Encoding) -> list[Features]:
        """The levels of an encoding, canvas by canvas."""


@runtime_checkable
class ScoresBoxes(Protocol):
    """A second stage that scores boxes, for instance alignment and soft pseudo-labels."""

    roi_width: int  # D, features of a proposal

    def proposal_features(self, encoding: Encoding, count: int) -> tuple[Tensor, Tensor]:
        """(R, D) features of the best ``count`` proposals of each image, image after image, and (B,) how many."""


@runtime_checkable
class MixesFeatures(Protocol):
    """A network whose features can be mixed at one of its stages."""

    def stages(self) -> list[str]:
        """Names of the stages, from the first to the last; the image itself is none of them."""

    def encode_mixed(self, images: ImageBatch, mix: FeatureMix) -> Encoding:
        """As `Detector.encode`, of the images that a mix makes of these."""


@runtime_checkable
class HasBody(Protocol):
    """A network whose part that weights of a classifier fill can be told from what a detector adds to it."""

    def body(self) -> nn.Module:
        """That part, without a pyramid."""


def require(detector: Detector, capability: type, setting: str, instead: str) -> None:
    """Refuse a setting that asks a detector for what it cannot do.

    Args:
        detector: that is to do it.
        capability: of those above.
        setting: as a user writes it, for example ``pseudo_labels.kind=soft``.
        instead: the setting that does without, for example ``pseudo_labels.kind=hard``.

    Raises:
        UserError: the detector lacks the capability.
    """
    if not isinstance(detector, capability):
        need = LACKING[capability]
        raise UserError(f"{setting} needs {need}; {type(detector.model).__name__} is none, so use {instead}")


LACKING = {
    HasFeatures: "a detector whose feature levels can be read",
    ScoresBoxes: "a detector that scores proposals, such as model.detector=faster_rcnn",
    MixesFeatures: "a detector whose backbone can be entered",
    HasBody: "a detector with a backbone of its own",
}


# --------------------------------------------------------------------------------------------------------- modes


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
