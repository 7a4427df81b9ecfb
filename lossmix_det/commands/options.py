"""What the command lines of all commands share."""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING

from lossmix_det.config import Config
from lossmix_det.errors import Silent, UserError, first_line

if TYPE_CHECKING:
    from lossmix_det.training.launch import Processes


def new_parser(description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser with the options of every command: a configuration file, and KEY=VALUE settings over it.

    Args:
        description: what the command does.
        prog: how it was called; absent: the name of the script.
    """
    result = argparse.ArgumentParser(prog=prog, description=description)
    result.add_argument(
        "--config-file", metavar="FILE", help="YAML file, see configs/; default: the quick run on generated images"
    )
    result.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, for example train.steps=1000")
    return result


def add_processes(parser: argparse.ArgumentParser) -> None:
    """The options that say how many processes run together, under the names that Detectron2's users know."""
    parser.add_argument(
        "--num-gpus",
        type=int,
        metavar="N",
        help="GPUs of this machine; on a CPU the number of processes; default: 1, and under torchrun and srun theirs",
    )
    parser.add_argument("--num-machines", type=int, metavar="M", help="number of machines")
    parser.add_argument("--machine-rank", type=int, metavar="R", help="number of this machine, from 0")
    parser.add_argument("--dist-url", default="", metavar="URL", help="tcp://host:port of machine 0")
    parser.add_argument(
        "--dist-timeout", type=float, default=15.0, metavar="S", help="seconds that machines wait for each other"
    )


def add_imports(parser: argparse.ArgumentParser) -> None:
    """The option that names code which the weights need; what a file of weights names is not run unasked."""
    parser.add_argument(
        "--import",
        dest="imports",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="Python modules of yours that add parts of the model, as data.imports of its run did",
    )


def processes_of(options: argparse.Namespace) -> Processes:
    """What the options of `add_processes` say."""
    from lossmix_det.training.launchers import asked_for  # loads torch

    asked = {"gpus": options.num_gpus, "machines": options.num_machines, "machine_rank": options.machine_rank}
    return asked_for(asked, options.dist_url, options.dist_timeout)


def parse(parser: argparse.ArgumentParser, words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line on which KEY=VALUE settings may stand anywhere, also behind an option that takes a list.

    Args:
        parser: with a positional ``overrides``.
        words: absent: those of the process.
    """
    words = list(sys.argv[1:] if words is None else words)
    groups = "|".join(spec.name for spec in fields(Config))
    overrides = [word for word in words if re.match(rf"({groups})[.=]", word) and "=" in word]
    options = parser.parse_args([word for word in words if word not in overrides])
    options.overrides = [*overrides, *options.overrides]
    return options


# Warnings that are not shown, by how they begin.
NOISE = (
    "`torch.jit.script` is deprecated",  # of libraries about themselves
    "torch.meshgrid: in an upcoming release",
    "is_fx_tracing will return true",
    "This DataLoader will create",  # said once, by the summary that a run opens with
)
TALKATIVE = ("lightning",)  # loggers that announce what is set


# What a fault of the machine means that libraries raise as a RuntimeError, by a phrase of what they say.
FAULTS = {
    "DataLoader worker": "a process that loads images was ended from outside, perhaps because memory ran out; lower "
    "data.workers or data.batch_size",
    "out of memory": "the GPU's memory ran out; lower data.batch_size or data.augment.max_size, or raise "
    "train.accumulate",
    "can't allocate memory": "memory ran out; lower data.batch_size, data.augment.max_size or data.workers",
}
FAILED, INTERRUPTED = 2, 130  # exit statuses


def run_tool(action: Callable[[], int]) -> int:
    """Run a command; a mistake of its user or a fault of the machine becomes one sentence and status 2.

    Ctrl-C ends it with one sentence and status 130, as shells expect.
    """
    _set_up_log()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of any script, also where the terminal has another
    try:
        return action()
    except Silent:
        return FAILED
    except KeyboardInterrupt as error:
        return _say("interrupted", INTERRUPTED, error)
    except (UserError, OSError) as error:  # the latter: a full disk, a folder that may not be written to
        return _say(str(error), FAILED, error)
    except (RuntimeError, MemoryError) as error:
        said = "can't allocate memory" if isinstance(error, MemoryError) else str(error)
        meaning = next((meaning for phrase, meaning in FAULTS.items() if phrase in said), None)
        if meaning is None:  # a fault of ours, whose place in the code must be seen
            raise
        return _say(f"{meaning} ({first_line(error)})", FAILED, error)


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Let a logger say warnings alone; afterwards it says what it did before.

    Args:
        name: of the logger.
    """
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _say(sentence: str, status: int, error: BaseException) -> int:
    """Say why the command ends, and keep the error with its frames: loaders in them, as they go, wait for workers."""
    sys.last_value = error
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    return status


def _is_no_announcement(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or not record.name.startswith(TALKATIVE)


def _is_no_noise(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(NOISE)


def _set_up_log() -> None:
    """Log to stderr with the time, and without the announcements and noise of libraries."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else lost connections print pages; read as torch is loaded
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_no_announcement)
    logging.getLogger("torch.fx._symbolic_trace").addFilter(_is_no_noise)
    for beginning in NOISE:
        warnings.filterwarnings("ignore", message=re.escape(beginning))
