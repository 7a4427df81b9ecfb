"""PuzzleMix (Kim et al., ICML 2020): a mask of blocks that keeps both images' salience, by a graph cut."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from lossmix_det.config import MixingConfig, PuzzleConfig
from lossmix_det.mixing.blend import Mix
from lossmix_det.mixing.blocks import BlockGrid, in_place
from lossmix_det.mixing.graph_cuts import grid_edges, levels
from lossmix_det.mixing.mixers.grid import grid_cell
from lossmix_det.mixing.mixers.pairwise import Pairwise, with_partners
from lossmix_det.mixing.saliency import covered
from lossmix_det.structures import ImageBatch, Size

EXPONENTS = (1, 4)  # a grid has 2, 4, 8 or 16 blocks along its longer side
TINY = 1e-8  # keeps the logarithm of a probability finite


class PuzzleMix(Pairwise):
    """x~ = (1 - q)·T(x) + q·T'(partner), where q of each block is one of evenly spaced shares from 0 to 1.

    The blocks are squares over the area that both images cover. There are 2^k along its longer side, k uniform in 1…4
    for each image, or as many as blocks of whole cells allow. Outside of that area the image is not mixed, and it keeps
    its size. One cut finds the labels of least energy exactly, where the authors use alpha-beta swaps. `puzzle_costs`
    is the energy.

    T and T' permute the whole blocks of each image, so that less of what is salient is hidden (`best_order`).

    Args:
        config: ``alpha``, ``lam_range`` [low, high], and ``puzzle``.
    """

    needs_saliency = True

    def __init__(self, config: MixingConfig) -> None:
        super().__init__(config)
        self.energy, self.tears_boxes = config.puzzle, config.puzzle.transport

    def draw(self, pool: ImageBatch, partners: np.ndarray, saliency: Tensor | None, rng: np.random.Generator) -> Mix:
        """As `Mixer.draw`."""
        count, cell = len(partners), grid_cell(pool.canvas)
        lam = self.draw_lam(count, rng)
        along = 2 ** rng.integers(EXPONENTS[0], EXPONENTS[1] + 1, count)
        pixels, saliency = F.avg_pool2d(pool.pixels.float(), cell).cpu().numpy(), saliency.double().numpy()
        cells = pixels.shape[2:]
        masks, shares = torch.zeros(count, 2, *cells), torch.zeros(count, 2)
        blocks = in_place(cells).repeat(count, 2, 1, 1) if self.energy.transport else None
        for index, partner in enumerate(partners[:, 0].tolist()):
            pair, (height, width) = [index, partner], pool.sizes[index]
            frame = min(height, pool.sizes[partner][0]) // cell, min(width, pool.sizes[partner][1]) // cell
            if index == partner or not all(frame):
                continue
            grid = BlockGrid.along(frame, int(along[index]), cell)
            salience = np.stack([grid.sums(saliency[k], covered(pool.canvas)) for k in pair])
            q = self._shares(salience, differences(pixels[pair], grid), float(lam[index]))
            in_cells = torch.from_numpy(grid.cells(q))
            masks[index, 1, : frame[0], : frame[1]] = in_cells.float()
            shares[index, 1] = min(float(in_cells.sum()) * cell**2 / (height * width), 1.0)
            if blocks is not None:
                blocks[index] = self._transported(salience, q, grid, cells)
        masks[:, 0], shares[:, 0] = 1 - masks[:, 1], 1 - shares[:, 1]
        return Mix(with_partners(partners), shares, masks, blocks=blocks)

    def _shares(self, salience: np.ndarray, unlike: np.ndarray, lam: float) -> np.ndarray:
        """(R, C) q, how much each block shows of the partner."""
        costs, weights = puzzle_costs(salience, unlike, lam, self.energy)
        shape = salience.shape[1:]
        return levels(costs, *grid_edges(*shape), weights).reshape(shape) / (self.energy.labels - 1)

    def _transported(self, salience: np.ndarray, q: np.ndarray, grid: BlockGrid, cells: Size) -> Tensor:
        """(2, h, w) the cell that each cell of the image itself shows, and of the partner."""
        orders = [
            best_order(of_source, shown, grid, self.energy.t_eps)
            for of_source, shown in zip(salience, (q < 1, q > 0), strict=True)
        ]
        return torch.from_numpy(np.stack([grid.moves(order, cells) for order in orders]))


def differences(images: np.ndarray, grid: BlockGrid) -> np.ndarray:
    """(2, 2, E) how unlike image a on the first side of a border between blocks is to image b on the second side.

    The mean of |difference| along the border and over channels; borders in the order of `grid_edges`.

    Args:
        images: (2, 3, h, w) in [0, 1], means of cells.
        grid: over them.
    """
    images = images[:, :, : grid.frame[0], : grid.frame[1]]
    below = _differences(images, grid, 0)
    beside = _differences(images.swapaxes(2, 3), grid, 1).swapaxes(2, 3)
    return np.concatenate([below.reshape(2, 2, -1), beside.reshape(2, 2, -1)], axis=2)


def _differences(images: np.ndarray, grid: BlockGrid, axis: int) -> np.ndarray:
    """(2, 2, borders, blocks) across the borders that run along the last axis of the images."""
    border = grid.starts(axis)[1:]
    first, second = images[:, None, :, border - 1], images[None, :, :, border]
    unlike = np.abs(first - second).mean(axis=2)
    return np.add.reduceat(unlike, grid.starts(1 - axis), axis=-1) / grid.lengths(1 - axis)


def puzzle_costs(
    salience: np.ndarray, unlike: np.ndarray, lam: float, energy: PuzzleConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The energy of a mask, for `levels`: R·C blocks, label l of L shows the partner by q = l / (L - 1).

    A block costs the salience that it hides, q·s + (1 - q)·s', and -η·log C(L-1, l)·(1 - λ)^l·λ^(L-1-l) / (R·C). Two
    neighbours cost β'·((q - q')² + γ·d), β' = β / (16·√(R·C)), where d is the difference of pixels across their border:
    `differences` where both masks are hard, and its quadratic interpolation between. The authors have β / (16·√(R·C))
    on square grids.

    Args:
        salience: (2, R, C) of the image itself and of its partner.
        unlike: (2, 2, E) as `differences` gives it.
        lam: λ.
        energy: the settings.

    Returns:
        (R·C, L) costs of blocks and (E,) weights of neighbours.
    """
    count, shape = salience[0].size, salience[0].shape
    first, second = grid_edges(*shape)
    beta = energy.beta / (16 * math.sqrt(count))
    own, other = salience.reshape(2, count)
    data = beta * energy.gamma * unlike
    hidden = []  # what a block costs that shows the other image, and that shows the image itself
    for k, lost in ((0, other), (1, own)):
        lost = lost + np.bincount(first, data[k].mean(axis=0), count)
        hidden.append(lost + np.bincount(second, data[:, k].mean(axis=0), count))
    label, last = np.arange(energy.labels), energy.labels - 1
    chance = np.array([math.comb(last, k) for k in label]) * lam ** (last - label) * (1 - lam) ** label
    q = label / last
    costs = hidden[0][:, None] * (1 - q) + hidden[1][:, None] * q - energy.eta / count * np.log(chance + TINY)
    bend = (data[0, 1] + data[1, 0] - data[0, 0] - data[1, 1]) / 2
    return costs, (beta + bend) / last**2


def best_order(salience: np.ndarray, shown: np.ndarray, grid: BlockGrid, t_eps: float) -> np.ndarray:
    """By place, the whole block of an image that is shown there: the permutation that hides least for how far it moves.

    Σ ε·distance² - salience·[its place is shown], where the longer side has length 1. It is solved exactly; the authors
    take a few rounds of a heuristic. Blocks that are cut off by the frame stay.

    Args:
        salience: (R, C) of the blocks.
        shown: (R, C) bool, whether the mask shows any of the image there.
        grid: of the blocks.
        t_eps: ε.
    """
    rows, columns = grid.whole
    places = np.indices((rows, columns)).reshape(2, -1).T / max(rows - 1, columns - 1, 1)
    distance = ((places[:, None] - places[None]) ** 2).sum(axis=2)
    gain = salience[:rows, :columns].reshape(-1, 1) * shown[:rows, :columns].reshape(1, -1)
    _, place = linear_sum_assignment(t_eps * distance - gain)
    return np.argsort(place)
