"""How soon adaptation reaches a quality: target AP50 against time and images, beside Adaptive Teacher's structure."""

from __future__ import annotations

import argparse
import io
import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from rich.console import Console

from benchmarks.burn_in import borrow
from benchmarks.compare import check_overrides, check_paths, check_settings, command_of
from benchmarks.curves import rows_of, save_figure
from benchmarks.passes import Passes, detectron2_version
from benchmarks.timing import thread_words
from lossmix_det.config import Config, load_config
from lossmix_det.errors import UserError
from lossmix_det.files import write_atomically
from lossmix_det.report.run_folder import RunFolder
from lossmix_det.structures import StepBatch
from lossmix_det.training.launch import launch
from lossmix_det.training.trainer import Trainer

log = logging.getLogger(__name__)

CONFIGS = Path("configs/shapes_adapt")
SETTINGS = (
    *("model.engine=detectron2", "model.detectron2_config=configs/detectron2/small_fpn.yaml"),
    *("data.views=[weak,strong]", "train.eval_every=50", "train.log_every=10", "train.steps=1300"),
    *("shapes.train_images=100", "shapes.test_images=100"),
)


class AdaptiveTeacherStructure(Trainer):
    """A run whose adaptation takes the passes of Adaptive Teacher's code in place of ours."""

    def learn(self, batch: StepBatch) -> dict[str, float]:
        """As `Trainer.learn`."""
        if not self.state.adapting:
            return super().learn(batch)
        with self.fabric.autocast():
            loss = Passes(self.state, self.config).adaptive_teacher_loss(batch.to(self.fabric.device))
        self.fabric.backward(loss)
        norm = self._descend()
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.schedule.step()
        losses = {"loss": float(loss.detach())}
        self.recovery.note(losses, norm)
        return {**losses, "grad_norm": norm}


@dataclass(frozen=True)
class Method:
    """A way to adapt, as a file of `CONFIGS` and the loop that runs it."""

    name: str
    config: str
    loop: type[Trainer] = Trainer


REFERENCE = Method("Adaptive Teacher's structure", "adaptive_teacher", AdaptiveTeacherStructure)
METHODS = (
    Method("ours", "adaptive_teacher"),  # the first lends its burn-in
    Method("ours, with LossMix", "adaptive_teacher_lossmix"),
    REFERENCE,
)


@dataclass(frozen=True)
class Curve:
    """A run from the hand-over to the teacher on, at each evaluation.

    Args:
        seconds: of training, evaluation left out.
        images: that the student was taught.
        scores: AP50 of the teacher on the target, in percent.
    """

    seconds: list[float]
    images: list[float]
    scores: list[float]


def curve_of(folder: Path, burn_in_steps: int) -> Curve:
    """What a run wrote to its tables."""
    seconds = images = 0.0
    spent: dict[int, tuple[float, float]] = {burn_in_steps: (0.0, 0.0)}
    before = burn_in_steps
    for row in rows_of(folder / "speed.csv"):
        step = int(row["step"])
        if step > burn_in_steps:
            part = float(row["seconds_per_step"]) * (step - before)
            seconds, images = seconds + part, images + part * float(row["images_per_s"])
            before, spent[step] = step, (seconds, images)
    scores = {}
    for row in rows_of(folder / "scores.csv"):
        values = [float(value) for name, value in row.items() if name.endswith("/AP50") and value]
        scores[int(row["step"])] = values[-1]
    steps = [step for step in sorted(spent) if step in scores]
    times = [spent[step] for step in steps]
    return Curve([time for time, _ in times], [count for _, count in times], [scores[step] for step in steps])


def time_to(curve: Curve, score: float) -> float | None:
    """Seconds until the curve, straight from evaluation to evaluation, first reaches a score; None if it never does."""
    points = list(zip(curve.seconds, curve.scores, strict=True))
    if points[0][1] >= score:
        return 0.0
    for (start, low), (end, high) in pairwise(points):
        if high >= score:
            return start + (end - start) * (score - low) / (high - low)
    return None


def measure_time_to_quality(options: argparse.Namespace, default_output: Path) -> None:
    """Train every method with every seed from the same burn-in, and write the page after each seed.

    Args:
        options: of `benchmarks.suites`.
        default_output: of the page.

    Raises:
        UserError: Detectron2 is not installed, a setting is of each run, a folder holds a run with other settings, a
            file another table, or a run was told to stop.
    """
    detectron2_version(options.suite)
    output = options.output or default_output
    check_overrides(options.overrides)
    check_paths(options, output)
    for seed in options.seeds:
        for method in METHODS:
            config = _config_of(method, seed, options)
            check_settings(Path(config.output_dir), config)
    curves: list[dict[str, Curve]] = []
    for seed in dict.fromkeys(options.seeds):
        curves.append({method.name: _train(method, seed, options) for method in METHODS})
        picture = output.with_suffix(".png")
        _draw(curves, picture)
        write_atomically(output, "\n".join(_page(curves, options, picture)) + "\n")
    log.info("wrote %s", output)


