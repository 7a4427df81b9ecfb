"""Whether a run may continue from a checkpoint, and beginning with the weights of another."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lossmix_det.config import Config, as_dict, flat
from lossmix_det.engines import Detector
from lossmix_det.errors import UserError, first_line
from lossmix_det.files import classes_of, read_model

log = logging.getLogger(__name__)

# Settings that decide the shapes of the saved weights and momenta.
FIXED = (
    *("model.engine", "model.detector", "model.architecture", "model.norm", "model.trainable_layers"),
    *("model.detectron2_config", "model.detectron2_options", "optimizer.name", "optimizer.decay_biases"),
)


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
