"""Detectron2's configuration, and the model that it names."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from torch import Tensor, nn

from lossmix_det.config import ModelConfig
from lossmix_det.engines.detectron2 import vgg  # noqa: F401 - registers its backbone
from lossmix_det.errors import UserError, first_line

# RGB pixels (B, 3, H, W) in the order of INPUT.FORMAT.
COLOURS: dict[str, Callable[[Tensor], Tensor]] = {"BGR": lambda pixels: pixels.flip(1), "RGB": lambda pixels: pixels}


def read_cfg(config: ModelConfig, num_classes: int) -> CfgNode:
    """Detectron2's configuration: its defaults, the YAML, the options, and our number of classes and thresholds.

    Raises:
        UserError: a file or an option cannot be read.
    """
    cfg = get_cfg()
    try:
        if config.detectron2_config:
            cfg.merge_from_file(config.detectron2_config, allow_unsafe=False)  # else YAML runs code
        cfg.merge_from_list(list(config.detectron2_options))
    except Exception as error:  # of YAML, of yacs, of Detectron2
        raise UserError(
            f"model.detectron2_config={config.detectron2_config!r} with model.detectron2_options="
            f"{list(config.detectron2_options)} cannot be read ({type(error).__name__}: {first_line(error)})"
        ) from None
    cfg.MODEL.DEVICE = "cpu"  # moved like any module
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = False
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = config.score_threshold
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = config.nms_threshold
    cfg.TEST.DETECTIONS_PER_IMAGE = config.detections_per_image
    for part, samples in ((cfg.MODEL.RPN, config.rpn_samples), (cfg.MODEL.ROI_HEADS, config.roi_samples)):
        part.BATCH_SIZE_PER_IMAGE = samples or part.BATCH_SIZE_PER_IMAGE
    return cfg


def build_rcnn(cfg: CfgNode) -> GeneralizedRCNN:
    """The model of a configuration.

    Raises:
        UserError: it names what does not exist or does not fit together, or is of a kind that is not known here.
    """
    try:
        model = build_model(cfg)
    except UserError:
        raise
    except Exception as error:  # of any part of Detectron2
        raise UserError(
            f"model.detectron2_config: Detectron2 cannot build it ({type(error).__name__}: {first_line(error)}); "
            "name modules of your own that register parts of it in data.imports"
        ) from error
    _check(model)
    return model


def _check(model: nn.Module) -> None:
    """Refuse what the weighted losses do not know."""
    name = type(model).__name__
    if not isinstance(model, GeneralizedRCNN) or type(model.proposal_generator) is not RPN:
        raise UserError(
            f"model.detectron2_config: {name} has no losses of two stages; use a GeneralizedRCNN with an RPN"
        )
    if hasattr(model, "sem_seg_head"):
        raise UserError(f"model.detectron2_config: {name} has a segmentation head, which nothing here would teach")
    if model.input_format not in COLOURS:
        raise UserError(f"model.detectron2_config: INPUT.FORMAT: {model.input_format} is not supported; use BGR or RGB")
    if len(model.pixel_mean) != 3 or len(model.pixel_std) != 3:
        raise UserError("model.detectron2_config: MODEL.PIXEL_MEAN and PIXEL_STD must have three numbers each")
    heads = type(model.roi_heads)
    if heads not in (Res5ROIHeads, StandardROIHeads):
        raise UserError(
            f"model.detectron2_config: {heads.__name__} is not supported; use StandardROIHeads or Res5ROIHeads"
        )
