"""Code of the user's own that a run calls as it goes."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from traceback import extract_tb
from typing import Any

from lossmix_det.errors import UserError, first_line
from lossmix_det.training.state import RunState

log = logging.getLogger(__name__)

EXAMPLE = "my_module.MyCallback"


class Callback:
    """What a run tells; subclass it, or write a class with any of these methods.

    It is built without arguments, on the first process alone. It may read the state of the run, and must not change it.
    """

    def on_step(self, state: RunState, losses: dict[str, float]) -> None:
        """After every step.

        Args:
            state: of the run; ``state.step`` steps have been taken.
            losses: by name. They are known every ``train.log_every`` steps; in between this is empty.
        """

    def on_evaluate(self, state: RunState, results: dict[str, Any]) -> None:
        """After every evaluation.

        Args:
            state: of the run.
            results: scores in percent by model, test set and metric.
        """

    def on_save(self, state: RunState, path: Path) -> None:
        """After every checkpoint.

        Args:
            state: of the run.
            path: of the checkpoint.
        """


class Callbacks:
    """The callbacks of a run, called in the order of ``train.callbacks``.

    Args:
        paths: such as ``my_module.MyCallback``.
        active: this is the first process; on the others nothing is built or called.

    Raises:
        UserError: one of them cannot be imported or built.
    """

    def __init__(self, paths: Sequence[str], active: bool) -> None:
        self.called = {path: _built(path) for path in paths if active}

    def on_step(self, state: RunState, losses: dict[str, float]) -> None:
        """As `Callback.on_step`."""
        self._call("on_step", state, losses)

    def on_evaluate(self, state: RunState, results: dict[str, Any]) -> None:
        """As `Callback.on_evaluate`."""
        self._call("on_evaluate", state, results)

    def on_save(self, state: RunState, path: Path) -> None:
        """As `Callback.on_save`."""
        self._call("on_save", state, path)

    def _call(self, method: str, state: RunState, *values: Any) -> None:
        """Call it on all that have it.

        Raises:
            UserError: one of them fails; the sentence says in which line.
        """
        for path, callback in self.called.items():
            try:
                getattr(callback, method, _nothing)(state, *values)
            except Exception as error:  # the user's code, which may fail in any way
                place = extract_tb(error.__traceback__)[-1]
                raise UserError(
                    f"train.callbacks: {path}.{method} failed at step {state.step} ({type(error).__name__}: "
                    f"{first_line(error)}; {place.filename}, line {place.lineno})"
                ) from error


def _built(path: str) -> Any:
    module, _, name = path.rpartition(".")
    if not module:
        raise UserError(f"train.callbacks: {path!r} must be a module and a class in it, such as {EXAMPLE}")
    try:
        return getattr(importlib.import_module(module), name)()
    except Exception as error:  # the user's code, which may fail in any way
        raise UserError(
            f"train.callbacks: {path} cannot be built ({type(error).__name__}: {first_line(error)}); it must be a "
            f"class that takes no arguments, in a module whose folder is on PYTHONPATH"
        ) from error


def _nothing(*_: Any) -> None:
    """A method that a callback does not have."""
