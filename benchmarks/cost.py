"""What a LossMix step, loading and the running average cost, in pairs of measurements on the same images."""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import clock_text, command_of, device_name, ratio, seconds_of
from lossmix_det.adaptation.teacher import averaged
from lossmix_det.config import Config, MixingConfig, load_config
from lossmix_det.data.catalog import load
from lossmix_det.data.loaders import training_loader
from lossmix_det.engines import Detector, build_detector, to_device
from lossmix_det.files import write_atomically
from lossmix_det.structures import StepBatch
from lossmix_det.training.optimization import build_optimizer
from lossmix_det.training.phases import SourceOnly
from lossmix_det.training.student import StudentStep

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """A model, the size of its images, and how many pairs to measure."""

    name: str
    overrides: tuple[str, ...]
    share_of_pairs: float


CASES = (
    Case("slim, 96 px, batch 4", (), 1.0),
    Case(
        "resnet18_fpn, 256 px, batch 4",
        ("model.architecture=resnet18_fpn", "data.augment.min_sizes=[256]"),
        0.25,
    ),
    Case(
        "resnet50_fpn, 384 px, batch 2",
        ("model.architecture=resnet50_fpn", "data.augment.min_sizes=[384]", "data.batch_size=2"),
        0.15,
    ),
)


MIXINGS = {"plain": MixingConfig(probability=0.0), "lossmix": MixingConfig(rule="lossmix", probability=1.0)}


class Workbench:
    """A detector with its optimizer and real batches, to take single steps on."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.sets = [load(config.data.train[0], config)]
        torch.manual_seed(0)
        detector = build_detector(config.model, len(self.sets[0].classes))
        self.detector: Detector = to_device(detector, self.device, config.train.channels_last).train()
        self.student = StudentStep(self.detector, {})
        self.optimizer = build_optimizer(self.student, config.optimizer)
        self.stream = iter(training_loader(self.sets, config.data, seed=0))

    def batch(self) -> StepBatch:
        """The next batch, on the device."""
        views, _ = next(self.stream)
        return StepBatch(views.to(self.device))

    def step(self, batch: StepBatch, mixing: MixingConfig) -> None:
        """A whole training step: mixing, forward, backward, clipping, optimizer."""
        student_batch = SourceOnly(mixing).compose(batch, np.random.default_rng(0))
        self.student.total(self.student(student_batch)).backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 10.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def measure_cost(options: argparse.Namespace, default_output: Path) -> None:
    """Measure every case and write the page.

    Args:
        options: of `benchmarks.suites`.
        default_output: of the page.
    """
    rows = [_row(case, options) for case in CASES]
    loading = _loading(load_config(None, options.overrides), options.pairs)
    gpu = torch.cuda.is_available()
    device = device_name(gpu)
    lines = [
        "# What it costs",
        "",
        "```",
        command_of(options),
        "```",
        "",
        f"torch {torch.__version__}, {device}. A LossMix step mixes every image (two truths each); plain and LossMix "
        "steps take turns on the same images; medians, with the 10th and 90th percentile of the ratio of each pair. "
        f"{clock_text(torch.device('cuda' if gpu else 'cpu'))}",
        "",
        "| model | plain step | LossMix step | ratio | EMA update, share of a plain step |",
        "|---|---:|---:|---:|---:|",
        *rows,
        "",
        *loading,
    ]
    output = options.output or default_output
    write_atomically(output, "\n".join(lines) + "\n")
    log.info("wrote %s", output)


def _row(case: Case, options: argparse.Namespace) -> str:
    log.info("measuring %s", case.name)
    bench = Workbench(load_config(None, [*case.overrides, *options.overrides]))
    pairs = max(5, round(options.pairs * case.share_of_pairs))
    plain, mixed = _step_seconds(bench, pairs)
    medians = [statistics.median(times) for times in (plain, mixed)]
    cells = [case.name, *(f"{median * 1000:.0f} ms" for median in medians), ratio(mixed, plain)]
    return "| " + " | ".join([*cells, _average_cell(bench, pairs, medians[0])]) + " |"


def _step_seconds(bench: Workbench, pairs: int) -> tuple[list[float], list[float]]:
    """Seconds of plain steps and of LossMix steps, each pair on the same batch."""
    times: dict[str, list[float]] = {name: [] for name in MIXINGS}
    for name in (*MIXINGS, *MIXINGS):
        bench.step(bench.batch(), MIXINGS[name])
    for index in range(pairs):
        batch = bench.batch()
        for name in MIXINGS if index % 2 else reversed(MIXINGS):
            mixing = MIXINGS[name]
            times[name].append(seconds_of(lambda m=mixing, b=batch: bench.step(b, m), bench.device))
    return times["plain"], times["lossmix"]


def _average_cell(bench: Workbench, pairs: int, plain_seconds: float) -> str:
    average = averaged(bench.detector, load_config(None, ["ema.decay=0.999"]).ema)
    times = [seconds_of(lambda: average.update_parameters(bench.detector), bench.device) for _ in range(pairs + 2)]
    median = statistics.median(times[2:])
    return f"{median / plain_seconds:.1%} ({median * 1000:.1f} ms)"


def _loading(config: Config, pairs: int) -> list[str]:
    """Images per second that the loader gives and that the slim model takes, measured in turns."""
    bench, size, mixing = Workbench(config), config.data.batch_size, MIXINGS["lossmix"]
    clock = time.perf_counter  # other processes load
    stream = iter(training_loader(bench.sets, config.data, seed=1))
    rates: dict[str, list[float]] = {"loader": [], "model": []}
    for _ in range(12):  # past what the loading processes had ready
        bench.step(bench.batch(), mixing)
        next(stream)
    for _ in range(max(pairs // 4, 3)):
        batches = [bench.batch() for _ in range(4)]
        learning = seconds_of(lambda b=batches: [bench.step(batch, mixing) for batch in b], bench.device, clock)
        rates["model"].append(4 * size / learning)
        for _ in range(2 * 4 * config.data.workers):  # drained first, so that what is timed was loaded meanwhile
            next(stream)
        loading = seconds_of(lambda: [next(stream) for _ in range(60)], bench.device, clock)
        rates["loader"].append(60 * size / loading)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return [
        f"Loading with {config.data.workers} process(es) and views {config.data.views} gives {medians['loader']:.0f} "
        f"images/s; the slim model learns from {medians['model']:.0f} images/s."
    ]
