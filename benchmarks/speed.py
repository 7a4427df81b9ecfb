"""A whole adaptation step beside plain Detectron2 and beside Adaptive Teacher's step structure, on the same images."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.passes import detectron2_version
from benchmarks.steps import (
    NETWORKS,
    SIZES,
    STEPS,
    Bench,
    Setup,
    frame_of,
    longest_of,
    pixels_per_pixel,
    short_side_of,
    sizes_file,
)
from benchmarks.timing import clock_text, command_of, device_name, in_turns, ratio
from lossmix_det.files import write_atomically

log = logging.getLogger(__name__)

SHORT_SIDE = 600  # what Adaptive Teacher trains at


@dataclass
class Measured:
    """Seconds of each step, and GiB at its peak."""

    seconds: dict[str, list[float]]
    memory: dict[str, float]
    pixels: float


def measure(setup: Setup, rounds: int, memory_too: bool = True) -> Measured:
    """Take the steps in turns, in another order every round.

    Args:
        setup: what to measure on.
        rounds: how often each step is measured.
        memory_too: measure the memory of each step as well, which takes two more steps of each.
    """
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(setup, folder)
        pixels = pixels_per_pixel(bench)

        def take(name: str, number: int) -> float:
            bench.done = number
            return bench.seconds(STEPS[name])

        what = f"{setup.network}, {setup.sizes} sizes"
        seconds = in_turns(take, list(STEPS), rounds, bench.fabric.device, what)
        memory = MEMORY[bench.fabric.device.type](bench, setup) if memory_too else {}
    return Measured(seconds, memory, pixels)


def _peaks_on_gpu(bench: Bench, setup: Setup) -> dict[str, float]:
    return {name: bench.gpu_peak(step) for name, step in STEPS.items()}


def _peaks_of_processes(bench: Bench, setup: Setup) -> dict[str, float]:
    return {name: _peak_of_process(setup, name) for name in STEPS}


# By kind of device: GiB at the peak of each step.
MEMORY = {"cpu": _peaks_of_processes, "cuda": _peaks_on_gpu}


def _peak_of_process(setup: Setup, name: str) -> float:
    """Peak memory of a process of its own, which takes one such step."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_one_step, (setup, name))


MEASURED = {True: "the GPU", False: "a process of its own, libraries included"}


def _one_step(setup: Setup, name: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(setup, folder)
        for bench.done in range(2):  # momenta come with the first
            bench.seconds(STEPS[name])
    return _peak()


def _peak() -> float:
    """GiB of this program alone; Linux carries ``ru_maxrss`` over from the process that started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_speed(options: argparse.Namespace, default_output: Path) -> None:
    """Measure every network and write the page.

    Args:
        options: of `benchmarks.suites`.
        default_output: of the page.

    Raises:
        UserError: Detectron2 is not installed.
    """
    version = detectron2_version(options.suite)
    short_side = short_side_of(options, SHORT_SIDE)
    lines = _head(options, short_side, version)
    sizes_file()  # a missing one is said before anything is measured
    for network in options.networks:
        for sizes in options.sizes:
            setup = Setup(network, sizes, short_side, tuple(options.overrides))
            measured = measure(setup, options.pairs, not options.no_memory)
            lines.append(_row(f"{network}, {sizes}", measured))
    output = options.output or default_output
    write_atomically(output, "\n".join(lines) + "\n")
    log.info("wrote %s", output)


def _words(options: argparse.Namespace) -> list[str]:
    """The options of this suite that were given."""
    words = ["--short-side", str(options.short_side)] if options.short_side else []
    words += ["--networks", *options.networks] if options.networks != list(NETWORKS) else []
    words += ["--sizes", *options.sizes] if options.sizes != list(SIZES) else []
    return [*words, *(["--no-memory"] if options.no_memory else [])]


def _head(options: argparse.Namespace, short_side: int, detectron2_version: str) -> list[str]:
    """The page up to the rows of its table."""
    gpu = torch.cuda.is_available()
    device = device_name(gpu)
    height, width = frame_of(short_side)
    return [
        "# What a whole adaptation step costs",
        "",
        "```",
        command_of(options, *_words(options)),
        "```",
        "",
        f"torch {torch.__version__}, Detectron2 {detectron2_version}, {device}; B = 2 source and 2 target images, "
        "weak and strong views, weights at random. R50-C4 has 2 FC layers on res4. "
        f"*Equal*: all of {height}×{width} pixels. *Real*: sizes drawn from 500 photos of PASCAL VOC and 500 "
        f"paintings as training draws them, the short side {short_side} pixels, the long one at most "
        f"{longest_of(short_side)}. The steps take turns on the same images and model; medians, and the 10th and 90th "
        f"percentile of the ratio of each round. {clock_text(torch.device('cuda' if gpu else 'cpu'))} "
        "Ours keeps its convolutions channels last where `train.channels_last` does (left alone: on CPUs), the "
        "others in Detectron2's own layout."
        + ("" if options.no_memory else f" Memory is the peak of {MEASURED[gpu]}."),
        "",
        *(f"* {step.text[0].upper()}{step.text[1:]}: *{name}*." for name, step in STEPS.items()),
        "",
        "Pixels: those that pass through our student's backbone for each that its images have.",
        "",
        "| network, sizes | floor | ours | ours / floor | adaptive_teacher | adaptive_teacher / ours | pixels | "
        "memory of each |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]


def _row(network: str, measured: Measured) -> str:
    seconds, memory = measured.seconds, measured.memory
    median = {name: f"{statistics.median(values):.2f} s" for name, values in seconds.items()}
    cells = [network, median["floor"], median["ours"], ratio(seconds["ours"], seconds["floor"])]
    cells += [median["adaptive_teacher"], ratio(seconds["adaptive_teacher"], seconds["ours"])]
    cells.append(f"{measured.pixels:.2f}")
    cells.append(" / ".join(f"{memory[name]:.2f}" for name in STEPS) + " GiB" if memory else "not measured")
    return "| " + " | ".join(cells) + " |"
