"""What a LossMix step, loading and the average cost, in pairs of measurements on the same images."""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

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


class Workbench:
    """A detector with its optimizer and real batches, to take single steps on."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.sets = [load(config.data.train[0], config)]
        torch.manual_seed(0)
        detector = build_detector(config.model, len(self.sets[0].classes))
        self.detector: Detector = to_device(detector, torch.device(self.device), config.train.channels_last).train()
        self.student = StudentStep(self.detector, {})
        self.optimizer = build_optimizer(self.student, config.optimizer)
        self.stream = iter(training_loader(self.sets, config.data, seed=0))
        self.plain_seconds = float("nan")

    def batch(self) -> StepBatch:
        views, _ = next(self.stream)
        return StepBatch(views.to(self.device))

    def step(self, batch: StepBatch, mixing: MixingConfig) -> None:
        """A whole training step: mixing, forward, backward, clipping, optimizer."""
        student_batch = SourceOnly(mixing).compose(batch, np.random.default_rng(0))
        self.student.total(self.student(student_batch)).backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 10.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def seconds(self, action: Callable[[], object]) -> float:
        """Wall-clock time of an action, the GPU's work included."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        action()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started


def measure_cost(options: argparse.Namespace, default_output: Path) -> None:
    """Measure every case and write the page."""
    rows = []
    for case in CASES:
        log.info("measuring %s", case.name)
        bench = Workbench(load_config(None, [*case.overrides, *options.overrides]))
        pairs = max(5, round(options.pairs * case.share_of_pairs))
        rows.append(f"| {case.name} | {_step_cells(bench, pairs)} | {_average_cell(bench, pairs)} |")
    loading = _loading(load_config(None, options.overrides), options.pairs)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    threads = [f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"] if "OMP_NUM_THREADS" in os.environ else []
    lines = [
        "# What it costs",
        "",
        "```",
        " ".join([*threads, "python tools/benchmark.py --suite cost", f"--pairs {options.pairs}", *options.overrides]),
        "```",
        "",
        f"torch {torch.__version__}, {device}. A LossMix step mixes every image (two truths each); plain and LossMix "
        "steps take turns on the same images; medians, with the 10th and 90th percentile of the ratio of each pair.",
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


def _step_cells(bench: Workbench, pairs: int) -> str:
    plain, mixed = MixingConfig(probability=0.0), MixingConfig(rule="lossmix", probability=1.0)
    for mixing in (plain, mixed) * 2:
        bench.step(bench.batch(), mixing)
    times: dict[str, list[float]] = {"none": [], "lossmix": []}
    for index in range(pairs):
        batch = bench.batch()
        for mixing in (plain, mixed) if index % 2 else (mixed, plain):
            times[mixing.rule].append(bench.seconds(lambda m=mixing, b=batch: bench.step(b, m)))
    ratios = [two / one for one, two in zip(times["none"], times["lossmix"], strict=True)]
    low, high = np.percentile(ratios, (10, 90))
    medians = [statistics.median(times[rule]) * 1000 for rule in ("none", "lossmix")]
    bench.plain_seconds = medians[0] / 1000
    return f"{medians[0]:.0f} ms | {medians[1]:.0f} ms | {statistics.median(ratios):.2f} ({low:.2f}–{high:.2f})"


def _average_cell(bench: Workbench, pairs: int) -> str:
    average = averaged(bench.detector, load_config(None, ["ema.decay=0.999"]).ema)
    seconds = [bench.seconds(lambda: average.update_parameters(bench.detector)) for _ in range(pairs + 2)][2:]
    return f"{statistics.median(seconds) / bench.plain_seconds:.1%} ({statistics.median(seconds) * 1000:.1f} ms)"


def _loading(config: Config, pairs: int) -> list[str]:
    """Images per second that the loader gives and the slim model takes, one after the other, in turns."""
    bench = Workbench(config)
    rates: dict[str, list[float]] = {"loader": [], "model": []}
    stream = iter(training_loader(bench.sets, config.data, seed=1))
    size = config.data.batch_size
    mixing = MixingConfig(rule="lossmix", probability=1.0)
    for _ in range(12):  # past what the loading processes had ready
        bench.step(bench.batch(), mixing)
        next(stream)
    for _ in range(max(pairs // 4, 3)):
        batches = [bench.batch() for _ in range(4)]
        rates["model"].append(4 * size / bench.seconds(lambda b=batches: [bench.step(x, mixing) for x in b]))
        ready = 2 * 4 * config.data.workers  # drained first, so that what is timed was loaded meanwhile
        for _ in range(ready):
            next(stream)
        rates["loader"].append(60 * size / bench.seconds(lambda: [next(stream) for _ in range(60)]))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return [
        f"Loading with {config.data.workers} process(es) and views {config.data.views} gives {medians['loader']:.0f} "
        f"images/s; the slim model learns from {medians['model']:.0f} images/s."
    ]
