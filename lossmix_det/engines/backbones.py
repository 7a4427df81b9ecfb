"""Feature pyramids by the name of `model.architecture`: a new one is a function and a line of `BACKBONES`.

Those of timm have no lines: any of its networks is meant by ``timm/`` and its name (timm_fpn.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

from torch import nn
from torchvision.models import resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from lossmix_det.engines.norms import rest_frozen_norms

Ends = dict[str, tuple[nn.Module, tuple[str, ...]]]
Norm = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Backbone:
    """A feature pyramid, and what suits it.

    Args:
        pyramid: images (B, 3, H, W) to levels (B, C, h, w) by name, finest first. It has ``out_channels`` (C), and
            ``body``, whose children are the stages that can be frozen.
        sizes: side in pixels of the objects that each level is for, finest first.
        strides: pixels from one cell of a level to the next, finest first.
        hidden: width of the fully connected layers behind it.
        small: it is made for images of about 100 pixels: heads with less to choose from.
        mean, std: of RGB in [0, 1], that images are normalised by; absent: ImageNet's.
    """

    pyramid: nn.Module
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    hidden: int = 1024
    small: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


# From the norm's layer, and whether the levels are those of one-stage detectors (P3 to P7 in place of P2 to P6).
Builder = Callable[[Norm, bool], Backbone]


def resnet_fpn(name: str, norm: Norm, one_stage: bool) -> Backbone:
    """A ResNet of torchvision with the pyramid of Lin et al. (CVPR 2017)."""
    more = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)} if one_stage else {}
    pyramid = resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=norm, trainable_layers=5, **more)
    strides = (8, 16, 32, 64, 128) if one_stage else (4, 8, 16, 32, 64)
    return Backbone(pyramid, (32, 64, 128, 256, 512), strides)


def slim(norm: Norm, one_stage: bool) -> Backbone:
    """The first stages of ResNet-18 with a pyramid of 64 channels, for images of about 100 pixels on a CPU."""
    body = resnet.resnet18(weights=None, norm_layer=norm)
    # The last stage (stride 32) would see an image of 100 pixels as 3×3 cells, and holds three quarters of the weights.
    layers = {f"layer{index}": str(index - 1) for index in range(1, 4)}
    pyramid = BackboneWithFPN(body, layers, [64, 128, 256], 64)
    return Backbone(pyramid, (14, 24, 40, 64), (4, 8, 16, 32), hidden=256, small=True)


BACKBONES: dict[str, Builder] = {
    "slim": slim,
    "resnet18_fpn": partial(resnet_fpn, "resnet18"),
    "resnet34_fpn": partial(resnet_fpn, "resnet34"),
    "resnet50_fpn": partial(resnet_fpn, "resnet50"),
    "resnet101_fpn": partial(resnet_fpn, "resnet101"),
}


# --------------------------------------------------------------------------------------------------------- stages


@runtime_checkable
class KnowsItsStages(Protocol):
    """A body whose stages are not its children in a row."""

    def freeze_stages(self, learning: int) -> None:
        """Let only the last stages learn; the stem is the first of five."""

    def stage_ends(self) -> Ends:
        """As the function of that name."""


def freeze_stages(body: nn.Module, learning: int) -> None:
    """Let only the last stages of a backbone learn, norms' statistics included; the stem is the first stage.

    torchvision's own option is ignored unless torchvision loads the weights itself.
    """
    if isinstance(body, KnowsItsStages):
        body.freeze_stages(learning)
        return
    children, boundaries = list(body.named_children()), _stage_starts(body)
    first = boundaries[max(len(boundaries) - learning, 0)] if learning else len(children)
    for _, child in children[:first]:
        child.requires_grad_(False)
        rest_frozen_norms(child)


def stage_ends(body: nn.Module) -> Ends:
    """By name ``1``, ``2``, …: the last child of each stage behind the stem, and the levels given before it ends.

    Args:
        body: of children in a row, whose ``return_layers`` names the level that a child gives; or one that knows.
    """
    if isinstance(body, KnowsItsStages):
        return body.stage_ends()
    children = list(body.named_children())
    ends = [*_stage_starts(body)[2:], len(children)]
    return {
        str(number): (
            children[end - 1][1],
            tuple(body.return_layers[name] for name, _ in children[: end - 1] if name in body.return_layers),
        )
        for number, end in enumerate(ends, start=1)
    }


def _stage_starts(body: nn.Module) -> list[int]:
    """The number of the child that each stage begins with; the stem is the first."""
    children = list(body.named_children())
    starts = [index for index, (name, child) in enumerate(children) if name.startswith("layer") or _halves(child)]
    return sorted({0, *starts})


def _halves(child: nn.Module) -> bool:
    """A MobileNetV3 block that opens a stage, as torchvision marks it."""
    return bool(getattr(child, "_is_cn", False))
