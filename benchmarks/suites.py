"""The suites of `tools/benchmark.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.compare import DEFAULT_RUNS, compare
from benchmarks.cost import measure_cost
from benchmarks.method_cost import measure_methods
from benchmarks.mixer_cost import measure_mixers
from benchmarks.runs import Suite, methods_in, suite_in
from benchmarks.speed import measure_speed
from benchmarks.steps import NETWORKS, SIZES
from benchmarks.sweeps import ablation, mixers
from benchmarks.time_to_quality import measure_time_to_quality
from lossmix_det.commands.options import parse, run_tool
from lossmix_det.errors import UserError

MIXING = Suite(
    title="Mixing on labelled data: the generated `shapes` benchmark",
    name="shapes",
    methods=methods_in(
        Path("configs/shapes"), ("source_only", "noise", "union", "lossmix", "lossmix_instance", "oracle")
    ),
    baselines=("source_only",),
)
ADAPTERS = (
    "source_only",
    "mean_teacher",
    "adaptive_teacher",
    "adaptive_teacher_noise",
    "adaptive_teacher_union",
    "adaptive_teacher_lossmix",
    "adaptive_teacher_lossmix_instance",
    "oracle",
)
SHAPES = Suite(
    title="Adaptation without target labels: the generated `shapes` benchmark, photo to clip-art",
    name="shapes_adapt",
    methods=methods_in(Path("configs/shapes_adapt"), ADAPTERS),
    baselines=("source_only", "adaptive_teacher"),
    adapts=True,
)
SHARED = replace(
    SHAPES,
    title="Adaptation without target labels: blood cells, from one microscope to another",
    name="blood_adapt",
    methods=methods_in(Path("configs/blood_adapt"), ADAPTERS),
)
PEOPLE = Suite(
    title="Adaptation without target labels: from photos to art, from ImageNet weights",
    name="people_art",
    methods=methods_in(
        Path("configs/people_art"),
        (
            *("source_only", "mean_teacher", "mean_teacher_lossmix", "mean_teacher_soft", "mean_teacher_soft_lossmix"),
            *("mean_teacher_classmix", "mean_teacher_comixup", "mean_teacher_box_score", "mean_teacher_box_agreement"),
            *(
                "adaptive_teacher",
                "adaptive_teacher_lossmix",
                "adaptive_teacher_union",
                "adaptive_teacher_soft_lossmix",
            ),
            "oracle",
        ),
    ),
    baselines=("source_only", "mean_teacher"),
    adapts=True,
)
PRETRAINED = Suite(
    title="A first detector on 60 photos: ImageNet weights or random ones",
    name="pretrained",
    methods=methods_in(Path("configs/pretrained"), ("slim", "random", "lite0")),
    baselines=("random",),
    text="Blood cells of one microscope (BCCD), 60 photos to train on, 72 to test on.",
)
ABLATION = ablation("What the settings of LossMix do", "ablation", Path("configs/shapes_adapt"))
ABLATION_SHARED = ablation(
    "What the settings of LossMix do: blood cells, from one microscope to another",
    "ablation_blood",
    Path("configs/blood_adapt"),
)
MIXERS = mixers("Mixers: the generated `shapes` benchmark", "mixers", Path("configs/shapes_adapt"))
MIXERS_SHARED = mixers(
    "Mixers: blood cells, from one microscope to another", "mixers_blood", Path("configs/blood_adapt")
)


# By name: what runs a suite, given the options, and the page that it writes by default.
SUITES: dict[str, tuple[Callable[[argparse.Namespace, Path], None], Path]] = {
    "mixing": (partial(compare, MIXING), Path("docs/results/shapes_mixing.md")),
    "shapes": (partial(compare, SHAPES), Path("docs/results/shapes_adapt.md")),
    "shared": (partial(compare, SHARED), Path("docs/results/blood_adapt.md")),
    "people_art": (partial(compare, PEOPLE), Path("docs/results/people_art.md")),
    "people_art_cost": (partial(measure_methods, PEOPLE), Path("docs/results/people_art_cost.md")),
    "pretrained": (partial(compare, PRETRAINED), Path("docs/results/pretrained.md")),
    "ablation": (partial(compare, ABLATION), Path("docs/results/ablation.md")),
    "ablation_shared": (partial(compare, ABLATION_SHARED), Path("docs/results/ablation_blood.md")),
    "mixers": (partial(compare, MIXERS), Path("docs/results/mixers.md")),
    "mixers_shared": (partial(compare, MIXERS_SHARED), Path("docs/results/mixers_blood.md")),
    "cost": (measure_cost, Path("docs/results/cost.md")),
    "mixer_cost": (measure_mixers, Path("docs/results/mixer_cost.md")),
    "speed": (measure_speed, Path("docs/results/speed.md")),
    "time_to_quality": (measure_time_to_quality, Path("docs/results/time_to_quality.md")),
}


def build_parser() -> argparse.ArgumentParser:
    """The options of `tools/benchmark.py`."""
    parser = argparse.ArgumentParser(description="Compare methods over seeds, or measure what a step costs.")
    suite = parser.add_mutually_exclusive_group(required=True)
    suite.add_argument("--suite", choices=SUITES)
    suite.add_argument(
        "--suite-dir", type=Path, metavar="DIR", help="a folder of your own, with a YAML for each method"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="train every method with each seed")
    parser.add_argument("--methods", nargs="+", default=None, help="only these, by name or shell pattern")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time, each on its own GPU")
    parser.add_argument("--runs", type=Path, default=DEFAULT_RUNS, help="folder that the runs are kept in")
    parser.add_argument("--output", type=Path, default=None, help="page to write; default: in docs/results, or --runs")
    parser.add_argument(
        "--pairs", type=int, default=40, help="rounds of measurements; for the suites that measure steps"
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="only these; for speed")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="of images; for speed")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory of each step; for speed")
    parser.add_argument(
        "--short-side", type=int, default=None, metavar="PIXELS", help="of images; for mixer_cost and speed"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings for every run")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a suite; returns the exit status."""
    options = parse(build_parser(), arguments)
    return run_tool(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.pairs < 1:
        raise UserError(f"--pairs {options.pairs}: at least one round of measurements")
    if not Path("tools/train_net.py").is_file():
        raise UserError("the suites are of files in the checkout; call python tools/benchmark.py from its root")
    if options.suite_dir is not None:
        suite = suite_in(options.suite_dir)
        compare(suite, options, options.runs / f"{suite.name}.md")
        return 0
    action, default_output = SUITES[options.suite]
    action(options, default_output)
    return 0
