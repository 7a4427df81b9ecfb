"""Where features can be mixed in Detectron2's backbones."""

from __future__ import annotations

from detectron2.modeling import FPN, ResNet
from torch import nn

from lossmix_det.engines.detectron2.vgg import VGG16
from lossmix_det.engines.feature_mixing import MixingPoints
from lossmix_det.engines.timm_body import TimmBody

Stages = dict[str, tuple[nn.Module, tuple[str, ...]]]


def mixing_points(backbone: nn.Module) -> MixingPoints:
    """The stages of a ResNet, VGG16 or network of timm, with or without a pyramid; of others the pyramid alone."""
    pyramid = backbone if isinstance(backbone, FPN) else None
    body = backbone.bottom_up if pyramid is not None else backbone
    stages = next((of(body) for kind, of in STAGES.items() if isinstance(body, kind)), {})
    return MixingPoints(body, stages, pyramid)


def _of_resnet(body: ResNet) -> Stages:
    given = body._out_features
    return {
        str(number): (stage, tuple(name for name in ("stem", *body.stage_names[: number - 1]) if name in given))
        for number, stage in enumerate(body.stages, start=1)
    }


def _of_vgg(body: VGG16) -> Stages:
    return {
        str(number): (body.features[end], tuple(body._out_features[: number - 1]))
        for number, end in enumerate(body.ends, start=1)
    }


STAGES = {ResNet: _of_resnet, VGG16: _of_vgg, TimmBody: TimmBody.stage_ends}
