"""Any Detectron2 ``GeneralizedRCNN`` behind the contract.

Network, matching, box coding and inference are its own modules.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import Res5ROIHeads, ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, ImageList, pairwise_iou
from detectron2.structures import Instances as D2Instances
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lossmix_det.config import ModelConfig
from lossmix_det.engines.contract import LOSSES, Detector, Encoding, Marker, Scores
from lossmix_det.engines.detectron2 import vgg  # noqa: F401 - registers its backbone
from lossmix_det.engines.two_stage.losses import BACKGROUND, IGNORED, STAGES, ScoredProposals, TwoStageLosses
from lossmix_det.engines.two_stage.sampling import KeyedSampler
from lossmix_det.errors import UserError, first_line
from lossmix_det.files import read_model
from lossmix_det.structures import ImageBatch, Instances, Supervision, pad_to

log = logging.getLogger(__name__)

# What Detectron2 calls the losses.
MOST_FRESH = 0.95  # of a model that any weights were meant for; a few names are alike in any two networks
NAMES = dict(zip(LOSSES, ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"), strict=True))


class Detectron2Losses(TwoStageLosses):
    """The weighted losses of a region proposal network and of RoI heads; the plug-in has them one by one.

    `use` comes first; it is no constructor, because a `Detector` is a module with one of its own.
    """

    def use(self, rpn: RPN | None, roi_heads: ROIHeads | None, normalizer: str) -> None:
        """Take over matching, sampling and coding.

        Args:
            rpn: absent: no first stage.
            roi_heads: absent: no second stage.
            normalizer: as in `model.normalizer`.

        Raises:
            UserError: they are set to losses or samples that are not known here.
        """
        for stage, part in (("rpn", rpn), ("roi", roi_heads)):
            wrong = part is not None and next((what for holds, what in _limits(stage, part) if not holds), None)
            if wrong:
                raise UserError(f"Detectron2 configuration: only {wrong} is supported")
        self.normalizer = normalizer
        self._parts = {stage: part for stage, part in zip(STAGES, (rpn, roi_heads), strict=True) if part is not None}
        self.samplers = {
            stage: KeyedSampler(part.batch_size_per_image, part.positive_fraction)
            for stage, part in self._parts.items()
        }
        weights = {name: weight for stage in self._parts for name, weight in self._coder(stage).loss_weight.items()}
        self.loss_weights = {ours: weights.get(theirs, 1.0) for ours, theirs in NAMES.items()}
        if roi_heads is not None:
            self.background = roi_heads.num_classes
            head = roi_heads.res5 if isinstance(roi_heads, Res5ROIHeads) else roi_heads.box_head
            self.shares_scores = not any(isinstance(part, _BatchNorm) for part in head.modules())

    def stage_losses(
        self, stage: str, encoding: Encoding, supervision: Supervision, marker: Marker | None = None
    ) -> dict[str, Tensor]:
        found = super().stage_losses(stage, encoding, supervision, marker)
        return {name: value * self.loss_weights[name] for name, value in found.items()}

    def score(self, encoding: Encoding, boxes: list[Tensor]) -> Scores:
        heads = self._parts["roi"]
        levels, wrapped = [encoding.features[name] for name in heads.in_features], [Boxes(each) for each in boxes]
        if isinstance(heads, Res5ROIHeads):
            features = heads._shared_roi_transform(levels, wrapped).mean(dim=[2, 3])
        else:
            features = heads.box_head(heads.box_pooler(levels, wrapped)).flatten(1)
        logits, deltas = heads.box_predictor(features)
        return Scores(features, logits, deltas.reshape(len(deltas), deltas.shape[1] // 4, 4))

    def match(self, stage: str, boxes: Tensor, truth: Tensor) -> Tensor:
        part = self._parts[stage]
        matcher = part.anchor_matcher if stage == "rpn" else part.proposal_matcher
        index, label = matcher(pairwise_iou(Boxes(truth), Boxes(boxes)))
        return torch.where(label == 1, index, torch.where(label == 0, BACKGROUND, IGNORED))

    def sampler(self, stage: str) -> KeyedSampler:
        return self.samplers[stage]

    def quota(self, stage: str) -> int | None:
        return self._parts["rpn"].batch_size_per_image if stage == "rpn" else None

    def offsets(self, stage: str, truth: Tensor, boxes: Tensor) -> Tensor:
        return self._coder(stage).box2box_transform.get_deltas(boxes, truth)

    def box_loss(self, stage: str, predicted: Tensor, wanted: Tensor) -> Tensor:
        beta = self._coder(stage).smooth_l1_beta
        return F.smooth_l1_loss(predicted, wanted, beta=beta, reduction="none").sum(dim=1)

    def _coder(self, stage: str) -> nn.Module:
        part = self._parts[stage]
        return part if stage == "rpn" else part.box_predictor


class Detectron2RCNN(Detectron2Losses, Detector):
    """A plain Detectron2 model as a `Detector`; ``model`` is the module itself.

    Args:
        config: ``detectron2_config`` and ``detectron2_options`` say which.
        num_classes: K.
        strict: refuse weights that leave any part fresh.

    Raises:
        UserError: the configuration cannot be read, or is of a kind that has no weighted losses here.
    """

    def __init__(self, config: ModelConfig, num_classes: int, strict: bool = False) -> None:
        super().__init__()
        self.cfg = read_cfg(config, num_classes)
        self.num_classes = num_classes
        self.model: GeneralizedRCNN = _built(self.cfg)
        weights = config.weights or self.cfg.MODEL.WEIGHTS
        if weights:
            _load(self.model, weights, strict)
        self.norm = self.cfg.MODEL.RESNETS.NORM
        heads = self.model.roi_heads
        self.use(self.model.proposal_generator, heads, config.normalizer)
        self.roi_width = heads.box_predictor.cls_score.in_features

    def encode(self, images: ImageBatch) -> Encoding:
        batch = self._normalised(images)
        features = self.model.backbone(batch.tensor)
        rpn = self.model.proposal_generator
        anchors, objectness, deltas, found = propose(rpn, features, batch.image_sizes)
        proposals = [each.proposal_boxes.tensor for each in found]
        scored = ScoredProposals([len(each) for each in proposals], self.shares_scores)
        return Encoding(features, anchors, objectness, deltas, proposals, batch, images, scored)

    def detections(self, encoding: Encoding) -> list[Instances]:
        scores = self.score(encoding, encoding.proposals)
        with torch.autocast(scores.logits.device.type, enabled=False):
            predictions = scores.logits.float(), scores.deltas.float().flatten(1)
            inputs = [
                D2Instances(size, proposal_boxes=Boxes(boxes))
                for size, boxes in zip(encoding.images.image_sizes, encoding.proposals, strict=True)
            ]
            found, _ = self.model.roi_heads.box_predictor.inference(predictions, inputs)
        found = [each[each.pred_boxes.nonempty()] for each in found]  # as Detectron2's last step does
        return [Instances(each.pred_boxes.tensor, each.pred_classes, each.scores) for each in found]

    def levels(self) -> dict[str, int]:
        shapes = self.model.backbone.output_shape()
        return {name: shapes[name].channels for name in self.model.roi_heads.in_features}

    def heads(self) -> dict[str, nn.Module]:
        rpn, predictor = self.model.proposal_generator.rpn_head, self.model.roi_heads.box_predictor
        parts = (rpn.objectness_logits, rpn.anchor_deltas, predictor.cls_score, predictor.bbox_pred)
        return dict(zip(LOSSES, parts, strict=True))

    def _normalised(self, images: ImageBatch) -> ImageList:
        """In the model's own colours and range, normalised, the padding zeroed afterwards as stock pads."""
        pixels = images.to_float().pixels * 255
        if self.model.input_format == "BGR":
            pixels = pixels.flip(1)
        pixels = (pixels - self.model.pixel_mean) / self.model.pixel_std
        pixels = torch.where(images.valid(), pixels, 0.0)
        multiple = self.model.backbone.size_divisibility
        if multiple > 1:
            height, width = (-(-side // multiple) * multiple for side in pixels.shape[2:])
            pixels = pad_to(pixels, height, width)
        return ImageList(pixels, list(images.sizes))


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


def _built(cfg: CfgNode) -> GeneralizedRCNN:
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


class _Checkpointer(DetectionCheckpointer):
    """Says in two lines what was loaded and what was not."""

    fresh: frozenset[str] = frozenset()

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        own = self.model.state_dict()
        shapes = [name for name, _, _ in incompatible.incorrect_shapes]
        self.fresh = fresh = frozenset([*incompatible.missing_keys, *shapes])
        rest = f"; the rest is fresh: {_parts_of(fresh)}" if fresh else ""
        log.info("model.weights: %d of %d parts loaded%s", len(own) - len(fresh), len(own), rest)
        if incompatible.unexpected_keys:
            log.info("model.weights: of no use here: %s", _parts_of(incompatible.unexpected_keys))


def _parts_of(names: Iterable[str]) -> str:
    """The parts of the model that the names lie in."""
    parts = sorted({".".join(name.split(".")[:2]) for name in names})
    more = f" and {len(parts) - 12} more" if len(parts) > 12 else ""
    return ", ".join(parts[:12]) + more


def _load(model: nn.Module, path: str, strict: bool) -> None:
    """Checkpoints and exports of ours; others through Detectron2's own checkpointer, which matches names.

    Raises:
        UserError: there is no such file; or, if ``strict``, it leaves any part fresh.
    """
    if "://" not in path and not Path(path).is_file():
        raise UserError(f"model.weights={path!r}: no such file; give a .pkl, a .pth or a detectron2:// address")
    try:
        state = read_model(Path(path)) if "://" not in path else {}
    except UserError:  # not one of ours
        state = {}
    own = model.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if len(fitting) < len(state) / 10 or not fitting:  # of another library, if not of nothing at all
        heuristics = "" if "://" in path else "?matching_heuristics=True"  # names of other libraries, by their ends
        checkpointer = _Checkpointer(model)
        try:
            checkpointer.load(path + heuristics)
        except Exception as error:  # of pickle, of the network, of Detectron2
            raise UserError(
                f"model.weights={path} cannot be read ({type(error).__name__}: {first_line(error)}); "
                "was the file copied whole, and is it of a Detectron2 model?"
            ) from error
        learned = [name for name in own if not name.endswith("num_batches_tracked")]
        fresh = len(checkpointer.fresh)
        _refuse_fresh(strict or fresh > MOST_FRESH * len(learned), path, fresh, len(own))
        return
    _refuse_fresh(strict and bool(state), path, len(own) - len(fitting), len(own))
    model.load_state_dict(fitting, strict=False)
    if fitting.keys() != own.keys():
        log.info("model.weights: %d of %d parts fit and were loaded, the rest start fresh", len(fitting), len(own))


def _refuse_fresh(strict: bool, path: str, fresh: int, total: int) -> None:
    if strict and fresh:
        raise UserError(
            f"model.weights={path} is not of this model: {fresh} of {total} parts do not fit; "
            "name a trained checkpoint or export by model.weights=…"
        )


def _check(model: nn.Module) -> None:
    """Refuse what the weighted losses do not know."""
    name = type(model).__name__
    if not isinstance(model, GeneralizedRCNN) or type(model.proposal_generator) is not RPN:
        raise UserError(
            f"model.detectron2_config: {name} has no losses of two stages; use a GeneralizedRCNN with an RPN"
        )
    if hasattr(model, "sem_seg_head"):
        raise UserError(f"model.detectron2_config: {name} has a segmentation head, which nothing here would teach")
    if model.input_format not in ("BGR", "RGB"):
        raise UserError(f"model.detectron2_config: INPUT.FORMAT: {model.input_format} is not supported; use BGR or RGB")
    if len(model.pixel_mean) != 3 or len(model.pixel_std) != 3:
        raise UserError("model.detectron2_config: MODEL.PIXEL_MEAN and PIXEL_STD must have three numbers each")
    heads = type(model.roi_heads)
    if heads not in (Res5ROIHeads, StandardROIHeads):
        raise UserError(
            f"model.detectron2_config: {heads.__name__} is not supported; use StandardROIHeads or Res5ROIHeads"
        )


def _limits(stage: str, part: nn.Module) -> list[tuple[bool, str]]:
    """What must hold of a stage, and what to set so that it does."""
    if stage == "rpn":
        return [
            (part.box_reg_loss_type == "smooth_l1", "RPN.BBOX_REG_LOSS_TYPE: smooth_l1"),
            (part.anchor_boundary_thresh < 0, "RPN.BOUNDARY_THRESH: -1"),
        ]
    return [
        (part.box_predictor.box_reg_loss_type == "smooth_l1", "ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE: smooth_l1"),
        (not part.box_predictor.use_sigmoid_ce, "ROI_BOX_HEAD.USE_SIGMOID_CE: False"),
        (part.proposal_append_gt, "ROI_HEADS.PROPOSAL_APPEND_GT: True"),
        (not part.mask_on and not getattr(part, "keypoint_on", False), "MASK_ON: False with KEYPOINT_ON: False"),
    ]


def propose(
    rpn: RPN, features: dict[str, Tensor], sizes: list[tuple[int, int]]
) -> tuple[list[Tensor], Tensor, Tensor, list[D2Instances]]:
    """Anchors (A, 4) per image, logits (B, A), offsets (B, A, 4), and the proposals, as Detectron2's instances."""
    levels = [features[name] for name in rpn.in_features]
    boxes = rpn.anchor_generator(levels)
    logits, deltas = rpn.rpn_head(levels)
    logits = [level.permute(0, 2, 3, 1).flatten(1) for level in logits]
    deltas = [_by_anchor(level) for level in deltas]
    with torch.no_grad(), torch.autocast(levels[0].device.type, enabled=False):
        proposals = rpn.predict_proposals(
            boxes, [_finite(each) for each in logits], [_finite(each) for each in deltas], sizes
        )
    anchors = [Boxes.cat(boxes).tensor] * len(sizes)
    return anchors, torch.cat(logits, dim=1), torch.cat(deltas, dim=1), proposals


def _finite(values: Tensor) -> Tensor:
    """In float32, zero where a step has gone wrong: its loss still says so, while Detectron2 would end the run here."""
    return values.float().nan_to_num(0.0, 0.0, 0.0)


def _by_anchor(deltas: Tensor) -> Tensor:
    """(B, A·4, h, w) to (B, h·w·A, 4)."""
    count, _, height, width = deltas.shape
    return deltas.view(count, -1, 4, height, width).permute(0, 3, 4, 1, 2).flatten(1, -2)
