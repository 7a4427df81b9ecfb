"""What each mixer costs: a whole training step beside the same step with Mixup."""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.runs import matching
from benchmarks.steps import SIZES, enlarged, longest_of, short_side_of, sizes_file
from benchmarks.sweeps import OF_A_TEACHER
from benchmarks.timing import clock_text, command_of, device_name, in_turns, ratio, seconds_of
from lossmix_det.config import Config, MixingConfig, choices, load_config
from lossmix_det.files import write_atomically
from lossmix_det.mixing.mixers import MIXERS
from lossmix_det.structures import StepBatch
from lossmix_det.training.launch import launch
from lossmix_det.training.phases import Phases
from lossmix_det.training.student_batch import StudentBatch
from lossmix_det.training.trainer import Trainer

log = logging.getLogger(__name__)

SHORT_SIDE = 600  # what papers train at
BATCHES = 4  # that the steps take turns on
REFERENCE = "mixup"
SETTINGS = (
    *("shapes.train_images=16", "shapes.test_images=2", "shapes.size=96", "data.augment.min_sizes=[96]"),
    *("data.test=[]", "data.views=[strong]", "data.workers=0", "data.batch_size=4", "model.architecture=resnet50_fpn"),
    *("mixing.rule=lossmix", "optimizer.name=sgd", "optimizer.lr=0.0", "train.steps=100000", "train.log_every=100000"),
)
ADAPTS = (
    *("data.target=[shapes_clipart_train]", "data.batch_size=2", "ema.decay=0.9996", "adaptation.burn_in_steps=0"),
    *("alignment.parts=[]", "pseudo_labels.score=0.1", "pseudo_labels.max_per_image=5"),
)


# By whether a step is one of adaptation: what is said of it.
TEXTS = {
    False: "Training on labelled images, four photos in a step.",
    True: "These need a teacher: a step of adaptation, two photos and two paintings, the teacher included.",
}


@dataclass
class Measured:
    """Seconds of a row, round by round."""

    mixing: list[float]
    step: list[float]


def rows_of(names: Iterable[str], mixing: MixingConfig) -> dict[str, MixingConfig]:
    """Settings by row: each mixer with all images mixed, once for every kind of saliency if it needs one.

    Args:
        names: of `MIXERS`.
        mixing: what the rows do not set.
    """
    rows = {}
    for name in names:
        mixed = replace(mixing, mixer=name, probability=1.0, burn_in_probability=None)
        if MIXERS[name](mixed).needs_saliency:
            for kind in choices(MixingConfig, "saliency"):
                rows[f"{name}, {kind}"] = replace(mixed, saliency=kind)
        else:
            rows[name] = mixed
    return rows


class TimedPhases(Phases):
    """Phases that keep how long they took to draw, blend and supervise."""

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config)
        self.device, self.seconds = device, 0.0

    def at(self, step: int) -> TimedPhases:
        """Itself, to be timed when it composes."""
        self.phase = super().at(step)
        self.recipe = self.phase.recipe
        return self

    def compose(self, *given: Any) -> StudentBatch:
        """As `Phase.compose`."""
        composed = []
        self.seconds = seconds_of(lambda: composed.append(self.phase.compose(*given)), self.device)
        return composed[0]


