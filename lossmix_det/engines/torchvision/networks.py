"""Building torchvision detectors by name, and loading weights into them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn
from torchvision.models import detection as zoo
from torchvision.models import get_weight, list_models, resnet
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from lossmix_det.config import ModelConfig
from lossmix_det.errors import UserError
from lossmix_det.files import read_model

log = logging.getLogger(__name__)

TRAINED_WITHOUT_EPS = [f"FasterRCNN_ResNet50_FPN_Weights.{name}" for name in ("COCO_V1", "DEFAULT")]
LEAST_FITTING = 0.1  # share of a file's tensors; a few names are alike in any two networks
SLIM_CHANNELS, SLIM_HIDDEN = 64, 256


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups (Wu & He, ECCV 2018), whose statistics do not depend on the other images of the batch."""
    return nn.GroupNorm(min(32, channels), channels)


KINDS = {"group": nn.GroupNorm, "batch": nn.BatchNorm2d, "frozen": FrozenBatchNorm2d}
NORMS = {"frozen": FrozenBatchNorm2d, "group": group_norm, "batch": nn.BatchNorm2d}


def build_model(config: ModelConfig, num_classes: int, strict: bool = False) -> FasterRCNN:
    """A plain torchvision detector, its weights loaded.

    Args:
        config: the ``model`` branch.
        num_classes: K, without background.
        strict: refuse weights that leave any part fresh.

    Raises:
        UserError: the combination is impossible, or the weights cannot be found or read.
    """
    state = read_weights(config.weights) if config.weights else None
    norm = _resolve_norm(config, state)
    stages = config.trainable_layers
    if stages is None:
        stages = 6 if state is None else 3
    settings = {
        "box_score_thresh": config.score_threshold,
        "box_nms_thresh": config.nms_threshold,
        "box_detections_per_img": config.detections_per_image,
        "_skip_resize": True,  # images arrive in the size wanted
    }
    if config.rpn_samples:
        settings["rpn_batch_size_per_image"] = config.rpn_samples
    if config.roi_samples:
        settings["box_batch_size_per_image"] = config.roi_samples
    model = _construct(config.architecture, norm, num_classes + 1, settings)
    freeze_stages(model.backbone.body, stages)
    if state is not None:
        load_weights(model, state, config.weights, strict)
        if config.weights.endswith(
            ("FasterRCNN_ResNet50_FPN_Weights.COCO_V1", "FasterRCNN_ResNet50_FPN_Weights.DEFAULT")
        ):
            overwrite_eps(model, 0.0)  # as torchvision does: these weights were trained without it
    return model


def _construct(architecture: str, norm: str, outputs: int, settings: dict) -> FasterRCNN:
    if architecture == "slim":
        return _slim(NORMS[norm], outputs, settings)
    if architecture in list_models(zoo):
        # These come with BatchNorm, made for pre-trained weights; without such weights it must learn.
        model = zoo.__dict__[architecture](weights=None, weights_backbone=None, num_classes=outputs, **settings)
        (freeze_norms if norm == "frozen" else thaw_norms)(model)
        return model
    name = architecture.removesuffix("_fpn")
    backbone = resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=NORMS[norm], trainable_layers=5)
    return FasterRCNN(backbone, outputs, **settings)


def _slim(norm: Callable[[int], nn.Module], outputs: int, settings: dict) -> FasterRCNN:
    """The first stages of ResNet-18 with a 64-channel pyramid and small heads, for small images on a CPU."""
    body = resnet.resnet18(weights=None, norm_layer=norm)
    # The last stage (stride 32) would see an image of 100 pixels as 3×3 cells, and holds three quarters of the weights.
    layers = {f"layer{index}": str(index - 1) for index in range(1, 4)}
    backbone = BackboneWithFPN(body, layers, [64, 128, 256], SLIM_CHANNELS)
    defaults = {
        "rpn_anchor_generator": AnchorGenerator(((14,), (24,), (40,), (64,)), ((0.5, 1.0, 2.0),) * 4),
        "rpn_pre_nms_top_n_train": 500,
        "rpn_pre_nms_top_n_test": 300,
        "rpn_post_nms_top_n_train": 300,
        "rpn_post_nms_top_n_test": 150,
        "box_roi_pool": MultiScaleRoIAlign(["0", "1", "2"], output_size=7, sampling_ratio=1),
        "box_head": TwoMLPHead(SLIM_CHANNELS * 49, SLIM_HIDDEN),
        "box_predictor": FastRCNNPredictor(SLIM_HIDDEN, outputs),
        "box_batch_size_per_image": 64,
    }
    return FasterRCNN(backbone, **(defaults | settings))


