"""Pictures of what the student is taught, drawn from real batches by the training code itself."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
from lightning_fabric import Fabric
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lossmix_det.adaptation.labeller import Labeller
from lossmix_det.commands.train import parse
from lossmix_det.config import Config, load_config
from lossmix_det.data.catalog import load, load_target
from lossmix_det.data.loaders import target_loader, training_loader
from lossmix_det.engines import build_detector
from lossmix_det.errors import UserError
from lossmix_det.evaluation.drawing import COLOURS, bare, draw_instances, save
from lossmix_det.mixing.rules import RULES
from lossmix_det.structures import StepBatch
from lossmix_det.training.phases import Adaptation, BurnIn, Lesson, SourceOnly
from lossmix_det.training.state import start_from

log = logging.getLogger(__name__)

TRUTH, PSEUDO = COLOURS[:2]


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw a batch as the student sees it.")
    parser.add_argument("--config-file", metavar="FILE", help="YAML; default: the generated `shapes` benchmark")
    parser.add_argument("--output", type=Path, default=Path("mixing.png"), help="picture to write")
    parser.add_argument("--images", type=int, default=4, help="images of each rule")
    parser.add_argument(
        "--rules", nargs="+", choices=[*RULES], default=["lossmix", "lossmix_instance", "union", "noise"]
    )
    parser.add_argument(
        "--teacher", metavar="FILE", help="checkpoint or export: draw burn-in and adaptation to data.target with it"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parse(parser)
    config = load_config(options.config_file, [*options.overrides, f"data.batch_size={options.images}"])
    save(_phases(config, options) if options.teacher else _rules(config, options), options.output)
    log.info("wrote %s", options.output)
    return 0


def _rules(config: Config, options: argparse.Namespace) -> Figure:
    """A row for each rule; partners and λ are the same in every row."""
    sets = [load(config.data.train[0], config)]
    views, _ = next(iter(training_loader(sets, config.data, seed=config.train.seed)))
    figure, axes = _grid(len(options.rules), options.images)
    for rule, row in zip(options.rules, axes, strict=True):
        config.mixing.rule, config.mixing.probability = rule, 1.0
        lesson = SourceOnly(config.mixing).compose(StepBatch(views), np.random.default_rng(config.train.seed))
        row[0].set_ylabel(rule, fontsize=13)
        for index, axis in enumerate(row):
            draw_lesson(axis, lesson, index, sets[0].classes)
    figure.tight_layout()
    return figure


def _phases(config: Config, options: argparse.Namespace) -> Figure:
    """A step of burn-in, and one of adaptation with what the teacher makes of the target's images."""
    if not config.data.target:
        raise UserError("--teacher needs data.target, the images that it is to label")
    source = [load(config.data.train[0], config)]
    classes = source[0].classes
    target = [load_target(name, config, classes) for name in config.data.target]
    loaders = (
        training_loader(source, config.data, seed=config.train.seed),
        target_loader(target, config.data, seed=config.train.seed),
    )
    batch = StepBatch(*(next(iter(loader))[0] for loader in loaders))
    teacher = build_detector(config.model, len(classes))
    start_from(teacher, options.teacher, classes, "--teacher")
    labels, _ = Labeller(config, classes, Fabric(accelerator="cpu", devices=1)).label(
        teacher, batch.target, batch.canvas, config.train.steps
    )
    lessons = {
        "burn-in": BurnIn(config).compose(batch, np.random.default_rng(config.train.seed)),
        "adaptation": Adaptation(config).compose(batch, np.random.default_rng(config.train.seed), labels),
    }
    columns = max(len(lesson.images) for lesson in lessons.values())
    figure, axes = _grid(len(lessons), columns)
    for (name, lesson), row in zip(lessons.items(), axes, strict=True):
        row[0].set_ylabel(name, fontsize=13)
        for index, axis in enumerate(row):
            if index < len(lesson.images):
                draw_lesson(axis, lesson, index, classes)
            else:
                axis.axis("off")
    figure.tight_layout()
    return figure


def _grid(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    return plt.subplots(rows, columns, figsize=(2.6 * columns, 2.9 * rows), squeeze=False)


def draw_lesson(axis: Axes, lesson: Lesson, index: int, classes: list[str]) -> None:
    """One student image with the boxes of each truth that it is taught; the title gives the weights.

    Truths of the image itself and of its partner have a colour each; in a lesson with a target, the annotated and the
    pseudo-labelled have.
    """
    height, width = lesson.images.sizes[index]
    axis.imshow(lesson.images.pixels[index, :, :height, :width].permute(1, 2, 0).clamp(0, 1).numpy())
    bare(axis)
    weights, kinds = [], []
    supervisions = [(name, each) for name, parts in lesson.supervisions.items() for each in parts]
    for place, (name, supervision) in enumerate(supervisions):
        weight = float(supervision.class_weights[index])
        if not weight:
            continue
        kinds.append(name)
        weights.append(f"{weight:.2f}")
        truth = supervision.truths[index]
        colour = COLOURS[place % len(COLOURS)]
        if lesson.domains is not None:
            colour = TRUTH if truth.scores is None else PSEUDO
        draw_instances(axis, truth, classes, colour, weight)
    kind = "" if lesson.domains is None else (kinds or ["nothing taught"])[0] + ", "
    axis.set_title(f"{kind}weights " + ", ".join(weights) if weights else kind.rstrip(", "), fontsize=9)