class Bench:
    """One student that the steps of all rows are taken with.

    Args:
        names: of the mixers.
        overrides: of the settings above.
        folder: for what a run writes.
        short_side: of the images, in pixels.
        adapts: with a teacher that labels target images.
        sizes: of `SIZES`.
    """

    def __init__(
        self,
        names: Iterable[str],
        overrides: list[str],
        folder: str,
        short_side: int,
        adapts: bool,
        sizes: str = "real",
    ) -> None:
        config = load_config(None, [*SETTINGS, *(ADAPTS if adapts else ()), f"output_dir={folder}", *overrides])
        self.fabric = launch(config)
        self.trainer = Trainer(config, self.fabric)
        if adapts:
            self.trainer.state.begin_adaptation(self.fabric)
        rows = {"no mixing": replace(config.mixing, probability=0.0), **rows_of(names, config.mixing)}
        self.phases = {
            name: TimedPhases(replace(config, mixing=mixing), self.fabric.device) for name, mixing in rows.items()
        }
        drawn = SIZES[sizes](config.data.batch_size, short_side)
        batches = self.trainer.streams.batches(0, lambda: False, set())
        self.batches = [self._enlarged(batch, next(drawn)) for batch, _ in islice(batches, BATCHES)]

    def _enlarged(self, batch: StepBatch, sizes: tuple) -> StepBatch:
        target = batch.target and enlarged(batch.target, sizes[1])
        return StepBatch(enlarged(batch.source, sizes[0]), target).to(self.fabric.device)

    def take(self, row: str, number: int) -> tuple[float, float]:
        """Seconds of drawing, blending and supervising, and of the whole step.

        Args:
            row: of the phases.
            number: of the round; it chooses the batch, and what is drawn.
        """
        trainer, batch = self.trainer, self.batches[number % len(self.batches)]
        trainer.phases, trainer.state.step = self.phases[row], number
        whole = seconds_of(lambda: trainer.learn(batch), self.fabric.device)
        return trainer.phases.seconds, whole


def measure(bench: Bench, rounds: int) -> dict[str, Measured]:
    """Take the steps of all rows in turns."""
    taken = in_turns(bench.take, list(bench.phases), rounds, bench.fabric.device, "mixers")
    return {name: Measured(*map(list, zip(*pairs, strict=True))) for name, pairs in taken.items()}


def measure_mixers(options: argparse.Namespace, default_output: Path) -> None:
    """Measure every mixer of `MIXERS`, or those that the options name, and write the page.

    Args:
        options: of `benchmarks.suites`.
        default_output: of the page.

    Raises:
        UserError: there is no such mixer, or no list of real sizes.
    """
    names = matching(list(MIXERS), options.methods or ["*"])
    short_side = short_side_of(options, SHORT_SIDE)
    sizes_file()  # a missing one is said before anything is measured
    lines = _head(options, short_side)
    for adapts, text in TEXTS.items():
        chosen = [name for name in names if (name in OF_A_TEACHER) == adapts]
        if chosen:
            lines += [text, "", *_table(options, short_side, chosen, adapts), ""]
    output = options.output or default_output
    write_atomically(output, "\n".join(lines))
    log.info("wrote %s", output)


def _head(options: argparse.Namespace, short_side: int) -> list[str]:
    """The page up to its first table."""
    gpu = torch.cuda.is_available()
    device = device_name(gpu)
    words = ["--short-side", str(options.short_side)] if options.short_side else []
    words += ["--methods", *options.methods] if options.methods else []
    return [
        "# What each mixer costs",
        "",
        "```",
        command_of(options, *words),
        "```",
        "",
        f"torch {torch.__version__}, {device}. A whole training step: draw, blend and supervise, forward, backward, "
        "clipping, optimizer. torchvision's Faster R-CNN with R50-FPN, weights at random; sizes drawn from 500 photos "
        f"of PASCAL VOC and 500 paintings as training draws them, the short side {short_side} pixels, the long one at "
        f"most {longest_of(short_side)}. Every image is mixed (`mixing.probability=1`), with the rule `lossmix`. The "
        "steps take turns on the same images and model; medians, and the 10th and 90th percentile of the ratio of each "
        f"round. {clock_text(torch.device('cuda' if gpu else 'cpu'))}",
        "",
    ]


def _table(options: argparse.Namespace, short_side: int, names: list[str], adapts: bool) -> list[str]:
    names = list(dict.fromkeys([REFERENCE, *names]))
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Bench(names, options.overrides, folder, short_side, adapts), options.pairs)
    lines = ["| mixer, saliency | draw, blend, supervise | step | step / Mixup's step |", "|---|---:|---:|---:|"]
    for name, row in measured.items():
        mixing, step = (statistics.median(values) for values in (row.mixing, row.step))
        compared = ratio(row.step, measured[REFERENCE].step)
        lines.append(f"| {name} | {mixing:.3f} s | {step:.2f} s | {compared} |")
    return lines
