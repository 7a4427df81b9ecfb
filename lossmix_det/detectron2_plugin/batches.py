"""Mixed batches as Detectron2's data loader gives them, and what they are taught."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes
from detectron2.structures import Instances as D2Instances
from torch import Tensor

from lossmix_det.config import MixingConfig
from lossmix_det.detectron2_plugin.settings import mixing_of
from lossmix_det.errors import UserError
from lossmix_det.instances import MASK_SIDE
from lossmix_det.mixing import Among, Mix, Recipe, blend
from lossmix_det.structures import ImageBatch, Instances, Supervision, pad_to, smallest_canvas


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


def mix_inputs(inputs: list[dict], recipe: Recipe, rng: np.random.Generator) -> list[dict]:
    """Mix the pixels of the images of a batch with one another.

    Args:
        inputs: of Detectron2's dataset mapper: ``image`` (3, H, W) in 0…255 and ``instances`` with ``gt_boxes`` and
            ``gt_classes``. ``gt_masks``, where present, are the outlines that `classmix` pastes. They are not changed.
        recipe: how.
        rng: draws partners and λ.

    Returns:
        The same dicts with mixed images, as float, and `MixedInstances`; other keys stay those of the image itself, and
        so do other fields of instances where the image is not mixed.

    Raises:
        UserError: an input has no ``instances``.
    """
    recipe = recipe.drawn(rng)
    batch, truths = batch_of(inputs, masks=recipe.pastes_objects)
    mix = draw_mix(batch, truths, recipe, rng)
    mixed = blend(batch, mix)
    return taught(inputs, mixed, recipe.supervise(truths, mix, mixed), mix.mixed.tolist())


def batch_of(inputs: list[dict], *, masks: bool = False) -> tuple[ImageBatch, list[Instances]]:
    """Pixels in 0…255 on one canvas, and truths; with the masks of these, where they have some.

    Raises:
        UserError: an input has no ``instances``.
    """
    for each in inputs:
        if "instances" not in each:
            raise UserError(
                f"{each.get('file_name', 'an input')}: has no instances to learn from; give images with annotations, "
                "and a dataset mapper with is_train=True"
            )
    batch = ImageBatch.cat(
        [ImageBatch(each["image"][None].float(), (tuple(each["image"].shape[1:]),)) for each in inputs]
    )
    batch = replace(batch, pixels=pad_to(batch.pixels, *smallest_canvas(batch.sizes)))
    truths = [_truth(each["instances"]) for each in inputs]
    if masks:
        truths = [_with_masks(truth, each["instances"]) for truth, each in zip(truths, inputs, strict=True)]
    return batch, truths


def draw_mix(batch: ImageBatch, truths: list[Instances], recipe: Recipe, rng: np.random.Generator) -> Mix:
    """How the images of a batch are mixed with one another."""
    unit = replace(batch, pixels=batch.pixels / 255)  # as mixers expect it; what is blended stays exact
    return recipe.draw(unit, Among(len(batch), batch.sizes), rng, truths)


def taught(inputs: list[dict], mixed: ImageBatch, supervisions: list[Supervision], is_mixed: list[bool]) -> list[dict]:
    """The inputs with mixed images and what these teach; one that is not mixed keeps all fields of its instances."""
    result = []
    for index, each in enumerate(inputs):
        height, width = mixed.sizes[index]
        image = mixed.pixels[index, :, :height, :width]
        instances = _joined((height, width), supervisions, index)
        others = {} if is_mixed[index] else each["instances"].get_fields()
        for name in others.keys() - instances.get_fields().keys():
            instances.set(name, others[name])
        result.append({**each, "image": image, "instances": instances})
    return result


def _truth(instances: D2Instances) -> Instances:
    return Instances(
        instances.gt_boxes.tensor,
        instances.gt_classes,
        weights=_field(instances, "gt_weights"),
        box_weights=_field(instances, "gt_box_weights"),
    )


def _with_masks(truth: Instances, instances: D2Instances) -> Instances:
    """The same truth with Detectron2's masks; the box stands for an object whose mask shows nothing."""
    if not instances.has("gt_masks"):
        return truth
    masks = instances.gt_masks.crop_and_resize(truth.boxes.to(instances.gt_masks.device), MASK_SIDE)
    masks = masks.to(truth.boxes.device)
    return replace(truth, masks=masks | ~masks.flatten(1).any(1)[:, None, None])


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
    if any(truth.weights is not None or truth.box_weights is not None for truth in truths):
        full = [truth.weighted(1.0, 1.0) for truth in truths]  # of what is not given, 1
        fields["gt_weights"] = torch.cat([truth.weights for truth in full])
        fields["gt_box_weights"] = torch.cat([truth.box_weights for truth in full])
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
        if self.recipe.stages:
            raise UserError(
                "LOSSMIX.MIXER: manifold mixes within the network; use LossMixRCNN, or LOSSMIX.STAGES: ['0']"
            )

    def __call__(self, inputs: list[dict]) -> list[dict]:
        return mix_inputs(inputs, self.recipe, np.random.default_rng(int(torch.randint(2**62, ()))))
