"""From the teacher's detections to truths: which are kept, and how good they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou, clip_boxes_to_image

from lossmix_det.config import PseudoLabelConfig
from lossmix_det.data.boxes import overlaps
from lossmix_det.errors import UserError, nearest
from lossmix_det.structures import Instances, Uncounted

BINS = 200


class Thresholds:
    """The least score that a detection of each class must have to become a pseudo-label: one number for each class.

    Args:
        scores: (K,) of each class.
    """

    learns = False  # from what the teacher detects

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores
        self.histogram = torch.zeros(len(scores), BINS, dtype=torch.float64)

    def count(self, detections: Sequence[Instances]) -> Tensor:
        """(K, BINS) number of detections by class and score."""
        classes = torch.cat([instances.classes for instances in detections]).cpu()
        scores = torch.cat([instances.scores for instances in detections]).cpu()
        cell = classes * BINS + (scores * BINS).long().clamp(0, BINS - 1)
        return cell.bincount(minlength=self.histogram.numel()).view_as(self.histogram).double()

    def remember(self, counts: Tensor) -> None:
        """Take note of what a step has counted over all processes."""

    def advance(self, progress: float) -> None:
        """Take note of how much of adaptation is done, from 0 to 1."""

    def least(self) -> Tensor:
        """(K,) float scores."""
        return self.scores


class RisingThresholds(Thresholds):
    """From ``floor`` up to ``score`` as adaptation goes on: floor + (score - floor)·δ, δ = 2 / (1 + e^(-5r)) - 1.

    r is the share of adaptation that is done; δ is that of ConfMix (Mattolin et al., WACV 2023) and ends at 0.987.

    Args:
        scores: (K,) the highest that each may be.
        floor: where they begin, or the score where that is lower.
    """

    def __init__(self, scores: Tensor, floor: float) -> None:
        super().__init__(scores)
        self.floor, self.progress = scores.clamp(max=floor), 0.0

    def advance(self, progress: float) -> None:
        """Take note of how much of adaptation is done, from 0 to 1."""
        self.progress = progress

    def least(self) -> Tensor:
        """(K,) float scores."""
        return self.floor + (self.scores - self.floor) * (2 / (1 + math.exp(-5 * self.progress)) - 1)


class AdaptiveThresholds(Thresholds):
    """The score that the best ``portion`` of a class's own recent detections reach, within [``floor``, ``score``].

    Class-balanced self-training (Zou et al., ECCV 2018), on a histogram of scores that forgets.

    Args:
        scores: (K,) the highest that each may be.
        config: ``floor``, ``portion``, ``memory`` and ``score``.
    """

    learns = True

    def __init__(self, scores: Tensor, config: PseudoLabelConfig) -> None:
        super().__init__(scores)
        self.config = config

    def remember(self, counts: Tensor) -> None:
        """Let the histogram forget a little and add what a step has counted over all processes."""
        self.histogram = self.histogram * self.config.memory + counts

    def least(self) -> Tensor:
        """(K,) float scores."""
        above = self.histogram.flip(1).cumsum(1)  # of the best bins, best first
        total = above[:, -1:]
        bins = (above < self.config.portion * total).sum(1)  # bins that together hold less than the portion
        score = 1 - (bins + 1).double() / BINS
        floor, ceiling = min(self.config.floor, self.config.score), self.config.score
        return torch.where(total[:, 0] > 0, score.clamp(floor, ceiling), ceiling).float()


def one_for_all(config: PseudoLabelConfig, classes: Sequence[str]) -> Thresholds:
    """``global``: the same for every class (Adaptive Teacher: 0.8)."""
    return Thresholds(torch.tensor([config.score] * len(classes)))


def per_class(config: PseudoLabelConfig, classes: Sequence[str]) -> Thresholds:
    """``per_class``: as set by name, ``score`` for classes that are not named."""
    return Thresholds(torch.tensor([config.class_scores.get(name, config.score) for name in classes]))


def adaptive(config: PseudoLabelConfig, classes: Sequence[str]) -> Thresholds:
    """``adaptive``: by what the teacher detects of each class."""
    return AdaptiveThresholds(torch.tensor([config.score] * len(classes)), config)


def rising(config: PseudoLabelConfig, classes: Sequence[str]) -> Thresholds:
    """``rising``: more is asked as the teacher becomes better."""
    return RisingThresholds(torch.tensor([config.score] * len(classes)), config.floor)


THRESHOLDS: dict[str, Callable[[PseudoLabelConfig, Sequence[str]], Thresholds]] = {
    "global": one_for_all,
    "per_class": per_class,
    "adaptive": adaptive,
    "rising": rising,
}


def build_thresholds(config: PseudoLabelConfig, classes: Sequence[str]) -> Thresholds:
    """Those that ``pseudo_labels.threshold`` names.

    Raises:
        UserError: ``class_scores`` names an unknown class.
    """
    for name in config.class_scores:
        if name not in classes:
            raise UserError(f"pseudo_labels.class_scores names no class {name!r}{nearest(name, list(classes))}")
    return THRESHOLDS[config.threshold](config, classes)


def select(detections: Instances, least: Tensor, size: tuple[int, int], config: PseudoLabelConfig) -> Instances:
    """Keep the detections of an image that are to be taught, best first.

    Args:
        detections: with scores, of the weak view.
        least: (K,) least score of each class.
        size: (height, width) of the image; boxes are clipped to it.
        config: ``min_size``, ``max_per_image`` and ``box_score``; under ``box_agreement`` alone all boxes may teach.

    Returns:
        Instances whose ``box_weights`` are 1 where the box teaches regression too, else 0.
    """
    boxes, scores = clip_boxes_to_image(detections.boxes, size), detections.scores
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = (scores >= least.to(scores)[detections.classes]) & (sides >= config.min_size).all(1)
    kept &= (sides > 0).all(1)  # clipped to the edge of the image, nothing may be left
    kept = torch.where(kept)[0]
    kept = kept[scores[kept].argsort(descending=True, stable=True)][: config.max_per_image]
    chosen = scores[kept]
    box_weights = (chosen >= (config.box_score or 0.0)).float() * config.teaches_boxes
    return Instances(boxes[kept], detections.classes[kept], chosen, box_weights=box_weights)


def match_truths(labels: Instances, truth: Instances, iou: float = 0.5) -> Tensor:
    """(N,) bool: which pseudo-labels, best first, match a truth of their class that none before them has taken.

    Args:
        labels, truth: on the CPU, because every match depends on those before it.
        iou: least intersection over union of a match.
    """
    matched = torch.zeros(len(labels), dtype=torch.bool)
    if not len(labels) or not len(truth):
        return matched
    shared = box_iou(labels.boxes, truth.boxes)
    shared[labels.classes[:, None] != truth.classes] = 0
    for index, row in enumerate(shared):
        best = int(row.argmax())
        if row[best] >= iou:
            shared[:, best] = 0
            matched[index] = True
    return matched


def excused(labels: Instances, uncounted: Uncounted, share: float = 0.5) -> Tensor:
    """(N,) bool: which pseudo-labels show an object of their class that does not count, so that they are no mistakes.

    Args:
        labels, uncounted: on the CPU.
        share: the least overlap, which of a crowd is the share of the label that lies in it.
    """
    objects = uncounted.objects
    shared = overlaps(labels.boxes.numpy(), objects.boxes.numpy(), uncounted.crowd.numpy())
    same = labels.classes[:, None] == objects.classes
    return ((torch.from_numpy(shared) >= share) & same).any(dim=1)


def to_cpu(instances: Sequence[Instances]) -> list[Instances]:
    """Boxes and classes of several images on the CPU, in one transfer."""
    if not instances or all(of_image.boxes.device.type in HOST for of_image in instances):
        return list(instances)
    rows = torch.cat([torch.cat([of_image.boxes, of_image.classes[:, None]], 1) for of_image in instances]).cpu()
    parts = rows.split([len(of_image) for of_image in instances])
    return [Instances(part[:, :4], part[:, 4].long()) for part in parts]


HOST = {"cpu"}
