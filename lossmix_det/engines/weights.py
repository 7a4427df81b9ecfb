"""Weights from a file, from torchvision's store or from timm's, and what of them fits a model."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from torch import Tensor, nn
from torchvision.models import get_weight

from lossmix_det.engines.timm_weights import NAMED
from lossmix_det.errors import UserError
from lossmix_det.files import read_model

log = logging.getLogger(__name__)

LEAST_FITTING = 0.1  # share of a file's tensors; a few names are alike in any two networks
COUNTERS = "num_batches_tracked"


def read_weights(source: str, architecture: str = "") -> dict[str, Tensor]:
    """A state dict from a file or from a store, without ever unpickling code.

    Args:
        source: path of a state dict, of an export, or of a checkpoint of ours (its EMA weights if it has any);
            a torchvision name such as ``ResNet50_Weights.IMAGENET1K_V2``; or one of `NAMED`.
        architecture: as `model.architecture` names it, for those of `NAMED`.

    Raises:
        UserError: no such file or name, the file holds no state dict, or there are no such weights.
    """
    path = Path(source)
    if path.is_file():
        return read_model(path)
    if source in NAMED:
        return NAMED[source](architecture)
    try:
        weights = get_weight(source)
    except (ValueError, KeyError, AttributeError):
        raise UserError(
            f"model.weights={source!r} is neither a file nor a torchvision name such as "
            f"ResNet50_Weights.IMAGENET1K_V2, nor one of {', '.join(NAMED)}"
        ) from None
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except OSError as error:
        raise UserError(
            f"{source} could not be downloaded ({error}); fetch {weights.url} elsewhere and give model.weights its path"
        ) from None


def load_weights(model: nn.Module, state: dict[str, Tensor], source: str, strict: bool = False) -> None:
    """Load what fits by name and shape, and report the rest: replaced heads, missing and unused names.

    Names are taken as `as_named_in` reads them. A bare classifier goes into the backbone.

    Raises:
        UserError: nothing fits; or, if ``strict``, something is missing or of another shape.
    """
    own = model.state_dict()
    state = as_named_in(own, state)
    check_finite(state, source)
    if not any(name in own for name in state):
        state = of_classifier(model, own, state)
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if len(fitting) < len(state) * LEAST_FITTING or not fitting:
        raise UserError(
            f"model.weights={source}: {len(fitting)} of its {len(state)} tensors fit this architecture; "
            "is it of another network?"
        )
    model.load_state_dict(fitting, strict=False)
    replaced = sorted(name for name in state if name in own and name not in fitting)
    missing = sorted(name for name in own if name not in state and not name.endswith(COUNTERS))
    unused = sorted(name for name in state if name not in own and not name.endswith(COUNTERS))
    if strict and (replaced or missing):
        names = _shorten([*replaced, *missing])
        raise UserError(f"model.weights={source} is not of this model: {names} missing or of another shape")
    log.info("weights %s: %d of %d tensors loaded", source, len(fitting), len(own))
    if any(name.startswith(BODIES) for name in fitting):
        warn_of_fresh(_fresh_in_body(own, fitting), source)
    for title, names in (
        ("of another shape, left fresh", replaced),
        ("not in the file", missing),
        ("unused", unused),
    ):
        if names:
            log.info("  %s (%d): %s", title, len(names), _shorten(names))


def check_finite(state: dict[str, Tensor], source: str) -> None:
    """Refuse weights of a run that has diverged.

    Raises:
        UserError: a number is not finite.
    """
    odd = next(
        (name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()), None
    )
    if odd:
        raise UserError(f"model.weights={source}: {odd} holds numbers that are not finite; use an earlier checkpoint")


def warn_of_fresh(names: list[str], source: str) -> None:
    """Say which parts of a backbone a file does not give, if any."""
    if names:
        text = "%s lacks %d tensors of the backbone, which begin at random: %s"
        log.warning(text, source, len(names), _shorten(names))


def of_classifier(model: nn.Module, own: Collection[str], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As `as_named_in_body`, of files too whose publisher named the tensors otherwise than timm does.

    Args:
        model: the detector.
        own: its names.
        state: tensors of the classifier.
    """
    named = as_named_in_body(own, state)
    convert = next((part.in_timms_names for part in model.modules() if hasattr(part, "in_timms_names")), None)
    if convert is None or not _fresh_in_body(own, named):
        return named
    converted = as_named_in_body(own, dict(convert(state)))
    return min((named, converted), key=lambda names: len(_fresh_in_body(own, names)))


