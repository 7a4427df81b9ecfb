"""The joint energy of Co-Mixup's masks (Kim et al., ICLR 2021), and the search for masks of little energy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from lossmix_det.config import CoMixupConfig
from lossmix_det.mixing.graph_cuts import grid_edges, potts, potts_energy
from lossmix_det.structures import Size

SMALL = 1e-9  # less than any gain in energy that counts
IN_PAIRS = 128  # changes of one output that are also tried together with one of another output


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
    def adjacency(self) -> np.ndarray:
        """(n, n) 1 where two blocks are neighbours."""
        first, second = self.edges
        result = np.zeros((len(self.costs),) * 2)
        result[first, second] = result[second, first] = 1.0
        return result

    def shares(self, labels: np.ndarray, images: int) -> np.ndarray:
        """(..., P) share of the blocks that show each image, of (..., n) labels."""
        shown = self.sources[labels][..., None] == np.arange(images)
        return shown.mean(-2)

    def random_labels(self, places: np.ndarray) -> np.ndarray:
        """(n,) a source for each block, uniform among those that it can show, by numbers in [0, 1)."""
        possible = np.isfinite(self.costs)
        rank = (places[: len(possible)] * possible.sum(1)).astype(int)
        return (possible.cumsum(1) > rank[:, None]).argmax(1)

    def smoothness(self, beta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Neighbours, and the weight of each pair, as `potts` takes them."""
        first, second = self.edges
        return first, second, np.full(len(first), beta / len(self.costs))

    def energies(self, labels: np.ndarray, beta: float) -> np.ndarray:
        """(...) of (..., n) labels: what the blocks cost, and β/n for all neighbours that show different sources."""
        return potts_energy(self.costs, *self.smoothness(beta), labels)

    def changed(self, labels: np.ndarray, beta: float) -> np.ndarray:
        """(M, n) labels in which some of the blocks that show one source show another one.

        For each two sources: the block that gains most by it, then the two that do, up to all that can.
        """
        count, kinds = self.costs.shape
        alike = self.adjacency @ (labels[:, None] == np.arange(kinds))
        alone = self.costs - beta / count * alike
        result = [np.empty((0, count), dtype=labels.dtype)]
        for old in np.unique(labels):
            for new in np.delete(np.arange(kinds), old):
                able = np.flatnonzero((labels == old) & np.isfinite(alone[:, new]))
                order = able[np.argsort(alone[able, new] - alone[able, old], kind="stable")]
                each = np.repeat(labels[None], len(order), 0)
                each[:, order] = np.where(np.tri(len(order), dtype=bool), new, old)
                result.append(each)
        return np.concatenate(result)


class Changes(NamedTuple):
    """M ways to change one output each: (M,) which, (n,) its new labels, (M,) their energy less the penalty, (M, P)."""

    outputs: np.ndarray
    labels: list[np.ndarray]
    alone: np.ndarray
    shares: np.ndarray


