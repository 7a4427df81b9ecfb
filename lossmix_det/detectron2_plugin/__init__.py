"""LossMix inside an own Detectron2 project, trained by Detectron2's own trainer.

Importing this registers three names for a Detectron2 configuration::

    MODEL.META_ARCHITECTURE        GeneralizedRCNN   →  LossMixRCNN
    MODEL.PROPOSAL_GENERATOR.NAME  RPN               →  LossMixRPN
    MODEL.ROI_HEADS.NAME           StandardROIHeads  →  LossMixROIHeads   (Res5ROIHeads → LossMixRes5ROIHeads)

`LossMixRCNN` mixes each training batch itself. A project with a meta-architecture of its own mixes with `MixingCollate`
in the data loader instead, and changes only the other two names: they read the weights from the instances.

``MODEL.BACKBONE.NAME: build_timm_fpn_backbone`` is registered too; its keys are those of `add_timm_config`.
"""

from lossmix_det.detectron2_plugin.batches import MixedInstances, MixingCollate, mix_inputs, supervisions_of
from lossmix_det.detectron2_plugin.datasets import register_datasets
from lossmix_det.detectron2_plugin.modules import LossMixRCNN, LossMixRes5ROIHeads, LossMixROIHeads, LossMixRPN
from lossmix_det.detectron2_plugin.settings import add_lossmix_config, mixing_of
from lossmix_det.engines.detectron2.timm_fpn import add_timm_config, set_timm_pixels

__all__ = [
    "LossMixRCNN",
    "LossMixROIHeads",
    "LossMixRPN",
    "LossMixRes5ROIHeads",
    "MixedInstances",
    "MixingCollate",
    "add_lossmix_config",
    "add_timm_config",
    "mix_inputs",
    "mixing_of",
    "register_datasets",
    "set_timm_pixels",
    "supervisions_of",
]
