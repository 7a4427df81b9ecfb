"""The processes that load images: how they begin, how they fail, and that they end with the process they load for."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from lossmix_det.errors import UserError, first_line

PATIENCE = 3.0  # seconds that workers have to end by themselves


class WorkerLost(UserError):
    """A process that loads images has ended before its time."""


def loading(workers: int) -> dict[str, Any]:
    """Settings of every loader; with a generator of its own, it does not draw from torch's global one.

    Args:
        workers: number of processes that load; 0: images are loaded where they are used.
    """
    cv2.setNumThreads(0)  # OpenCV's threads fight with the workers and the training threads
    settings = {"num_workers": workers, "generator": torch.Generator(), "pin_memory": torch.cuda.is_available()}
    if workers:
        settings |= {"prefetch_factor": 4, "worker_init_fn": _begin}
    return settings


def batches(loader: DataLoader) -> Iterator[Any]:
    """What a loader gives.

    Raises:
        WorkerLost: one of its processes was killed, by the system for memory for example.
    """
    with _interrupted_later():
        stream = iter(loader)
    while True:
        try:
            batch = next(stream)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:  # the last two: of what it was about to send
            if not loader.num_workers:
                raise
            raise WorkerLost(lost_worker(error)) from None
        yield batch


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Hold Ctrl-C back within the block, so that processes which begin in it are not struck before they ignore it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def lost_worker(error: Exception) -> str:
    """The sentence for a loading process that was killed.

    Args:
        error: what torch says of it.
    """
    return (
        f"a process that loads images was ended from outside ({first_line(error)}), perhaps because memory ran out; "
        f"lower data.workers or data.batch_size"
    )


def _begin(_: int) -> None:
    """Prepare a worker: one thread, and no signal stops it but its parent's SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # elsewhere any SIGTERM ends it, as torch's workers end
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, args=(multiprocessing.parent_process().pid,), daemon=True).start()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _end_when_told(parent: int) -> None:
    """End this process at a SIGTERM of its parent, which then waits for it: as the loader closes, or as Python exits.

    A scheduler sends SIGTERM to the whole process group. Workers survive that, so that the parent can finish its step
    and save.
    """
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


@atexit.register  # later than multiprocessing's own, and so called before it, which would wait without end
def end_workers(patience: float = PATIENCE) -> None:
    """End all processes that load for this one; those that do not hear SIGTERM are killed.

    Args:
        patience: seconds before they are killed.
    """
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if not workers:
        return
    with suppress(ValueError):  # in another thread than the first
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # who is impatient must not leave workers behind
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises an error wherever a worker is killed
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + patience
    for worker in workers:
        worker.join(max(deadline - time.monotonic(), 0))
        if worker.is_alive():
            worker.kill()
            worker.join(patience)
