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
from lossmix_det.engines.detectron2.timm_fpn import add_timm_config, set_timm_pixels
from lossmix_det.errors import UserError, first_line

# RGB pixels (B, 3, H, W) in the order of INPUT.FORMAT.
COLOURS: dict[str, Callable[[Tensor], Tensor]] = {"BGR": lambda pixels: pixels.flip(1), "RGB": lambda pixels: pixels}

# What adds keys to Detectron2's configuration, by the name of whose they are: a module in data.imports adds its own by
# a line such as NEW_KEYS["my_project"] = add_my_config.
NEW_KEYS: dict[str, Callable[[CfgNode], None]] = {"timm": add_timm_config}


def read_cfg(config: ModelConfig, num_classes: int) -> CfgNode:
    """Detectron2's configuration: its defaults, the YAML, the options, and our number of classes and thresholds.

    Raises:
        UserError: a file or an option cannot be read, or timm has no network that is named.
    """
    cfg = _with_new_keys()
    try:
        if config.detectron2_config:
            cfg.merge_from_file(config.detectron2_config, allow_unsafe=False)  # else YAML runs code
        cfg.merge_from_list(list(config.detectron2_options))
    except Exception as error:  # of YAML, of yacs, of Detectron2
        unknown = "Non-existent" in str(error)
        hint = "; a module in data.imports adds keys of your own by NEW_KEYS (docs/backbones.md)" if unknown else ""
        raise UserError(
            f"model.detectron2_config={config.detectron2_config!r} with model.detectron2_options="
            f"{list(config.detectron2_options)} cannot be read ({type(error).__name__}: {first_line(error)}){hint}"
        ) from None
    if cfg.MODEL.TIMM.NAME:
        set_timm_pixels(cfg)
    else:
        del cfg.MODEL["TIMM"]  # or plain Detectron2 could not read the exports of any other network
    cfg.MODEL.DEVICE = "cpu"  # moved like any module
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = False
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = config.score_threshold
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = config.nms_threshold
    cfg.TEST.DETECTIONS_PER_IMAGE = config.detections_per_image
    for part, samples in ((cfg.MODEL.RPN, config.rpn_samples), (cfg.MODEL.ROI_HEADS, config.roi_samples)):
        part.BATCH_SIZE_PER_IMAGE = samples or part.BATCH_SIZE_PER_IMAGE
    return cfg


def _with_new_keys() -> CfgNode:
    """Detectron2's defaults, and those of all keys that were added."""
    cfg = get_cfg()
    for name, add in NEW_KEYS.items():
        try:
            add(cfg)
        except Exception as error:  # the user's code, which may fail in any way
            raise UserError(
                f"NEW_KEYS[{name!r}] cannot add its keys ({type(error).__name__}: {first_line(error)})"
            ) from error
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
