"""Train several methods with several seeds, and write their scores as a table with its spread."""

from __future__ import annotations

import argparse
import logging
import os
import queue
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from benchmarks.bootstrap import Resamples, resamples_of
from benchmarks.burn_in import borrow, lenders_of
from benchmarks.curves import draw_curves
from benchmarks.page import NOTHING, page
from benchmarks.runs import Run, Suite, planned
from benchmarks.timing import PROGRAM
from lossmix_det.config import Config, as_dict, flat
from lossmix_det.errors import UserError
from lossmix_det.files import write_atomically
from lossmix_det.training.provenance import changes, read_run, settings_of
from lossmix_det.training.signals import catching_signals

log = logging.getLogger(__name__)

DEFAULT_RUNS = Path("runs/benchmark")
SCRIPT = "tools/benchmark.py"


def compare(suite: Suite, options: argparse.Namespace, default_output: Path) -> None:
    """Run what has not run yet, and rewrite the page after each run.

    Args:
        suite: what to compare.
        options: of `benchmarks.suites`.
        default_output: of the page.

    Raises:
        UserError: an unknown method, a setting that is of each run, a folder that holds a run with other settings, a
            file that holds another table, or a run that failed.
    """
    methods = suite.names_of(options.methods or ["*"])
    check_overrides(options.overrides)
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: at least one run at a time")
    runs = planned(suite, options.runs, methods, options.seeds)
    output = options.output or default_output
    for run in runs:
        check_settings(run.folder, run.settings(options.overrides))
    check_paths(options, output)
    _write(suite, runs, options, output)
    _train_all(suite, runs, options, output)
    log.info("wrote %s", output)
    missing = sum(not run.finished for run in runs)
    if missing:
        raise UserError(f"{missing} of {len(runs)} runs did not finish; {output} says why")


def _train_all(suite: Suite, runs: list[Run], options: argparse.Namespace, output: Path) -> None:
    """Train what has not finished, several runs at a time."""
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(options.jobs):
        slots.put(slot)
    lenders = lenders_of({run.folder: run.settings(options.overrides) for run in runs})
    processes = _Processes()
    with ThreadPoolExecutor(options.jobs) as pool, catching_signals(processes.stop):
        # Those that begin where others end their burn-in come last, so that they need not wait.
        order = sorted((run for run in runs if not run.finished), key=lambda run: run.folder in lenders)
        waiting = [pool.submit(_train, run, options, slots, processes, lenders.get(run.folder)) for run in order]
        try:
            for done in as_completed(waiting):
                done.result()
                _write(suite, runs, options, output)
        except BaseException:  # told a second time, or nothing can be written: no other run begins
            processes.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if processes.stopped:
        raise UserError("told to stop; the same command goes on from there")


