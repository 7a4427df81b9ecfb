"""ClassMix (Olsson et al., WACV 2021), carried to detection: the objects of half of a partner's classes are pasted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lossmix_det.config import MixingConfig
from lossmix_det.mixing.blend import Mix
from lossmix_det.mixing.mixers.grid import shares_of
from lossmix_det.mixing.mixers.pairwise import with_partners
from lossmix_det.structures import ImageBatch, Instances, Size

HALF = 0.5 - 1e-6  # of a pixel, but for rounding


class ClassMix:
    """Half of the partner's classes are drawn, rounded up; the objects of these are pasted at the same place.

    The pixels of an object are those of its mask, or of its box where it has none. The truth is hard: what is pasted is
    seen in full, what lies beneath not at all. The authors paste the pixels of a segmentation, and round down, because
    the background is a class there. The image keeps its size; what reaches out of it is cut off. A partner without
    objects is not pasted.

    Args:
        config: nothing of it; the objects alone say how much of each image is seen.
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
    """Set a (H, W) mask to 1 where objects are, as far as an image of that size reaches.

    That is inside their boxes, to the nearest pixel; of an object with a mask, in the pixels of which at least a half
    lies in the mask.
    """
    height, width = size
    shown = [None] * len(truth) if truth.masks is None else truth.masks.cpu().float()
    for box, cells in zip(truth.boxes.cpu(), shown, strict=True):
        x1, y1, x2, y2 = box.round().int().tolist()
        rows, columns = (
            slice(min(max(low, 0), side), min(max(high, 0), side))
            for low, high, side in ((y1, y2, height), (x1, x2, width))
        )
        if cells is None:
            mask[rows, columns] = 1.0
            continue
        down, across = (_nearby(side, box[axis::2].tolist(), len(cells)) for axis, side in ((1, rows), (0, columns)))
        mask[rows, columns] = torch.maximum(mask[rows, columns], (down @ cells @ across.T >= HALF).float())


def _nearby(pixels: slice, edges: list[float], count: int) -> torch.Tensor:
    """(n, count) how much of each cell along the side of a box each of its pixels shows; adds up to 1 for each pixel.

    Between the middles of two cells it is a bit of both; where cells are smaller than a pixel, of all that it covers.
    """
    low, high = edges
    middles = (torch.arange(pixels.start, pixels.stop) + 0.5 - low) * count / max(high - low, 1e-6) - 0.5
    apart = (middles.clamp(0, count - 1)[:, None] - torch.arange(count)).abs()
    weights = (1 - apart / max(1.0, count / max(high - low, 1e-6))).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def _of_classes(truth: Instances, classes: Sequence[int]) -> Instances:
    return truth[torch.isin(truth.classes, truth.classes.new_tensor(list(classes)))]
