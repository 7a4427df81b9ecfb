"""Measuring how long things take, and how that is written."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

# By kind of device: wait until it has done its work.
FINISH: dict[str, Callable[[], None]] = {"cpu": lambda: None, "cuda": torch.cuda.synchronize}


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of an action, the device's work included."""
    FINISH[device.type]()
    started = time.perf_counter()
    action()
    FINISH[device.type]()
    return time.perf_counter() - started


def ratio(above: list[float], below: list[float]) -> str:
    """The median of the ratio of each pair of measurements, with the 10th and 90th percentile."""
    ratios = [one / other for one, other in zip(above, below, strict=True)]
    low, high = np.percentile(ratios, (10, 90))
    return f"{statistics.median(ratios):.2f} ({low:.2f}–{high:.2f})"


def command_line(suite: str, pairs: int, overrides: list[str]) -> str:
    """The command that made a page of measurements; the number of CPU threads is a part of it."""
    threads = [f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"] if "OMP_NUM_THREADS" in os.environ else []
    return " ".join([*threads, f"python tools/benchmark.py --suite {suite} --pairs {pairs}", *overrides])
