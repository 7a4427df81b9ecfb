"""Detectors behind one contract: `Detector`."""

from collections.abc import Callable

import torch
from torch import nn

from lossmix_det.config import ModelConfig
from lossmix_det.engines.contract import (
    Detector,
    Encoding,
    Features,
    HasBody,
    HasFeatures,
    MixesFeatures,
    ScoresBoxes,
    SoftTeacher,
    require,
)
from lossmix_det.engines.feature_mixing import FeatureMix
from lossmix_det.errors import UserError, pick

__all__ = [
    "ENGINES",
    "Detector",
    "Encoding",
    "FeatureMix",
    "Features",
    "HasBody",
    "HasFeatures",
    "MixesFeatures",
    "ScoresBoxes",
    "SoftTeacher",
    "build_detector",
    "require",
    "to_device",
]


def _torchvision(config: ModelConfig, num_classes: int, strict: bool) -> Detector:
    # Imported here, so that `import lossmix_det` and --help stay fast and need no engine.
    from lossmix_det.engines.torchvision import DETECTORS

    return pick(DETECTORS, config.detector, "model.detector")(config, num_classes, strict)


def _detectron2(config: ModelConfig, num_classes: int, strict: bool) -> Detector:
    try:
        from lossmix_det.engines.detectron2.rcnn import Detectron2RCNN
    except ModuleNotFoundError as error:
        raise UserError(
            f"model.engine=detectron2 needs Detectron2 ({error}); install it as "
            f"https://detectron2.readthedocs.io/tutorials/install.html says, or use model.engine=torchvision"
        ) from None
    return Detectron2RCNN(config, num_classes, strict)


# From the `model` branch, the number of classes K without background, and whether weights must fill every part.
ENGINES: dict[str, Callable[[ModelConfig, int, bool], Detector]] = {
    "torchvision": _torchvision,
    "detectron2": _detectron2,
}


def build_detector(config: ModelConfig, num_classes: int, strict: bool = False) -> Detector:
    """The detector that the configuration names, with its weights loaded.

    Args:
        config: the ``model`` branch.
        num_classes: K, without background.
        strict: refuse weights that leave any part of the detector fresh.

    Raises:
        UserError: the weights cannot be found or read, or the engine is not installed.
    """
    return pick(ENGINES, config.engine, "model.engine")(config, num_classes, strict)


def to_device(detector: Detector, device: torch.device, channels_last: bool | None) -> Detector:
    """Move a detector to its device, its convolutions in the memory layout asked for; the values stay.

    Args:
        detector: moved itself.
        device: where it is to compute.
        channels_last: ``train.channels_last``. Features follow the layout of the weights from the first convolution on.
            Left open: on CPUs, where a ResNet-50 gains by it, and others lose nothing but those with GroupNorm.
    """
    if channels_last is None:
        channels_last = device.type in FASTER_CHANNELS_LAST and not any(
            isinstance(part, nn.GroupNorm) for part in detector.modules()
        )
    return detector.to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


FASTER_CHANNELS_LAST = {"cpu"}  # on GPUs it is not measured yet
