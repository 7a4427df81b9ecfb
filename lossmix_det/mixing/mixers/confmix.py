"""ConfMix (Mattolin et al., WACV 2023): the quarter in which the teacher is surest, pasted onto the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lossmix_det.config import MixingConfig
from lossmix_det.mixing.blend import Mix
from lossmix_det.mixing.mixers.grid import common_frame, grid_cell, own_masks, shares_of
from lossmix_det.mixing.mixers.mosaic import Quarter, quarters_around
from lossmix_det.mixing.mixers.pairwise import with_partners
from lossmix_det.structures import ImageBatch, Instances


class ConfMix:
    """The partner's quarter with the highest mean score of its pseudo-labels is pasted at the same place.

    The mixed image teaches with weight γ, the share of its boxes that score more than ``confmix_sure``. An annotated
    box has score 1. Quarters are of the area that both images cover; a box belongs to the one that its centre lies in;
    a quarter without a box has score 0; among equals one is drawn. The authors paste the target onto the source alone
    (``mixing.pairs`` says that here), and let the least score of a pseudo-label rise over training
    (``pseudo_labels.threshold=rising``).

    Args:
        config: ``confmix_sure``.
    """

    partners = 1
    needs_saliency = False

    def __init__(self, config: MixingConfig) -> None:
        self.sure = config.confmix_sure

    def draw_objects(
        self, pool: ImageBatch, partners: np.ndarray, truths: Sequence[Instances], rng: np.random.Generator
    ) -> Mix:
        """As `MixesObjects.draw_objects`."""
        count, cell = len(partners), grid_cell(pool.canvas)
        order = rng.permuted(np.tile(np.arange(4), (count, 1)), axis=1)  # among equals the first of it is taken
        masks, factors = own_masks(count, 2, pool.canvas, cell), torch.ones(count)
        for index, partner in enumerate(partners[:, 0].tolist()):
            frame = common_frame(pool, (index, partner), cell)
            quarters = quarters_around([side // 2 for side in frame], frame)
            scores = scores_of(truths[partner])
            inside = [scores[centred_in(truths[partner], quarter, cell)] for quarter in quarters]
            best = max(order[index].tolist(), key=lambda number: _mean(inside[number]))  # noqa: B023 - used at once
            (top, bottom), (left, right) = quarters[best]
            masks[index, 0, top:bottom, left:right] = 0.0
            masks[index, 1, top:bottom, left:right] = 1.0
            kept = scores_of(truths[index])[~centred_in(truths[index], quarters[best], cell)]
            factors[index] = share_above(torch.cat([kept, inside[best]]), self.sure)
        return Mix(with_partners(partners), shares_of(masks, pool.sizes[:count], cell), masks, factors=factors)


def scores_of(truth: Instances) -> Tensor:
    """(N,) scores; 1 for annotated boxes."""
    return torch.ones(len(truth)) if truth.scores is None else truth.scores.float().cpu()


def share_above(scores: Tensor, least: float) -> float:
    """The share of the scores above a limit; 1 where there are none, because then nothing is in doubt."""
    return float((scores > least).float().mean()) if len(scores) else 1.0


def centred_in(truth: Instances, quarter: Quarter, cell: int) -> Tensor:
    """(N,) bool: whether the centre of each box lies in a part of the image, which is given in cells."""
    x, y = ((truth.boxes[:, :2] + truth.boxes[:, 2:]).cpu() / 2 / cell).unbind(1)
    (top, bottom), (left, right) = quarter
    return (x >= left) & (x < right) & (y >= top) & (y < bottom)


def _mean(scores: Tensor) -> float:
    return float(scores.mean()) if len(scores) else 0.0