def _train(method: Method, seed: int, options: argparse.Namespace) -> Curve:
    """One run, or what it left if it has been run before."""
    config = _config_of(method, seed, options)
    folder, lender = Path(config.output_dir), _folder_of(METHODS[0], seed, options)
    if not RunFolder(folder).results:
        log.info("%s, seed %d", method.name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        if folder != lender:
            borrow(lender, folder)
        if not method.loop(config, launch(config), resume=True, console=Console(file=io.StringIO())).train():
            raise UserError(f"{folder} was told to stop; the same command goes on from there")
    return curve_of(folder, config.adaptation.burn_in_steps)


def _config_of(method: Method, seed: int, options: argparse.Namespace) -> Config:
    words = [*SETTINGS, *options.overrides, f"train.seed={seed}", f"output_dir={_folder_of(method, seed, options)}"]
    return load_config(CONFIGS / f"{method.config}.yaml", words)


def _folder_of(method: Method, seed: int, options: argparse.Namespace) -> Path:
    stem = method.config if method.loop is Trainer else "adaptive_teacher_structure"
    return options.runs / "time_to_quality" / f"{stem}_seed{seed}"


def _page(curves: Sequence[dict[str, Curve]], options: argparse.Namespace, picture: Path) -> list[str]:
    lines = [
        "# Time to quality",
        "",
        "```",
        " ".join([*thread_words(), command_of(options)]),
        "```",
        "",
        f"torch {torch.__version__}, {torch.get_num_threads()} CPU thread(s). Generated photos to clip-art, "
        "Detectron2's Faster R-CNN with a small FPN. All methods begin adaptation at the end of the same burn-in. The "
        "time is that of training from there on, evaluation left out. *Time to*: how long a method takes to reach the "
        f"AP50 at which {REFERENCE.name} ends, over the time of all its steps; straight lines between evaluations. "
        f"Mean ± standard deviation over {len(curves)} seed(s).",
        "",
        f"| | seconds of a step | AP50 at the hand-over | AP50 at the end | time to, of that of {REFERENCE.name} |",
        "|---|---:|---:|---:|---:|",
    ]
    for method in METHODS:
        of_method = [of_seed[method.name] for of_seed in curves]
        per_step = [curve.seconds[-1] / _steps(options) for curve in of_method]
        ratios = [_ratio(of_seed, method) for of_seed in curves]
        reached = [ratio for ratio in ratios if ratio is not None]
        cells = [_mean(per_step, ".2f"), *(_mean([curve.scores[at] for curve in of_method], ".1f") for at in (0, -1))]
        cells.append(f"{_mean(reached, '.2f')} ({len(reached)} of {len(ratios)} reach it)" if reached else "never")
        lines.append(f"| {method.name} | " + " | ".join(cells) + " |")
    return [*lines, "", f"![AP50 of the target against time and images]({picture.name})"]


def _steps(options: argparse.Namespace) -> int:
    """Steps of adaptation."""
    config = load_config(CONFIGS / "adaptive_teacher.yaml", [*SETTINGS, *options.overrides])
    return config.train.steps - config.adaptation.burn_in_steps


def _ratio(of_seed: dict[str, Curve], method: Method) -> float | None:
    theirs = of_seed[REFERENCE.name]
    time = time_to(of_seed[method.name], theirs.scores[-1])
    return None if time is None else time / theirs.seconds[-1]


def _mean(values: list[float], form: str) -> str:
    mean = format(statistics.mean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):{form}}"


def _draw(curves: Sequence[dict[str, Curve]], path: Path) -> None:
    """AP50 against seconds and against images; thin lines are seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
    for axis, (name, label) in zip(
        axes, {"seconds": "seconds of training", "images": "images taught"}.items(), strict=True
    ):
        axis.set_xlabel(label)
        for number, method in enumerate(METHODS):
            for index, of_seed in enumerate(curves):
                curve = of_seed[method.name]
                axis.plot(
                    getattr(curve, name),
                    curve.scores,
                    color=f"C{number}",
                    linewidth=1.2,
                    label=None if index else method.name,
                )
    axes[0].set_ylabel("AP50 of the teacher on the target")
    axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(METHODS), fontsize=8, frameon=False)
    save_figure(figure, path)
