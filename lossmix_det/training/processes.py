"""What the processes of a run agree on."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric


def everywhere(fabric: Fabric, here: bool) -> bool:
    """True if it holds on every process, so that all of them take the same branch."""
    if fabric.world_size == 1:
        return here
    return bool(fabric.strategy.reduce_boolean_decision(here, all=True))


def anywhere(fabric: Fabric, here: bool) -> bool:
    """True if it holds on any process."""
    return not everywhere(fabric, not here)


def mean_over_processes(fabric: Fabric, values: dict[str, float], names: list[str]) -> dict[str, float]:
    """The mean of each value over all processes; one that a process does not have is 0 there.

    Args:
        fabric: launched.
        values: of this process.
        names: that any process may have, in the same order everywhere.
    """
    if fabric.world_size == 1:
        return values
    rows = torch.tensor([[values.get(name, 0.0), float(name in values)] for name in names], dtype=torch.float64)
    sums, counts = fabric.all_reduce(rows.to(fabric.device), reduce_op="sum").cpu().unbind(1)
    triples = zip(names, sums.tolist(), counts.tolist(), strict=True)
    return {name: total / fabric.world_size for name, total, count in triples if count}
