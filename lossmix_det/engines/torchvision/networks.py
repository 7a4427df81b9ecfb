"""What torchvision's detectors share: settings, weights, norms, and whole networks by torchvision's own names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision.models import detection as zoo
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d

from lossmix_det.config import TIMM_PREFIX, ModelConfig
from lossmix_det.engines.backbones import BACKBONES, Backbone, freeze_stages, stage_ends
from lossmix_det.engines.canvas_detector import CanvasDetector
from lossmix_det.engines.contract import Export
from lossmix_det.engines.feature_mixing import MixingPoints
from lossmix_det.engines.norms import NORMS, freeze_norms, resolve, thaw_norms
from lossmix_det.engines.timm_fpn import TimmPyramid, timm_fpn
from lossmix_det.engines.weights import load_weights, read_weights
from lossmix_det.errors import UserError, not_one_of
from lossmix_det.structures import ImageBatch, Size

log = logging.getLogger(__name__)

Network = FasterRCNN | RetinaNet | FCOS

# Whole networks, and the detector that each of them is.
ZOO: dict[str, type[Network]] = {
    "fasterrcnn_resnet50_fpn": FasterRCNN,
    "fasterrcnn_resnet50_fpn_v2": FasterRCNN,
    "fasterrcnn_mobilenet_v3_large_fpn": FasterRCNN,
    "retinanet_resnet50_fpn": RetinaNet,
    "retinanet_resnet50_fpn_v2": RetinaNet,
    "fcos_resnet50_fpn": FCOS,
}
# Weights of torchvision, by name and by the files that it publishes, whose FrozenBatchNorm2d added no eps in training.
TRAINED_WITHOUT_EPS = (
    *(
        f"{name}_Weights.{version}"
        for name in ("FasterRCNN_ResNet50_FPN", "RetinaNet_ResNet50_FPN")
        for version in ("COCO_V1", "DEFAULT")
    ),
    "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
    "retinanet_resnet50_fpn_coco-eeacb38b.pth",
)


class TorchvisionDetector(CanvasDetector):
    """What all detectors of torchvision share: ``model`` is the plain torchvision module."""

    model: Network

    def normalise(self, images: ImageBatch) -> ImageList:
        """As `CanvasDetector.normalise`."""
        return normalised(self.model, images)

    def resized(self, inputs: ImageList, sizes: Sequence[Size]) -> ImageList:
        """As `CanvasDetector.resized`."""
        return ImageList(inputs.tensors[:1].expand(len(sizes), -1, -1, -1), list(sizes))

    def levels_of(self, inputs: ImageList) -> dict[str, Tensor]:
        """As `CanvasDetector.levels_of`: the pyramid's levels."""
        return self.model.backbone(inputs.tensors)

    def mixing_points(self) -> MixingPoints:
        """As `CanvasDetector.mixing_points`: the stages of the body, and the pyramid."""
        pyramid = self.model.backbone
        return MixingPoints(pyramid.body, stage_ends(pyramid.body), pyramid)

    def export(self, state: dict[str, Tensor], config: ModelConfig, sizes: dict[str, int]) -> Export:
        """The bare state dict; the classes are counted with the background."""
        about = {"detector": config.detector, "architecture": config.architecture, "num_classes": self.num_classes + 1}
        pixels = {"image_mean": self.model.transform.image_mean, "image_std": self.model.transform.image_std}
        pyramid = self.model.backbone
        return Export(state, about | pixels | (pyramid.about() if isinstance(pyramid, TimmPyramid) else {}))

    def body(self) -> nn.Module:
        """As `HasBody.body`."""
        return self.model.backbone.body


