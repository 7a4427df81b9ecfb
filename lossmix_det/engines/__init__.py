"""Detectors behind one contract: `Detector`."""

from lossmix_det.config import ModelConfig
from lossmix_det.engines.base import LOSSES, Detector, Encoding, Marker, Scores
from lossmix_det.errors import UserError

__all__ = ["LOSSES", "Detector", "Encoding", "Marker", "Scores", "build_detector"]


def build_detector(config: ModelConfig, num_classes: int, strict: bool = False) -> Detector:
    """The detector that the configuration names, with its weights loaded.

    Args:
        config: the ``model`` branch.
        num_classes: K, without background.
        strict: refuse weights that leave any part of the detector fresh.

    Raises:
        UserError: the weights cannot be found or read, or the engine is not installed.
    """
    if config.engine == "detectron2":
        try:
            from lossmix_det.engines.detectron2_rcnn import Detectron2RCNN
        except ModuleNotFoundError as error:
            raise UserError(
                f"model.engine=detectron2 needs Detectron2 ({error}); install it as "
                f"https://detectron2.readthedocs.io/tutorials/install.html says, or use model.engine=torchvision"
            ) from None
        return Detectron2RCNN(config, num_classes, strict)
    # Imported here, so that `import lossmix_det` and --help stay fast and need no engine.
    from lossmix_det.engines.torchvision_rcnn import TorchvisionRCNN

    return TorchvisionRCNN(config, num_classes, strict)
