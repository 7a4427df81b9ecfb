"""The suites of `tools/benchmark.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from lossmix_det.cli import parse
from lossmix_det.report.compare import DEFAULT_RUNS, Suite, compare
from lossmix_det.report.cost import measure_cost

MIXING = Suite(
    title="Mixing on labelled data: the generated `shapes` benchmark",
    configs=Path("configs/shapes"),
    methods=("source_only", "noise", "union", "lossmix", "lossmix_instance", "oracle"),
    baseline="source_only",
)


def main() -> int:
    options = parse(_parser())
    suites: dict[str, Callable[[argparse.Namespace], None]] = {
        "mixing": lambda options: compare(MIXING, options, Path("docs/results/shapes_mixing.md")),
        "cost": lambda options: measure_cost(options, Path("docs/results/cost.md")),
    }
    suites[options.suite](options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare methods over seeds, or measure what a step costs.")
    parser.add_argument("--suite", choices=("mixing", "cost"), required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of every method")
    parser.add_argument("--methods", nargs="+", default=None, help="only these methods")
    parser.add_argument("--runs", type=Path, default=DEFAULT_RUNS, help="folder that the runs are kept in")
    parser.add_argument("--output", type=Path, default=None, help="Markdown file to write; default below docs/results")
    parser.add_argument("--pairs", type=int, default=40, help="cost: paired measurements")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings for every run")
    return parser
