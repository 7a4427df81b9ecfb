"""Detect on images and videos."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lossmix_det.commands.options import add_imports, run_tool
from lossmix_det.errors import UserError, pick

if TYPE_CHECKING:
    from lossmix_det.data.inputs import Inputs
    from lossmix_det.evaluation import Predictor

log = logging.getLogger(__name__)

SOME_UNREADABLE = 1  # exit status


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Detect on images and videos. Classes, image size and thresholds are those of the run that trained "
        "the weights. The files that are read stay as they are.",
        epilog="Exit status: 0; 1 if some files could not be read, which are listed in problems.txt; 2 on an error.",
    )
    parser.add_argument(
        "weights",
        help="folder of a run (its last checkpoint), a checkpoint, an export, or a state dict "
        "of one of torchvision's detectors",
    )
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="images, videos, folders, patterns such as 'a/*.jpg'"
    )
    parser.add_argument("--output", type=Path, default=Path("predictions"), metavar="DIR", help="new folder")
    parser.add_argument(
        "--write",
        nargs="+",
        default=["drawn", "coco"],
        metavar="WHAT",
        help="drawn (pictures), coco, yolo, csv; default: drawn coco",
    )
    parser.add_argument(
        "--score", type=float, default=0.5, metavar="S", help="least score of a detection; default: 0.5"
    )
    parser.add_argument("--only", nargs="+", metavar="CLASS", help="keep these classes")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="names of the classes, where the weights say none")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="shorter side to resize to; default: as in training")
    parser.add_argument("--max-size", type=int, metavar="PIXELS", help="largest longer side; default: as in training")
    parser.add_argument("--exif", metavar="HOW", help="apply or ignore EXIF orientations; default: as in training")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="images at a time; default: 4")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu or cuda")
    add_imports(parser)
    return parser


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser(prog).parse_args(arguments)
    return run_tool(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    _check(options)
    from lossmix_det.data.inputs import find_inputs  # loads torch
    from lossmix_det.evaluation.prediction_files import SINKS

    kinds = [pick(SINKS, name, "--write") for name in dict.fromkeys(options.write)]
    predictor = _predictor(options)
    inputs = find_inputs(options.sources)
    sinks = [kind(options.output, predictor.classes) for kind in kinds]
    frames, boxes = _predict(predictor, inputs, sinks, options)
    passed_over = f"; {inputs.passed_over} files passed over" if inputs.passed_over else ""
    print(f"{frames} images, {boxes} detections scoring at least {options.score:g}, in {options.output}{passed_over}")
    return _report(inputs.problems, options.output)


def _check(options: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is loaded."""
    output = options.output
    if os.path.lexists(output) and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is not empty; name a new folder by --output, because nothing is written over")
    if not 0 <= options.score <= 1:
        raise UserError(f"--score {options.score} lies outside of 0 … 1")
    for name, least in (("batch_size", 1), ("size", 32), ("max_size", 32)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value} is too small; give at least {least}")


def _predictor(options: argparse.Namespace) -> Predictor:
    from lossmix_det.data.catalog import import_modules
    from lossmix_det.evaluation import Predictor
    from lossmix_det.evaluation.predictor import OnnxPredictor, check_classes

    import_modules(options.imports, "--import")
    predictor = Predictor.load(options.weights, classes=options.classes, device=options.device)
    check_classes(options.only or [], predictor.classes)
    asked = {"short_side": options.size, "max_size": options.max_size}
    for name, value in asked.items() if isinstance(predictor, OnnxPredictor) else ():
        fixed = getattr(predictor.reading, name)
        if value not in (None, fixed):
            side = "shorter" if name == "short_side" else "longer"
            raise UserError(
                f"{options.weights} resizes images itself, to a {side} side of {fixed} pixels; leave --size and "
                "--max-size out, or give a checkpoint"
            )
    if options.exif is not None:
        asked["exif"] = pick({"apply": True, "ignore": False}, options.exif, "--exif")
    predictor.reading = replace(predictor.reading, **{key: value for key, value in asked.items() if value is not None})
    return predictor


def _predict(predictor: Predictor, inputs: Inputs, sinks: list, options: argparse.Namespace) -> tuple[int, int]:
    """Detect on everything, with a bar where somebody looks."""
    from rich.console import Console
    from rich.progress import Progress

    from lossmix_det.evaluation.prediction_files import predict_all, write_all
    from lossmix_det.evaluation.predictor import kept

    reading, console = predictor.reading, Console(stderr=True)
    frames = inputs.read(reading.high_bit_depth, exif=reading.exif)
    found = predict_all(predictor, frames, options.batch_size)
    wanted = ((frame, kept(each, predictor.classes, options.score, options.only)) for frame, each in found)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("detecting", total=inputs.frames)
        return write_all(wanted, sinks, lambda count: progress.advance(task, count))


def _report(problems: list[str], folder: Path) -> int:
    """List the files that could not be read; the exit status."""
    from lossmix_det.files import write_atomically

    if not problems:
        return 0
    for line in problems:
        log.warning("%s", line)
    path = folder / "problems.txt"
    write_atomically(path, "".join(f"{line}\n" for line in problems))
    print(f"{len(problems)} files could not be read; listed in {path}")
    return SOME_UNREADABLE
