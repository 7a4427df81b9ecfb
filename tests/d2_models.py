"""Small models and batches of Detectron2, for tests of the plug-in; imported where Detectron2 is installed."""

from __future__ import annotations

import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from lossmix_det import detectron2_plugin as plugin

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
NAMES = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")
ALL = ["res2", "res3", "res4", "res5"]


def configured(heads: str = "StandardROIHeads", **settings):
    """A small Detectron2 configuration whose samplers take every anchor and proposal."""
    cfg = get_cfg()
    plugin.add_lossmix_config(cfg)
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "GN", 0
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NUM_CLASSES = heads, 4
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE, cfg.MODEL.RPN.POSITIVE_FRACTION = 4096, 1.0
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE, cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 4096, 1.0
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN, cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 200, 50
    if heads.endswith("Res5ROIHeads"):
        cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.NORM = 50, 32, "FrozenBN"
        cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8, 8
    else:
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.OUT_FEATURES = "build_resnet_fpn_backbone", ALL
        cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = ALL, 32
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
        cfg.MODEL.RPN.IN_FEATURES, cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"], ["p2", "p3", "p4"]
        cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 1
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 32, 7
    for key, value in settings.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def mixing(cfg, **settings):
    """The same with the three names changed."""
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.PROPOSAL_GENERATOR.NAME = "LossMixRCNN", "LossMixRPN"
    cfg.MODEL.ROI_HEADS.NAME = {
        "StandardROIHeads": "LossMixROIHeads",
        "Res5ROIHeads": "LossMixRes5ROIHeads",
    }.get(cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NAME)
    for key, value in settings.items():
        cfg.LOSSMIX[key] = value
    return cfg


TRUTHS = (
    ([[5.0, 6, 40, 50], [50, 10, 90, 60]], [1, 3]),
    ([[20.0, 20, 60, 55]], [0]),
    ([], []),
)
SIZES = ((64, 96), (80, 72), (64, 64))


def instances(truth, size) -> Instances:
    boxes = torch.tensor(truth[0]).reshape(-1, 4)
    return Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.tensor(truth[1], dtype=torch.int64))


def inputs() -> list[dict]:
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "image": torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8),
            "instances": instances(truth, size),
            "file_name": f"{index}.png",
        }
        for index, (truth, size) in enumerate(zip(TRUTHS, SIZES, strict=True))
    ]


def losses(model, batch) -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    with EventStorage():
        return model(batch)


def flat(cfg) -> list[str]:
    """What the configuration says beyond the defaults, as words."""
    words, default = [], get_cfg()

    def walk(node, other, prefix):
        for key, value in node.items():
            if hasattr(value, "items"):
                walk(value, other[key], f"{prefix}{key}.")
            elif value != other[key]:
                words.extend([prefix + key, repr(value) if not isinstance(value, str) else value or '""'])

    own = cfg.clone()
    del own["LOSSMIX"]
    walk(own, default, "")
    return words
