"""Loading processes end with the script that started them, and survive what is meant for their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import env

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds child processes in /proc"),
]

# Holds the iterator of a loader with two workers at its top level.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from lossmix_det.config import load_config
from lossmix_det.data.catalog import load
from lossmix_det.data.loaders import training_loader

words = ["datasets.mine.root=" + sys.argv[1], "data.workers=2", "data.batch_size=1", "data.augment.min_sizes=[40]"]
config = load_config(None, words)
batches = iter(training_loader([load("mine", config)], config.data, seed=0))
for _ in range(2):  # one from each worker
    next(batches)
workers = [int(child) for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
print(len(workers), "workers", flush=True)
"""


def run_script(root: Path, ending: str) -> subprocess.CompletedProcess[str]:
    """Run the script with an ending. If it never exits, the timeout fails the test."""
    words = [sys.executable, "-c", SCRIPT + ending, str(root)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, env=env())


def test_a_script_that_holds_an_iterator_exits(voc_folder):
    done = run_script(voc_folder, "print('the end')")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 workers\nthe end\n"


def test_a_script_that_holds_an_iterator_ends_by_its_exception(voc_folder):
    done = run_script(voc_folder, "raise RuntimeError('on purpose')")
    assert done.returncode == 1
    assert done.stdout == "2 workers\n"
    assert done.stderr.strip().splitlines()[-1] == "RuntimeError: on purpose"


SIGNALLED = """
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(30):  # more batches than were loaded ahead
    next(batches)
states = [Path(f"/proc/{worker}/stat").read_text().rsplit(")")[1].split()[0] for worker in workers]
print("dead" if "Z" in states else "alive", flush=True)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_from_elsewhere_to_the_whole_group_leaves_the_workers_alive(voc_folder, name):
    words = [sys.executable, "-c", SCRIPT + SIGNALLED.replace("SIGTERM", name), str(voc_folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(words, **pipes, text=True, env=env(), start_new_session=True)
    try:
        assert process.stdout.readline() == "2 workers\n"
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.Signals[name])
        assert process.stdout.readline() == "told\n"
        output, errors = process.communicate("go on\n", timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert output == "alive\n"
