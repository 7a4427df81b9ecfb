"""ClassMix (Olsson et al., WACV 2021), carried to boxes: the objects of half of a partner's classes are pasted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lossmix_det.config import MixingConfig
from lossmix_det.mixing.blend import Mix
from lossmix_det.mixing.mixers.grid import shares_of
from lossmix_det.mixing.mixers.pairwise import with_partners
from lossmix_det.structures import ImageBatch, Instances, Size


class ClassMix:
    """Half of the partner's classes are drawn, rounded up; the boxes of these are pasted at the same place.

    The truth is hard: what is pasted is seen in full, what lies beneath not at all. The authors paste the pixels of a
    segmentation, and round down, because the background is a class there. The image keeps its size; what reaches out of
    it is cut off. A partner without boxes is not pasted.

    Args:
        config: nothing of it; the boxes alone say how much of each image is seen.
    """

    partners = 1
    needs_saliency = False

    def __init__(self, config: MixingConfig) -> None:
        pass

    def draw_objects(
        self, pool: ImageBatch, partners: np.ndarray, truths: Sequence[Instances], rng: np.random.Generator
    ) -> Mix:
        """As `MixesObjects.draw_objects`."""
        masks = torch.zeros(len(partners), 2, *pool.canvas)
        for index, partner in enumerate(partners[:, 0].tolist()):
            order = rng.random(int(truths[partner].classes.max()) + 1 if len(truths[partner]) else 0)
            pasted = _of_classes(truths[partner], half_of_classes(truths[partner].classes.tolist(), order))
            size = [min(sides) for sides in zip(pool.sizes[index], pool.sizes[partner], strict=True)]
            paint(masks[index, 1], pasted, (size[0], size[1]))
        masks[:, 0] = 1 - masks[:, 1]
        return Mix(with_partners(partners), shares_of(masks, pool.sizes[: len(partners)], 1), masks)


def half_of_classes(classes: Sequence[int], order: np.ndarray) -> list[int]:
    """Half of the classes that occur, rounded up: those that come first in a random order of all classes."""
    present = sorted(set(classes), key=lambda index: order[index])
    return present[: (len(present) + 1) // 2]


def paint(mask: torch.Tensor, truth: Instances, size: Size) -> None:
    """Set a (H, W) mask to 1 inside boxes, to the nearest pixel, as far as an image of that size reaches."""
    height, width = size
    for x1, y1, x2, y2 in truth.boxes.round().int().tolist():
        mask[max(y1, 0) : min(max(y2, 0), height), max(x1, 0) : min(max(x2, 0), width)] = 1.0


def _of_classes(truth: Instances, classes: Sequence[int]) -> Instances:
    return truth[torch.isin(truth.classes, truth.classes.new_tensor(list(classes)))]
