"""Score a detector on data.test without training."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lossmix_det.commands.options import add_processes, new_parser, parse, processes_of, run_tool
from lossmix_det.config import Config, DataConfig, ModelConfig, load_config, overrides_set
from lossmix_det.errors import UserError, nearest

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from lossmix_det.data.records import ImageSet
    from lossmix_det.engines import Detector
    from lossmix_det.engines.classes import OfFewerClasses
    from lossmix_det.evaluation import Scored

log = logging.getLogger(__name__)

RULE = "model.weights if given on the command line, else the last checkpoint in output_dir"


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options of the command."""
    parser = new_parser(f"Score a detector on data.test: {RULE}.", prog)
    add_processes(parser)
    return parser


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(build_parser(prog), arguments)
    return run_tool(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    config = load_config(options.config_file, options.overrides)
    from lossmix_det.training.launch import launch, together  # loads torch

    fabric = launch(config, processes_of(options))
    with together(fabric):
        return evaluate(config, fabric, options.overrides)


def evaluate(config: Config, fabric: Fabric, overrides: list[str]) -> int:
    """Score one detector and print its tables, without touching the files of the run in ``output_dir``.

    Args:
        config: of the run.
        fabric: launched.
        overrides: of the command line, which may name ``model.weights``.

    Raises:
        UserError: there is nothing to score or nothing to score on, or the weights are of other classes.
    """
    from rich.console import Console
    from rich.text import Text

    from lossmix_det.data.catalog import load_test_sets
    from lossmix_det.evaluation import print_tables, score_models

    if not config.data.test:
        raise UserError("data.test is empty; name at least one data set to evaluate on")
    weights, reason = _choose_weights(config, overrides)
    config = _with_classes(config, weights)
    with fabric.rank_zero_first():
        test_sets = load_test_sets(config)
    log.info("scoring %s: %s", weights, reason)
    detector = _detector(config, weights, test_sets[0].classes, fabric)
    console = Console()
    scored = score_models({"model": detector}, test_sets, config, fabric, console)
    if fabric.is_global_zero:
        folder = Path(config.output_dir) / "inference" / _name_of(Path(weights), Path(config.output_dir))
        print_tables(scored.results, console)  # first: the folder may be one that cannot be written to
        _write(scored, test_sets, folder)
        console.print(Text(f"scores and detections are in {folder}"), soft_wrap=True)
    return 0


def _name_of(weights: Path, output_dir: Path) -> str:
    """What the folder of the scores is called: as the file, and after its own run if that is another one."""
    if not weights.is_file():  # a name, such as ResNet50_Weights.IMAGENET1K_V2 or lite0
        return weights.name
    weights, output_dir = weights.resolve(), output_dir.resolve()
    if weights.is_relative_to(output_dir):
        return weights.stem
    run = next((name for name in weights.parts[-2::-1] if name not in ("checkpoints", "export")), "")
    return f"{run}_{weights.stem}".strip("/_")


def _choose_weights(config: Config, overrides: list[str]) -> tuple[str, str]:
    """The file to score, and why that one.

    The last checkpoint and not the best: the best may have been chosen by labels of the target.
    """
    from lossmix_det.training.checkpoints import Checkpoints

    if config.model.weights and overrides_set("model.weights", overrides):
        return config.model.weights, "model.weights is given on the command line"
    last = Checkpoints(Path(config.output_dir) / "checkpoints", config.train.keep_last).latest_readable()
    if last is not None:
        return str(last), f"the last checkpoint in {config.output_dir}"
    if config.model.weights:
        return config.model.weights, f"{config.output_dir} has no checkpoint, so model.weights of the file is scored"
    raise UserError(f"nothing to evaluate: {config.output_dir} has no checkpoint, and model.weights is empty")


def _with_classes(config: Config, weights: str) -> Config:
    """Where nobody has named classes, they are those of the weights, so that no training set is read.

    Of weights that name none, they are those of the training set, or if nobody has named one, of the first test set.
    """
    from lossmix_det.data.shapes import NAMES
    from lossmix_det.files import classes_of

    generated = set(config.data.test) & set(NAMES)
    if config.data.classes or generated:
        return config
    trained_on = classes_of(Path(weights))
    if trained_on or config.data.train == DataConfig().train:
        config = replace(config, data=replace(config.data, train=[], classes=trained_on))
    return config


def _detector(config: Config, weights: str, classes: list[str], fabric: Fabric) -> Detector | OfFewerClasses:
    from lossmix_det.engines import build_detector, to_device
    from lossmix_det.engines.classes import OfFewerClasses
    from lossmix_det.files import classes_of

    model = replace(config.model, weights=weights)
    trained_on = classes_of(Path(weights))
    if trained_on and trained_on != classes:
        raise UserError(
            f"{weights} was trained on the classes {', '.join(trained_on)}, the test data has {', '.join(classes)}; "
            f"set data.classes to the former"
        )
    labels = None if trained_on else _labels(model)
    if labels is None:
        detector = build_detector(model, len(classes), strict=True)
        if not trained_on:
            _say_order(weights, classes, config)
        return to_device(detector, fabric.device, config.train.channels_last)
    unknown = [name for name in classes if name not in labels]
    if unknown:
        raise UserError(
            f"model.weights={weights} knows no class {unknown[0]!r}{nearest(unknown[0], labels)}; its classes are "
            f"{', '.join(name for name in labels if name != 'N/A')}: name those of them that are wanted in data.classes"
        )
    detector = build_detector(model, len(labels), strict=True)
    return OfFewerClasses(to_device(detector, fabric.device, config.train.channels_last), labels, classes)


def _labels(model: ModelConfig) -> list[str] | None:
    """The classes of torchvision's own weights, and of others with COCO's 91 outputs."""
    from lossmix_det.engines.classes import labels_of
    from lossmix_det.engines.weights import read_weights

    if model.engine != "torchvision":
        return None
    return labels_of(model.weights, model.detector, read_weights(model.weights))


def _say_order(weights: str, classes: list[str], config: Config) -> None:
    """Which label is taken for which class, where the weights do not say it; a wrong order scores every class wrong."""
    advice = "" if config.data.classes else "; if they were trained in another order, set data.classes to it"
    log.warning("%s names no classes: its labels are taken as %s, in this order%s", weights, ", ".join(classes), advice)


def _write(scored: Scored, test_sets: list[ImageSet], folder: Path) -> None:
    from lossmix_det.evaluation import report_problems, write_detections, write_results

    write_results(scored.results, folder)
    write_detections(scored.detections, folder)
    report_problems(test_sets, scored.unreadable, folder)
