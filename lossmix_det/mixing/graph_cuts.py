"""Labellings of least energy by minimal cuts of a graph; scipy finds the maximal flow.

N nodes, L labels, E edges. scipy is a dependency anyway, and its licence is BSD; PyMaxflow, which knows grids, is GPL.
With the published settings graphs have at most 512 nodes, which scipy cuts in about a millisecond.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

LARGEST = 2**29  # of the whole numbers that capacities are rounded to; twice as much still fits 32 bits


def grid_edges(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """The E pairs of neighbours in a grid of numbered nodes: (E,) the upper or left one, (E,) the lower or right one.

    Those below one another come first, row by row, then those beside one another.
    """
    nodes = np.arange(rows * columns).reshape(rows, columns)
    first = np.concatenate([nodes[:-1].ravel(), nodes[:, :-1].ravel()])
    return first, np.concatenate([nodes[1:].ravel(), nodes[:, 1:].ravel()])


def binary(costs: np.ndarray, first: np.ndarray, second: np.ndarray, capacities: np.ndarray) -> np.ndarray:
    """(N,) bool x of least Σ costs·x + Σ capacities·[x of first and not x of second]: one minimal cut.

    Of several, the one with the fewest true. Exact up to rounding: the sum of all costs is rounded to 2^-29 of itself.

    Args:
        costs: (N,) of either sign; infinite: never true.
        first, second: (E,) nodes.
        capacities: (E,) ≥ 0; infinite: never cut.
    """
    finite = sum(np.abs(values[np.isfinite(values)]).sum() for values in (costs, capacities))
    costs, capacities = (np.where(np.isinf(values), 2 * finite + 1, values) for values in (costs, capacities))
    count, nodes = len(costs), np.arange(len(costs))
    start, end = np.full(count, count), np.full(count, count + 1)
    # A true node stands on the side of the start.
    scaled = np.concatenate([np.maximum(-costs, 0), np.maximum(costs, 0), capacities]) * (LARGEST / (2 * finite + 1))
    edges = np.concatenate([start, nodes, first]), np.concatenate([nodes, end, second])
    graph = csr_matrix((np.rint(scaled).astype(np.int32), edges), shape=(count + 2, count + 2))
    left = graph - maximum_flow(graph, count, count + 1).flow
    left.eliminate_zeros()
    result = np.zeros(count + 2, dtype=bool)
    result[breadth_first_order(left, count, return_predecessors=False)] = True
    return result[:count]


def levels(costs: np.ndarray, first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(N,) labels of least Σ costs[i, label_i] + Σ weights·(label of first - label of second)², exactly, by one cut.

    A node has a switch for every step from one label to the next (Ishikawa, PAMI 2003). The square of a difference of
    two sums of switches is a sum over pairs of switches, each of which a cut can express: -2xy = [x ≠ y] - x - y.

    Args:
        costs: (N, L).
        first, second: (E,) nodes.
        weights: (E,) ≥ 0.
    """
    count, steps = costs.shape[0], costs.shape[1] - 1
    around = np.bincount(first, weights, count) + np.bincount(second, weights, count)
    label = np.arange(steps + 1)
    costs = costs + around[:, None] * (label**2 - steps * label)
    switches = np.arange(count * steps).reshape(count, steps)
    pairs = [switches[nodes][:, repeat] for nodes, repeat in zip((first, second), _pairs(steps), strict=True)]
    a, b = (nodes.ravel() for nodes in pairs)
    between = weights.repeat(steps**2)
    later, earlier = switches[:, 1:].ravel(), switches[:, :-1].ravel()
    ends = np.concatenate([a, b, later]), np.concatenate([b, a, earlier])
    on = binary(np.diff(costs, axis=1).ravel(), *ends, np.concatenate([between, between, np.full(len(later), np.inf)]))
    return on.reshape(count, steps).sum(1)


def _pairs(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of two nodes' switches."""
    first, second = np.divmod(np.arange(steps**2), steps)
    return first, second


def potts(
    costs: np.ndarray, first: np.ndarray, second: np.ndarray, weights: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """(N,) labels of low Σ costs[i, label_i] + Σ weights·[label of first ≠ label of second], by alpha-expansion.

    Each label in turn is offered to all nodes, by one cut, until none of them lowers the energy (Boykov, Veksler &
    Zabih, PAMI 2001). Two labels: the least energy. More: at most twice the least, where no cost is negative.

    Args:
        costs: (N, L); infinite: a label that a node does not take.
        first, second: (E,) nodes.
        weights: (E,) ≥ 0.
        labels: (N,) to start from; of finite costs.
    """
    unchanged, label = 0, 0
    best = potts_energy(costs, first, second, weights, labels)
    while unchanged < costs.shape[1]:
        offered = np.where(_expand(costs, first, second, weights, labels, label), label, labels)
        energy = potts_energy(costs, first, second, weights, offered)
        unchanged += 1
        if energy < best - 1e-9 * (1 + abs(best)):
            labels, best, unchanged = offered, energy, 1
        label = (label + 1) % costs.shape[1]
    return labels


def potts_energy(
    costs: np.ndarray, first: np.ndarray, second: np.ndarray, weights: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """(...) what `potts` lowers, of (..., N) labels."""
    differ = labels[..., first] != labels[..., second]
    return costs[np.arange(len(costs)), labels].sum(-1) + (weights * differ).sum(-1)


def _expand(
    costs: np.ndarray, first: np.ndarray, second: np.ndarray, weights: np.ndarray, labels: np.ndarray, label: int
) -> np.ndarray:
    """(N,) bool: which nodes take a label that is offered to all."""
    count = len(costs)
    differ = weights * (labels[first] != labels[second])  # both keep theirs
    only_first, only_second = weights * (labels[second] != label), weights * (labels[first] != label)
    gains = costs[:, label] - costs[np.arange(count), labels]
    gains = gains - np.bincount(first, only_second, count) + np.bincount(second, only_second - differ, count)
    return binary(gains, first, second, only_first + only_second - differ)
