"""Feature pyramids on any network of timm, named ``timm/<its name>`` in `model.architecture`."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from lossmix_det.config import TIMM_PREFIX, ModelConfig, choices
from lossmix_det.engines.backbones import Backbone
from lossmix_det.engines.norms import resolve
from lossmix_det.engines.timm_body import COARSEST, NORMS, RATHER_FROZEN, TimmBody
from lossmix_det.errors import UserError

AUTO = choices(ModelConfig, "norm")[0]
WIDTH = 256  # channels of a pyramid, as in Lin et al.
SIZES, STRIDES = (32, 64, 128, 256, 512), (4, 8, 16, 32, 64, 128)


class TimmPyramid(nn.Module):
    """torchvision's feature pyramid on a network of timm.

    Args:
        body: whose levels go in.
        width: channels of every level that comes out.
        one_stage: coarser levels are made by convolutions (P6, P7), else by pooling.
    """

    def __init__(self, body: TimmBody, width: int, one_stage: bool) -> None:
        super().__init__()
        self.body, self.out_channels = body, width
        coarser = LastLevelP6P7(width, width) if one_stage else LastLevelMaxPool()
        self.fpn = FeaturePyramidNetwork(list(body.channels.values()), width, coarser)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised images to levels (B, C, h, w) by name, finest first."""
        return self.fpn(self.body(images))

    def about(self) -> dict[str, object]:
        """What plain timm and torchvision need to build it again."""
        indices = self.body.net.feature_info.out_indices  # timm's own, which need not begin at 0
        arguments = {**self.body.arguments, "out_indices": [indices[place] for place in self.body.places.values()]}
        return {"timm": arguments, "fpn_channels": self.out_channels}


def timm_fpn(config: ModelConfig, state: dict[str, Tensor] | None, one_stage: bool) -> Backbone:
    """Any network of timm that has features at strides 8 to 32, for two stages at stride 4 too.

    Args:
        config: the ``model`` branch; ``architecture`` is ``timm/`` and a name.
        state: the weights that will be loaded, if any.
        one_stage: which levels.

    Raises:
        UserError: timm is not installed, or the network is unknown, has no such features, or has no such norm.
    """
    strides = STRIDES[1:] if one_stage else STRIDES[:-1]
    levels = {str(index): stride for index, stride in enumerate(strides) if stride <= COARSEST}
    setting, norm = f"model.architecture={config.architecture}", resolve(config.norm, state, "batch")
    if norm not in NORMS:
        raise UserError(f"{setting} has no variant with model.norm={norm}; use frozen or batch")
    if norm == "frozen" and config.norm == AUTO:
        norm = RATHER_FROZEN
    body = TimmBody(config.architecture.removeprefix(TIMM_PREFIX), levels, setting, norm, config.drop_path)
    if not body.has_batch_norm and config.norm != AUTO:
        raise UserError(f"model.norm={config.norm}: {config.architecture} has no BatchNorm; leave it at auto")
    pyramid = TimmPyramid(body, config.fpn_channels or WIDTH, one_stage)
    return Backbone(pyramid, SIZES, strides, mean=body.mean, std=body.std)