def build_network(
    config: ModelConfig,
    kind: type[Network],
    settings: dict[str, object],
    assemble: Callable[[Backbone, dict[str, object]], Network],
    *,
    outputs: int,
    one_stage: bool,
    strict: bool,
) -> Network:
    """A plain torchvision detector, its weights loaded and its first stages frozen.

    Args:
        config: the ``model`` branch; ``architecture`` is one of `BACKBONES`, of `ZOO`, or of timm.
        kind: torchvision's class.
        settings: keywords of that class.
        assemble: makes the network of a backbone and the keywords.
        outputs: classes, the background included.
        one_stage: which levels the backbone is to have.
        strict: refuse weights that leave any part fresh.

    Raises:
        UserError: the combination is impossible, or the weights cannot be found or read.
    """
    state = read_weights(config.weights, config.architecture) if config.weights else None
    stages = config.trainable_layers
    if stages is None:
        stages = 6 if state is None else 3
    if config.architecture in ZOO:
        model = _whole(config, kind, state, settings, outputs)
    else:
        backbone = _backbone(config, state, one_stage)
        pixels = {"image_mean": list(backbone.mean), "image_std": list(backbone.std)} if backbone.mean else {}
        model = assemble(backbone, settings | pixels)
    freeze_stages(model.backbone.body, stages)
    if state is None:
        log.info("model.weights is empty: %s starts from random weights", config.architecture)
        return model
    load_weights(model, state, config.weights, strict)
    if config.weights.endswith(TRAINED_WITHOUT_EPS):
        _take_off_eps(model)
    return model


def _take_off_eps(model: nn.Module) -> None:
    """Let every FrozenBatchNorm2d compute as if it had no eps.

    torchvision sets the eps to 0 where it loads these weights itself. No state dict holds it, so that checkpoints and
    exports would compute otherwise than the run did. Taken off the variances it stays with the weights.
    """
    for part in model.modules():
        if isinstance(part, FrozenBatchNorm2d):
            part.running_var -= part.eps


def _backbone(config: ModelConfig, state: dict[str, Tensor] | None, one_stage: bool) -> Backbone:
    """The pyramid that ``architecture`` names."""
    name = config.architecture
    if name.startswith(TIMM_PREFIX):
        return timm_fpn(config, state, one_stage)
    if name not in BACKBONES:
        raise UserError(not_one_of("model.architecture", name, [*BACKBONES, *ZOO, f"{TIMM_PREFIX}<a name of timm's>"]))
    return BACKBONES[name](NORMS[resolve(config.norm, state, "group")], one_stage)


def _whole(
    config: ModelConfig,
    kind: type[Network],
    state: dict[str, Tensor] | None,
    settings: dict[str, object],
    outputs: int,
) -> Network:
    """One of torchvision's own networks, with norms that suit the weights.

    Raises:
        UserError: it is another detector, or has no such norm.
    """
    name = config.architecture
    if ZOO[name] is not kind:
        raise UserError(
            f"model.architecture={name} is a {ZOO[name].__name__}, not a {kind.__name__}; set model.detector to match"
        )
    norm = resolve(config.norm, state, "batch")
    if norm not in WHOLE_NORMS:
        raise UserError(f"model.architecture={name} has no variant with model.norm={norm}; use resnet50_fpn, or batch")
    # They come with BatchNorm, made for pre-trained weights; without such weights it must learn.
    model = getattr(zoo, name)(weights=None, weights_backbone=None, num_classes=outputs, **settings)
    WHOLE_NORMS[norm](model)
    return model


WHOLE_NORMS = {"frozen": freeze_norms, "batch": thaw_norms}


def normalised(model: Network, images: ImageBatch) -> ImageList:
    """Normalise, and zero the padding afterwards, as torchvision pads after normalising."""
    transform = model.transform
    mean, std = (
        torch.tensor(values, device=images.pixels.device).view(1, 3, 1, 1)
        for values in (transform.image_mean, transform.image_std)
    )
    pixels = torch.where(images.valid(), (images.to_float().pixels - mean) / std, 0.0)
    return ImageList(pixels, list(images.sizes))


def anchors_of(generator: nn.Module, images: ImageList, levels: list[Tensor]) -> list[Tensor]:
    """(A, 4) anchors per image, always float32: bfloat16 counts pixels beyond 512 in fours."""
    shapes = [torch.zeros((), device=level.device).expand(level.shape) for level in levels]
    return generator(images, shapes)
