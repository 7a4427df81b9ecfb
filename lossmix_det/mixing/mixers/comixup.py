"""Co-Mixup (Kim et al., ICLR 2021): the masks of a whole batch, each of several images, are found together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lossmix_det.config import CoMixupConfig, MixingConfig
from lossmix_det.mixing.blend import Mix
from lossmix_det.mixing.blocks import BlockGrid
from lossmix_det.mixing.graph_cuts import grid_edges, potts, potts_energy
from lossmix_det.mixing.mixers.grid import grid_cell
from lossmix_det.mixing.mixers.pairwise import with_partners
from lossmix_det.mixing.saliency import covered
from lossmix_det.structures import ImageBatch, Size

TINY = 1e-8  # keeps the logarithm of a share finite
SMALL = 1e-9  # less than any gain in energy that counts


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
    """(P, P) A = (1 - ω)·I + ω·D, D the L1 distances of the most salient places of P images, of mean 1 in each row."""
    rows, columns = np.divmod(saliency.reshape(len(saliency), -1).argmax(1), saliency.shape[2])
    distance = np.abs(rows[:, None] - rows) + np.abs(columns[:, None] - columns)
    return (1 - omega) * np.eye(len(saliency)) + omega * distance * len(saliency) / max(distance.sum(), 1)


@dataclass(frozen=True)
class Output:
    """One mixed image of the joint problem.

    Args:
        sources: (K,) index of each source in the pool of P images.
        shape: (R, C) of its n blocks.
        costs: (n, K) of a block that shows a source; infinite where it cannot.
    """

    sources: np.ndarray
    shape: Size
    costs: np.ndarray

    @cached_property
    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Neighbouring blocks."""
        return grid_edges(*self.shape)

    @cached_property
    def neighbours(self) -> list[np.ndarray]:
        """Of each block."""
        first, second = self.edges
        one, other = np.concatenate([first, second]), np.concatenate([second, first])
        return [other[one == block] for block in range(len(self.costs))]

    def shares(self, labels: np.ndarray, images: int) -> np.ndarray:
        """(P,) share of the blocks that show each image."""
        return np.bincount(self.sources[labels], minlength=images) / len(labels)

    def random_labels(self, places: np.ndarray) -> np.ndarray:
        """(n,) a source for each block, uniform among those that it can show, by numbers in [0, 1)."""
        possible = np.isfinite(self.costs)
        rank = (places[: len(possible)] * possible.sum(1)).astype(int)
        return (possible.cumsum(1) > rank[:, None]).argmax(1)


