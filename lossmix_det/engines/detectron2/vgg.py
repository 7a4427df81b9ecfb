"""VGG16 (Simonyan & Zisserman, ICLR 2015) with batch normalisation for Detectron2; the layers are torchvision's."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torchvision.models import vgg16_bn

from lossmix_det.engines.norms import KeepsFrozenStatistics, rest_frozen_norms


class VGG16(KeepsFrozenStatistics, Backbone):
    """Five stages, ``vgg0`` to ``vgg4``, each ending in its pooling: strides 2 to 32.

    Parameters are named as torchvision names them, so that its ImageNet weights load.

    Args:
        freeze_at: stages that do not learn, counted from the image.
    """

    def __init__(self, freeze_at: int = 0) -> None:
        super().__init__()
        self.features = vgg16_bn(weights=None).features
        self.ends = [index for index, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d)]
        names = [f"vgg{stage}" for stage in range(len(self.ends))]
        widths = [
            [layer.out_channels for layer in self.features[:end] if isinstance(layer, nn.Conv2d)][-1]
            for end in self.ends
        ]
        self._out_features = names
        self._out_feature_channels = dict(zip(names, widths, strict=True))
        self._out_feature_strides = {name: 2 ** (stage + 1) for stage, name in enumerate(names)}
        for parameter in self.features[: self.ends[freeze_at - 1] if freeze_at else 0].parameters():
            parameter.requires_grad = False
        rest_frozen_norms(self)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) images to the output of each stage, by name."""
        found = {}
        for index, layer in enumerate(self.features):
            images = layer(images)
            if index in self.ends:
                found[self._out_features[len(found)]] = images
        return found

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each stage, by name."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }


@BACKBONE_REGISTRY.register()
def build_vgg16_bn_backbone(cfg: CfgNode, _: ShapeSpec) -> VGG16:
    """For ``MODEL.BACKBONE.NAME``; the first ``MODEL.BACKBONE.FREEZE_AT`` stages do not learn."""
    return VGG16(cfg.MODEL.BACKBONE.FREEZE_AT)
