"""Train several methods with several seeds, and write their scores as a table with its spread."""

from __future__ import annotations

import argparse
import json
import logging
import os
import queue
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.burn_in import borrow, lenders_of
from benchmarks.curves import draw_curves
from lossmix_det.config import Config, as_dict, flat, load_config
from lossmix_det.errors import UserError, nearest
from lossmix_det.files import write_atomically
from lossmix_det.training.provenance import changes, read_run, settings_of

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
        baselines: the methods that gains are counted from.
        adapts: draw curves of scores and pseudo-labels, and a table by class of the last test set.
    """

    title: str
    configs: Path
    methods: tuple[str, ...]
    baselines: tuple[str, ...]
    adapts: bool = False


@dataclass(frozen=True)
class Run:
    """One method with one seed, in a folder of its own."""

    method: str
    seed: int
    config: Path
    folder: Path

    @property
    def finished(self) -> bool:
        return (self.folder / "results.json").is_file()

    def scores(self) -> dict[str, Any] | None:
        """By test set, of the model that the run reports (its average, if it keeps one); None if it did not finish."""
        if not self.finished:
            return None
        return list(json.loads((self.folder / "results.json").read_text()).values())[-1]

    def about(self) -> dict[str, Any] | None:
        """What the run recorded of itself; None if it has not begun."""
        return read_run(self.folder)

    def complaint(self) -> str:
        """The last words of a run that failed."""
        path = self.folder / "log.txt"
        lines = path.read_text(errors="replace").strip().splitlines() if path.is_file() else []
        return lines[-1] if lines else "not run"


def compare(suite: Suite, options: argparse.Namespace, default_output: Path) -> None:
    """Run what has not run yet, and rewrite the page after each run.

    Raises:
        UserError: an unknown method, a folder that holds a run with other settings, a file that holds another table,
            or a run that failed.
    """
    methods = options.methods or list(suite.methods)
    for method in methods:
        if method not in suite.methods:
            raise UserError(f"unknown method {method!r}{nearest(method, list(suite.methods))}")
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: at least one run at a time")
    seeds, methods = dict.fromkeys(options.seeds), dict.fromkeys(methods)  # a run named twice is one run
    runs = [_planned(suite, options, method, seed) for seed in seeds for method in methods]
    output = options.output or default_output
    for run in runs:
        _check_settings(run, options.overrides)
    _check_places(options, output)
    _write(suite, runs, options, output)
    places: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(options.jobs):
        places.put(place)
    lenders = lenders_of({run.folder: _settings(run, options.overrides) for run in runs})
    with ThreadPoolExecutor(options.jobs) as pool:
        # Those that begin where others end their burn-in come last, so that they need not wait.
        order = sorted((run for run in runs if not run.finished), key=lambda run: run.folder in lenders)
        waiting = [pool.submit(_train, run, options, places, lenders.get(run.folder)) for run in order]
        try:
            for done in as_completed(waiting):
                done.result()
                _write(suite, runs, options, output)
        except BaseException:  # told to stop: those that run are told so too, and no other begins
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    log.info("wrote %s", output)
    missing = sum(not run.finished for run in runs)
    if missing:
        raise UserError(f"{missing} of {len(runs)} runs did not finish; {output} says why")


def _check_places(options: argparse.Namespace, output: Path) -> None:
    """Refuse to write where nothing can be written, or over the table of another command."""
    if options.runs.exists() and not options.runs.is_dir():
        raise UserError(f"--runs {options.runs} is a file; give a folder")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; give a file in it")
    if output.is_file() and f"```\n{_command(options)}\n```" not in output.read_text():
        raise UserError(f"{output} holds the table of another command; give another file by --output, or delete it")


def _planned(suite: Suite, options: argparse.Namespace, method: str, seed: int) -> Run:
    folder = options.runs / suite.configs.name / f"{method}_seed{seed}"
    return Run(method, seed, suite.configs / f"{method}.yaml", folder)


def _check_settings(run: Run, overrides: list[str]) -> None:
    """Refuse a run that was last started with other settings than those asked for, whether or not it has finished."""
    about = run.about()
    if about is None:
        return
    wanted = flat(as_dict(_settings(run, overrides)))
    changed = dict.fromkeys(key.partition(".")[0] for key in changes(settings_of(about), wanted))
    if changed:
        raise UserError(
            f"{run.folder} holds a run with other settings ({', '.join(changed)}); give another folder by --runs"
        )


def _settings(run: Run, overrides: list[str]) -> Config:
    return load_config(run.config, [f"output_dir={run.folder}", f"train.seed={run.seed}", *overrides])


def _train(run: Run, options: argparse.Namespace, places: queue.SimpleQueue[int], lender: Path | None = None) -> None:
    """One training run as its own process, resumed if it was interrupted; its words go to a file beside."""
    if lender is not None:
        borrow(lender, run.folder)
    words = [sys.executable, "tools/train_net.py", "--config-file", str(run.config), "--resume"]
    words += [f"output_dir={run.folder}", f"train.seed={run.seed}", *options.overrides]
    log.info("%s", shlex.join(words[1:]))
    run.folder.mkdir(parents=True, exist_ok=True)
    place = places.get()
    try:
        with open(run.folder / "log.txt", "a") as file:
            environment = _environment(place, options.jobs)
            done = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, check=False, env=environment)
    finally:
        places.put(place)
    if done.returncode:
        log.warning("%s seed %d failed: %s; see %s", run.method, run.seed, run.complaint(), run.folder / "log.txt")


def _environment(place: int, jobs: int) -> dict[str, str]:
    """A GPU for each of several jobs, or its share of the CPU's cores."""
    import torch

    environment = dict(os.environ)
    gpus = torch.cuda.device_count()
    if gpus and jobs > 1:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(index) for index in range(gpus)]
        environment["CUDA_VISIBLE_DEVICES"] = names[place % len(names)]
    elif jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // jobs, 1))
    return environment


