"""Which classes weights are of, where the file does not say it, and detectors of more classes than are wanted."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import get_weight
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from lossmix_det.engines.contract import Detector
from lossmix_det.structures import ImageBatch, Instances

# The classes that torchvision's own COCO weights are of, by label from 1; N/A where COCO uses a number for nothing.
COCO_LABELS: list[str] = list(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:])
CLASS_HEADS = ("roi_heads.box_predictor.cls_score.bias", "head.classification_head.cls_logits.bias")
ANCHORS = {"retinanet": 9}  # of each place, whose scores its head gives one after the other


def labels_of(source: str, detector: str, state: dict[str, Tensor]) -> list[str] | None:
    """The classes of torchvision's weights that do not name them, by label from 1; None if nothing tells them.

    Weights from torchvision's store are described there. A head of 91 outputs is COCO's, whose numbers go up to 90 with
    gaps.

    Args:
        source: ``model.weights``.
        detector: ``model.detector``.
        state: the weights.
    """
    try:
        return list(get_weight(source).meta["categories"][1:])
    except (ValueError, KeyError, AttributeError):
        pass
    heads = [len(value) for name, value in state.items() if name.endswith(CLASS_HEADS)]
    outputs = [count // ANCHORS.get(detector, 1) for count in heads]
    return COCO_LABELS if outputs == [len(COCO_LABELS) + 1] else None


class OfFewerClasses(nn.Module):
    """A detector that finds more classes than are wanted; detections of the others are left out.

    Args:
        detector: of the classes ``labels``.
        labels: names of its classes, in order.
        classes: names of those that are wanted, in the order that they are numbered in.
    """

    def __init__(self, detector: Detector, labels: list[str], classes: list[str]) -> None:
        super().__init__()
        self.detector = detector
        numbers = [classes.index(label) if label in classes else -1 for label in labels]
        self.register_buffer("numbers", torch.tensor(numbers), persistent=False)

    def detect(self, images: ImageBatch) -> list[Instances]:
        """As `Detector.detect`."""
        return [self._wanted(found) for found in self.detector.detect(images)]

    def _wanted(self, found: Instances) -> Instances:
        classes = self.numbers.to(found.classes.device)[found.classes]
        kept = classes >= 0
        return Instances(found.boxes[kept], classes[kept], found.scores[kept])