def _fresh_in_body(own: Collection[str], loaded: Collection[str]) -> list[str]:
    """Names of the body's tensors that a file does not give."""
    return [name for name in own if name.startswith(BODIES) and name not in loaded and not name.endswith(COUNTERS)]


def load_backbone(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load the weights of a classifier into a backbone alone, and say so in the log; for functions that build one.

    Args:
        network: the backbone, of torchvision or of timm.
        state: of the classifier, as `read_weights` gives it.
        source: where they are from, for the log and for messages.

    Raises:
        UserError: they are of another network.
    """
    own = network.state_dict()
    named = as_named_in_body(own, state, ("",))
    fitting = {name: value for name, value in named.items() if name in own and own[name].shape == value.shape}
    fresh = [name for name in own if name not in fitting and not name.endswith(COUNTERS)]
    if fresh:
        raise UserError(f"{source} is not of this backbone: {_shorten(fresh)} missing or of another shape")
    network.load_state_dict(fitting, strict=False)
    log.info("%s: all %d tensors of the backbone loaded", source, len(own))


def as_named_in(own: Collection[str], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under the names that they have in a model.

    A name before all of a model's is taken off, such as the ``model.`` of a Lightning module; of several models in one
    file the first counts. Layers that torchvision named otherwise before 0.13 get their names of today.

    Args:
        own: names in the model.
        state: tensors of the file.
    """
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        counts.update(
            ".".join([*parts[:cut], ""]) for cut in range(len(parts)) if current(".".join(parts[cut:]), own) in own
        )
    prefix = counts.most_common(1)[0][0] if counts else ""  # of equal counts, the one that was found first
    if prefix:
        log.info("  names in the file without %r before them", prefix)
    return {current(name.removeprefix(prefix), own): value for name, value in state.items() if name.startswith(prefix)}


# Where a classifier's layers lie in a detector: in torchvision's bodies, and in timm's of either engine.
BODIES = ("backbone.body.", "backbone.body.net.", "backbone.bottom_up.net.")
# How they may be named there. timm lays rows of layers flat (stages_0 for stages.0), or keeps a network whole.
SPELLINGS: tuple[Callable[[str], str], ...] = (
    lambda name: name.removeprefix("features."),
    lambda name: name,
    lambda name: name.replace(".", "_", 1),
    lambda name: f"model.{name}",
    lambda name: f"body.{name}",
)


def as_named_in_body(
    own: Collection[str], state: dict[str, Tensor], bodies: Sequence[str] = BODIES
) -> dict[str, Tensor]:
    """The tensors of a bare classifier under the names that they have in the body of a detector.

    Args:
        own: names in the detector.
        state: tensors of the classifier.
        bodies: what may stand before the names there.

    Returns:
        Those of the place where most are known; what is not known there is named as if it were.
    """
    places = [
        {
            name: next((full for spell in SPELLINGS if (full := body + spell(name)) in own), body + name)
            for name in state
        }
        for body in bodies
    ]
    best = max(places, key=lambda place: sum(full in own for full in place.values()))
    return {best[name]: value for name, value in state.items()}


# How layers of torchvision were named before 0.13: the pattern, and what became of it. Its own files still use them.
BEFORE_0_13: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"(.*fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)"), lambda name: f"{name[1]}.0.{name[2]}"),
    (re.compile(r"(.*rpn\.head\.conv)\.(weight|bias)"), lambda name: f"{name[1]}.0.0.{name[2]}"),
    (
        re.compile(r"(.*head\.(?:classification|regression)_head\.conv)\.([0246])\.(weight|bias)"),  # of RetinaNet
        lambda name: f"{name[1]}.{int(name[2]) // 2}.0.{name[3]}",
    ),
)


def current(name: str, own: Collection[str]) -> str:
    """The name of a tensor in a model, where torchvision named it otherwise before 0.13; else the same name."""
    if name in own:
        return name
    matches = ((pattern.fullmatch(name), rename) for pattern, rename in BEFORE_0_13)
    return next((new for match, rename in matches if match and (new := rename(match)) in own), name)


def _shorten(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
