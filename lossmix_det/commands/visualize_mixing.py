"""Draw a batch as the student sees it, composed by the training code itself."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lossmix_det.commands.options import new_parser, parse, run_tool
from lossmix_det.config import Config, MixingConfig, choices, load_config
from lossmix_det.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from lossmix_det.data.records import ImageSet
    from lossmix_det.engines import SoftTeacher
    from lossmix_det.report.sheets import Picture
    from lossmix_det.structures import ImageBatch, StepBatch, Supervision
    from lossmix_det.training.clean_pass import CleanPass
    from lossmix_det.training.phases import Phase
    from lossmix_det.training.student_batch import StudentBatch

log = logging.getLogger(__name__)

Rows = dict[str, "list[Picture]"]


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options of the command."""
    parser = new_parser("Draw mixed images with the boxes that are taught on them, and their weights.", prog)
    parser.add_argument("--output", type=Path, metavar="FILE", default=Path("mixing.png"), help="PNG file to write")
    parser.add_argument("--images", type=int, metavar="N", default=4, help="images per row")
    known = choices(MixingConfig, "rule")
    text = f"one row for each of these: {', '.join(known)}; default: all; not with --teacher or --sources"
    parser.add_argument("--rules", nargs="+", choices=known, metavar="RULE", help=text)
    parser.add_argument(
        "--teacher", metavar="FILE", help="checkpoint or export: draw burn-in and adaptation to data.target with it"
    )
    parser.add_argument(
        "--sources",
        action="store_true",
        help="one row for each mixed image: what it is made of, saliency, masks, result; with --teacher in adaptation, "
        "else in burn-in, where it mixes",
    )
    parser.add_argument(
        "--student",
        metavar="FILE",
        help="checkpoint or export whose loss says what is salient, for mixing.saliency=gradient; default: --teacher",
    )
    return parser


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(build_parser(prog), arguments)
    return run_tool(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.images < 1:
        raise UserError(f"--images {options.images}: give at least 1")
    config = load_config(
        options.config_file, [*options.overrides, f"data.batch_size={options.images}", "train.accumulate=1"]
    )
    from lossmix_det.data.catalog import load_train_sets  # loads torch
    from lossmix_det.evaluation.drawing import save
    from lossmix_det.report.sheets import draw_sheet

    sources = load_train_sets(config)
    _check_stages(config, sources)
    if options.teacher and not config.data.target:
        raise UserError("--teacher needs data.target, the images that it is to label")
    if options.rules and (options.teacher or options.sources):
        raise UserError("--rules has no effect with --teacher or --sources; set mixing.rule")
    if options.student and config.mixing.saliency != "gradient":
        raise UserError(f"--student has no effect with mixing.saliency={config.mixing.saliency}; set gradient")
    if options.sources:
        sheet = _mixed(config, sources, options)
    else:
        rows = _phases(config, sources, options) if options.teacher else _rules(config, sources, options)
        sheet = draw_sheet(rows, sources[0].classes)
    save(sheet, options.output, colours=96)
    log.info("wrote %s", options.output)
    return 0


@dataclass(frozen=True)
class Step:
    """What a step of training begins with.

    Args:
        config: of the run.
        batch: the first of the data.
        labels: the teacher's; absent: there is none.
        clean_pass: of the student, where saliency asks for one.
    """

    config: Config
    batch: StepBatch
    labels: Supervision | None = None
    clean_pass: CleanPass | None = None

    def composed(self, phase: Phase) -> StudentBatch:
        """The student's images, as the first step of a phase composes them."""
        import numpy as np

        rng = np.random.default_rng(self.config.train.seed)
        return phase.compose(self.batch, rng, self.labels, self.clean_pass)


def _rules(config: Config, sources: list[ImageSet], options: argparse.Namespace) -> Rows:
    """A row for each rule; partners and λ are the same in every row."""
    from lossmix_det.training.mixed_batch import pictures_of
    from lossmix_det.training.phases import SourceOnly

    step, rows = _step(config, sources, options, adapts=False), {}
    for rule in options.rules or choices(MixingConfig, "rule"):
        mixing = replace(config.mixing, rule=rule, probability=1.0)
        if rule != config.mixing.rule:  # which may not read it
            mixing = replace(mixing, background_weight=MixingConfig.background_weight)
        rows[rule] = pictures_of(step.composed(SourceOnly(mixing)))[: config.data.batch_size]
    return rows


def _phases(config: Config, sources: list[ImageSet], options: argparse.Namespace) -> Rows:
    """A step of burn-in, and a step of adaptation with the teacher's pseudo-labels."""
    from lossmix_det.training.mixed_batch import pictures_of
    from lossmix_det.training.phases import Adaptation, BurnIn

    step = _step(config, sources, options, adapts=True)
    burn_in = replace(step, labels=None).composed(BurnIn(config, config.mixing.in_burn_in))
    adaptation = step.composed(Adaptation(config, config.mixing))
    return {"burn-in": pictures_of(burn_in), "adaptation": pictures_of(adaptation)}


def _mixed(config: Config, sources: list[ImageSet], options: argparse.Namespace) -> Image:
    """The images of one view of a step, all of them mixed, with what they are made of."""
    from lossmix_det.report.mixed import Drawn, draw_mixed, explain
    from lossmix_det.structures import Instances, Supervision
    from lossmix_det.training.phases import Adaptation, BurnIn, SourceOnly

    mixing = replace(config.mixing, probability=1.0)
    burns_in = config.mixing.burn_in_probability != 0 and config.adaptation.burn_in_steps > 0
    adapts = bool(config.data.target) and (bool(options.teacher) or burns_in)
    step = _step(config, sources, options, adapts=adapts)
    supervision = Supervision.full(step.batch.source.truths)
    phase: Phase = SourceOnly(mixing)
    if adapts:
        phase = (Adaptation if options.teacher else BurnIn)(config, mixing)
        unknown = Supervision.full([Instances.empty()] * len(step.batch.target.weak), 0.0)
        supervision = supervision.scaled(config.adaptation.supervised_weight)
        supervision = Supervision.cat([supervision, step.labels or unknown])
    seen: list[tuple[ImageBatch, Tensor | None]] = []
    drawn: list[Drawn] = []
    phase.recipe.watch = lambda pool, mix, saliency: seen.append((pool, saliency))
    phase.watch = lambda mix, taught: drawn.append(Drawn(seen[-1][0], mix, seen[-1][1], taught))
    step.composed(phase)
    if not drawn:
        raise UserError(f"mixing.views={config.mixing.views}: no view of data.views={config.data.views} is mixed")
    return draw_mixed(explain(drawn[0], supervision, phase.recipe), sources[0].classes)


def _step(config: Config, sources: list[ImageSet], options: argparse.Namespace, *, adapts: bool) -> Step:
    """The first batch of the source, in adaptation also of the target, and what a step knows about it."""
    from lossmix_det.mixing import Recipe

    if not adapts and config.data.batch_size < 2:
        raise UserError("--images 1 leaves an image nobody to be mixed with; give at least 2")
    batch = _batch(config, sources) if adapts else _source_batch(config, sources)
    labels = soft_teacher = clean_pass = None
    if adapts and options.teacher:
        labels, soft_teacher = _label(config, sources[0].classes, options.teacher, batch)
    if Recipe(config.mixing).needs_gradient:
        clean_pass = _clean_pass(config, sources[0].classes, options, soft_teacher)
    return Step(config, batch, labels, clean_pass)


def _check_stages(config: Config, sources: list[ImageSet]) -> None:
    """Refuse stages that the detector lacks, although the pictures would not show it; only where any are mixed."""
    from lossmix_det.engines import build_detector
    from lossmix_det.mixing import Recipe
    from lossmix_det.training.phases import check_stages

    recipe = Recipe(config.mixing)
    if recipe.stages:
        check_stages(recipe, build_detector(replace(config.model, weights=""), len(sources[0].classes)))


def _source_batch(config: Config, sources: list[ImageSet]) -> StepBatch:
    """The first batch of the source."""
    from lossmix_det.data.loaders import training_loader
    from lossmix_det.structures import StepBatch

    views, _ = next(iter(training_loader(sources, config.data, seed=config.train.seed)))
    return StepBatch(views)


def _batch(config: Config, sources: list[ImageSet]) -> StepBatch:
    """The first batch of the source and of the target."""
    from lossmix_det.data.catalog import load_target
    from lossmix_det.data.loaders import target_loader, training_loader
    from lossmix_det.structures import StepBatch

    target = [load_target(name, config, sources[0].classes) for name in config.data.target]
    seed = config.train.seed
    loader = training_loader(sources, config.data, seed=seed)
    loaders = loader, target_loader(target, config.data, source=loader, seed=seed)
    return StepBatch(*(next(iter(each))[0] for each in loaders))


def _label(
    config: Config, classes: list[str], weights: str, batch: StepBatch
) -> tuple[Supervision, SoftTeacher | None]:
    """The pseudo-labels that a teacher with these weights gives the target's images; if they are soft, its scores."""
    from lightning_fabric import Fabric

    from lossmix_det.adaptation.labeller import Labeller
    from lossmix_det.engines import build_detector
    from lossmix_det.training.resume import start_from

    teacher = build_detector(config.model, len(classes))
    start_from(teacher, weights, classes, "--teacher")
    labeller = Labeller(config, classes, Fabric(accelerator="cpu", devices=1), teacher)
    return labeller.label(teacher, batch.target, config.train.steps)


def _clean_pass(
    config: Config, classes: list[str], options: argparse.Namespace, soft_teacher: SoftTeacher | None
) -> CleanPass:
    """The pass over unmixed images by which a student with the given weights says what is salient.

    Raises:
        UserError: there are no weights, or they are not of this model.
    """
    from lightning_fabric import Fabric

    from lossmix_det.training.clean_pass import CleanPass
    from lossmix_det.training.resume import start_from
    from lossmix_det.training.state import RunState

    weights = options.student or options.teacher
    if not weights:
        raise UserError(
            "mixing.saliency=gradient is what the loss of a detector depends on; give its weights by --student FILE, "
            "or set spectral or boxes"
        )
    bare = replace(
        config, model=replace(config.model, weights=""), adaptation=replace(config.adaptation, burn_in_from="")
    )
    fabric = Fabric(accelerator="cpu", devices=1)
    state = RunState.build(bare, fabric, classes, {})
    start_from(state.detector, weights, classes, "--student" if options.student else "--teacher")
    return CleanPass(state, fabric, soft_teacher=soft_teacher)
