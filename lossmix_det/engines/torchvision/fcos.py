"""torchvision's FCOS (Tian et al., ICCV 2019) behind the contract."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS
from torchvision.ops import generalized_box_iou_loss

from lossmix_det.config import ModelConfig
from lossmix_det.engines.backbones import Backbone
from lossmix_det.engines.normalizers import NORMALIZERS
from lossmix_det.engines.one_stage.detector import Foreground
from lossmix_det.engines.one_stage.encoding import EncodedCanvas
from lossmix_det.engines.torchvision.networks import build_network
from lossmix_det.engines.torchvision.one_stage import SMALL, Matching, TorchvisionOneStage, settings_of


def build_fcos(config: ModelConfig, num_classes: int, strict: bool = False) -> FCOS:
    """A plain torchvision FCOS, its weights loaded.

    Args:
        config: the ``model`` branch.
        num_classes: K, without background.
        strict: refuse weights that leave any part fresh.

    Raises:
        UserError: the combination is impossible, or the weights cannot be found or read.
    """
    outputs = num_classes + 1

    def assemble(backbone: Backbone, settings: dict[str, object]) -> FCOS:
        # One anchor per cell, as large as the cell.
        generator = AnchorGenerator(tuple((stride,) for stride in backbone.strides), ((1.0,),) * len(backbone.strides))
        more = SMALL if backbone.small else {}
        return FCOS(backbone.pyramid, outputs, anchor_generator=generator, **more, **settings)

    settings = settings_of(config)
    return build_network(config, FCOS, settings, assemble, outputs=outputs, one_stage=True, strict=strict)


class TorchvisionFCOS(TorchvisionOneStage):
    """Any torchvision FCOS as a `Detector`. Centerness says where a box lies, and is weighted as boxes are."""

    loss_names = ("class", "box", "centerness")
    model: FCOS

    def __init__(self, config: ModelConfig, num_classes: int, strict: bool = False) -> None:
        super().__init__(build_fcos(config, num_classes, strict), num_classes, config)
        self.normalize = NORMALIZERS[config.normalizer]

    def match(self, canvas: EncodedCanvas, anchors: list[Tensor], truths: list[Tensor]) -> list[Tensor]:
        """As `OneStageDetector.match`, by torchvision's centre sampling."""
        targets = [{"boxes": boxes} for boxes in truths]
        return FCOS.compute_loss(Matching(self.model), targets, {}, anchors, canvas.per_level)

    def foreground_losses(self, foreground: Foreground) -> list[Tensor]:
        """Generalised IoU of the boxes (Rezatofighi et al., CVPR 2019), and cross-entropy of the centerness."""
        coder, outputs = self.model.head.box_coder, foreground.outputs
        boxes = coder.decode(outputs["bbox_regression"], foreground.anchors)
        wanted = centerness(coder.encode(foreground.anchors, foreground.boxes))
        centered = F.binary_cross_entropy_with_logits(outputs["bbox_ctrness"].squeeze(1), wanted, reduction="none")
        return [generalized_box_iou_loss(boxes, foreground.boxes), centered]

    def taught_only_by(self, losses: Collection[str]) -> list[nn.Module]:
        """The head of the class; of the other two the last layer, and what is before it if both are left out."""
        head = self.model.head.regression_head
        parts = {
            "class": self.model.head.classification_head,
            "box": head.bbox_reg,
            "centerness": head.bbox_ctrness,
        }
        shared = [head.conv] if {"box", "centerness"} <= set(losses) else []
        return [*(parts[name] for name in losses), *shared]


def centerness(distances: Tensor) -> Tensor:
    """(F,) in (0, 1], 1 in the middle: √(min(l, r)/max(l, r) · min(t, b)/max(t, b)).

    Args:
        distances: (F, 4) to the left, top, right and bottom side, above 0.
    """
    near, far = torch.minimum(*distances.split(2, dim=1)), torch.maximum(*distances.split(2, dim=1))
    return (near / far).prod(dim=1).sqrt()
