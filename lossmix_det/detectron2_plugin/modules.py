"""The modules that a Detectron2 configuration names: losses weighted per truth and image, and a model that mixes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    GeneralizedRCNN,
)
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import _log_classification_stats
from detectron2.structures import ImageList
from detectron2.structures import Instances as D2Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor

from lossmix_det.config import MixingConfig
from lossmix_det.detectron2_plugin.batches import (
    MixedInstances,
    batch_of,
    draw_mix,
    mix_inputs,
    supervisions_of,
    taught,
)
from lossmix_det.detectron2_plugin.settings import mixing_of
from lossmix_det.engines.detectron2 import vgg  # noqa: F401 - registers its backbone
from lossmix_det.engines.detectron2.mixing_points import mixing_points
from lossmix_det.engines.detectron2.stages import NAMES, Detectron2RoI, Detectron2RPN, propose
from lossmix_det.engines.feature_mixing import FeatureMix
from lossmix_det.engines.two_stage.encoding import AnchorGrid, EncodedCanvas, TwoStageEncoding
from lossmix_det.engines.two_stage.stage import Scored, Stage
from lossmix_det.errors import UserError, not_one_of
from lossmix_det.mixing import PIXELS, Recipe, mixed_sizes
from lossmix_det.structures import ImageBatch, Supervision

log = logging.getLogger(__name__)


class Counters:
    """Remembers what a stage has scored, for the counters that Detectron2 keeps of it.

    Args:
        names: of the numbers of foreground and background samples.
    """

    def __init__(self, names: tuple[str, str]) -> None:
        self.names = names
        self.scored: list[Scored] = []

    def log(self) -> None:
        """Put what was scored into Detectron2's storage, per image and truth, and forget it."""
        scored, self.scored = self.scored, []
        if not scored or not has_event_storage():
            return
        foreground = torch.cat([of_truth.foreground for of_truth in scored])
        images = sum(of_truth.images for of_truth in scored)
        positive = int(foreground.sum())
        for name, count in zip(self.names, (positive, len(foreground) - positive), strict=True):
            get_event_storage().put_scalar(name, count / images)
        if scored[0].labels is not None:
            labels, logits = (torch.cat([getattr(row, name) for row in scored]) for name in ("labels", "logits"))
            _log_classification_stats(logits, labels)


class _Weighted:
    """A stage whose training losses are weighted; plain instances give the stock losses."""

    stage_of: Callable[[Any, str], Stage]
    counters: tuple[str, str]

    @cached_property
    def weighted(self) -> tuple[Stage, Counters]:
        """The stage that scores, and what counts its samples; made once, when Detectron2 has built this module.

        Raises:
            UserError: it is set to losses or samples that are not known here.
        """
        return self.stage_of(self, "samples"), Counters(self.counters)

    def _losses(self, encoding: TwoStageEncoding, supervisions: list[Supervision]) -> dict[str, Tensor]:
        """Under Detectron2's names."""
        stage, counters = self.weighted
        stage.watch = counters.scored.append
        stage.announce(encoding, supervisions)
        losses = [stage.losses(encoding, supervision) for supervision in supervisions]
        counters.log()
        return {NAMES[name]: sum(of_truth[name] for of_truth in losses) for name in losses[0]}


def _batch(images: ImageList, supervisions: list[Supervision]) -> ImageBatch:
    """Where images have several truths, keys let all of them be scored on the same background."""
    keys = tuple(torch.randint(2**31, (len(images),)).tolist()) if len(supervisions) > 1 else None
    return ImageBatch(images.tensor, tuple(tuple(map(int, size)) for size in images.image_sizes), keys)


@PROPOSAL_GENERATOR_REGISTRY.register()
class LossMixRPN(_Weighted, RPN):
    """Detectron2's `RPN` with losses weighted per truth and image."""

    stage_of = Detectron2RPN
    counters = ("rpn/num_pos_anchors", "rpn/num_neg_anchors")

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[D2Instances] | None = None
    ) -> tuple[list[D2Instances], dict[str, Tensor]]:
        """As Detectron2's own; in training the losses are weighted."""
        if not self.training or gt_instances is None:
            return super().forward(images, features, gt_instances)
        supervisions = supervisions_of(gt_instances)
        proposed = propose(self, features, images.image_sizes)
        outputs = (proposed.anchors, proposed.objectness, proposed.deltas)
        grid = AnchorGrid(proposed.levels, tuple(images.tensor.shape[2:]))
        boxes = [instances.proposal_boxes.tensor for instances in proposed.proposals]
        canvas = EncodedCanvas(features, images, grid.canvas, *outputs, boxes, grid)
        encoding = TwoStageEncoding(_batch(images, supervisions), [canvas])
        return proposed.proposals, self._losses(encoding, supervisions)


