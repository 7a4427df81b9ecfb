"""Train several methods with several seeds, and write their scores as a table with its spread."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossmix_det.checkpoint import write_atomically
from lossmix_det.config import as_dict, load_config
from lossmix_det.errors import UserError, nearest

log = logging.getLogger(__name__)

METRICS = ("AP50", "AP")
DEFAULT_RUNS = Path("runs/benchmark")


@dataclass(frozen=True)
class Suite:
    """Methods that differ in one YAML each.

    Args:
        title: of the page.
        configs: folder of ``<method>.yaml``.
        methods: in the order of the table.
        baseline: the method that gains are counted from.
    """

    title: str
    configs: Path
    methods: tuple[str, ...]
    baseline: str


def compare(suite: Suite, options: argparse.Namespace, default_output: Path) -> None:
    """Run what has not run yet, one process at a time, and rewrite the page after each run.

    Raises:
        UserError: an unknown method.
    """
    methods = options.methods or list(suite.methods)
    for method in methods:
        if method not in suite.methods:
            raise UserError(f"unknown method {method!r}{nearest(method, list(suite.methods))}")
    output = options.output or default_output
    for seed in options.seeds:
        for method in methods:
            folder = options.runs / suite.configs.name / f"{method}_seed{seed}"
            if (folder / "results.json").is_file():
                _check_settings(suite.configs / f"{method}.yaml", folder, seed, options.overrides)
            else:
                _run(suite.configs / f"{method}.yaml", folder, seed, options.overrides)
            write_atomically(output, page(suite, methods, options))
    log.info("wrote %s", output)


def _check_settings(config: Path, folder: Path, seed: int, overrides: list[str]) -> None:
    """Refuse scores of a run with other settings than those asked for now."""
    wanted = as_dict(load_config(config, [f"output_dir={folder}", f"train.seed={seed}", *overrides]))
    found = json.loads((folder / "run.json").read_text())["config"]
    changed = [key for key in wanted if wanted[key] != found.get(key)]
    if changed:
        raise UserError(
            f"{folder} holds a run with other settings ({', '.join(changed)}); give another folder by --runs"
        )


def _run(config: Path, folder: Path, seed: int, overrides: list[str]) -> None:
    """One training run as its own process, resumed if it was interrupted; its words go to a file beside."""
    words = [sys.executable, "tools/train_net.py", "--config-file", str(config), "--resume"]
    words += [f"output_dir={folder}", f"train.seed={seed}", *overrides]
    log.info("%s", shlex.join(words[1:]))
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a") as file:
        done = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        log.warning("failed with status %d; see %s", done.returncode, folder / "log.txt")


def page(suite: Suite, methods: list[str], options: argparse.Namespace) -> str:
    """The table in Markdown, from whatever results there are; runs that failed or are missing are shown as such."""
    scores = {method: [_scores(suite, options, method, seed) for seed in options.seeds] for method in methods}
    some = next((found for runs in scores.values() for found in runs if found), None)
    if some is None:
        return f"# {suite.title}\n\nno run has finished\n"
    sets = list(some)
    columns = [(name, metric) for name in sets for metric in METRICS]
    lines = [f"# {suite.title}", "", "```", _command(options), "```", "", _about(suite, options, methods), ""]
    lines += ["| method | " + " | ".join(f"{name} {metric}" for name, metric in columns) + " | runs |"]
    lines += ["|---|" + "---:|" * (len(columns) + 1)]
    for method in methods:
        finished = [found for found in scores[method] if found]
        cells = [_cell([found[name][metric] for found in finished]) for name, metric in columns]
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {len(finished)} of {len(options.seeds)} |")
    return "\n".join([*lines, "", *_gains(suite, methods, scores, sets)]) + "\n"


def _gains(suite: Suite, methods: list[str], scores: dict[str, list[Any]], sets: list[str]) -> list[str]:
    """Differences to the baseline, seed by seed, with their standard error."""
    if suite.baseline not in methods:
        return []
    lines = [f"AP50 minus that of `{suite.baseline}` with the same seed: mean ± standard error.", ""]
    lines += ["| method | " + " | ".join(sets) + " |", "|---|" + "---:|" * len(sets)]
    for method in methods:
        pairs = [pair for pair in zip(scores[method], scores[suite.baseline], strict=True) if all(pair)]
        if method == suite.baseline or not pairs:
            continue
        cells = [_cell([own[name]["AP50"] - base[name]["AP50"] for own, base in pairs], error=True) for name in sets]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def _scores(suite: Suite, options: argparse.Namespace, method: str, seed: int) -> dict[str, Any] | None:
    """Scores by test set of the model that a run reports (its average, if it keeps one); None if it did not finish."""
    path = options.runs / suite.configs.name / f"{method}_seed{seed}" / "results.json"
    if not path.is_file():
        return None
    return list(json.loads(path.read_text()).values())[-1]


def _cell(values: list[float], error: bool = False) -> str:
    if not values:
        return "failed"
    sign = "+" if error else ""
    if len(values) == 1:
        return f"{values[0]:{sign}.1f}"
    spread = statistics.stdev(values) / (len(values) ** 0.5 if error else 1)
    return f"{statistics.mean(values):{sign}.1f} ± {spread:.1f}"


def _command(options: argparse.Namespace) -> str:
    words = ["python", "tools/benchmark.py", "--suite", options.suite, "--seeds", *map(str, options.seeds)]
    words += ["--methods", *options.methods] if options.methods else []
    words += ["--runs", str(options.runs)] if options.runs != DEFAULT_RUNS else []
    words += ["--output", str(options.output)] if options.output else []
    return shlex.join([*words, *options.overrides])


def _about(suite: Suite, options: argparse.Namespace, methods: list[str]) -> str:
    """Versions, steps and data of the first finished run, as it recorded them."""
    paths = (options.runs / suite.configs.name / f"{m}_seed{s}" / "run.json" for s in options.seeds for m in methods)
    runs = [json.loads(path.read_text()) for path in paths if path.is_file()]
    run, revisions = runs[0], dict.fromkeys(str(run["git_revision"]) for run in runs)
    train, data = run["config"]["train"], run["config"]["data"]
    versions = ", ".join(f"{name} {run['versions'][name]}" for name in ("torch", "torchvision", "albumentations"))
    return (
        f"Seeds {', '.join(map(str, options.seeds))}; {train['steps']} steps of {data['batch_size']} images each; "
        f"scores of the last step in percent, mean ± standard deviation over seeds. "
        f"Python {run['python']}, {versions}, on {run['device']}. Revision {', '.join(revisions)}."
    )
