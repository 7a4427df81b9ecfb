"""What the second stage samples for a truth, and which samples a teacher scores instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lossmix_det.structures import Supervision

# The indices of S boxes among the proposals of an image (beyond them: of its truth), and the (S, 4) boxes.
ChosenBoxes = tuple[Tensor, Tensor]


class Sampled(NamedTuple):
    """What the second stage has sampled for one supervision, by active image.

    ``truths`` (N, 4) boxes; ``chosen`` (S,) indices and ``boxes`` (S, 4) as `ChosenBoxes`; ``matches`` (S,).
    """

    supervision: Supervision
    truths: list[Tensor]
    chosen: list[Tensor]
    matches: list[Tensor]
    boxes: list[Tensor]

    @property
    def by_image(self) -> dict[int, ChosenBoxes]:
        """The chosen boxes by the number of their image."""
        return dict(zip(self.supervision.active, zip(self.chosen, self.boxes, strict=True), strict=True))


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
