"""Pictures of what the student is taught, drawn from real batches by the training code itself."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window, also where there is a screen

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from lossmix_det.cli import parse
from lossmix_det.config import load_config
from lossmix_det.data.catalog import load
from lossmix_det.data.loaders import training_loader
from lossmix_det.mixing.supervision import RULES
from lossmix_det.phases import Lesson, SourceOnly
from lossmix_det.structures import Instances, StepBatch

log = logging.getLogger(__name__)

COLOURS = ("#e6550d", "#3182bd", "#31a354", "#756bb1")  # by truth


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw a batch as the student sees it.")
    parser.add_argument("--config-file", metavar="FILE", help="YAML; default: the generated `shapes` benchmark")
    parser.add_argument("--output", type=Path, default=Path("mixing.png"), help="picture to write")
    parser.add_argument("--images", type=int, default=4, help="images of each rule")
    parser.add_argument(
        "--rules", nargs="+", choices=[*RULES], default=["lossmix", "lossmix_instance", "union", "noise"]
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parse(parser)
    config = load_config(options.config_file, [*options.overrides, f"data.batch_size={options.images}"])
    sets = [load(config.data.train[0], config)]
    views, _ = next(iter(training_loader(sets, config.data, seed=config.train.seed)))
    figure, axes = plt.subplots(
        len(options.rules), options.images, figsize=(2.6 * options.images, 2.9 * len(options.rules)), squeeze=False
    )
    for rule, row in zip(options.rules, axes, strict=True):
        config.mixing.rule, config.mixing.probability = rule, 1.0
        # The same generator for each rule: partners and λ are the same in every row.
        lesson = SourceOnly(config.mixing).compose(StepBatch(views), np.random.default_rng(config.train.seed))
        row[0].set_ylabel(rule, fontsize=13)
        for index, axis in enumerate(row):
            draw_lesson(axis, lesson, index, sets[0].classes)
    figure.tight_layout()
    figure.savefig(options.output, dpi=64)
    plt.close(figure)
    log.info("wrote %s", options.output)
    return 0


def draw_lesson(axis: Axes, lesson: Lesson, index: int, classes: list[str]) -> None:
    """One student image with the boxes of each truth in its colour; the title gives the weight of each truth."""
    height, width = lesson.images.sizes[index]
    axis.imshow(lesson.images.pixels[index, :, :height, :width].permute(1, 2, 0).clamp(0, 1).numpy())
    axis.set_xticks([])
    axis.set_yticks([])
    weights = []
    supervisions = [supervision for parts in lesson.supervisions.values() for supervision in parts]
    for colour, supervision in zip(COLOURS, supervisions, strict=False):
        weight = float(supervision.class_weights[index])
        if weight:
            weights.append(f"{weight:.2f}")
            draw_instances(axis, supervision.truths[index], classes, colour, weight)
    axis.set_title("weights " + ", ".join(weights), fontsize=9)


def draw_instances(axis: Axes, instances: Instances, classes: list[str], colour: str, weight: float) -> None:
    """Boxes with class names, the fainter the less they weigh; weights or scores of single boxes are written out."""
    values = instances.weights if instances.weights is not None else instances.scores
    for place, (x1, y1, x2, y2) in enumerate(instances.boxes.tolist()):
        strength = weight if values is None else float(values[place])
        text = classes[int(instances.classes[place])] + ("" if values is None else f" {strength:.2f}")
        alpha = 0.35 + 0.65 * min(strength, 1.0)
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=2, alpha=alpha))
        outline = [withStroke(linewidth=2, foreground="white")]
        axis.text(x1, y1 - 1, text, color=colour, fontsize=8, path_effects=outline)
