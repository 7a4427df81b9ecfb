"""Ten minutes on a GPU: what runs there, how fast, and in how much memory, as one table.

python -m benchmarks.gpu_check --output gpu_check.md

Every check has a process of its own. What fails is written into the table, and the rest goes on. It needs the checkout
and its generated `shapes` benchmark; checks of Detectron2 say so where it is not installed.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu_checks import UNTIMED, Scale, checks_of, last_line
from benchmarks.steps import sizes_file
from benchmarks.timing import device_name
from lossmix_det.commands.options import run_tool
from lossmix_det.errors import UserError
from lossmix_det.files import write_atomically

log = logging.getLogger(__name__)

FOUND = "found: "  # before what a check says, in the output of its process
PRECISIONS = {"cuda": ("32", "bf16", "fp16"), "cpu": ("32", "bf16")}


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gpu_check.md"), help="page to write")
    parser.add_argument("--device", choices=PRECISIONS, default="cuda", help="cpu tries the script itself")
    parser.add_argument("--short-side", type=int, default=600, metavar="PIXELS", help="of the images")
    parser.add_argument("--rounds", type=int, default=5, help="in which the steps take turns")
    parser.add_argument("--minutes", type=float, default=9.0, help="no check begins after that, and none runs on")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="only these, by name")
    parser.add_argument("--one", metavar="CHECK", help=argparse.SUPPRESS)  # in this process
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; returns the exit status, not 0 if any failed."""
    options = build_parser().parse_args(arguments)
    return run_tool(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    checks = _chosen(options)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no GPU here; with --device cpu the script itself can be tried")
    if options.one:
        scale = Scale(options.device, options.short_side, options.rounds, _sizes())
        print(FOUND + checks[options.one](scale), flush=True)  # noqa: T201
        return 0
    _measure(checks, options)
    return 0


def _measure(checks: dict[str, Callable[[Scale], str]], options: argparse.Namespace) -> None:
    """Fill the table row by row.

    Raises:
        UserError: a check failed.
    """
    deadline = time.monotonic() + 60 * options.minutes
    rows: dict[str, Row] = dict.fromkeys(checks, Row(NOT_RUN, "out of time"))

    def fill(name: str) -> None:
        rows[name] = _in_a_process(name, options, deadline - time.monotonic())
        log.info("%s: %s (%s, %.0f s)", name, rows[name].found, rows[name].result, rows[name].seconds)
        write_atomically(options.output, "\n".join(_page(options, rows)) + "\n")

    write_atomically(options.output, "\n".join(_page(options, rows)) + "\n")
    together = [name for name in checks if name in UNTIMED]  # most of their time goes into starting programs
    with ThreadPoolExecutor(len(together) or 1) as pool:
        list(pool.map(fill, together))
    for name in checks:
        if name not in UNTIMED:
            fill(name)
    log.info("wrote %s", options.output)
    failed = [name for name, row in rows.items() if row.result == FAILED]
    if failed:
        raise UserError(f"{len(failed)} of {len(rows)} checks failed; {options.output} says why")


def _sizes() -> str:
    """Real ones where their list is at hand; the generated benchmark alone has to do elsewhere."""
    try:
        sizes_file()
    except UserError:
        return "equal"
    return "real"


SIZES_TEXT = {"real": "sizes drawn from 500 of each", "equal": "all of one size"}


def _chosen(options: argparse.Namespace) -> dict[str, Callable[[Scale], str]]:
    checks = checks_of(PRECISIONS[options.device])
    names = [options.one] if options.one else options.only or list(checks)
    unknown = [name for name in names if name not in checks]
    if unknown:
        raise UserError(f"there is no check {unknown[0]!r}; there are {', '.join(checks)}")
    return {name: checks[name] for name in names}


RUNS, FAILED, NOT_RUN = "runs", "fails", "not run"


@dataclass(frozen=True)
class Row:
    """What became of a check: how it ended, what it found or why it failed, and how long it took in all."""

    result: str
    found: str
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """What it found, for a cell of a table."""
        return self.found.replace("|", "/")


def _in_a_process(name: str, options: argparse.Namespace, seconds: float) -> Row:
    """Run a check for so many seconds at most."""
    if seconds <= 0:
        return Row(NOT_RUN, "out of time")
    words = ["--one", name, "--device", options.device, "--short-side", options.short_side, "--rounds", options.rounds]
    line = [sys.executable, "-m", "benchmarks.gpu_check", *map(str, words)]
    started = time.monotonic()
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return Row(NOT_RUN, f"stopped after {seconds:.0f} s, out of time", seconds)
    took = time.monotonic() - started
    if done.returncode:
        return Row(FAILED, last_line(done.stderr), took)
    return Row(RUNS, last_line(done.stdout).removeprefix(FOUND), took)


def _page(options: argparse.Namespace, rows: dict[str, Row]) -> list[str]:
    device = device_name(options.device == "cuda")
    words = ["--device", options.device, "--short-side", options.short_side, "--rounds", options.rounds]
    words += ["--minutes", format(options.minutes, "g"), *(["--only", *options.only] if options.only else [])]
    return [
        "# What runs on this device",
        "",
        "```",
        shlex.join(["python", "-m", "benchmarks.gpu_check", *map(str, words)]),
        "```",
        "",
        f"torch {torch.__version__}, {device}. Two photos and two paintings in a step, {SIZES_TEXT[_sizes()]}, the "
        f"short side {options.short_side} pixels; weights at random. Steps take turns; medians, and the 10th and 90th "
        "percentile of the ratio of each round. On a GPU every round is taken once before it is measured. Seconds: of "
        "the whole check, with starting Python.",
        "",
        "| check | result | found | seconds |",
        "|---|---|---|---:|",
        *(f"| {name} | {row.result} | {row.text} | {row.seconds:.0f} |" for name, row in rows.items()),
    ]


if __name__ == "__main__":
    sys.exit(main())
