"""Weights of Detectron2's model zoo, of other libraries, and of ours."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from lossmix_det.errors import UserError, first_line
from lossmix_det.files import Damaged, read_model

log = logging.getLogger(__name__)

MOST_FRESH = 0.95  # of a model that any weights were meant for; a few names are alike in any two networks


class _Checkpointer(DetectionCheckpointer):
    """Says in two lines what was loaded and what was not."""

    fresh: frozenset[str] = frozenset()

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        own = self.model.state_dict()
        shapes = [name for name, _, _ in incompatible.incorrect_shapes]
        self.fresh = fresh = frozenset([*incompatible.missing_keys, *shapes])
        rest = f"; the rest is fresh: {_parts_of(fresh)}" if fresh else ""
        log.info("model.weights: %d of %d parts loaded%s", len(own) - len(fresh), len(own), rest)
        if incompatible.unexpected_keys:
            log.info("model.weights: of no use here: %s", _parts_of(incompatible.unexpected_keys))


def _parts_of(names: Iterable[str]) -> str:
    """The parts of the model that the names lie in."""
    parts = sorted({".".join(name.split(".")[:2]) for name in names})
    more = f" and {len(parts) - 12} more" if len(parts) > 12 else ""
    return ", ".join(parts[:12]) + more


def load_weights(model: nn.Module, path: str, strict: bool) -> None:
    """Checkpoints and exports of ours; others through Detectron2's own checkpointer, which matches names.

    Raises:
        UserError: there is no such file; or, if ``strict``, it leaves any part fresh.
    """
    if "://" not in path and not Path(path).is_file():
        raise UserError(f"model.weights={path!r}: no such file; give a .pkl, a .pth or a detectron2:// address")
    try:
        state = read_model(Path(path)) if "://" not in path else {}
    except Damaged:
        raise
    except UserError:  # not one of ours
        state = {}
    own = model.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if len(fitting) < len(state) / 10 or not fitting:  # of another library, if not of nothing at all
        heuristics = "" if "://" in path else "?matching_heuristics=True"  # names of other libraries, by their ends
        checkpointer = _Checkpointer(model)
        try:
            checkpointer.load(path + heuristics)
        except Exception as error:  # of pickle, of the network, of Detectron2
            raise UserError(
                f"model.weights={path} cannot be read ({type(error).__name__}: {first_line(error)}); "
                "was the file copied whole, and is it of a Detectron2 model?"
            ) from error
        learned = [name for name in own if not name.endswith("num_batches_tracked")]
        fresh = len(checkpointer.fresh)
        _refuse_fresh(strict or fresh > MOST_FRESH * len(learned), path, fresh, len(own))
        return
    _refuse_fresh(strict and bool(state), path, len(own) - len(fitting), len(own))
    model.load_state_dict(fitting, strict=False)
    if fitting.keys() != own.keys():
        log.info("model.weights: %d of %d parts fit and were loaded, the rest start fresh", len(fitting), len(own))


def _refuse_fresh(strict: bool, path: str, fresh: int, total: int) -> None:
    if strict and fresh:
        raise UserError(
            f"model.weights={path} is not of this model: {fresh} of {total} parts do not fit; "
            "name a trained checkpoint or export by model.weights=…"
        )
