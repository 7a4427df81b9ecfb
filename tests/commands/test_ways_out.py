"""Whatever ends a command, it ends at once, with one sentence and no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from runs import TINY, command, env

from lossmix_det.commands.options import run_tool
from lossmix_det.config import load_config
from lossmix_det.engines import build_detector
from lossmix_det.errors import UserError
from lossmix_det.files import save_tensors

LIMIT = 120.0  # seconds, after which a test fails; nothing else depends on the clock

# Imported by the run (data.imports): what reading an image does in a loading process, after the first few.
FAULTY = """
import os, signal, threading
import lossmix_det.data.loaders as loaders

class Odd(Exception):
    def __init__(self, first, second):  # as it comes out of a pickle, it cannot be built
        super().__init__(first)

def stall(): threading.Event().wait()
def kill(): os.kill(os.getpid(), signal.SIGKILL)
def odd(): raise Odd("no width", 2)

run, read, count = os.getpid(), loaders.read, 0

def faulty(path, *rest, **named):
    global count
    count += 1
    if os.getpid() != run and count > FIRST:
        FAULT()
    return read(path, *rest, **named)

loaders.read = faulty
"""


class Started:
    """A command that loads images with two processes, which fail.

    Args:
        folder: for its files.
        fault: a function of `FAULTY`.
        first: images that each process reads before.
        words: options and settings.
    """

    def __init__(self, folder: Path, fault: str, first: int, *words: str) -> None:
        (folder / "faulty.py").write_text(FAULTY.replace("FAULT()", f"{fault}()").replace("FIRST", str(first)))
        settings = ["data.workers=2", "data.imports=[faulty]", "data.test_batch_size=1"]
        options = [word for word in words if "=" not in word]
        line = [*command(folder / "run", *options), *settings, *(word for word in words if word not in options)]
        paths = {"PYTHONPATH": os.pathsep.join([env()["PYTHONPATH"], str(folder)])}
        self.process = subprocess.Popen(
            line,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env() | paths,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )
        self.lines: list[str] = []
        self.timer = threading.Timer(LIMIT, os.killpg, (self.process.pid, signal.SIGKILL))
        self.timer.start()

    def wait_for(self, words: str) -> None:
        for line in self.process.stdout:
            self.lines.append(line)
            if words in line:
                return
        pytest.fail(f"{words!r} never came:\n" + "".join(self.lines))

    def interrupt(self) -> None:
        """Ctrl-C: the terminal signals the loading processes too."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> tuple[int, str]:
        """Its status, and what it said last."""
        self.lines += list(self.process.stdout)
        status = self.process.wait()
        self.timer.cancel()
        text = "".join(self.lines)
        assert "Traceback" not in text, text
        return status, self.lines[-1]


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "w.pth"
    save_tensors(build_detector(load_config(None, TINY).model, 6).exported(), path)
    return f"model.weights={path}"


@pytest.mark.slow
def test_ctrl_c_ends_an_evaluation_that_waits_for_data(tmp_path, weights):
    started = Started(tmp_path, "stall", 0, "--eval-only", weights)
    started.wait_for("tensors loaded")
    started.interrupt()
    assert started.end() == (130, "error: interrupted\n")


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_training_that_waits_for_data(tmp_path):
    started = Started(tmp_path, "stall", 4)
    started.wait_for("step 2/")
    started.interrupt()
    started.wait_for("received SIGINT; saving after this step")
    started.interrupt()
    assert started.end() == (130, "error: interrupted\n")


@pytest.mark.slow
def test_a_loading_process_that_the_system_kills_ends_the_run_with_advice(tmp_path):
    status, said = Started(tmp_path, "kill", 4).end()
    assert status == 2
    assert said.startswith("error: a process that loads images was ended from outside (")
    assert said.endswith("perhaps because memory ran out; lower data.workers or data.batch_size\n")


@pytest.mark.slow
def test_an_error_that_cannot_be_sent_to_the_parent_is_a_sentence_that_names_the_image(tmp_path, weights):
    status, said = Started(tmp_path, "odd", 0, "--eval-only", weights).end()
    assert status == 2
    assert ".jpg: image cannot be read (Odd: no width); correct it, or set data.on_error=skip to leave it out" in said


def raising(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (UserError("two\nlines"), 2, "two lines"),
        (OSError(28, "No space left on device", "x.pt"), 2, "[Errno 28] No space left on device: 'x.pt'"),
        (MemoryError(), 2, "memory ran out; lower data.batch_size, data.augment.max_size or data.workers"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 2, "the GPU's memory ran out; lower data.batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "memory ran out; lower"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. "), 2, "a process that loads images"),
    ],
)
def test_a_fault_of_the_machine_is_one_sentence(capsys, error, status, said):
    assert run_tool(raising(error)) == status
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {said}")
    assert printed.count("\n") == 1


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shape"):
        run_tool(raising(RuntimeError("shape mismatch")))


DEAF = """
import multiprocessing, signal, sys, threading
from lossmix_det.data import workers

def deaf():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    print("ready", flush=True)
    threading.Event().wait()

context = multiprocessing.get_context("fork")
worker = context.Process(target=deaf, daemon=True)
worker.start()
sys.stdin.readline()
print("the end")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals cannot be blocked here")
def test_a_loading_process_that_is_deaf_to_sigterm_does_not_keep_python_from_exiting():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", DEAF], **pipes, text=True, env=env())
    try:
        assert process.stdout.readline() == "ready\n"
        output, errors = process.communicate("go on\n", timeout=LIMIT)
    finally:
        process.kill()
    assert (process.returncode, output, errors) == (0, "the end\n", "")
