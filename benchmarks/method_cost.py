"""What a step of each method of a comparison costs: the methods take turns on their own data and weights."""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
from itertools import islice
from pathlib import Path

import torch

from benchmarks.runs import Method, Suite
from benchmarks.timing import clock_text, command_of, device_name, in_turns, ratio, seconds_of
from lossmix_det.config import Config, load_config
from lossmix_det.files import write_atomically
from lossmix_det.training.launch import launch
from lossmix_det.training.trainer import Trainer

log = logging.getLogger(__name__)

BATCHES = 4  # that the steps take turns on
# What is measured is a step and nothing else; no weight changes, so that every round does the same work.
SETTINGS = (
    *("data.test=[]", "train.report=false", "train.log_every=100000"),
    *("optimizer.lr=0.0", "optimizer.restart_lr=null"),
)
OF_ADAPTATION = "adaptation."  # settings that a method without a target does not have


def config_of(method: Method, words: list[str]) -> Config:
    """The configuration of a method without burn-in; settings of adaptation are left out where there is no target."""
    shared = [word for word in words if not word.startswith(OF_ADAPTATION)]
    of_method = load_config(method.config, [*method.overrides, *shared])
    if not of_method.data.target:
        return of_method
    return load_config(method.config, [*method.overrides, "adaptation.burn_in_steps=0", *words])


class MethodBench:
    """One method at the beginning of its adaptation, or of its training if it has no target.

    Args:
        method: of a suite.
        overrides: of its settings; with ``adaptation.burn_in_from`` its weights are those of a burned-in detector.
        folder: for what a run writes.
    """

    def __init__(self, method: Method, overrides: list[str], folder: Path) -> None:
        config = config_of(method, [*SETTINGS, f"output_dir={folder / method.name}", *overrides])
        self.fabric = launch(config)
        self.trainer = Trainer(config, self.fabric)
        if config.data.target:
            self.trainer.state.begin_adaptation(self.fabric)
        drawn = self.trainer.streams.batches(0, lambda: False, set())
        self.batches = [batch.to(self.fabric.device) for batch, _ in islice(drawn, BATCHES)]

    def take(self, number: int) -> float:
        """Seconds of a whole step, the teacher's update included.

        Args:
            number: of the round; it chooses the batch, and what is drawn.
        """
        self.trainer.state.step = number
        return seconds_of(lambda: self._step(self.batches[number % BATCHES]), self.fabric.device)

    def _step(self, batch) -> None:
        self.trainer.learn(batch)
        if self.trainer.state.teacher is not None:
            self.trainer.state.teacher.update_parameters(self.trainer.state.detector)


def measure(benches: dict[str, MethodBench], rounds: int) -> dict[str, list[float]]:
    """Seconds of each method, which take their steps in turns."""
    device = next(iter(benches.values())).fabric.device
    return in_turns(lambda name, number: benches[name].take(number), list(benches), rounds, device, "methods")


def measure_methods(suite: Suite, options: argparse.Namespace, default_output: Path) -> None:
    """Measure the methods of a suite, or those that the options name, and write the page.

    Args:
        suite: whose methods.
        options: of `benchmarks.suites`.
        default_output: of the page.

    Raises:
        UserError: there is no such method, or its data or weights are not at hand.
    """
    names = suite.names_of(options.methods or ["*"])
    by_name = {method.name: method for method in suite.methods}
    with tempfile.TemporaryDirectory() as folder:
        benches = {name: MethodBench(by_name[name], options.overrides, Path(folder)) for name in names}
        seconds = measure(benches, options.pairs)
    output = options.output or default_output
    write_atomically(output, "\n".join([*_head(suite, options), *_table(suite, seconds), ""]))
    log.info("wrote %s", output)


def _head(suite: Suite, options: argparse.Namespace) -> list[str]:
    gpu = torch.cuda.is_available()
    device = device_name(gpu)
    words = ["--methods", *options.methods] if options.methods else []
    return [
        f"# What a step costs: {suite.title}",
        "",
        "```",
        command_of(options, *words),
        "```",
        "",
        f"torch {torch.__version__}, {device}. A whole step of each method: what the teacher sees, mixing, forward, "
        "backward, clipping, optimizer, the teacher's update; loading is left out. Methods with a target are measured "
        "in adaptation, the others in training, each on its own data: the same photos, but for the oracle. They take "
        f"turns, over as many batches as rounds, at most {BATCHES}; medians, and the 10th and 90th percentile of the "
        "ratio of each round. "
        f"{clock_text(torch.device('cuda' if gpu else 'cpu'))}",
        "",
    ]


def _table(suite: Suite, seconds: dict[str, list[float]]) -> list[str]:
    reference = next((name for name in reversed(suite.baselines) if name in seconds), next(iter(seconds)))
    lines = [f"| method | step | step / that of `{reference}` |", "|---|---:|---:|"]
    for name, values in seconds.items():
        lines.append(f"| {name} | {statistics.median(values):.2f} s | {ratio(values, seconds[reference])} |")
    return lines
