"""The instances of one image: boxes, classes, and what else is known of each.

N instances; boxes are float ``xyxy`` pixels of the image they belong to, with the origin at its top-left corner.
Classes run from 0 to K-1 without a background class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossmix_det.errors import UserError
from lossmix_det.visible import Visible

MASK_SIDE = 28  # cells to a side of an instance mask, as of Mask R-CNN's


@dataclass(frozen=True)
class Instances:
    """Boxes and classes of one image, as annotated, detected or pseudo-labelled.

    Args:
        boxes: (N, 4) float, ``xyxy`` pixels.
        classes: (N,) int64 in 0…K-1.
        scores: (N,) float in [0, 1]; absent for annotated truths.
        weights: (N,) float ≥ 0, the share of the loss that each box teaches; absent means 1 (`lossmix_instance`).
        box_weights: (N,) float ≥ 0, the same for box regression alone; absent means ``weights``.
        teacher_image: soft pseudo-labels: which of the teacher's images scores the samples in place of the classes and
            boxes, that then only decide what is sampled.
        offset: (down, right) pixels by which the image has been moved since it was annotated or seen by the teacher;
            the boxes are where they are now.
        visible: soft pseudo-labels of an image that others cover in part: where it is seen. Elsewhere the teacher is
            not asked, because it saw what the student cannot.
        masks: (N, S, S) bool over S×S cells of each box: which of them show the object. Absent: nothing is known but
            the boxes.

    Raises:
        ValueError: a shape or type differs from the above.
    """

    boxes: Tensor
    classes: Tensor
    scores: Tensor | None = None
    weights: Tensor | None = None
    box_weights: Tensor | None = None
    teacher_image: int | None = None
    offset: tuple[float, float] = (0, 0)
    visible: Visible | None = None
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4 or not self.boxes.is_floating_point():
            raise ValueError(
                f"boxes must be float of shape (N, 4), got {self.boxes.dtype} of shape {tuple(self.boxes.shape)}"
            )
        if self.classes.dtype != torch.int64:
            raise ValueError(f"classes must be int64, got {self.classes.dtype}")
        for name in ("classes", "scores", "weights", "box_weights"):
            value = getattr(self, name)
            if value is not None and value.shape != (len(self.boxes),):
                raise ValueError(f"{name} must have shape ({len(self.boxes)},), got {tuple(value.shape)}")
        if self.masks is not None and (
            self.masks.ndim != 3 or len(self.masks) != len(self.boxes) or self.masks.dtype != torch.bool
        ):
            raise ValueError(
                f"masks must be bool of shape ({len(self.boxes)}, S, S), got {self.masks.dtype} of shape "
                f"{tuple(self.masks.shape)}"
            )

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor | slice) -> Instances:
        """Keep the instances that a boolean mask, an index tensor or a slice selects."""
        return self._map(lambda value: value[index])

    def to(self, device: torch.device | str) -> Instances:
        """The same instances on another device."""
        return self._map(lambda value: moved_to(value, device))

    def pin_memory(self) -> Instances:
        """The same instances in page-locked memory."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, function) -> Instances:
        names = ("boxes", "classes", "scores", "weights", "box_weights", "masks")
        fields = {name: None if (value := getattr(self, name)) is None else function(value) for name in names}
        return replace(self, **fields)

    def to_supervision(self, classes: Sequence[str] | None = None) -> Any:
        """The same as ``supervision.Detections``, for its annotators, trackers and metrics.

        Args:
            classes: names of the K classes, which are then given as ``class_name``.

        Raises:
            UserError: the package supervision is not installed.
        """
        try:
            from supervision import Detections
        except ModuleNotFoundError:
            raise UserError("to_supervision needs the package supervision; pip install supervision") from None
        labels = self.classes.cpu().numpy()
        scores = None if self.scores is None else self.scores.detach().cpu().numpy()
        names = {} if classes is None else {"class_name": np.array(list(classes), dtype=str)[labels]}
        return Detections(self.boxes.detach().cpu().numpy(), confidence=scores, class_id=labels, data=names)

    @staticmethod
    def empty(device: torch.device | str = "cpu") -> Instances:
        """No instance at all."""
        return Instances(torch.zeros(0, 4, device=device), torch.zeros(0, dtype=torch.int64, device=device))

    def weighted(self, weight: float | Tensor, box_weight: float | Tensor) -> Instances:
        """Every box weighted, on top of the weights that it has; by one number or by (N,)."""
        weights = torch.ones_like(self.boxes[:, 0]) if self.weights is None else self.weights
        box_weights = weights if self.box_weights is None else self.box_weights
        return replace(self, weights=weights * weight, box_weights=box_weights * box_weight)

    def moved(self, offset: Sequence[float], size: tuple[int, int]) -> Instances:
        """The boxes moved along with their image, clipped to where it is now; those that leave it are dropped.

        Args:
            offset: (down, right) in pixels.
            size: (height, width) of the image that they are on now.
        """
        down, right = offset
        height, width = size
        boxes = self.boxes + self.boxes.new_tensor([right, down, right, down])
        moved = replace(self, boxes=boxes, offset=(self.offset[0] + down, self.offset[1] + right))
        boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))
        kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        return moved.clipped(boxes)[kept]

    def clipped(self, boxes: Tensor) -> Instances:
        """The same instances with (N, 4) boxes that lie within theirs; of a mask that part which lies in the box."""
        masks = None if self.masks is None else clipped_masks(self.masks, self.boxes, boxes)
        return replace(self, boxes=boxes, masks=masks)

    @staticmethod
    def union(a: Instances, b: Instances) -> Instances:
        """Boxes of both, those of ``a`` first; scores are not kept, and weights and masks only where both have them.

        Raises:
            ValueError: a teacher scores the samples of one of them (``teacher_image``); it cannot score those of both.
        """
        if a.teacher_image is not None or b.teacher_image is not None:
            raise ValueError("soft pseudo-labels have no boxes that could be joined with others")

        def joined(name: str) -> Tensor | None:
            first, second = getattr(a, name), getattr(b, name)
            return None if first is None or second is None else torch.cat([first, second])

        return Instances(
            torch.cat([a.boxes, b.boxes]),
            torch.cat([a.classes, b.classes]),
            weights=joined("weights"),
            box_weights=joined("box_weights"),
            masks=joined("masks"),
        )


def clipped_masks(masks: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Masks of the parts of boxes: each cell is that of the whole box which its centre lies in.

    Args:
        masks: (N, S, S).
        before, after: (N, 4) ``xyxy`` of the whole boxes, and of their parts.
    """
    if torch.equal(before, after):
        return masks
    cells, sides = masks.shape[1], (before[:, 2:] - before[:, :2]).clamp(min=1e-12)
    centres = (torch.arange(cells, device=masks.device) + 0.5) / cells
    moved, scale = (after[:, :2] - before[:, :2]) / sides, (after[:, 2:] - after[:, :2]) / sides
    places = ((moved[:, :, None] + scale[:, :, None] * centres) * cells).long().clamp(0, cells - 1)  # (N, 2, S): x, y
    rows = torch.arange(len(masks), device=masks.device)
    return masks[rows[:, None, None], places[:, 1, :, None], places[:, 0, None]]


def moved_to(values: Tensor, device: torch.device | str) -> Tensor:
    """The same values on another device; nobody waits for what lies in page-locked memory."""
    return values.to(device, non_blocking=values.is_pinned())
