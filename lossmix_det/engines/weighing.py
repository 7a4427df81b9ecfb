"""What the loss of every sample is multiplied with and divided by, in either family of detectors.

S samples (anchors or proposals) of all images that a supervision teaches, image after image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lossmix_det.structures import Supervision


@dataclass(frozen=True)
class Samples:
    """What is known of each sample beside its loss.

    Args:
        images: (S,) index of the image of each sample.
        class_weights, box_weights: (S,) weight of each sample.
        normalizers: (S,) what each sample's loss is divided by.
        foreground: (S,) bool.
    """

    images: Tensor
    class_weights: Tensor
    box_weights: Tensor
    normalizers: Tensor
    foreground: Tensor


def check_truths(supervision: Supervision, images: int, num_classes: int) -> None:
    """Refuse a supervision that no loss can be computed of.

    Args:
        supervision: its truths are looked at where they lie on the CPU; a GPU would have to be waited for.
        images: that were encoded.
        num_classes: K.

    Raises:
        ValueError: it is of another number of images, or a truth has a box without area or not finite, or a class
            outside 0…K-1.
    """
    if len(supervision) != images:
        raise ValueError(f"supervision is of {len(supervision)} images, the encoding of {images}")
    for index in supervision.active:
        boxes, classes = supervision.truths[index].boxes, supervision.truths[index].classes
        if boxes.device.type != "cpu" or not len(boxes):
            continue
        bad = ~((boxes[:, 2:] > boxes[:, :2]).all(dim=1) & boxes.isfinite().all(dim=1))
        if bad.any():
            raise ValueError(f"truth of image {index}: box {boxes[bad][0].tolist()} is no xyxy box with an area")
        unknown = (classes < 0) | (classes >= num_classes)
        if unknown.any():
            raise ValueError(
                f"truth of image {index}: class {int(classes[unknown][0])} is not one of 0…{num_classes - 1}"
            )


def weigh_samples(
    supervision: Supervision, matches: Sequence[Tensor], foreground: Tensor, normalizers: Tensor
) -> Samples:
    """Weights and normalisers of samples.

    Args:
        supervision: of the batch.
        matches: for each image that teaches anything, the box that each of its samples was matched to, or less than 0.
        foreground: (S,) bool.
        normalizers: what the loss of each of these images is divided by, on the CPU.
    """
    active, device = supervision.active, foreground.device
    counts = torch.tensor([len(match) for match in matches])
    truths = [supervision.truths[image] for image in active]
    background = supervision.background_weight
    share, box_share = (
        torch.cat([instance_weights(w, match, background) for w, match in zip(weights, matches, strict=True)])
        for weights in (
            [truth.weights for truth in truths],
            [truth.weights if truth.box_weights is None else truth.box_weights for truth in truths],
        )
    )

    def per_sample(values: Tensor) -> Tensor:
        return values.repeat_interleave(counts).to(device)

    return Samples(
        images=per_sample(torch.tensor(active)),
        class_weights=per_sample(supervision.class_weights[active]) * share,
        box_weights=per_sample(supervision.box_weights[active]) * box_share,
        normalizers=per_sample(normalizers.float()),
        foreground=foreground,
    )


def instance_weights(weights: Tensor | None, matched: Tensor, background_weight: float) -> Tensor:
    """(S,) weight of the box that each sample was matched to; all 1 if the truth carries no weights."""
    if weights is None:
        return torch.ones(len(matched), device=matched.device)
    if not len(weights):
        return torch.full((len(matched),), background_weight, device=matched.device)
    return torch.where(matched >= 0, weights[matched.clamp(min=0)], background_weight)


def weighted_sum(losses: Tensor, weights: Tensor, normalizers: Tensor) -> Tensor:
    """Σ loss · weight / normaliser."""
    return (losses * weights / normalizers).sum()