class Joint:
    """The energy of the masks of all J outputs, and how it is lowered.

    With n_jk blocks of output j that show source k, o_jk = n_jk / n_j, and A the compatibility of images:

        Σ_j  Σ_blocks -salience - η/n_j·log λ_jk  +  β/n_j·[neighbours that show different sources]
             + γ·Σ_k n_jk·h((A·Σ_{i≠j} o_i)_k),   h(x) = x where x > τ, else 0

    It equals the authors' thresholded objective where all outputs have equally many blocks. A round gives other sources
    to some blocks of one output, or of two at once where changing one lowers nothing. Then it gives new labels to each
    output as a whole: alpha-expansion with the penalty taken as linear in n_jk, as theirs is. Changes are kept where
    they lower the whole energy, so it never rises; it may end in a local minimum. The authors keep every labelling that
    a cut gives, which changes all blocks of an output at once and so overshoots the threshold.

    Args:
        outputs: to be shown.
        compatible: (P, P) compatibility of the images.
        settings: β, γ, τ and the number of rounds.
    """

    def __init__(self, outputs: list[Output], compatible: np.ndarray, settings: CoMixupConfig) -> None:
        self.outputs, self.compatible, self.settings = outputs, compatible, settings
        self.blocks = np.array([len(each.costs) for each in outputs])[:, None]

    def energy(self, labels: list[np.ndarray]) -> float:
        """Of the labels of all outputs, (n,) each."""
        pairs = zip(self.outputs, labels, strict=True)
        alone = sum(float(each.energies(of, self.settings.beta)) for each, of in pairs)
        return alone + float(self._penalty(self._shares(labels)))

    def improved(self, labels: list[np.ndarray]) -> list[np.ndarray]:
        """Labels of no higher energy."""
        if not labels:
            return []
        labels = list(labels)
        best = self.energy(labels)
        for _ in range(self.settings.iterations):
            while self._change_each(labels) or self._change_two(labels):
                pass
            for index in range(len(self.outputs)):
                self._cut(labels, index)
            before, best = best, self.energy(labels)
            if best >= before - SMALL:
                break
        return labels

    def _change_each(self, labels: list[np.ndarray]) -> bool:
        """Change each output in turn as lowers the energy most; whether any was changed."""
        changed = False
        for index in range(len(self.outputs)):
            changes = self._changes(labels, [index])
            singles = np.arange(len(changes.alone))[:, None]
            changed |= self._take_best(labels, changes, singles)
        return changed

    def _change_two(self, labels: list[np.ndarray]) -> bool:
        """Change two outputs together as lowers the energy most; whether any were changed.

        Pairs are tried of the `IN_PAIRS` changes that alone end lowest.
        """
        changes = self._changes(labels, range(len(self.outputs)))
        singles = np.arange(len(changes.alone))[:, None]
        lowest = np.argsort(self._gains(labels, changes, singles), kind="stable")[:IN_PAIRS]
        pairs = lowest[np.stack(np.triu_indices(len(lowest), 1), 1)]
        first, second = changes.outputs[pairs].T
        return self._take_best(labels, changes, pairs[first != second])

    def _changes(self, labels: list[np.ndarray], outputs: Iterable[int]) -> Changes:
        """All changes of some outputs."""
        beta, images = self.settings.beta, len(self.compatible)
        found: list[tuple[np.ndarray, ...]] = []
        for index in outputs:
            output, of = self.outputs[index], labels[index]
            new = output.changed(of, beta)
            alone = output.energies(new, beta) - output.energies(of, beta)
            found.append((np.full(len(new), index), new, alone, output.shares(new, images)))
        which, new, alone, shares = zip(*found, strict=True)
        return Changes(
            np.concatenate(which), [of for each in new for of in each], *map(np.concatenate, (alone, shares))
        )

    def _gains(self, labels: list[np.ndarray], changes: Changes, chosen: np.ndarray) -> np.ndarray:
        """(S,) the change in energy by (S, C) changes, C of different outputs each time."""
        shares = self._shares(labels)
        after = np.repeat(shares[None], len(chosen), 0)
        for column in chosen.T:
            after[np.arange(len(chosen)), changes.outputs[column]] = changes.shares[column]
        return changes.alone[chosen].sum(1) + self._penalty(after) - self._penalty(shares)

    def _take_best(self, labels: list[np.ndarray], changes: Changes, chosen: np.ndarray) -> bool:
        """Make the best of (S, C) choices of changes, if it lowers the energy; whether it does."""
        gains = self._gains(labels, changes, chosen)
        if not gains.min(initial=0) < -SMALL:
            return False
        for change in chosen[gains.argmin()]:
            labels[changes.outputs[change]] = changes.labels[change]
        return True

    def _cut(self, labels: list[np.ndarray], index: int) -> None:
        """Give all blocks of an output new labels, the penalty taken as linear, if that lowers the energy."""
        output = self.outputs[index]
        penalty = 2 * self.settings.gamma * self._elsewhere(self._shares(labels))[index, output.sources]
        found = potts(output.costs + penalty, *output.smoothness(self.settings.beta), labels[index])
        offered = [*labels[:index], found, *labels[index + 1 :]]
        if self.energy(offered) < self.energy(labels) - SMALL:
            labels[index] = found

    def _penalty(self, shares: np.ndarray) -> np.ndarray:
        """(...) γ·Σ_jk n_jk·h of (..., J, P) shares."""
        return self.settings.gamma * (self.blocks * shares * self._elsewhere(shares)).sum((-2, -1))

    def _elsewhere(self, shares: np.ndarray) -> np.ndarray:
        """(..., J, P) h of how much of what is compatible with each image the other outputs show."""
        others = (shares.sum(-2, keepdims=True) - shares) @ self.compatible
        return np.where(others > self.settings.thres, others, 0.0)

    def _shares(self, labels: list[np.ndarray]) -> np.ndarray:
        """(J, P) how much each output shows of each image."""
        images = len(self.compatible)
        pairs = zip(self.outputs, labels, strict=True)
        return np.array([each.shares(of, images) for each, of in pairs]).reshape(-1, images)