def freeze_stages(body: nn.Module, learning: int) -> None:
    """Let only the last stages of a ResNet or MobileNetV3 backbone learn; the stem is the first stage.

    torchvision's own option is ignored unless torchvision loads the weights itself.
    """
    parts = list(body.named_children())
    starts = [index for index, (name, part) in enumerate(parts) if name.startswith("layer") or _halves(part)]
    boundaries = sorted({0, *starts})
    first = boundaries[max(len(boundaries) - learning, 0)] if learning else len(parts)
    for _, part in parts[:first]:
        part.requires_grad_(False)


def _halves(part: nn.Module) -> bool:
    """A MobileNetV3 block that opens a stage, as torchvision marks it."""
    return bool(getattr(part, "_is_cn", False))


def thaw_norms(module: nn.Module) -> None:
    """Replace every frozen norm below a module by a BatchNorm that learns."""
    for name, child in module.named_children():
        if isinstance(child, FrozenBatchNorm2d):
            setattr(module, name, nn.BatchNorm2d(len(child.weight), eps=child.eps))
        else:
            thaw_norms(child)


def freeze_norms(module: nn.Module) -> None:
    """Replace every BatchNorm below a module by a frozen one with the same parameters and statistics."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
            frozen.load_state_dict(child.state_dict(), strict=False)
            setattr(module, name, frozen)
        else:
            freeze_norms(child)


# ------------------------------------------------------------------------------------------------- weights


def read_weights(source: str) -> dict[str, Tensor]:
    """A state dict from a file or from torchvision's store, without ever unpickling code.

    Args:
        source: path of a state dict, of an export, or of a checkpoint of ours (its EMA weights if it has any);
            or a torchvision name such as ``ResNet50_Weights.IMAGENET1K_V2``.

    Raises:
        UserError: no such file or name, or the file holds no state dict.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return read_model(path)
    try:
        weights = get_weight(source)
    except (ValueError, KeyError, AttributeError):
        raise UserError(
            f"model.weights={source!r} is neither a file nor a torchvision name such as ResNet50_Weights.IMAGENET1K_V2"
        ) from None
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except OSError as error:
        raise UserError(
            f"{source} could not be downloaded ({error}); fetch {weights.url} elsewhere and give model.weights its path"
        ) from None


def load_weights(model: FasterRCNN, state: dict[str, Tensor], source: str, strict: bool = False) -> None:
    """Load what fits by name and shape, and report the rest: replaced heads, missing and unused names.

    A bare classifier's ResNet or MobileNet goes into the backbone.

    Raises:
        UserError: nothing fits; or, if ``strict``, something is missing or of another shape.
    """
    own = model.state_dict()
    if not any(name in own for name in state):
        state = {f"backbone.body.{name.removeprefix('features.')}": value for name, value in state.items()}
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if len(fitting) < len(state) * LEAST_FITTING or not fitting:
        raise UserError(
            f"model.weights={source}: {len(fitting)} of its {len(state)} tensors fit this architecture; "
            "is it of another network?"
        )
    model.load_state_dict(fitting, strict=False)
    replaced = sorted(name for name in state if name in own and name not in fitting)
    counters = "num_batches_tracked"
    missing = sorted(name for name in own if name not in state and not name.endswith(counters))
    unused = sorted(name for name in state if name not in own and not name.endswith(counters))
    if strict and (replaced or missing):
        names = _shorten([*replaced, *missing])
        raise UserError(f"model.weights={source} is not of this model: {names} missing or of another shape")
    log.info("weights %s: %d of %d tensors loaded", source, len(fitting), len(own))
    for title, names in (
        ("of another shape, left fresh", replaced),
        ("not in the file", missing),
        ("unused", unused),
    ):
        if names:
            log.info("  %s (%d): %s", title, len(names), _shorten(names))


def _shorten(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _resolve_norm(config: ModelConfig, state: dict[str, Tensor] | None) -> str:
    """The norm to build with; `auto` is frozen for weights with batch statistics, else one that trains from scratch.

    Raises:
        UserError: the architecture has no GroupNorm variant.
    """
    from_zoo = config.architecture in list_models(zoo)
    if config.norm == "group" and from_zoo:
        raise UserError(
            f"model.architecture={config.architecture} has no variant with model.norm=group; use resnet50_fpn, or batch"
        )
    if config.norm != "auto":
        return config.norm
    if state is not None and any(name.endswith("running_mean") for name in state):
        return "frozen"
    return "batch" if from_zoo else "group"


def norm_of(model: nn.Module) -> str:
    """The norm that a model was built with, by its name in the configuration."""
    kinds = {type(part) for part in model.modules()}
    return next((name for name, kind in KINDS.items() if kind in kinds), "none")
