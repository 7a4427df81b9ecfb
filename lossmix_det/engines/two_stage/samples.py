"""What the second stage samples for a truth, and which samples a teacher scores instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lossmix_det.structures import Supervision
from lossmix_det.visible import Visible

# The indices of S boxes among the proposals of an image (beyond them: of its truth), and the (S, 4) boxes.
ChosenBoxes = tuple[Tensor, Tensor]
LEAST_SIDE = 1.0  # pixels that must be left of a box which is clipped


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
        offsets: (S, 4) pixels (right, down, right, down) by which a box was moved since the teacher saw it.
        covers: of each image that others cover in part, (S,) bool which samples are its, and where it is seen.
    """

    mask: Tensor
    images: Tensor
    offsets: Tensor
    covers: list[tuple[Tensor, Visible]]

    def clipped(self, boxes: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """(C, 4) boxes of the samples that (S,) bool chooses, each clipped to what the student can see of it.

        Returns:
            The boxes, and (C,) bool: of which enough is seen to be taught; the others stay as they are.
        """
        boxes, taught = boxes.clone(), torch.ones_like(boxes[:, 0], dtype=torch.bool)
        for of_image, visible in self.covers:
            own = of_image[chosen]
            whole, part = boxes[own], visible.clipped(boxes[own])
            cut = part != whole
            large = ((part[:, 2:] - part[:, :2] >= LEAST_SIDE) | ~(cut[:, :2] | cut[:, 2:])).all(dim=1)
            taught[own] = visible.sees(whole) & large
            boxes[own] = torch.where(taught[own][:, None], part, whole)
        return boxes, taught


def soft_samples(supervision: Supervision, images: Tensor, boxes: Tensor) -> SoftSamples | None:
    """The samples that a teacher scores, or None if there are none.

    Args:
        supervision: whose truths may name a ``teacher_image``.
        images: (S,) index of the image of each sample.
        boxes: (S, 4) anchors or proposals; those are left out of which too little is seen.
    """
    truths = supervision.truths
    numbers = [-1 if truth.teacher_image is None else truth.teacher_image for truth in truths]
    if max(numbers) < 0:
        return None
    numbered = torch.tensor(numbers, device=images.device)[images]
    offsets = torch.tensor([truth.offset for truth in truths], dtype=torch.float32, device=images.device)[images]
    mask, covers = numbered >= 0, []
    for index, truth in enumerate(truths):
        if truth.visible is not None:
            of_image = images == index
            mask[of_image] &= truth.visible.sees(boxes[of_image])
            covers.append((of_image, truth.visible))
    return SoftSamples(mask, numbered, offsets.flip(1).repeat(1, 2), covers)