# ------------------------------------------------------------------------------------------------------ the page


def _write(suite: Suite, runs: list[Run], options: argparse.Namespace, output: Path) -> None:
    picture = output.with_suffix(".png") if suite.adapts and draw_curves(runs, output.with_suffix(".png")) else None
    write_atomically(output, page(suite, runs, options, picture))


def page(suite: Suite, runs: list[Run], options: argparse.Namespace, picture: Path | None = None) -> str:
    """The tables in Markdown, from whatever results there are; runs that failed or are missing are shown as such."""
    lines = [f"# {suite.title}", "", "```", _command(options), "```", ""]
    finished = [run for run in runs if run.finished]
    if not finished:
        return "\n".join([*lines, "no run has finished"]) + "\n"
    sets = list(finished[0].scores())
    lines += [_about(finished), "", *_summary(runs, sets)]
    for baseline in suite.baselines:
        lines += ["", *_gains(runs, baseline, sets)]
    if suite.adapts:
        lines += ["", *_by_class(runs, sets[-1])]
    if picture:
        lines += ["", f"![Scores and pseudo-labels over the steps]({picture.name})"]
    lines += ["", *_failures(runs)]
    return "\n".join(lines).rstrip() + "\n"


def _by_method(runs: list[Run]) -> dict[str, list[Run]]:
    methods = dict.fromkeys(run.method for run in runs)
    return {method: [run for run in runs if run.method == method] for method in methods}


def _summary(runs: list[Run], sets: list[str]) -> list[str]:
    columns = [(name, metric) for name in sets for metric in METRICS]
    lines = ["| method | " + " | ".join(f"{name} {metric}" for name, metric in columns) + " | runs |"]
    lines += ["|---|" + "---:|" * (len(columns) + 1)]
    for method, own in _by_method(runs).items():
        found = [run.scores() for run in own if run.finished]
        cells = [_cell([scores[name][metric] for scores in found]) for name, metric in columns]
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {len(found)} of {len(own)} |")
    return lines


