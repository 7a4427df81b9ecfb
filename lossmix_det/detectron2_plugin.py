"""LossMix inside an own Detectron2 project, trained by Detectron2's own trainer.

Importing this registers three names for a Detectron2 configuration::

    MODEL.META_ARCHITECTURE        GeneralizedRCNN   →  LossMixRCNN
    MODEL.PROPOSAL_GENERATOR.NAME  RPN               →  LossMixRPN
    MODEL.ROI_HEADS.NAME           StandardROIHeads  →  LossMixROIHeads   (Res5ROIHeads → LossMixRes5ROIHeads)

`LossMixRCNN` mixes each training batch itself. A project with a meta-architecture of its own mixes with `MixingCollate`
in the data loader instead, and changes only the other two names: they read the weights from the instances.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property, partial
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
from detectron2.structures import Boxes, ImageList
from detectron2.structures import Instances as D2Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor

from lossmix_det.config import Config, MixingConfig, Settings, check
from lossmix_det.data.catalog import find, known_classes, load
from lossmix_det.data.formats import FORMATS
from lossmix_det.data.formats.detectron2 import register
from lossmix_det.engines.detectron2 import vgg  # noqa: F401 - registers its backbone
from lossmix_det.engines.detectron2.stages import NAMES, Detectron2RoI, Detectron2RPN, propose
from lossmix_det.engines.two_stage.encoding import AnchorGrid, EncodedCanvas, TwoStageEncoding
from lossmix_det.engines.two_stage.stages import Scored, Stage
from lossmix_det.errors import UserError
from lossmix_det.mixing import Among, Recipe, blend
from lossmix_det.structures import ImageBatch, Instances, Supervision, pad_to, smallest_canvas

log = logging.getLogger(__name__)

SETTINGS = (
    *("mixer", "rule", "weighting", "alpha", "probability", "weight_sum", "background_weight", "lam_range"),
    *("saliency", "least_visible", "puzzle", "comixup"),
)


class MixedInstances(D2Instances):
    """The truths of one mixed image, as Detectron2's instances.

    Beside ``gt_boxes`` and ``gt_classes``, the field ``gt_truth`` (N,) says which truth a box belongs to, and
    ``gt_weights`` and ``gt_box_weights`` (N,), where present, what it weighs in it. Plain instances are one truth of
    weight 1, and may have the last two fields.

    Args:
        image_size: (height, width).
        truth_weights: of each truth for classification and for localisation; a truth may have no box.
        background_weight: as in `Supervision`.
        fields: as above.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        truth_weights: list[tuple[float, float]],
        background_weight: float = 1.0,
        **fields: Any,
    ) -> None:
        super().__init__(image_size, **fields)
        self._truth_weights, self._background_weight = truth_weights, background_weight  # a field is per box

    def to(self, *args: Any, **kwargs: Any) -> MixedInstances:
        """The same truths on another device."""
        return self._like(super().to(*args, **kwargs))

    def __getitem__(self, item: int | slice | Tensor) -> MixedInstances:
        return self._like(super().__getitem__(item))

    def _like(self, other: D2Instances) -> MixedInstances:
        return MixedInstances(self.image_size, self._truth_weights, self._background_weight, **other.get_fields())


def add_lossmix_config(cfg: CfgNode) -> None:
    """Add ``LOSSMIX`` to a Detectron2 configuration, with the defaults; its keys are those of `MixingConfig` that do
    without a target domain. Without it the defaults hold."""
    cfg.LOSSMIX = _node(MixingConfig(), SETTINGS)


def _node(settings: Settings, names: Sequence[str]) -> CfgNode:
    """Some of a group of settings in Detectron2's manner; a group within it is a node within."""
    values = {name: getattr(settings, name) for name in names}
    return CfgNode(
        {
            name.upper(): _node(value, [spec.name for spec in fields(value)]) if isinstance(value, Settings) else value
            for name, value in values.items()
        }
    )


def mixing_of(cfg: CfgNode) -> MixingConfig:
    """The settings under ``LOSSMIX``.

    Raises:
        UserError: a value lies outside its limits, or a key is unknown.
    """
    mixing = _read(MixingConfig(), cfg.get("LOSSMIX", {}), SETTINGS, "LOSSMIX.")
    check(mixing, "LOSSMIX.")
    return mixing


def _read(settings: Settings, node: Mapping[str, Any], names: Sequence[str], prefix: str) -> Any:
    """A group of settings with the values of a node of Detectron2's."""
    unknown = {key for key in node if key.lower() not in names}
    if unknown:
        raise UserError(f"{prefix}{unknown.pop()} is unknown; it takes {', '.join(names).upper()}")
    values = {}
    for key, value in node.items():
        group = getattr(settings, key.lower())
        if isinstance(group, Settings):
            value = _read(group, value, [spec.name for spec in fields(group)], f"{prefix}{key}.")
        values[key.lower()] = value
    return replace(settings, **values)