class _WeightedHeads(_Weighted):
    stage_of = Detectron2RoI
    counters = ("roi_head/num_fg_samples", "roi_head/num_bg_samples")

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[D2Instances],
        targets: list[D2Instances] | None = None,
    ) -> tuple[list[D2Instances], dict[str, Tensor]]:
        """As Detectron2's own; in training the losses are weighted."""
        if not self.training or targets is None:
            return super().forward(images, features, proposals, targets)
        supervisions = supervisions_of(targets)
        boxes = [instances.proposal_boxes.tensor for instances in proposals]
        no_anchors = ([], boxes[0].new_zeros(len(images), 0), boxes[0].new_zeros(len(images), 0, 4))
        canvas = EncodedCanvas(features, images, tuple(images.tensor.shape[2:]), *no_anchors, boxes)
        encoding = TwoStageEncoding(_batch(images, supervisions), [canvas], self.weighted[0].shares_scores)
        return proposals, self._losses(encoding, supervisions)


@ROI_HEADS_REGISTRY.register()
class LossMixROIHeads(_WeightedHeads, StandardROIHeads):
    """Detectron2's `StandardROIHeads`, boxes alone, with losses weighted per truth and image."""


@ROI_HEADS_REGISTRY.register()
class LossMixRes5ROIHeads(_WeightedHeads, Res5ROIHeads):
    """Detectron2's `Res5ROIHeads`, boxes alone, with losses weighted per truth and image."""


@META_ARCH_REGISTRY.register()
class LossMixRCNN(GeneralizedRCNN):
    """Detectron2's `GeneralizedRCNN` that mixes its training batches; the keys of ``LOSSMIX`` say how.

    Raises:
        UserError: its proposal generator or RoI heads are not those of this module, or ``LOSSMIX`` is wrong.
    """

    @configurable
    def __init__(self, *, mixing: MixingConfig, **parts: Any) -> None:
        super().__init__(**parts)
        self.recipe, self.warned = Recipe(mixing), False
        self.points = mixing_points(self.backbone)
        for stage in self.recipe.stages:
            if stage not in self.points.names:
                raise UserError(not_one_of("LOSSMIX.STAGES", stage, [PIXELS, *self.points.names]))
        for name, part in (("PROPOSAL_GENERATOR", self.proposal_generator), ("ROI_HEADS", self.roi_heads)):
            if not isinstance(part, _Weighted):
                raise UserError(f"MODEL.{name}.NAME: {type(part).__name__} cannot weight its losses; use a LossMix one")
            part.weighted  # noqa: B018 - refuses at once what it cannot weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """As `GeneralizedRCNN.from_config`, with the settings under ``LOSSMIX``."""
        return {**super().from_config(cfg), "mixing": mixing_of(cfg)}

    def forward(self, batched_inputs: list[dict]) -> Any:
        """As `GeneralizedRCNN.forward`; a batch that the data loader has mixed is taken as it is."""
        if self.training and not any(isinstance(each.get("instances"), MixedInstances) for each in batched_inputs):
            self._warn_if_alone(len(batched_inputs))
            rng = np.random.default_rng(int(torch.randint(2**62, ())))
            recipe = self.recipe.drawn(rng)
            batched_inputs = [{**each, "image": each["image"].to(self.device)} for each in batched_inputs]
            if recipe.stages:
                return self._mix_features(batched_inputs, recipe, rng)
            batched_inputs = mix_inputs(batched_inputs, recipe, rng)
        return super().forward(batched_inputs)

    def _mix_features(self, inputs: list[dict], recipe: Recipe, rng: np.random.Generator) -> dict[str, Tensor]:
        """The losses of images whose features are mixed at a stage of the backbone.

        Detectron2 reads the sizes of images from the pixels, so each image is padded to the size of its mix; with the
        mean of the pixels, which becomes the zero that Detectron2 pads with.
        """
        batch, truths = batch_of(inputs)
        mix = draw_mix(batch, truths, recipe, rng)
        sizes = mixed_sizes(batch, mix)
        pixels = torch.where(batch.valid(), batch.pixels, self.pixel_mean.view(1, -1, 1, 1).to(batch.pixels))
        supervisions = recipe.supervise(truths, mix, batch)
        padded = taught(inputs, ImageBatch(pixels, sizes), supervisions, mix.mixed.tolist())
        with self.points.mixing(FeatureMix(mix.stage, mix.sources, mix.shares, sizes)):
            return super().forward(padded)

    def _warn_if_alone(self, images: int) -> None:
        """Once, that a batch of one image has no partner to mix it with."""
        if images == 1 and self.recipe.probability and not self.warned:
            self.warned = True
            log.warning("a batch of one image is never mixed; raise SOLVER.IMS_PER_BATCH to 2 or more for each process")
