"""Whether a run may continue from a checkpoint, and beginning with the weights of another."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lossmix_det.config import Config, as_dict, flat
from lossmix_det.engines import Detector
from lossmix_det.errors import UserError, first_line
from lossmix_det.files import classes_of, read_model
from lossmix_det.training.checkpoints import Unfit

log = logging.getLogger(__name__)

# Settings that decide the shapes of the saved weights and momenta.
FIXED = (
    *("model.engine", "model.detector", "model.architecture", "model.norm", "model.trainable_layers"),
    "model.fpn_channels",
    *("model.detectron2_config", "model.detectron2_options", "optimizer.name"),
)


def check_content(content: dict[str, Any], own: dict[str, Any]) -> None:
    """Hold what a checkpoint holds against what the run would save now, part by part.

    Args:
        content: of the checkpoint.
        own: of the run, of the same settings.

    Raises:
        Unfit: a part is missing, of another kind or shape, or holds weights that are not finite.
    """
    for name, value in own.items():
        if name not in content:
            raise Unfit(f"{name} is missing")
        kind = Mapping if isinstance(value, Mapping) else type(value)
        if value is not None and content[name] is not None and not isinstance(content[name], kind):
            raise Unfit(f"{name} is a {type(content[name]).__name__}")


def check_weights(content: dict[str, Any], own: dict[str, Any]) -> None:
    """Hold the weights in a checkpoint against those of the run.

    Args:
        content: of the checkpoint, of the same model.
        own: of the run.

    Raises:
        Unfit: a tensor is missing, of another shape, or not finite.
    """
    for part in ("student", *(["ema"] if content["ema"] else [])):
        weights = content[part]
        for name, value in own["student"].items():
            if getattr(weights.get(name), "shape", None) != value.shape:
                raise Unfit(f"{name} of {part} is missing or of another shape")
        if not finite(weights):
            raise Unfit(f"{part} holds weights that are not finite")


def finite(tree: Any) -> bool:
    """Whether all tensors in dictionaries and lists are finite numbers."""
    if isinstance(tree, Mapping):
        return all(map(finite, tree.values()))
    if isinstance(tree, list | tuple):
        return all(map(finite, tree))
    return not isinstance(tree, torch.Tensor) or bool(torch.isfinite(tree).all())


def check_continues(content: dict[str, Any], config: Config, classes: list[str], fingerprints: dict[str, str]) -> None:
    """Refuse what the saved state does not fit, and say what else differs; there the new settings count.

    Args:
        content: the checkpoint.
        config: of the run as it is continued.
        classes: that it learns now.
        fingerprints: of its data sets now, by name.

    Raises:
        UserError: the classes, the model or the optimizer are others, or it has run further than it is to.
    """
    if content["classes"] != classes:
        raise UserError(
            f"{config.output_dir} was trained on the classes {', '.join(content['classes'])}, the data now has "
            f"{', '.join(classes)}; restore the data set or give another output_dir"
        )
    before, now = flat(content["config"]), flat(as_dict(config))
    changed = [key for key in now if key in before and before[key] != now[key]]
    for key in changed:
        if key in FIXED:
            was = f"{key}={before[key]}"
            raise UserError(f"{config.output_dir} was trained with {was}; set it so, or use another output_dir")
    if changed:
        log.warning("resuming with other settings than before: %s", ", ".join(changed))
    if content["step"] > config.train.steps:
        raise UserError(
            f"{config.output_dir} has run {content['step']} steps already, more than train.steps={config.train.steps}; "
            "raise it, or give another output_dir"
        )
    for name, fingerprint in fingerprints.items():
        if content["fingerprints"].get(name, fingerprint) != fingerprint:
            log.warning("data set %s has changed since the run was started", name)


def start_from(detector: Detector, path: str, classes: list[str], setting: str) -> None:
    """Give a detector the weights of another run's checkpoint (its average if it has one) or export.

    Args:
        detector: of the same model.
        path: of the file.
        classes: that it detects.
        setting: what named the file, for messages.

    Raises:
        UserError: the file is missing or damaged, or of another model or other classes.
    """
    state = read_model(Path(path))
    trained_on = classes_of(Path(path))
    if trained_on and trained_on != classes:
        raise UserError(
            f"{setting} {path} was trained on the classes {', '.join(trained_on)}, the data has "
            f"{', '.join(classes)}; set data.classes to the former"
        )
    try:
        detector.restore(state)
    except (RuntimeError, KeyError) as error:
        raise UserError(
            f"{setting} {path} is not of the model that the configuration names ({first_line(error)}); "
            f"set model.architecture and model.norm to those of that run"
        ) from None