def mix_inputs(inputs: list[dict], recipe: Recipe, rng: np.random.Generator) -> list[dict]:
    """Mix the images of a batch with one another.

    Args:
        inputs: of Detectron2's dataset mapper: ``image`` (3, H, W) in 0…255 and ``instances`` with ``gt_boxes`` and
            ``gt_classes``. They are not changed.
        recipe: how.
        rng: draws partners and λ.

    Returns:
        The same dicts with mixed images, as float, and `MixedInstances`; other keys stay those of the image itself.
    """
    batch = ImageBatch.cat(
        [ImageBatch(each["image"][None].float(), (tuple(each["image"].shape[1:]),)) for each in inputs]
    )
    batch = replace(batch, pixels=pad_to(batch.pixels, *smallest_canvas(batch.sizes)))
    truths = [_truth(each["instances"]) for each in inputs]
    unit = replace(batch, pixels=batch.pixels / 255)  # as mixers expect it; what is blended stays exact
    mix = recipe.draw(unit, Among(len(batch), batch.sizes), rng, truths)
    mixed = blend(batch, mix)
    supervisions = recipe.supervise(truths, mix, mixed)
    result = []
    for index, each in enumerate(inputs):
        height, width = mixed.sizes[index]
        image = mixed.pixels[index, :, :height, :width]
        result.append({**each, "image": image, "instances": _joined((height, width), supervisions, index)})
    return result


def _truth(instances: D2Instances) -> Instances:
    return Instances(
        instances.gt_boxes.tensor,
        instances.gt_classes,
        weights=_field(instances, "gt_weights"),
        box_weights=_field(instances, "gt_box_weights"),
    )


def _field(instances: D2Instances, name: str) -> Tensor | None:
    return instances.get(name) if instances.has(name) else None


def _joined(size: tuple[int, int], supervisions: list[Supervision], index: int) -> MixedInstances:
    """All truths that an image is taught, one after the other, up to the last that teaches anything."""
    teaches = [index in each.active for each in supervisions]
    parts = supervisions[: max([place for place, does in enumerate(teaches) if does], default=0) + 1]
    truths = [each.truths[index][: None if does else 0] for each, does in zip(parts, teaches, strict=False)]
    fields = {
        "gt_boxes": Boxes(torch.cat([truth.boxes for truth in truths])),
        "gt_classes": torch.cat([truth.classes for truth in truths]),
        "gt_truth": torch.cat([torch.full_like(truth.classes, place) for place, truth in enumerate(truths)]),
    }
    if any(truth.weights is not None for truth in truths):
        full = [truth if truth.weights is not None else truth.weighted(1.0, 1.0) for truth in truths]
        fields["gt_weights"] = torch.cat([truth.weights for truth in full])
        fields["gt_box_weights"] = torch.cat(
            [truth.weights if truth.box_weights is None else truth.box_weights for truth in full]
        )
    weights = [(float(each.class_weights[index]), float(each.box_weights[index])) for each in parts]
    return MixedInstances(size, weights, supervisions[0].background_weight, **fields)


def supervisions_of(instances: list[D2Instances]) -> list[Supervision]:
    """What a batch is taught: one supervision per truth that an image has at most."""
    weights = [each._truth_weights if isinstance(each, MixedInstances) else [(1.0, 1.0)] for each in instances]
    background = {each._background_weight for each in instances if isinstance(each, MixedInstances)} or {1.0}
    result = []
    for place in range(max(map(len, weights))):
        truths = [_truth(each[each.gt_truth == place] if each.has("gt_truth") else each) for each in instances]
        share = torch.tensor([own[place] if place < len(own) else (0.0, 0.0) for own in weights])
        result.append(Supervision(tuple(truths), share[:, 0], share[:, 1], min(background)))
    return result


class MixingCollate:
    """A ``collate_fn`` for `detectron2.data.build_detection_train_loader` that mixes the batch; picklable.

    It draws from torch's generator, which Detectron2 seeds in every process.

    Args:
        mixing: the settings, or a configuration that has them under ``LOSSMIX``.

    Raises:
        UserError: they name what does not exist, or a value lies outside its limits.
    """

    def __init__(self, mixing: MixingConfig | CfgNode) -> None:
        self.recipe = Recipe(mixing_of(mixing) if isinstance(mixing, CfgNode) else mixing)

    def __call__(self, inputs: list[dict]) -> list[dict]:
        return mix_inputs(inputs, self.recipe, np.random.default_rng(int(torch.randint(2**62, ()))))


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
        self.collate = MixingCollate(mixing)
        self.warned = False
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
        if self.training and not any(isinstance(each["instances"], MixedInstances) for each in batched_inputs):
            self._warn_if_alone(len(batched_inputs))
            batched_inputs = self.collate([{**each, "image": each["image"].to(self.device)} for each in batched_inputs])
        return super().forward(batched_inputs)

    def _warn_if_alone(self, images: int) -> None:
        """Once, that a batch of one image has no partner to mix it with."""
        if images == 1 and self.collate.recipe.probability and not self.warned:
            self.warned = True
            log.warning("a batch of one image is never mixed; raise SOLVER.IMS_PER_BATCH to 2 or more for each process")


def register_datasets(names: list[str], config: Config | None = None) -> list[str]:
    """Make data sets of our catalogue known to Detectron2, under the same names.

    Args:
        names: of the generated benchmark, of known data sets, or declared in ``config.datasets``.
        config: its ``data.classes``, absent those of the first data set, become the classes of all.

    Returns:
        The classes.

    Raises:
        UserError: a data set is unknown or not there, or Detectron2's own.
    """
    config = config or Config()
    classes = config.data.classes or known_classes(names[0], config) or load(names[0], config).classes
    for name in names:
        entry = find(name, config)  # what is missing is said now
        if not FORMATS[entry.format].declarable:
            raise UserError(f"data set {name!r} is registered with Detectron2 already; use it by that name")
        register(name, classes, partial(load, name, config, classes))
    return classes
