"""Co-Mixup (Kim et al., ICLR 2021): the masks of a whole batch, each of several images, are found together."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lossmix_det.config import MixingConfig
from lossmix_det.mixing.blend import Mix
from lossmix_det.mixing.blocks import BlockGrid
from lossmix_det.mixing.joint_masks import Joint, Output
from lossmix_det.mixing.mixers.grid import grid_cell
from lossmix_det.mixing.mixers.pairwise import with_partners
from lossmix_det.mixing.saliency import covered
from lossmix_det.structures import ImageBatch, Size

TINY = 1e-8  # keeps the logarithm of a share finite


class CoMixup:
    """Every block of an image shows the image itself or one of its partners: what is salient, and not shown elsewhere.

    The authors mix m inputs into m outputs that may show any of them. Here output j stands for image j and may show it
    and its P partners: K = P + 1 sources. Its blocks are squares over image j, and a partner is shown only in blocks
    that it covers. `Joint` is the energy. Masks are hard; the authors' blocks may also show halves of two images. The
    masks are found as if all images were mixed, whatever ``probability`` is.

    Args:
        config: ``comixup``.
    """

    needs_saliency = True

    def __init__(self, config: MixingConfig) -> None:
        self.settings = config.comixup
        self.partners = config.comixup.partners

    def draw(self, pool: ImageBatch, partners: np.ndarray, saliency: Tensor | None, rng: np.random.Generator) -> Mix:
        """As `Mixer.draw`."""
        settings, cell, saliency = self.settings, grid_cell(pool.canvas), saliency.double().numpy()
        sources = with_partners(partners)
        count, kinds = sources.shape
        prior = -settings.eta * np.log(rng.dirichlet(np.full(kinds, settings.alpha), count) + TINY)
        places = rng.random((count, settings.blocks**2))
        frames = [(height // cell, width // cell) for height, width in pool.sizes]
        grids = {k: BlockGrid.along(frames[k], settings.blocks, cell) for k in range(count) if all(frames[k])}
        outputs, start = [], []
        for index, grid in grids.items():
            row = sources[index].numpy()
            costs = block_costs(grid, row, saliency, [frames[k] for k in row], covered(pool.canvas))
            outputs.append(Output(row, grid.shape, costs + prior[index] / len(costs)))
            start.append(outputs[-1].random_labels(places[index]))
        joint = Joint(outputs, compatibility(saliency, settings.omega), settings)
        masks = torch.zeros(count, kinds, *(side // cell for side in pool.canvas))
        for (index, grid), labels in zip(grids.items(), joint.improved(start), strict=True):
            shown = torch.from_numpy(grid.cells(labels.reshape(grid.shape)))
            masks[index, 1:, : grid.frame[0], : grid.frame[1]] = shown == torch.arange(1, kinds)[:, None, None]
        areas = torch.tensor([[height * width / cell**2] for height, width in pool.sizes[:count]])
        shares = masks.sum((2, 3)) / areas
        masks[:, 0], shares[:, 0] = 1 - masks.sum(1), (1 - shares.sum(1)).clamp(min=0)
        return Mix(sources, shares, masks)


def block_costs(
    grid: BlockGrid, sources: np.ndarray, saliency: np.ndarray, frames: list[Size], canvas: Size
) -> np.ndarray:
    """(R·C, K) minus the salience that each block shows of each source, infinite where it does not cover the block.

    An image that is a source twice counts once.

    Args:
        grid: R×C blocks.
        sources: (K,) index of each source in the pool.
        saliency: (pool, h, w) over the canvas.
        frames: (rows, columns) of whole cells of each source.
        canvas: (height, width) in pixels that the saliency covers.
    """
    first = [list(sources).index(index) == place for place, index in enumerate(sources)]
    possible = [
        grid.inside(frame) if is_first else np.zeros(grid.shape, dtype=bool)
        for frame, is_first in zip(frames, first, strict=True)
    ]
    costs = [-grid.sums(saliency[index], canvas) for index in sources]
    return np.where(possible, costs, np.inf).reshape(len(sources), -1).T


def compatibility(saliency: np.ndarray, omega: float) -> np.ndarray:
    """(P, P) A = (1 - ω)·I + ω·D; D are the L1 distances of the most salient places of P images.

    D is scaled so that its rows sum to 1 on average.
    """
    rows, columns = np.divmod(saliency.reshape(len(saliency), -1).argmax(1), saliency.shape[2])
    distance = np.abs(rows[:, None] - rows) + np.abs(columns[:, None] - columns)
    return (1 - omega) * np.eye(len(saliency)) + omega * distance * len(saliency) / max(distance.sum(), 1)
