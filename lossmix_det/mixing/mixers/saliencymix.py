"""SaliencyMix (Uddin et al., ICLR 2021): CutMix whose box is centred on the most salient place of the partner."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lossmix_det.mixing.mixers.cutmix import CutMix
from lossmix_det.mixing.saliency import cell_of
from lossmix_det.structures import Size


class SaliencyMix(CutMix):
    """Every image has a box of its own; the authors' code finds one for the whole batch."""

    needs_saliency = True

    def _centre(
        self, place: np.ndarray, frame: list[int], cell: int, saliency: Tensor, canvas: Size
    ) -> tuple[float, float]:
        """The middle of the most salient cell of the area that both images cover; of several, one is drawn.

        Without boxes to be salient, or a loss, all are alike.
        """
        scale = cell_of(canvas) / cell  # cells of the mask to one of the saliency
        height, width = (max(int(side / scale), 1) for side in frame)
        inside = saliency[:height, :width].flatten()
        highest = (inside == inside.max()).nonzero().flatten().tolist()
        row, column = divmod(highest[int(place[0] * len(highest))], width)
        return (row + 0.5) * scale, (column + 0.5) * scale
