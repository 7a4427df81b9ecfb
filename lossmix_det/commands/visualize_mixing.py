"""Draw a batch as the student sees it, composed by the training code itself."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lossmix_det.commands.options import new_parser, parse, run_tool
from lossmix_det.config import Config, MixingConfig, choices, load_config
from lossmix_det.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from lossmix_det.data.records import ImageSet
    from lossmix_det.report.sheets import Picture
    from lossmix_det.structures import StepBatch, Supervision

log = logging.getLogger(__name__)

RULES = ["lossmix", "lossmix_instance", "union", "own"]
Rows = dict[str, "list[Picture]"]


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options of the command."""
    parser = new_parser("Draw mixed images with the boxes that are taught on them, and their weights.", prog)
    parser.add_argument("--output", type=Path, metavar="FILE", default=Path("mixing.png"), help="PNG file to write")
    parser.add_argument("--images", type=int, metavar="N", default=4, help="images per row")
    known = choices(MixingConfig, "rule")
    text = f"one row for each of these: {', '.join(known)}"
    parser.add_argument("--rules", nargs="+", choices=known, default=RULES, metavar="RULE", help=text)
    parser.add_argument(
        "--teacher", metavar="FILE", help="checkpoint or export: draw burn-in and adaptation to data.target with it"
    )
    parser.add_argument(
        "--sources",
        action="store_true",
        help="one row for each mixed image: what it is made of, saliency, masks, result; with --teacher in adaptation",
    )
    return parser


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(build_parser(prog), arguments)
    return run_tool(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    config = load_config(options.config_file, [*options.overrides, f"data.batch_size={options.images}"])
    from lossmix_det.data.catalog import load_to_train  # loads torch
    from lossmix_det.evaluation.drawing import save
    from lossmix_det.report.sheets import draw_sheet

    if not config.data.train:
        raise UserError("data.train is empty; name at least one data set")
    source = load_to_train(config.data.train[0], config)
    _check_stages(config, source)
    if options.sources:
        sheet = _mixed(config, source, options.teacher)
    else:
        rows = _phases(config, source, options.teacher) if options.teacher else _rules(config, source, options.rules)
        sheet = draw_sheet(rows, source.classes)
    save(sheet, options.output, colours=96)
    log.info("wrote %s", options.output)
    return 0


def _rules(config: Config, source: ImageSet, rules: list[str]) -> Rows:
    """A row for each rule; partners and λ are the same in every row."""
    import numpy as np

    from lossmix_det.training.mixed_batch import pictures_of
    from lossmix_det.training.phases import SourceOnly

    batch, rows = _source_batch(config, source), {}
    for rule in rules:
        mixing = replace(config.mixing, rule=rule, probability=1.0)
        student_batch = SourceOnly(mixing).compose(batch, np.random.default_rng(config.train.seed))
        rows[rule] = pictures_of(student_batch)[: config.data.batch_size]
    return rows


def _phases(config: Config, source: ImageSet, teacher: str) -> Rows:
    """A step of burn-in, and a step of adaptation with the teacher's pseudo-labels."""
    import numpy as np

    from lossmix_det.training.mixed_batch import pictures_of
    from lossmix_det.training.phases import Adaptation, BurnIn

    _check_target(config)
    batch = _batch(config, source)
    labels = _label(config, source.classes, teacher, batch)
    burn_in = BurnIn(config, config.mixing).compose(batch, np.random.default_rng(config.train.seed))
    adaptation = Adaptation(config, config.mixing).compose(batch, np.random.default_rng(config.train.seed), labels)
    return {"burn-in": pictures_of(burn_in), "adaptation": pictures_of(adaptation)}


def _mixed(config: Config, source: ImageSet, teacher: str | None) -> Image:
    """The images of one view of a step, all of them mixed, with what they are made of."""
    import numpy as np

    from lossmix_det.report.mixed import Drawn, draw_mixed, explain
    from lossmix_det.structures import Supervision
    from lossmix_det.training.phases import Adaptation, SourceOnly

    mixing = replace(config.mixing, probability=1.0)
    if teacher:
        _check_target(config)
        batch = _batch(config, source)
        labels = _label(config, source.classes, teacher, batch)
        phase, supervision = Adaptation(config, mixing), Supervision.full(batch.source.truths)
        supervision = Supervision.cat([supervision.scaled(config.adaptation.supervised_weight), labels])
    else:
        batch, labels = _source_batch(config, source), None
        phase, supervision = SourceOnly(mixing), Supervision.full(batch.source.truths)
    drawn: list[Drawn] = []
    phase.recipe.watch = lambda *seen: drawn.append(Drawn(*seen))
    phase.compose(batch, np.random.default_rng(config.train.seed), labels)
    if not drawn:
        raise UserError(f"mixing.views={config.mixing.views}: no view of data.views={config.data.views} is mixed")
    return draw_mixed(explain(drawn[0], supervision, phase.recipe), source.classes)


def _check_stages(config: Config, source: ImageSet) -> None:
    """Refuse stages that the detector lacks, although the pictures would not show it; only where any are mixed."""
    from lossmix_det.engines import build_detector
    from lossmix_det.mixing import Recipe
    from lossmix_det.training.phases import check_stages

    recipe = Recipe(config.mixing)
    if recipe.stages:
        check_stages(recipe, build_detector(replace(config.model, weights=""), len(source.classes)))


def _source_batch(config: Config, source: ImageSet) -> StepBatch:
    """The first batch of the source."""
    from lossmix_det.data.loaders import training_loader
    from lossmix_det.structures import StepBatch

    views, _ = next(iter(training_loader([source], config.data, seed=config.train.seed)))
    return StepBatch(views)


def _check_target(config: Config) -> None:
    if not config.data.target:
        raise UserError("--teacher needs data.target, the images that it is to label")


def _batch(config: Config, source: ImageSet) -> StepBatch:
    """The first batch of the source and of the target."""
    from lossmix_det.data.catalog import load_target
    from lossmix_det.data.loaders import target_loader, training_loader
    from lossmix_det.structures import StepBatch

    target = [load_target(name, config, source.classes) for name in config.data.target]
    seed = config.train.seed
    loader = training_loader([source], config.data, seed=seed)
    loaders = loader, target_loader(target, config.data, source=loader, seed=seed)
    return StepBatch(*(next(iter(each))[0] for each in loaders))


def _label(config: Config, classes: list[str], weights: str, batch: StepBatch) -> Supervision:
    """The pseudo-labels that a teacher with these weights gives the target's images."""
    from lightning_fabric import Fabric

    from lossmix_det.adaptation.labeller import Labeller
    from lossmix_det.engines import build_detector
    from lossmix_det.training.resume import start_from

    teacher = build_detector(config.model, len(classes))
    start_from(teacher, weights, classes, "--teacher")
    labeller = Labeller(config, classes, Fabric(accelerator="cpu", devices=1), teacher)
    labels, _ = labeller.label(teacher, batch.target, config.train.steps)
    return labels
