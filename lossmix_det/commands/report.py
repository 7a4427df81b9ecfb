"""Write the page of a run, or of several runs side by side."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lossmix_det.commands.options import run_tool
from lossmix_det.config import load_config
from lossmix_det.errors import UserError

if TYPE_CHECKING:
    from lossmix_det.data.records import ImageSet

log = logging.getLogger(__name__)

EVIDENCE = ("run.json", "metrics.csv", "scores.csv")  # a folder with any of these is a run's


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options of the command."""
    text = "Write report.html into the folder of a run, also of one that was killed; or one page of several runs."
    parser = argparse.ArgumentParser(prog=prog, description=text)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run (its output_dir)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="page of several runs; default: comparison.html")
    return parser


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser(prog).parse_args(arguments)
    return run_tool(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from lossmix_det.report.page import write_comparison, write_page  # loads matplotlib
    from lossmix_det.report.run_folder import RunFolder

    for folder in options.runs:
        if not any((folder / name).is_file() for name in EVIDENCE):
            raise UserError(f"{folder} is no folder of a run: it has none of {', '.join(EVIDENCE)}; give an output_dir")
    if len(options.runs) == 1:
        if options.output:
            raise UserError("--output is for the page of several runs; that of one run is report.html in its folder")
        test_sets, target_sets, depth = _data_of(options.runs[0])
        log.info("wrote %s", write_page(options.runs[0], test_sets, target_sets, high_bit_depth=depth))
        return 0
    runs = [RunFolder(folder) for folder in options.runs]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise UserError(f"runs must be in folders of different names to be told apart, not {', '.join(names)}")
    output = options.output or Path("comparison.html")
    write_comparison(runs, output)
    log.info("wrote %s", output)
    return 0


def _data_of(folder: Path) -> tuple[list[ImageSet], list[ImageSet], str]:
    """The test sets and target sets of a run, and how it reads images of 16 bits.

    Where its data cannot be read any more, that is said, and there are no sets.
    """
    from lossmix_det.data.catalog import load_sets, load_target  # loads torch

    try:
        config = load_config(folder / "config.yaml")
        train_sets, test_sets = load_sets(config)
        targets = [load_target(name, config, train_sets[0].classes) for name in config.data.target]
        return test_sets, targets, config.data.high_bit_depth
    except UserError as error:
        log.warning("the page has no pictures, because the data of the run cannot be read: %s", error)
        return [], [], "full"
