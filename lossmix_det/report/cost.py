"""What a LossMix step, loading and the average cost, in pairs of measurements on the same images."""

from __future__ import annotations

import argparse
from pathlib import Path


def measure_cost(options: argparse.Namespace, default_output: Path) -> None:
    raise NotImplementedError
