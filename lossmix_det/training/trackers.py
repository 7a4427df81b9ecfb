"""Experiment trackers, through the loggers of Lightning: what a run writes to its CSV files goes there as well."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossmix_det.errors import UserError, first_line
from lossmix_det.files import write_atomically

log = logging.getLogger(__name__)

PROJECT = "lossmix_det"
IDS = "trackers.json"  # of a run's folder: under which id each tracker knows the run


@dataclass(frozen=True)
class Tracker:
    """A logger of Lightning, and how it is told which run this is.

    Args:
        logger: name of the class in ``pytorch_lightning.loggers``.
        settings: of a new run, given its folder, and the id that it had before it was resumed (or None).
        id_of: the id of its run.
    """

    logger: str
    settings: Callable[[Path, str | None], dict[str, Any]]
    id_of: Callable[[Any], str]


def _wandb(folder: Path, known: str | None) -> dict[str, Any]:
    return {"project": PROJECT, "name": folder.name, "save_dir": str(folder), "id": known, "resume": "allow"}


def _mlflow(folder: Path, known: str | None) -> dict[str, Any]:
    return {"experiment_name": PROJECT, "run_name": folder.name, "run_id": known}


# By the name in `train.trackers`. Servers, projects and keys are set as each tracker's own documentation says.
TRACKERS = {
    "wandb": Tracker("WandbLogger", _wandb, lambda logger: str(logger.version)),
    "mlflow": Tracker("MLFlowLogger", _mlflow, lambda logger: str(logger.run_id)),
}


class Trackers:
    """The trackers of one run, on its first process.

    Args:
        names: of `TRACKERS`.
        folder: of the run, which remembers the ids, so that a resumed run goes on under the same ones.
        settings: of the run, by key.

    Raises:
        UserError: a library is missing, or a tracker does not start.
    """

    def __init__(self, names: Iterable[str], folder: Path, settings: dict[str, Any]) -> None:
        path = folder / IDS
        known = _read(path)
        self.loggers: dict[str, Any] = {}
        for name in names:
            self.loggers[name] = _started(name, folder, known.get(name), settings)
            known[name] = TRACKERS[name].id_of(self.loggers[name])
        if self.loggers:
            write_atomically(path, json.dumps(known, indent=2))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send numbers by name. A tracker that fails is left out from then on, and the run goes on."""
        for name, logger in list(self.loggers.items()):
            try:
                logger.log_metrics(values, step)
            except Exception as error:  # a network that is down must not end a run
                log.warning("%s takes no more numbers (%s: %s)", name, type(error).__name__, first_line(error))
                del self.loggers[name]

    def close(self) -> None:
        """Send what is left."""
        for name, logger in self.loggers.items():
            try:
                logger.finalize("success")
            except Exception as error:  # as in `log`
                log.warning("%s lacks the end of the run (%s: %s)", name, type(error).__name__, first_line(error))


def _read(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def _started(name: str, folder: Path, known: str | None, settings: dict[str, Any]) -> Any:
    tracker = TRACKERS[name]
    try:
        logger = getattr(importlib.import_module("pytorch_lightning.loggers"), tracker.logger)
        started = logger(**tracker.settings(folder, known))
        started.log_hyperparams(settings)
        return started
    except ModuleNotFoundError as error:
        raise UserError(
            f"train.trackers={name} needs {error.name}, which is not installed: pip install 'lossmix-det[{name}]'"
        ) from error
    except Exception as error:  # of a library that reaches for a server
        raise UserError(
            f"train.trackers={name} does not start ({type(error).__name__}: {first_line(error)}); see {name}'s "
            "documentation, or leave it out of train.trackers"
        ) from error
