"""torchvision's one-stage detectors behind the contract; network, matching, box coding and inference are its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.image_list import ImageList

from lossmix_det.config import ModelConfig
from lossmix_det.engines.canvases import LAYOUTS
from lossmix_det.engines.norms import norm_of
from lossmix_det.engines.one_stage.detector import OneStageDetector
from lossmix_det.engines.one_stage.encoding import EncodedCanvas
from lossmix_det.engines.torchvision.networks import TorchvisionDetector, anchors_of
from lossmix_det.structures import Instances

SMALL = {"topk_candidates": 200}  # detections of a level before suppression, for images of about 100 pixels


def settings_of(config: ModelConfig) -> dict[str, object]:
    """The settings that are keywords of either network."""
    return {
        "score_thresh": config.score_threshold,
        "nms_thresh": config.nms_threshold,
        "detections_per_img": config.detections_per_image,
        "_skip_resize": True,  # images arrive in the size wanted
    }


class Matching:
    """Stands in for a network in its own ``compute_loss``, and hands back what was matched in place of losses.

    Args:
        model: whose settings decide.
    """

    def __init__(self, model: RetinaNet | FCOS) -> None:
        self.model, self.head = model, self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def compute_loss(self, targets: Any, outputs: Any, anchors: list[Tensor], matches: list[Tensor]) -> list[Tensor]:
        """What the network calls of its head once anchors are matched."""
        return matches


class TorchvisionOneStage(OneStageDetector, TorchvisionDetector):
    """What torchvision's RetinaNet and FCOS share; ``model`` is the plain torchvision module.

    Args:
        model: its weights loaded.
        num_classes: K, without background; the network has one output more, which nothing teaches.
        config: the ``model`` branch.
    """

    model: RetinaNet | FCOS

    def __init__(self, model: RetinaNet | FCOS, num_classes: int, config: ModelConfig) -> None:
        super().__init__()
        self.model, self.num_classes, self.layout = model, num_classes, LAYOUTS[config.canvases]
        self.norm = norm_of(model.backbone)

    def encode_levels(self, features: dict[str, Tensor], inputs: ImageList) -> EncodedCanvas:
        """As `OneStageDetector.encode_levels`."""
        levels, generator = list(features.values()), self.model.anchor_generator
        outputs = dict(self.model.head(levels))
        kinds = generator.num_anchors_per_location()
        per_level = [level[0, 0].numel() * count for level, count in zip(levels, kinds, strict=True)]
        anchors, size = anchors_of(generator, inputs, levels), tuple(inputs.tensors.shape[2:])
        return EncodedCanvas(features, inputs, size, anchors, outputs.pop("cls_logits"), outputs, per_level)

    def detect_canvas(self, canvas: EncodedCanvas) -> list[Instances]:
        """torchvision's inference on what the heads say."""
        outputs = {"cls_logits": canvas.logits, **canvas.localization}
        levels = {name: list(values.float().split(canvas.per_level, dim=1)) for name, values in outputs.items()}
        anchors = [list(of_image.split(canvas.per_level)) for of_image in canvas.anchors]
        with torch.autocast(canvas.logits.device.type, enabled=False):  # boxes in float32
            results = self.model.postprocess_detections(levels, anchors, canvas.inputs.image_sizes)
        return [_instances(result) for result in results]

    def levels(self) -> dict[str, int]:
        """Channels of the levels that the backbone gives itself; coarser ones are made of them."""
        backbone = self.model.backbone
        return dict.fromkeys(backbone.body.return_layers.values(), backbone.out_channels)


def _instances(result: dict[str, Tensor]) -> Instances:
    """One image's detections; those of label 0, the output that nothing teaches, are dropped."""
    labels = result["labels"]
    return Instances(result["boxes"], labels - 1, result["scores"])[labels > 0]
