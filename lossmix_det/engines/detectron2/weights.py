"""Weights of Detectron2's model zoo, of other libraries, and of ours."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from lossmix_det.engines.timm_weights import NAMED
from lossmix_det.engines.weights import COUNTERS, check_finite, of_classifier, warn_of_fresh
from lossmix_det.errors import UserError, first_line
from lossmix_det.files import Damaged, read_model

log = logging.getLogger(__name__)

BODY = "backbone.bottom_up.net."  # where a network of timm lies
STATISTICS = ("running_mean", "running_var")  # begin at 0 and 1
PYRAMID = "backbone.fpn_"
MOST_FRESH = 0.95  # of a model that any weights were meant for; a few names are alike in any two networks


class _Checkpointer(DetectionCheckpointer):
    """Remembers what was loaded and what was not, in place of logging it."""

    fresh: frozenset[str] = frozenset()
    unused: tuple[str, ...] = ()

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        shapes = [name for name, _, _ in incompatible.incorrect_shapes]
        self.fresh = frozenset([*incompatible.missing_keys, *shapes])
        self.unused = tuple(incompatible.unexpected_keys)


def _say(total: int, fresh: Iterable[str], unused: Iterable[str], path: str) -> None:
    """What was loaded and what was not; counters of BatchNorm, which nothing reads, are not worth a word."""
    fresh, unused = (sorted(name for name in names if not name.endswith(COUNTERS)) for names in (fresh, unused))
    rest = f"; the rest is fresh: {_parts_of(fresh)}" if fresh else ""
    log.info("model.weights: %d of %d parts loaded%s", total - len(fresh), total, rest)
    if unused:
        log.info("model.weights: of no use here: %s", _parts_of(unused))
    body = [name for name in fresh if name.startswith("backbone.") and not name.startswith(PYRAMID)]
    warn_of_fresh([name for name in body if not name.endswith(STATISTICS)], path)


def _parts_of(names: Iterable[str]) -> str:
    """The parts of the model that the names lie in."""
    parts = sorted({".".join(name.split(".")[:2]) for name in names})
    more = f" and {len(parts) - 12} more" if len(parts) > 12 else ""
    return ", ".join(parts[:12]) + more


def load_weights(model: nn.Module, path: str, strict: bool, architecture: str = "") -> None:
    """Checkpoints and exports of ours, classifiers of timm's, and others through Detectron2's own checkpointer.

    Args:
        model: to load into.
        path: of a file, an address, or one of `NAMED`.
        strict: refuse what leaves any part fresh.
        architecture: the network of timm that the backbone is, as `model.architecture` would name it; empty: of none.

    Raises:
        UserError: there is no such file; or, if ``strict``, it leaves any part fresh.
    """
    state, own = _read(path, architecture), model.state_dict()
    check_finite(state, path)
    fitting = _fitting(own, state)
    if len(fitting) >= len(state) / 10 and fitting:
        _refuse_fresh(strict and bool(state), path, len(own) - len(fitting), len(own))
        model.load_state_dict(fitting, strict=False)
        if fitting.keys() != own.keys():
            _say(len(own), own.keys() - fitting.keys(), state.keys() - fitting.keys(), path)
    elif architecture and (fitting := _fitting(own, named := of_classifier(model, own, state))):
        _refuse_fresh(strict, path, len(own) - len(fitting), len(own))
        model.load_state_dict(fitting, strict=False)
        unused = [name.removeprefix(BODY) for name in named if name not in fitting]
        _say(len(own), own.keys() - fitting.keys(), unused, path)
    elif path in NAMED:
        raise UserError(f"model.weights={path} does not fit MODEL.BACKBONE.NAME; use build_timm_fpn_backbone")
    else:
        _load_foreign(model, path, strict)


def _read(path: str, architecture: str) -> dict[str, Tensor]:
    """The state dict of a file that is one of ours or a plain one; nothing of any other."""
    if path in NAMED and not Path(path).is_file():
        return NAMED[path](architecture)
    if "://" in path:
        return {}
    if not Path(path).is_file():
        raise UserError(f"model.weights={path!r}: no such file; give a .pkl, a .pth or a detectron2:// address")
    try:
        return read_model(Path(path))
    except Damaged:
        raise
    except UserError:  # not one of ours
        return {}


def _fitting(own: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}


def _load_foreign(model: nn.Module, path: str, strict: bool) -> None:
    """Of another library, if not of nothing at all."""
    heuristics = "" if "://" in path else "?matching_heuristics=True"  # names of other libraries, by their ends
    checkpointer, own = _Checkpointer(model), model.state_dict()
    try:
        checkpointer.load(path + heuristics)
    except Exception as error:  # of pickle, of the network, of Detectron2
        raise UserError(
            f"model.weights={path} cannot be read ({type(error).__name__}: {first_line(error)}); "
            "was the file copied whole, and is it of a Detectron2 model?"
        ) from error
    learned = [name for name in own if not name.endswith(COUNTERS)]
    fresh = len(checkpointer.fresh)
    _refuse_fresh(strict or fresh > MOST_FRESH * len(learned), path, fresh, len(own))
    _say(len(own), checkpointer.fresh, checkpointer.unused, path)


def _refuse_fresh(strict: bool, path: str, fresh: int, total: int) -> None:
    if strict and fresh:
        raise UserError(
            f"model.weights={path} is not of this model: {fresh} of {total} parts do not fit; "
            "name a trained checkpoint or export by model.weights=…"
        )
