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
    from lossmix_det.report.run_folder import RunFolder

log = logging.getLogger(__name__)

ROLES = {"source-only": "folder of a run without adaptation", "oracle": "folder of a run on the target's labels"}
EVIDENCE = ("run.json", "metrics.csv", "scores.csv")  # a folder with any of these is a run's


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options of the command."""
    text = "Write report.html into the folder of a run, also of one that was killed; or one page of several runs."
    parser = argparse.ArgumentParser(prog=prog, description=text)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run (its output_dir)")
    for role, text in ROLES.items():
        parser.add_argument(f"--{role}", type=Path, metavar="RUN", help=f"{text}; its scores stand below those of RUN")
    parser.add_argument("--output", type=Path, metavar="FILE", help="page of several runs; default: comparison.html")
    return parser


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser(prog).parse_args(arguments)
    return run_tool(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from lossmix_det.report.page import write_comparison, write_page  # loads matplotlib

    runs = [_opened(folder) for folder in options.runs]
    references = _references(options, runs)
    if len(options.runs) == 1:
        if options.output:
            raise UserError("--output is for the page of several runs; that of one run is report.html in its folder")
        test_sets, target_sets, depth = _data_of(runs[0])
        page = write_page(options.runs[0], test_sets, target_sets, high_bit_depth=depth, references=references)
        log.info("wrote %s", page)
        return 0
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise UserError(f"runs must be in folders of different names to be told apart, not {', '.join(names)}")
    output = options.output or Path("comparison.html")
    write_comparison(runs, output, references)
    log.info("wrote %s", output)
    return 0


def _opened(folder: Path) -> RunFolder:
    from lossmix_det.report.run_folder import RunFolder

    if not any((folder / name).is_file() for name in EVIDENCE):
        raise UserError(f"{folder} is no folder of a run: it has none of {', '.join(EVIDENCE)}; give an output_dir")
    return RunFolder(folder)


def _references(options: argparse.Namespace, runs: Sequence[RunFolder]) -> dict[str, RunFolder]:
    """The runs that the others are held to, by what they are.

    Raises:
        UserError: one has no score on a test set of the others.
    """
    folders = {role: getattr(options, role.replace("-", "_")) for role in ROLES}
    references = {role: _opened(folder) for role, folder in folders.items() if folder is not None}
    tested = {name for run in runs for name in run.reported()[1]}
    for role, run in references.items():
        if not tested & run.reported()[1].keys():
            raise UserError(
                f"--{role} {run.path} has no score on {' or '.join(sorted(tested)) or 'any test set'}; give a run with "
                "the same data.test"
            )
    return references


def _data_of(run: RunFolder) -> tuple[list[ImageSet], list[ImageSet], str]:
    """The test sets and target sets of a run, and how it reads images of 16 bits.

    Where its data cannot be read any more, that is said, and there are no sets. A set that has changed since is left
    out, because detections belong to images by their place in it.
    """
    from lossmix_det.data.catalog import load_sets, load_target  # loads torch
    from lossmix_det.report.run_folder import is_as_recorded

    def unchanged(image_set: ImageSet) -> bool:
        same = is_as_recorded(run, image_set)
        if not same:
            log.warning("data set %s has changed since the run: the page leaves out its pictures", image_set.name)
        return same

    try:
        # Nothing is mixed here, and what an earlier version let mixing be set to is no matter.
        config = load_config(run.config_path, ["mixing.probability=0", "mixing.burn_in_probability=0"])
        train_sets, test_sets = load_sets(config)
        targets = [load_target(name, config, train_sets[0].classes) for name in config.data.target]
        kept = [list(filter(unchanged, sets)) for sets in (test_sets, targets)]
        return kept[0], kept[1], config.data.high_bit_depth
    except UserError as error:
        log.warning("the page has no pictures, because the data of the run cannot be read: %s", error)
        return [], [], "full"
