"""torchvision's detectors: a new one is a file and a line of `DETECTORS`."""

from collections.abc import Callable

from lossmix_det.config import ModelConfig
from lossmix_det.engines.contract import Detector
from lossmix_det.engines.torchvision.faster_rcnn import TorchvisionFasterRCNN
from lossmix_det.engines.torchvision.fcos import TorchvisionFCOS
from lossmix_det.engines.torchvision.retinanet import TorchvisionRetinaNet

# From the `model` branch, the number of classes K without background, and whether weights must fill every part.
DETECTORS: dict[str, Callable[[ModelConfig, int, bool], Detector]] = {
    "faster_rcnn": TorchvisionFasterRCNN,
    "retinanet": TorchvisionRetinaNet,
    "fcos": TorchvisionFCOS,
}
