"""Read every image and annotation before any training, and report what is in them."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lossmix_det.commands.options import parse, quiet, run_tool
from lossmix_det.config import Config, load_config
from lossmix_det.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from lossmix_det.data.survey import Survey
    from lossmix_det.report.dataset_numbers import Numbers

FAULTY = 1  # exit status
SHOWN = 20  # lines of faults and of notes
CONFIGS = {".yaml", ".yml"}
ORDER = {"train": 0, "target": 1, "test": 2}  # of uses; the first data set tells the classes


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Read every image and annotation of data sets, and report what is wrong and what is in them.",
        epilog="Exit status: 0 without faults, 1 with faults, 2 on an error.",
    )
    parser.set_defaults(overrides=[])
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="a configuration, with KEY=VALUE settings behind it; or the folder of a source, and one of a target",
    )
    output = "for check.json and check.html; default: dataset_check"
    parser.add_argument("--output", type=Path, default=Path("dataset_check"), metavar="DIR", help=output)
    workers = min(4, os.cpu_count() or 1)
    parser.add_argument("--workers", type=int, default=workers, metavar="N", help=f"reading processes; here: {workers}")
    clean = "new folder for what can be used of the labelled data sets; the originals stay as they are"
    parser.add_argument("--write-clean", type=Path, metavar="DIR", help=clean)
    return parser


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(build_parser(prog), arguments)
    return run_tool(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    clean = options.write_clean
    if clean is not None and os.path.lexists(clean) and (not clean.is_dir() or any(clean.iterdir())):
        raise UserError(f"{clean} is not empty; name a new folder by --write-clean, because nothing is written over")
    if options.workers < 0:
        raise UserError(f"--workers {options.workers}: 0 reads in this process, else give how many")
    from rich.console import Console

    from lossmix_det.data.surveys import compare  # loads torch
    from lossmix_det.report.dataset_numbers import report_of

    console = Console()
    with quiet("lossmix_det.data"):
        config, uses = _sets(options)
        surveys = _read(config, uses, options.workers, console)
    _check_use(config, surveys)
    comparison = compare(surveys)
    report = report_of(surveys, comparison)
    _write(report, surveys, comparison, options.output)
    _print(report, console)
    print(f"all of it is in {options.output / 'check.html'} and {options.output / 'check.json'}")
    if clean is not None:
        _write_clean(surveys, clean)
    return FAULTY if any(report["faults"].values()) else 0


def _check_use(config: Config, surveys: list[Survey]) -> None:
    """Add what a run would refuse or warn of, though each set is sound by itself."""
    from lossmix_det.data.catalog import without_boxes, without_labels

    trained = [survey for survey in surveys if survey.use == "train"]
    for survey in trained:
        if survey.image_set is not None and not survey.image_set.labelled:
            survey.faults.append(without_labels(survey.name, survey.entry))
        if survey.name in config.data.test:
            survey.faults.append(
                f"{survey.name} is in data.train and in data.test: its score says how well it was learned; test on "
                "other images"
            )
    present = {label for survey in trained for label in survey.names}
    absent = [label for label in config.data.classes or [] if label not in present]
    told = any("has none of the classes" in line for survey in trained for line in survey.faults)
    if absent and trained and not told:
        trained[0].faults.append(without_boxes(absent, config))


def _sets(options: argparse.Namespace) -> tuple[Config, dict[str, str]]:
    """The configuration, and what each data set is used for, by name."""
    first = Path(options.paths[0])
    if first.suffix.lower() in CONFIGS or first.is_file():
        if len(options.paths) > 1:
            raise UserError(f"{options.paths[1]}: give one configuration, or folders")
        config = load_config(first, options.overrides)
        data = {"train": config.data.train, "target": config.data.target, "test": config.data.test}
        return config, {name: use for use, names in reversed(data.items()) for name in names}
    if len(options.paths) > 2:
        raise UserError(f"{options.paths[2]}: give the folder of a source and one of a target, or a configuration")
    config = load_config(None, options.overrides)
    uses = _declare(config, options.paths[0], "", "train")
    if len(options.paths) == 2:
        uses |= _declare(config, options.paths[1], "target_", "target")
    return config, uses


def _declare(config: Config, word: str, prefix: str, use: str) -> dict[str, str]:
    """Declare the parts of a folder; the use of each by its name."""
    from lossmix_det.data.parts import TEST, TRAIN, VALIDATION, Place, settled

    place = Place.parse(word)
    parts = {} if place.split else {names[0]: place.part(names) for names in (TRAIN, VALIDATION, TEST)}
    found = {prefix + name: entry for name, entry in parts.items() if entry is not None}
    if not any(name.endswith(TRAIN[0]) for name in found):
        found = {f"{prefix}{place.split or 'all'}": place.whole()}
    first = next(iter(found))
    parts = dict(zip(found, settled(list(found.values()), labelled=False), strict=True))
    config.datasets |= {name: entry for name, (entry, _) in parts.items()}
    uses = {}
    for name, (_, images) in parts.items():
        # As that of a target, a part without labels is looked at all the same.
        uses[name] = use if name == first else "test" if any(image.objects for image in images) else "target"
    return uses


def _read(config: Config, uses: dict[str, str], workers: int, console: Console) -> list[Survey]:
    """Read everything, with a bar where somebody looks."""
    from rich.markup import escape
    from rich.progress import Progress

    from lossmix_det.data.survey import leave_to, read_annotations, read_pixels

    surveys: list[Survey] = []
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        for name in sorted(uses, key=lambda name: ORDER[uses[name]]):
            task = progress.add_task(escape(f"{name}: annotations"), total=None)
            survey = read_annotations(name, uses[name], config, surveys[0].classes if surveys else None)
            for earlier in surveys:
                leave_to(survey, earlier)
            progress.update(task, description=escape(name), total=len(survey.records))
            read_pixels(survey, config, workers, lambda count, task=task: progress.advance(task, count))
            surveys.append(survey)
    return surveys


def _write(report: Numbers, surveys: list[Survey], comparison: object, folder: Path) -> None:
    from lossmix_det.files import write_atomically
    from lossmix_det.report.dataset_page import write_page

    page = write_page(report, surveys, comparison)
    write_atomically(folder / "check.json", json.dumps(report, indent=1) + "\n")
    write_atomically(folder / "check.html", page)


def _print(report: Numbers, console: Console) -> None:
    """The tables, and the first lines of what is wrong."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from lossmix_det.report.dataset_numbers import classes_of, table_of

    wide = Console(file=console.file, width=1000, force_terminal=console.is_terminal)  # so that no number is cut
    for rows in (table_of(report), classes_of(report)):
        table = Table()
        for number, word in enumerate(rows[0]):
            table.add_column(Text(word), justify="right" if number else "left")
        for row in rows[1:]:
            table.add_row(*(Text(word) for word in row))
        wide.print(table, width=wide.measure(table).maximum, crop=False, soft_wrap=True)
    for title in ("faults", "notes"):
        lines = [line for several in report[title].values() for line in several]
        for line in lines[:SHOWN]:
            print(f"{title[:-1]}: {line}")
        if len(lines) > SHOWN:
            print(f"… and {len(lines) - SHOWN} more {title}")


def _write_clean(surveys: list[Survey], folder: Path) -> None:
    from lossmix_det.data.clean import write_clean

    for survey in surveys:
        if survey.image_set is None or not survey.image_set.labelled:
            print(f"{survey.name}: nothing to write, because it has no labels that can be used")
            continue
        declaration, lost = write_clean(survey, folder / survey.name)
        print(f"clean: {survey.name}: {{{declaration}}}")
        for line in lost:
            print(line)
