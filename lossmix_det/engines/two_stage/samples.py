"""The anchors or proposals that truths are scored on: their weights, normalisers and soft teachers.

S samples of all images that a supervision teaches, image after image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lossmix_det.engines.normalizers import Normalizer
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


@dataclass(frozen=True)
class SoftSamples:
    """Which samples a teacher scores.

    Args:
        mask: (S,) bool.
        images: (S,) index among the teacher's images, of those.
        offsets: (S, 2) pixels down and right by which the image was moved since the teacher saw it.
        moved: whether any was.
    """

    mask: Tensor
    images: Tensor
    offsets: Tensor
    moved: bool


def weigh_samples(
    supervision: Supervision,
    matches: Sequence[Tensor],
    foreground: Tensor,
    normalize: Normalizer,
    quota: int | None,
) -> Samples:
    """Weights and normalisers of samples.

    Args:
        supervision: of the batch.
        matches: for each image that teaches anything, the box that each of its samples was matched to, or -1.
        foreground: (S,) bool.
        normalize: of `NORMALIZERS`.
        quota: the number of samples that stock divides by for every image; None: by those that were chosen.
    """
    active, device = supervision.active, foreground.device
    counts = torch.tensor([len(match) for match in matches])
    normalizer = normalize(counts, supervision.mean_over or len(supervision), quota)
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
        normalizers=per_sample(normalizer.float()),
        foreground=foreground,
    )


def instance_weights(weights: Tensor | None, matched: Tensor, background_weight: float) -> Tensor:
    """(S,) weight of the box that each sample was matched to; all 1 if the truth carries no weights."""
    if weights is None:
        return torch.ones(len(matched), device=matched.device)
    if not len(weights):
        return torch.full((len(matched),), background_weight, device=matched.device)
    return torch.where(matched >= 0, weights[matched.clamp(min=0)], background_weight)


def soft_samples(supervision: Supervision, images: Tensor) -> SoftSamples | None:
    """The samples that a teacher scores, or None if there are none.

    Args:
        supervision: whose truths may name a ``teacher_image``.
        images: (S,) index of the image of each sample.
    """
    truths = supervision.truths
    numbers = [-1 if truth.teacher_image is None else truth.teacher_image for truth in truths]
    if max(numbers) < 0:
        return None
    numbered = torch.tensor(numbers, device=images.device)[images]
    offsets = torch.tensor([truth.offset for truth in truths], dtype=torch.float32, device=images.device)[images]
    return SoftSamples(numbered >= 0, numbered, offsets, any(truth.offset != (0, 0) for truth in truths))


def weighted_sum(losses: Tensor, weights: Tensor, normalizers: Tensor) -> Tensor:
    """Σ loss · weight / normaliser."""
    return (losses * weights / normalizers).sum()
