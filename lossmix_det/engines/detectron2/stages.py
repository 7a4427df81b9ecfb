"""Detectron2's region proposal network and RoI heads as stages; the plug-in has them one by one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import Res5ROIHeads, ROIHeads
from detectron2.structures import Boxes, pairwise_iou
from detectron2.structures import Instances as D2Instances
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lossmix_det.engines.normalizers import NORMALIZERS
from lossmix_det.engines.two_stage.encoding import EncodedCanvas, Scores
from lossmix_det.engines.two_stage.first_stage import FirstStage
from lossmix_det.engines.two_stage.sampling import RankedSampler
from lossmix_det.engines.two_stage.second_stage import SecondStage
from lossmix_det.engines.two_stage.stage import BACKGROUND, IGNORED
from lossmix_det.errors import UserError

# What Detectron2 calls the losses, by our names.
NAMES = dict(
    zip(
        (*FirstStage.loss_names, *SecondStage.loss_names),
        ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"),
        strict=True,
    )
)
SMOOTH_L1 = "smooth_l1"


class Detectron2RPN(FirstStage):
    """Detectron2's `RPN` as a stage.

    Args:
        rpn: read, not copied.
        normalizer: as in `model.normalizer`.

    Raises:
        UserError: it is set to losses or samples that are not known here.
    """

    def __init__(self, rpn: RPN, normalizer: str) -> None:
        _refuse(
            (rpn.box_reg_loss_type == SMOOTH_L1, "RPN.BBOX_REG_LOSS_TYPE: smooth_l1"),
            (rpn.anchor_boundary_thresh < 0, "RPN.BOUNDARY_THRESH: -1"),
        )
        super().__init__(NORMALIZERS[normalizer])
        self.part, self.quota = rpn, rpn.batch_size_per_image
        self.loss_weights = _loss_weights(rpn, self.loss_names)
        self.sampler = _sampler(rpn)

    def match(self, boxes: Tensor, truth: Tensor) -> Tensor:
        """As `Stage.match`, by Detectron2's matcher."""
        return _match(self.part.anchor_matcher, boxes, truth)

    def offsets(self, truth: Tensor, boxes: Tensor) -> Tensor:
        """As `Stage.offsets`, by Detectron2's box coder."""
        return self.part.box2box_transform.get_deltas(boxes, truth)

    def moved(self, boxes: Tensor, offsets: Tensor) -> Tensor:
        """As `Stage.moved`, by Detectron2's box coder."""
        return self.part.box2box_transform.apply_deltas(offsets, boxes)

    def box_loss(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        """As `Stage.box_loss`: smooth L1 with Detectron2's threshold."""
        return _smooth_l1(predicted, wanted, self.part.smooth_l1_beta)


class Detectron2RoI(SecondStage):
    """Detectron2's `ROIHeads` as a stage.

    Args:
        heads: read, not copied.
        normalizer: as in `model.normalizer`.

    Raises:
        UserError: they are set to losses or samples that are not known here.
    """

    def __init__(self, heads: ROIHeads, normalizer: str) -> None:
        predictor = heads.box_predictor
        _refuse(
            (predictor.box_reg_loss_type == SMOOTH_L1, "ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE: smooth_l1"),
            (not predictor.use_sigmoid_ce, "ROI_BOX_HEAD.USE_SIGMOID_CE: False"),
            (heads.proposal_append_gt, "ROI_HEADS.PROPOSAL_APPEND_GT: True"),
            (not heads.mask_on and not getattr(heads, "keypoint_on", False), "MASK_ON: False with KEYPOINT_ON: False"),
        )
        super().__init__(NORMALIZERS[normalizer], background=heads.num_classes)
        self.part = heads
        self.loss_weights = _loss_weights(predictor, self.loss_names)
        self.sampler = _sampler(heads)
        of_stage = isinstance(heads, Res5ROIHeads)
        self.head, self.pooler = (heads.res5, heads.pooler) if of_stage else (heads.box_head, heads.box_pooler)
        self.shares_scores = not any(isinstance(module, _BatchNorm) for module in self.head.modules())

    def pool(self, canvas: EncodedCanvas, boxes: list[Tensor]) -> Tensor:
        """As `SecondStage.pool`, by Detectron2's pooler.

        In single precision: the pooler rounds boxes to the precision of the features, which is up to 4 pixels in bf16.
        """
        levels = [canvas.features[name].float() for name in self.part.in_features]
        return self.pooler(levels, [Boxes(of_image) for of_image in boxes])

    def judge(self, pooled: Tensor) -> Scores:
        """As `SecondStage.judge`, by Detectron2's head and predictor."""
        heads = self.part
        if isinstance(heads, Res5ROIHeads):
            features = heads.res5(pooled).mean(dim=[2, 3])
        else:
            features = heads.box_head(pooled).flatten(1)
        logits, deltas = heads.box_predictor(features)
        return Scores(features, logits, deltas.reshape(len(deltas), deltas.shape[1] // 4, 4))

    def match(self, boxes: Tensor, truth: Tensor) -> Tensor:
        """As `Stage.match`, by Detectron2's matcher."""
        return _match(self.part.proposal_matcher, boxes, truth)

    def offsets(self, truth: Tensor, boxes: Tensor) -> Tensor:
        """As `Stage.offsets`, by Detectron2's box coder."""
        return self.part.box_predictor.box2box_transform.get_deltas(boxes, truth)

    def moved(self, boxes: Tensor, offsets: Tensor) -> Tensor:
        """As `Stage.moved`, by Detectron2's box coder."""
        return self.part.box_predictor.box2box_transform.apply_deltas(offsets, boxes)

    def box_loss(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        """As `Stage.box_loss`: smooth L1 with Detectron2's threshold."""
        return _smooth_l1(predicted, wanted, self.part.box_predictor.smooth_l1_beta)


def _refuse(*limits: tuple[bool, str]) -> None:
    """Raise for the first limit that does not hold, saying what to set."""
    for holds, supported in limits:
        if not holds:
            raise UserError(f"Detectron2 configuration: only {supported} is supported")


def _sampler(part: RPN | ROIHeads) -> RankedSampler:
    return RankedSampler(part.batch_size_per_image, part.positive_fraction)


def _loss_weights(part: nn.Module, names: tuple[str, str]) -> tuple[float, float]:
    class_weight, box_weight = (part.loss_weight.get(NAMES[name], 1.0) for name in names)
    return class_weight, box_weight


def _match(matcher: object, boxes: Tensor, truth: Tensor) -> Tensor:
    index, label = matcher(pairwise_iou(Boxes(truth), Boxes(boxes)))
    return torch.where(label == 1, index, torch.where(label == 0, BACKGROUND, IGNORED))


def _smooth_l1(predicted: Tensor, wanted: Tensor, beta: float) -> Tensor:
    return F.smooth_l1_loss(predicted, wanted, beta=beta, reduction="none").sum(dim=1)


class Proposed(NamedTuple):
    """What the first stage makes of features.

    ``anchors`` (A, 4) per image, ``objectness`` (B, A) logits, ``deltas`` (B, A, 4) offsets, ``proposals`` as
    Detectron2's instances, and ``levels``, (rows, columns, anchors per cell) of each.
    """

    anchors: list[Tensor]
    objectness: Tensor
    deltas: Tensor
    proposals: list[D2Instances]
    levels: tuple[tuple[int, int, int], ...]


def propose(rpn: RPN, features: dict[str, Tensor], sizes: list[tuple[int, int]]) -> Proposed:
    """Run the first stage on features of images of these (height, width)."""
    levels = [features[name] for name in rpn.in_features]
    boxes = rpn.anchor_generator(levels)
    logits, deltas = rpn.rpn_head(levels)
    shapes = tuple((level.shape[2], level.shape[3], level.shape[1]) for level in logits)
    logits = [level.permute(0, 2, 3, 1).flatten(1) for level in logits]
    deltas = [_by_anchor(level) for level in deltas]
    with torch.no_grad(), torch.autocast(levels[0].device.type, enabled=False):
        finite = [_finite(level) for level in logits], [_finite(level) for level in deltas]
        proposals = rpn.predict_proposals(boxes, *finite, sizes)
    anchors = [Boxes.cat(boxes).tensor] * len(sizes)
    return Proposed(anchors, torch.cat(logits, dim=1), torch.cat(deltas, dim=1), proposals, shapes)


def _finite(values: Tensor) -> Tensor:
    """In float32, zero where a step has gone wrong: its loss still says so, while Detectron2 would end the run here."""
    return values.float().nan_to_num(0.0, 0.0, 0.0)


def _by_anchor(deltas: Tensor) -> Tensor:
    """(B, A·4, h, w) to (B, h·w·A, 4)."""
    count, _, height, width = deltas.shape
    return deltas.view(count, -1, 4, height, width).permute(0, 3, 4, 1, 2).flatten(1, -2)
