"""torchvision's one-stage detectors behind the contract; network, matching, box coding and inference are its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet

from lossmix_det.config import ModelConfig
from lossmix_det.engines.norms import norm_of
from lossmix_det.engines.one_stage.detector import OneStageDetector
from lossmix_det.engines.one_stage.encoding import OneStageEncoding
from lossmix_det.engines.torchvision.networks import TorchvisionDetector, anchors_of, normalised
from lossmix_det.structures import ImageBatch, Instances

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
    """

    model: RetinaNet | FCOS

    def __init__(self, model: RetinaNet | FCOS, num_classes: int) -> None:
        super().__init__()
        self.model, self.num_classes = model, num_classes
        self.norm = norm_of(model.backbone)

    def encode(self, images: ImageBatch) -> OneStageEncoding:
        """Backbone and heads, once."""
        inputs = normalised(self.model, images)
        features = self.model.backbone(inputs.tensors)
        levels, generator = list(features.values()), self.model.anchor_generator
        outputs = dict(self.model.head(levels))
        kinds = generator.num_anchors_per_location()
        per_level = [level[0, 0].numel() * count for level, count in zip(levels, kinds, strict=True)]
        anchors = anchors_of(generator, inputs, levels)
        return OneStageEncoding(features, anchors, outputs.pop("cls_logits"), outputs, per_level, inputs, images)

    def detections(self, encoding: OneStageEncoding) -> list[Instances]:
        """torchvision's inference on what the heads say."""
        outputs = {"cls_logits": encoding.logits, **encoding.localization}
        levels = {name: list(values.float().split(encoding.per_level, dim=1)) for name, values in outputs.items()}
        anchors = [list(of_image.split(encoding.per_level)) for of_image in encoding.anchors]
        with torch.autocast(encoding.logits.device.type, enabled=False):  # boxes in float32
            results = self.model.postprocess_detections(levels, anchors, encoding.inputs.image_sizes)
        return [_instances(result) for result in results]

    def levels(self) -> dict[str, int]:
        """Channels of the levels that the backbone gives itself; coarser ones are made of them."""
        backbone = self.model.backbone
        return dict.fromkeys(backbone.body.return_layers.values(), backbone.out_channels)


def _instances(result: dict[str, Tensor]) -> Instances:
    """One image's detections; those of label 0, the output that nothing teaches, are dropped."""
    labels = result["labels"]
    return Instances(result["boxes"], labels - 1, result["scores"])[labels > 0]
