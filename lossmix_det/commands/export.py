"""Write a detector as an ONNX file, with a card that says what it is."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from lossmix_det.commands.options import add_imports, run_tool
from lossmix_det.errors import UserError

log = logging.getLogger(__name__)


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write a detector of torchvision as an ONNX file that takes images of any size, and beside it a "
        "card (.md) with its data, classes and scores. Weights for torchvision and Detectron2 need no command: every "
        "run leaves them in its folder export.",
    )
    parser.add_argument("weights", help="folder of a run (its last checkpoint), a checkpoint, or an export")
    parser.add_argument("--output", type=Path, default=Path("model.onnx"), metavar="FILE", help="default: model.onnx")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="names of the classes, where the weights say none")
    add_imports(parser)
    return parser


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser(prog).parse_args(arguments)
    return run_tool(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    output: Path = options.output
    if output.suffix.lower() != ".onnx":
        raise UserError(f"--output {output} must end in .onnx")
    for path in (output, output.with_suffix(".md")):
        if path.exists():
            raise UserError(f"{path} exists; give another --output, because nothing is written over")
    from lossmix_det.data.catalog import import_modules  # loads torch
    from lossmix_det.engines.onnx import library, write_onnx
    from lossmix_det.evaluation.predictor import ONNX, Predictor, find_weights
    from lossmix_det.files import write_atomically
    from lossmix_det.report.card import card

    for name in ("onnx", "onnxruntime"):
        library(name)
    if find_weights(options.weights).lower().endswith(ONNX):
        raise UserError(f"{options.weights} is an ONNX file already")
    import_modules(options.imports, "--import")
    predictor = Predictor.load(options.weights, classes=options.classes, device="cpu")
    write_onnx(predictor.detector, predictor.classes, predictor.reading, output)
    write_atomically(output.with_suffix(".md"), card(output.stem, options.weights, predictor))
    log.info("wrote %s and %s", output, output.with_suffix(".md"))
    return 0