def _gains(runs: list[Run], baseline: str, sets: list[str]) -> list[str]:
    """Differences to a baseline, seed by seed, with their standard error."""
    methods = _by_method(runs)
    base = {run.seed: run.scores() for run in methods.get(baseline, []) if run.finished}
    if not base:
        return []
    lines = [f"AP50 minus that of `{baseline}` with the same seed: mean ± standard error.", ""]
    lines += ["| method | " + " | ".join(sets) + " |", "|---|" + "---:|" * len(sets)]
    for method, own in methods.items():
        pairs = [(run.scores(), base[run.seed]) for run in own if run.finished and run.seed in base]
        if method == baseline or not pairs:
            continue
        cells = [_cell([one[name]["AP50"] - two[name]["AP50"] for one, two in pairs], error=True) for name in sets]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def _by_class(runs: list[Run], test_set: str) -> list[str]:
    methods = {method: [run.scores() for run in own if run.finished] for method, own in _by_method(runs).items()}
    classes = list(next(found for found in methods.values() if found)[0][test_set]["classes"])
    lines = [f"AP50 by class on {test_set}: mean ± standard deviation.", ""]
    lines += ["| method | " + " | ".join(classes) + " |", "|---|" + "---:|" * len(classes)]
    for method, found in methods.items():
        values = ([scores[test_set]["classes"][name]["AP50"] for scores in found] for name in classes)
        lines.append(f"| {method} | " + " | ".join(_cell([v for v in row if v is not None]) for row in values) + " |")
    return lines


def _failures(runs: list[Run]) -> list[str]:
    failed = [run for run in runs if not run.finished and (run.folder / "log.txt").is_file()]
    if not failed:
        return []
    return ["Not finished:", "", *(f"* {run.method}, seed {run.seed}: {run.complaint()}" for run in failed)]


def _cell(values: list[float], error: bool = False) -> str:
    if not values:
        return "–"
    sign = "+" if error else ""
    if len(values) == 1:
        return f"{values[0]:{sign}.1f}"
    spread = statistics.stdev(values) / (len(values) ** 0.5 if error else 1)
    return f"{statistics.mean(values):{sign}.1f} ± {spread:.1f}"


def _command(options: argparse.Namespace) -> str:
    words = ["python", "tools/benchmark.py", "--suite", options.suite, "--seeds", *map(str, options.seeds)]
    words += ["--methods", *options.methods] if options.methods else []
    words += ["--jobs", str(options.jobs)] if options.jobs > 1 else []
    words += ["--runs", str(options.runs)] if options.runs != DEFAULT_RUNS else []
    words += ["--output", str(options.output)] if options.output else []
    return shlex.join([*words, *options.overrides])


def _about(finished: list[Run]) -> str:
    """Versions, steps and data of the first finished run, as it recorded them."""
    found = [about for about in (run.about() for run in finished) if about]
    run, revisions = found[0], dict.fromkeys(str(about["git_revision"]) for about in found)
    train, data = run["config"]["train"], run["config"]["data"]
    adapts = any(about["config"]["data"].get("target") for about in found)
    target = data.get("target_batch_size") or data["batch_size"]
    more = f" (in adaptation and {target} of the target)" if adapts else ""
    versions = ", ".join(f"{name} {run['versions'][name]}" for name in ("torch", "torchvision", "albumentations"))
    seeds = ", ".join(map(str, dict.fromkeys(each.seed for each in finished)))
    return (
        f"Seeds {seeds}; {train['steps']} steps of {data['batch_size']} source images each{more}; "
        f"scores of the last step in percent, mean ± standard deviation over seeds. "
        f"Python {run['python']}, {versions}, on {run['device']} ({train['precision']}). "
        f"Revision {', '.join(revisions)}."
    )