class _Processes:
    """The runs that train at this moment, each a process of its own, which has to be told to stop, too."""

    def __init__(self) -> None:
        self.stopped = False
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.RLock()  # a signal may come while the same thread holds it

    def stop(self) -> None:
        """Let all that run save and end, and none begin."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                process.terminate()

    def wait_for(self, words: Sequence[str], **more: Any) -> int:
        """Run a command to its end, unless all are to stop; returns its exit status.

        Args:
            words: the command.
            more: for `subprocess.Popen`.
        """
        with self._lock:
            if self.stopped:
                return 0
            process = subprocess.Popen(words, **more)
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)


OPTIONS = {"train.seed": "--seeds", "output_dir": "--runs"}  # by setting: what gives each run its own


def check_overrides(overrides: Iterable[str]) -> None:
    """Refuse settings that would be the same for all runs, where each needs its own."""
    for word in overrides:
        option = OPTIONS.get(word.partition("=")[0])
        if option:
            raise UserError(f"{word} would hold for every run, and each has its own; give {option}")


def check_paths(options: argparse.Namespace, output: Path) -> None:
    """Refuse to write where nothing can be written, or over the table of another command."""
    if options.runs.exists() and not options.runs.is_dir():
        raise UserError(f"--runs {options.runs} is a file; give a folder")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; give a file in it")
    if output.is_file() and not _is_page_of(output.read_text(errors="replace"), command_of(options)):
        raise UserError(f"{output} holds the table of another command; give another file by --output, or delete it")


def _is_page_of(text: str, command: str) -> bool:
    """Whether a page was made by a command, whatever Python it names; nobody misses one that shows no run."""
    lines = text.splitlines()
    if NOTHING in lines:
        return True
    commands = {line.partition(SCRIPT)[2] for line, before in zip(lines[1:], lines, strict=False) if before == "```"}
    return command.partition(SCRIPT)[2] in commands


def check_settings(folder: Path, wanted: Config) -> None:
    """Refuse a run that was last started with other settings than those wanted, whether or not it has finished."""
    about = read_run(folder)
    if about is None:
        return
    changed = dict.fromkeys(key.partition(".")[0] for key in changes(settings_of(about), flat(as_dict(wanted))))
    if changed:
        raise UserError(f"{folder} holds a run with other settings ({', '.join(changed)}); give another by --runs")


def _train(
    run: Run,
    options: argparse.Namespace,
    slots: queue.SimpleQueue[int],
    processes: _Processes,
    lender: Path | None = None,
) -> None:
    """One training run as its own process, resumed if it was interrupted; everything it prints goes to its log."""
    if processes.stopped:
        return
    if lender is not None:
        try:
            borrow(lender, run.folder)
        except UserError as error:
            log.warning("%s seed %d failed: %s", run.method, run.seed, error)
            return
    words = [sys.executable, "tools/train_net.py", "--config-file", str(run.config), "--resume"]
    words += run.words(options.overrides)
    log.info("%s", shlex.join(words))
    run.folder.mkdir(parents=True, exist_ok=True)
    slot = slots.get()
    try:
        with open(run.log, "a") as file:
            environment = _environment(slot, options.jobs)
            status = processes.wait_for(words, stdout=file, stderr=subprocess.STDOUT, env=environment)
    finally:
        slots.put(slot)
    if status and not processes.stopped:
        log.warning("%s seed %d failed: %s; see %s", run.method, run.seed, run.complaint(), run.log)


def _environment(slot: int, jobs: int) -> dict[str, str]:
    """A GPU for each of several jobs, or its share of the CPU's cores."""
    environment = dict(os.environ)
    gpus = torch.cuda.device_count()
    if gpus and jobs > 1:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(index) for index in range(gpus)]
        environment["CUDA_VISIBLE_DEVICES"] = names[slot % len(names)]
    elif jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // jobs, 1))
    return environment


def _write(suite: Suite, runs: list[Run], options: argparse.Namespace, output: Path) -> None:
    picture = output.with_suffix(".png") if suite.adapts and draw_curves(runs, output.with_suffix(".png")) else None
    resamples = {} if suite.parts else _resamples(runs, options)  # tables of parts have no column for them
    write_atomically(output, page(suite, runs, command_of(options), picture, resamples))


def _resamples(runs: list[Run], options: argparse.Namespace) -> Resamples:
    """AP50 of resampled test images by method and test set, where there is one seed and so no other spread."""
    if len({run.seed for run in runs}) > 1:
        return {}
    return {
        (run.method, name): values
        for run in runs
        if run.finished
        for name, values in resamples_of(run, options.overrides).items()
    }


def command_of(options: argparse.Namespace) -> str:
    """The command line that makes the page."""
    suite = ["--suite", options.suite] if options.suite else ["--suite-dir", str(options.suite_dir)]
    words = [*shlex.split(PROGRAM), *suite, "--seeds", *map(str, options.seeds)]
    words += ["--methods", *options.methods] if options.methods else []
    words += ["--jobs", str(options.jobs)] if options.jobs > 1 else []
    words += ["--runs", str(options.runs)] if options.runs != DEFAULT_RUNS else []
    words += ["--output", str(options.output)] if options.output else []
    return shlex.join([*words, *options.overrides])
