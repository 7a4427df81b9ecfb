"""Labellings of least energy, held to a search through all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lossmix_det.mixing.graph_cuts import binary, grid_edges, levels, potts, potts_energy

SHAPES = [(3, 3), (2, 4), (1, 5), (1, 1)]


def labellings(count: int, labels: int) -> np.ndarray:
    """All of them, (labels^count, count)."""
    return np.array(list(itertools.product(range(labels), repeat=count)))


def problem(seed: int, shape: tuple[int, int], labels: int):
    """Random costs of either sign and random weights, some of which are 0."""
    rng = np.random.default_rng(seed)
    first, second = grid_edges(*shape)
    weights = rng.random(len(first)) * rng.integers(0, 2, len(first)) * rng.choice([0.1, 1, 10])
    return rng.normal(size=(shape[0] * shape[1], labels)), first, second, weights


def energies(costs, first, second, weights, all_of_them, distance) -> np.ndarray:
    unary = costs[np.arange(len(costs)), all_of_them].sum(1)
    return unary + (weights * distance(all_of_them[:, first], all_of_them[:, second])).sum(1)


def test_neighbours_of_a_grid_worked_by_hand():
    first, second = grid_edges(2, 3)
    assert list(zip(first, second, strict=True)) == [(0, 3), (1, 4), (2, 5), (0, 1), (1, 2), (3, 4), (4, 5)]


def test_a_cut_worked_by_hand():
    """Node 0 wants to be true by 3, node 1 false by 2; a true node 0 before a false node 1 costs the capacity."""
    edge = np.array([0]), np.array([1])
    for capacity, expected in ((1.0, [True, False]), (2.5, [True, True]), (np.inf, [True, True])):
        assert binary(np.array([-3.0, 2.0]), *edge, np.array([capacity])).tolist() == expected
    assert binary(np.array([-3.0, np.inf]), *edge, np.array([4.0])).tolist() == [False, False]
    assert binary(np.array([0.0, 0.0]), *edge, np.array([1.0])).tolist() == [False, False]  # of a tie, the fewest


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(10))
def test_a_cut_has_the_least_energy_of_two_labels(seed, shape):
    costs, first, second, capacities = problem(seed, shape, 1)
    every = labellings(len(costs), 2)
    total = every @ costs[:, 0] + (every[:, first] * (1 - every[:, second]) * capacities).sum(1)
    found = binary(costs[:, 0], first, second, capacities)
    assert total[(every == found).all(1)] == pytest.approx(total.min())


@pytest.mark.parametrize(("shape", "labels"), [((3, 3), 2), ((3, 3), 3), ((2, 3), 4), ((1, 1), 3), ((1, 4), 5)])
@pytest.mark.parametrize("seed", range(10))
def test_levels_have_the_least_energy(seed, shape, labels):
    given = problem(seed, shape, labels)
    total = energies(*given, labellings(len(given[0]), labels), lambda a, b: (a - b) ** 2)
    found = levels(*given)
    assert energies(*given, found[None], lambda a, b: (a - b) ** 2) == pytest.approx(total.min())


def test_neighbours_that_weigh_much_are_alike_and_those_that_weigh_nothing_are_free():
    costs = np.array([[0.0, 1, 2], [2, 1, 0], [2, 1, 0]])
    first, second = grid_edges(1, 3)
    assert levels(costs, first, second, np.zeros(2)).tolist() == [0, 2, 2]
    assert levels(costs, first, second, np.full(2, 100.0)).tolist() == [2, 2, 2]


@pytest.mark.parametrize("seed", range(20))
def test_an_expansion_of_two_labels_has_the_least_energy(seed):
    given = problem(seed, (3, 3), 2)
    total = energies(*given, labellings(9, 2), np.not_equal)
    start = np.random.default_rng(seed).integers(0, 2, 9)
    assert potts_energy(*given, potts(*given, start)) == pytest.approx(total.min())


def test_expansions_of_three_labels_are_within_their_bound_and_mostly_least():
    """At most twice the least where costs are positive; here never above 1.1 times, and equal in nine of ten."""
    every, ratios = labellings(9, 3), []
    for seed in range(50):
        costs, *edges = problem(seed, (3, 3), 3)
        costs = costs - costs.min()
        total = energies(costs, *edges, every, np.not_equal)
        start = np.random.default_rng(seed).integers(0, 3, 9)
        found = potts_energy(costs, *edges, potts(costs, *edges, start))
        assert total.min() - 1e-6 <= found <= potts_energy(costs, *edges, start) + 1e-9
        ratios.append(found / total.min())
    assert max(ratios) <= 1.1
    assert np.mean(np.array(ratios) < 1 + 1e-6) >= 0.9


def test_a_label_of_infinite_cost_is_never_taken():
    costs, first, second, weights = problem(3, (3, 3), 3)
    costs[:5, 0] = costs[2:, 2] = np.inf
    found = potts(costs, first, second, weights + 10, np.ones(9, dtype=int))
    assert np.isfinite(costs[np.arange(9), found]).all()