class Joint:
    """The energy of the masks of all outputs, and how it is lowered.

    With n_jk blocks of output j that show source k, o_jk = n_jk / n_j, and A the compatibility of images:

        Σ_j  Σ_blocks -salience - η/n_j·log λ_jk  +  β/n_j·[neighbours that show different sources]
             + γ·Σ_k n_jk·h((A·Σ_{i≠j} o_i)_k),   h(x) = x where x > τ, else 0

    It equals the authors' thresholded objective where all outputs have equally many blocks. A round improves the
    single blocks of every output, and then each output as a whole: alpha-expansion with the penalty taken as linear in
    n_jk, as theirs is. Changes are kept where they lower the whole energy, so it never rises; it may end in a local
    minimum. The authors keep every labelling that a cut gives, which changes all blocks of an output at once and so
    overshoots the threshold. Where images are still shown too often in the end, as happens with four and more partners,
    the search begins again from the labels that such rounds give, and the lower of both ends is taken.

    Args:
        outputs: to be shown.
        compatible: (P, P) as `compatibility` gives it.
        settings: β, γ, τ and the number of rounds.
    """

    def __init__(self, outputs: list[Output], compatible: np.ndarray, settings: CoMixupConfig) -> None:
        self.outputs, self.compatible, self.settings = outputs, compatible, settings
        self.blocks = np.array([len(each.costs) for each in outputs])[:, None]

    def energy(self, labels: list[np.ndarray]) -> float:
        """Of the labels of all outputs, (n,) each."""
        pairs = zip(self.outputs, labels, strict=True)
        alone = sum(potts_energy(each.costs, *self._smoothness(each), of) for each, of in pairs)
        return alone + self._penalty(self._shares(labels))

    def improved(self, labels: list[np.ndarray]) -> list[np.ndarray]:
        """Labels of no higher energy."""
        found = self._lowered(labels)
        if self._penalty(self._shares(found)) < SMALL:
            return found
        return min(found, self._lowered(self._by_cuts(labels)), key=self.energy)

    def _by_cuts(self, labels: list[np.ndarray]) -> list[np.ndarray]:
        """Labels of the least energy that is met while every cut is kept, as the authors keep it."""
        labels, met = [of.copy() for of in labels], [labels]
        for _ in range(self.settings.iterations):
            for index in range(len(self.outputs)):
                labels[index] = self._found_by_cut(labels, index)
            met.append([of.copy() for of in labels])
        return min(met, key=self.energy)

    def _lowered(self, labels: list[np.ndarray]) -> list[np.ndarray]:
        """Labels at the end of a descent."""
        labels = [of.copy() for of in labels]
        best = self.energy(labels)
        for _ in range(self.settings.iterations):
            for change in (self._move_blocks, self._cut):
                for index in range(len(self.outputs)):
                    change(labels, index)
            before, best = best, self.energy(labels)
            if best >= before - SMALL:
                break
        return labels

    def _move_blocks(self, labels: list[np.ndarray], index: int) -> None:
        """Give each block of an output another label in turn, where that lowers the energy."""
        output, of, shares = self.outputs[index], labels[index], self._shares(labels)
        penalty, part, beta = self._penalty(shares), 1 / len(of), self.settings.beta / len(of)
        for block, neighbours in enumerate(output.neighbours):
            for label in np.flatnonzero(np.isfinite(output.costs[block])):
                alone = output.costs[block, label] - output.costs[block, of[block]]
                alone += beta * ((of[neighbours] != label).sum() - (of[neighbours] != of[block]).sum())
                moved = shares.copy()
                moved[index, output.sources[of[block]]] -= part
                moved[index, output.sources[label]] += part
                other = self._penalty(moved)
                if alone + other - penalty < -SMALL:
                    of[block], shares, penalty = label, moved, other

    def _cut(self, labels: list[np.ndarray], index: int) -> None:
        """Give all blocks of an output new labels, if that lowers the energy."""
        found = self._found_by_cut(labels, index)
        offered = [*labels[:index], found, *labels[index + 1 :]]
        if self.energy(offered) < self.energy(labels) - SMALL:
            labels[index] = found

    def _found_by_cut(self, labels: list[np.ndarray], index: int) -> np.ndarray:
        """(n,) new labels of an output, the penalty taken as linear."""
        output = self.outputs[index]
        penalty = 2 * self.settings.gamma * self._elsewhere(self._shares(labels))[index, output.sources]
        return potts(output.costs + penalty, *self._smoothness(output), labels[index])

    def _penalty(self, shares: np.ndarray) -> float:
        """γ·Σ_jk n_jk·h of (J, P) shares."""
        return self.settings.gamma * float((self.blocks * shares * self._elsewhere(shares)).sum())

    def _elsewhere(self, shares: np.ndarray) -> np.ndarray:
        """(J, P) h of how much of what is compatible with each image the other outputs show."""
        others = (shares.sum(0) - shares) @ self.compatible
        return np.where(others > self.settings.thres, others, 0.0)

    def _shares(self, labels: list[np.ndarray]) -> np.ndarray:
        """(J, P) how much each output shows of each image."""
        images = len(self.compatible)
        pairs = zip(self.outputs, labels, strict=True)
        return np.array([each.shares(of, images) for each, of in pairs]).reshape(-1, images)

    def _smoothness(self, output: Output) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Neighbours, and the weight of each pair."""
        first, second = output.edges
        return first, second, np.full(len(first), self.settings.beta / len(output.costs))
