"""CutMix (Yun et al., ICCV 2019): a box of the partner is pasted at the same place."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lossmix_det.mixing.blend import Mix
from lossmix_det.mixing.mixers.grid import common_frame, grid_cell, own_masks, shares_of
from lossmix_det.mixing.mixers.pairwise import Pairwise, with_partners
from lossmix_det.structures import ImageBatch, Size


class CutMix(Pairwise):
    """λ ~ Beta(α, α), moved into ``lam_range``; a box of √(1 - λ) of each side of the area that both images cover.

    Its centre is uniform there, and it is clipped to that area, so that no padding is pasted. The image keeps its size;
    its share is what the box leaves of it.

    Args:
        config: ``alpha``, and ``lam_range`` [low, high].
    """

    def draw(self, pool: ImageBatch, partners: np.ndarray, saliency: Tensor | None, rng: np.random.Generator) -> Mix:
        """As `Mixer.draw`."""
        count = len(partners)
        lam = self.draw_lam(count, rng)
        places = rng.random((count, 2))
        canvas, cell = pool.canvas, grid_cell(pool.canvas)
        masks = own_masks(count, 2, canvas, cell)
        for index, partner in enumerate(partners[:, 0].tolist()):
            frame = common_frame(pool, (index, partner), cell)
            centre = self._centre(places[index], frame, cell, None if saliency is None else saliency[partner], canvas)
            top, left, bottom, right = box_around(centre, frame, float(np.sqrt(1 - lam[index])))
            masks[index, 0, top:bottom, left:right] = 0.0
            masks[index, 1, top:bottom, left:right] = 1.0
        return Mix(with_partners(partners), shares_of(masks, pool.sizes[:count], cell), masks)

    def _centre(
        self, place: np.ndarray, frame: list[int], cell: int, saliency: Tensor | None, canvas: Size
    ) -> tuple[float, float]:
        """(row, column) of the middle of the box, in cells; uniform over the area that both images cover."""
        return float(place[0] * frame[0]), float(place[1] * frame[1])


def box_around(centre: tuple[float, float], frame: list[int], share: float) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of a box of a share of each side of a frame, clipped to it; whole cells."""
    edges = []
    for middle, side in zip(centre, frame, strict=True):
        length = share * side
        edges.append((max(round(middle - length / 2), 0), min(round(middle + length / 2), side)))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]
