"""From the teacher's detections to truths: which are kept, and how good they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou, clip_boxes_to_image

from lossmix_det.config import PseudoLabelConfig
from lossmix_det.errors import UserError, nearest
from lossmix_det.structures import Instances

BINS = 200


class Thresholds:
    """The least score that a detection of each class must have to become a pseudo-label.

    ``global``: one for all (Adaptive Teacher: 0.8). ``per_class``: as set by name. ``adaptive``: the score that the
    best ``portion`` of the class's own recent detections reach, within [``floor``, ``score``]; class-balanced
    self-training (Zou et al., ECCV 2018), on a histogram of scores that forgets.

    Args:
        config: of the pseudo-labels.
        classes: names, in order.

    Raises:
        UserError: ``class_scores`` names an unknown class.
    """

    def __init__(self, config: PseudoLabelConfig, classes: Sequence[str]) -> None:
        for name in config.class_scores:
            if name not in classes:
                raise UserError(f"pseudo_labels.class_scores names no class {name!r}{nearest(name, list(classes))}")
        self.config = config
        scores = [config.class_scores.get(name, config.score) for name in classes]
        self.fixed = torch.tensor(scores if config.threshold == "per_class" else [config.score] * len(classes))
        self.histogram = torch.zeros(len(classes), BINS, dtype=torch.float64)

    def count(self, detections: Sequence[Instances]) -> Tensor:
        """(K, BINS) number of detections by class and score."""
        classes = torch.cat([found.classes for found in detections]).cpu()
        scores = torch.cat([found.scores for found in detections]).cpu()
        place = classes * BINS + (scores * BINS).long().clamp(0, BINS - 1)
        return place.bincount(minlength=self.histogram.numel()).view_as(self.histogram).double()

    def remember(self, counts: Tensor) -> None:
        """Let the histogram forget a little and add what a step has counted over all processes."""
        self.histogram = self.histogram * self.config.memory + counts

    def least(self) -> Tensor:
        """(K,) float scores."""
        if self.config.threshold != "adaptive":
            return self.fixed
        above = self.histogram.flip(1).cumsum(1)  # of the best bins, best first
        total = above[:, -1:]
        bins = (above < self.config.portion * total).sum(1)  # bins that together hold less than the portion
        score = 1 - (bins + 1).double() / BINS
        floor, ceiling = min(self.config.floor, self.config.score), self.config.score
        return torch.where(total[:, 0] > 0, score.clamp(floor, ceiling), ceiling).float()


def select(detections: Instances, least: Tensor, size: tuple[int, int], config: PseudoLabelConfig) -> Instances:
    """Keep the detections of an image that are to be taught, best first.

    Args:
        detections: with scores, of the weak view.
        least: (K,) least score of each class.
        size: (height, width) of the image; boxes are clipped to it.
        config: ``min_size``, ``max_per_image`` and ``box_score``.

    Returns:
        Instances whose ``box_weights`` are 1 where the box teaches regression too, else 0.
    """
    boxes, scores = clip_boxes_to_image(detections.boxes, size), detections.scores
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = (scores >= least.to(scores)[detections.classes]) & (sides >= config.min_size).all(1)
    kept = torch.where(kept)[0]
    kept = kept[scores[kept].argsort(descending=True, stable=True)][: config.max_per_image]
    chosen = scores[kept]
    box_weights = torch.zeros_like(chosen) if config.box_score is None else (chosen >= config.box_score).float()
    return Instances(boxes[kept], detections.classes[kept], chosen, box_weights=box_weights)


def right(found: Instances, truth: Instances, iou: float = 0.5) -> Tensor:
    """(N,) bool: which pseudo-labels, best first, find a truth of their class that none before them has taken."""
    result = torch.zeros(len(found), dtype=torch.bool, device=found.boxes.device)
    if not len(found) or not len(truth):
        return result
    overlaps = box_iou(found.boxes, truth.boxes)
    overlaps[found.classes[:, None] != truth.classes] = 0
    for place, row in enumerate(overlaps):
        best = int(row.argmax())
        if row[best] >= iou:
            overlaps[:, best] = 0
            result[place] = True
    return result
