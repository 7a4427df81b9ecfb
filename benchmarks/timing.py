"""Measuring how long things take, and how that is written."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")
log = logging.getLogger(__name__)

# By kind of device: wait until it has done its work.
FINISH: dict[str, Callable[[], None]] = {"cpu": lambda: None, "cuda": torch.cuda.synchronize}


PROGRAM = ".venv/bin/python tools/benchmark.py"  # as the README sets it up


def gpu_peak(action: Callable[[], object]) -> float:
    """GiB of GPU memory at the peak of an action."""
    torch.cuda.reset_peak_memory_stats()
    action()
    return torch.cuda.max_memory_allocated() / 2**30


def seconds_of(action: Callable[[], object], device: torch.device, clock: Callable[[], float] | None = None) -> float:
    """How long an action takes, the device's work included.

    Args:
        action: what to measure.
        device: that it works on.
        clock: that tells the seconds; default: `clock_of` the device.
    """
    clock = clock or clock_of(device)
    FINISH[device.type]()
    started = clock()
    action()
    FINISH[device.type]()
    return clock() - started


def clock_of(device: torch.device) -> Callable[[], float]:
    """The CPU time of this process where one thread does all the work, else wall-clock time.

    CPU time leaves out what the process waits for; what else the machine does still slows memory down. It says nothing
    about the work of a GPU, and of several threads it is the sum.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def rounds_before(rounds: int, device: torch.device) -> range:
    """The rounds to take once without measuring.

    On a GPU these are all: it gets ready for every shape of tensor that it meets for the first time, which takes longer
    than the step. Training meets a new shape less and less often.

    Args:
        rounds: that will be measured.
        device: that they run on.
    """
    return range(rounds if device.type == "cuda" else min(rounds, 1))


def in_turns(
    take: Callable[[str, int], T], names: Sequence[str], rounds: int, device: torch.device, what: str
) -> dict[str, list[T]]:
    """What is measured of each name, round by round; they take turns, in another order every round.

    Args:
        take: measures one of the names, given the number of the round.
        names: of what is compared.
        rounds: that are measured, after those of `rounds_before`.
        device: that they run on.
        what: they are, for the log.
    """
    for number in rounds_before(rounds, device):
        for name in names:
            take(name, number)
    measured: dict[str, list[T]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            measured[name].append(take(name, number))
        log.info("%s: round %d of %d", what, number + 1, rounds)
    return measured


def device_name(gpu: bool) -> str:
    """The GPU, or how many threads of the CPU there are, for a page."""
    return torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} CPU thread(s)"


def clock_text(device: torch.device) -> str:
    """What the seconds of `seconds_of` are, as a sentence for a page."""
    return CLOCK_TEXTS[clock_of(device)]


CLOCK_TEXTS = {
    time.process_time: "Seconds are CPU time of the process, which waiting is no part of.",
    time.perf_counter: "Seconds are wall-clock time.",
}


def ratio(above: list[float], below: list[float]) -> str:
    """The median of the ratio of each pair of measurements, with the 10th and 90th percentile."""
    ratios = [one / other for one, other in zip(above, below, strict=True)]
    low, high = np.percentile(ratios, (10, 90))
    return f"{statistics.median(ratios):.2f} ({low:.2f}–{high:.2f})"


def command_of(options: argparse.Namespace, *words: str) -> str:
    """The command that made a page of measurements; the number of CPU threads is a part of it.

    Args:
        options: of `benchmarks.suites`.
        words: of the options that only this suite has.
    """
    words = ("--suite", options.suite, *words, "--pairs", str(options.pairs))
    words += ("--output", str(options.output)) if options.output else ()
    return " ".join([*thread_words(), PROGRAM, shlex.join([*words, *options.overrides])])


def thread_words() -> list[str]:
    """What stands before a command where the number of CPU threads is set."""
    return [f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"] if "OMP_NUM_THREADS" in os.environ else []
