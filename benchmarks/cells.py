"""What the cells of tables are made of."""

from __future__ import annotations

import statistics
from typing import Any


def score_of(scores: dict[str, Any], name: str, metric: str = "AP50") -> float | None:
    """Of a test set or class; None where the run did not test on it, or there was nothing to find."""
    return scores.get(name, {}).get(metric)


def gain_of(one: dict[str, Any], other: dict[str, Any], name: str, metric: str = "AP50") -> float | None:
    """A score of one run minus that of another, where both have it."""
    values = score_of(one, name, metric), score_of(other, name, metric)
    return None if None in values else values[0] - values[1]


def cell_of(given: list[float | None], error: bool = False) -> str:
    """Mean and spread of what there is: a standard deviation, or with a sign and the standard error."""
    values = [value for value in given if value is not None]
    if not values:
        return "–"
    sign = "+" if error else ""
    if len(values) == 1:
        return f"{values[0]:{sign}.1f}"
    spread = statistics.stdev(values) / (len(values) ** 0.5 if error else 1)
    return f"{statistics.mean(values):{sign}.1f} ± {spread:.1f}"


def text_of(name: str) -> str:
    """A name of the user's as it may stand in a cell."""
    return name.replace("|", "\\|")
