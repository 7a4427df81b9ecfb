"""All that a run is made of, as the content of a checkpoint, and back."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossmix_det.config import as_dict
from lossmix_det.data.records import Unreadable
from lossmix_det.errors import UserError, first_line
from lossmix_det.files import classes_of, read_model
from lossmix_det.training.checkpoints import random_state, restore_random_state
from lossmix_det.training.optimization import match_layout
from lossmix_det.training.resume import check_continues

if TYPE_CHECKING:
    from lossmix_det.engines import Detector
    from lossmix_det.training.trainer import Trainer

log = logging.getLogger(__name__)


def collect(run: Trainer) -> dict[str, Any]:
    """What `restore` needs to continue exactly."""
    teacher = run.teacher
    return {
        "step": run.step,
        "classes": list(run.classes),
        "student": run.detector.exported(),
        "ema": teacher.module.exported() if teacher is not None else {},
        "ema_updates": int(teacher.n_averaged) if teacher is not None else 0,
        "adapting": run.adapting,
        "learning": run.learning,
        "labeller": run.labeller.state_dict() if run.labeller is not None else {},
        "alignment": run.alignment.state_dict() if run.alignment is not None else {},
        "optimizer": run.optimizer.state_dict()["state"],
        "scaler": run.scaler.state_dict() if run.scaler is not None else {},
        "random": random_state(),
        "best": run.best,
        "burned_in": run.burned_in,
        "bad_steps": [run.bad_steps, run.skipped_steps],
        "unreadable": sorted(map(str, run.streams.unreadable)),
        "fingerprints": run.streams.fingerprints(),
        "config": as_dict(run.config),
    }


def restore(run: Trainer, content: dict[str, Any]) -> None:
    """Put a run into the state that a checkpoint of it holds.

    Raises:
        UserError: the checkpoint is of another model, or of other classes.
    """
    check_continues(content, run.config, run.classes, run.streams.fingerprints())
    if content["learning"] != run.learning:
        raise UserError(
            f"{run.config.output_dir} was trained with other learning parts than it has now; restore data.target, "
            f"alignment.parts and the zeros in train.loss_weights, or give another output_dir"
        )
    burn_in = run.config.adaptation.burn_in_steps
    if content["adapting"] and burn_in > content["step"]:
        raise UserError(
            f"{run.config.output_dir} has ended burn-in already, at or before step {content['step']}; "
            f"adaptation.burn_in_steps={burn_in} needs another output_dir"
        )
    run.detector.restore(content["student"])
    if content["adapting"] and not run.adapting:
        run.prepare_adaptation()
    if run.teacher is not None:
        run.teacher.module.restore(content["ema"] or content["student"])
        run.teacher.n_averaged.fill_(max(content["ema_updates"], 1))
    if run.labeller is not None and content["labeller"]:
        run.labeller.load_state_dict(content["labeller"])
    if run.alignment is not None and content["alignment"]:
        run.alignment.load_state_dict(content["alignment"])
    _restore_optimizer(run, content["optimizer"], content["step"])
    if run.scaler is not None and content["scaler"]:
        run.scaler.load_state_dict(content["scaler"])
    restore_random_state(content["random"])
    run.step, run.best, run.burned_in = content["step"], content["best"], content["burned_in"]
    run.bad_steps, run.skipped_steps = content["bad_steps"]
    run.streams.unreadable = set(map(Unreadable.from_text, content["unreadable"]))


def _restore_optimizer(run: Trainer, state: dict[int, Any], step: int) -> None:
    """Bring back momenta, and the schedule by running it up to the step, so that changed settings count."""
    run.new_schedule()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(step):
            run.schedule.step()
    groups = run.optimizer.state_dict()["param_groups"]
    run.optimizer.load_state_dict({"state": state, "param_groups": groups})
    match_layout(run.optimizer)


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
