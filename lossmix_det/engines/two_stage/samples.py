"""Which of the samples that truths are scored on a teacher scores instead."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lossmix_det.structures import Supervision


@dataclass(frozen=True)
class SoftSamples:
    """Which samples a teacher scores.

    Args:
        mask: (S,) bool.
        images: (S,) index among the teacher's images, of those.
        offsets: (S, 2) pixels down and right by which the image was moved since the teacher saw it.
    """

    mask: Tensor
    images: Tensor
    offsets: Tensor


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
    return SoftSamples(numbered >= 0, numbered, offsets)
