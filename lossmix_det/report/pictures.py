"""Pictures of what the student is taught, drawn from real batches by the training code itself."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from lossmix_det.cli import parse
from lossmix_det.config import load_config
from lossmix_det.data.catalog import load
from lossmix_det.data.loaders import training_loader
from lossmix_det.drawing import COLOURS, bare, draw_instances, save
from lossmix_det.mixing.supervision import RULES
from lossmix_det.phases import Lesson, SourceOnly
from lossmix_det.structures import StepBatch

log = logging.getLogger(__name__)


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
    save(figure, options.output)
    log.info("wrote %s", options.output)
    return 0


def draw_lesson(axis: Axes, lesson: Lesson, index: int, classes: list[str]) -> None:
    """One student image with the boxes of each truth in its colour; the title gives the weight of each truth."""
    height, width = lesson.images.sizes[index]
    axis.imshow(lesson.images.pixels[index, :, :height, :width].permute(1, 2, 0).clamp(0, 1).numpy())
    bare(axis)
    weights = []
    supervisions = [supervision for parts in lesson.supervisions.values() for supervision in parts]
    for colour, supervision in zip(COLOURS, supervisions, strict=False):
        weight = float(supervision.class_weights[index])
        if weight:
            weights.append(f"{weight:.2f}")
            draw_instances(axis, supervision.truths[index], classes, colour, weight)
    axis.set_title("weights " + ", ".join(weights), fontsize=9)
