"""`RunState`: everything of a run that must survive a kill, as the content of a checkpoint and back."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from lossmix_det.adaptation.alignment import Alignment
from lossmix_det.adaptation.labeller import Labeller
from lossmix_det.adaptation.teacher import averaged
from lossmix_det.config import Config, ModelConfig, as_dict
from lossmix_det.data.records import Unreadable
from lossmix_det.engines import Detector, HasBody, build_detector, require, to_device
from lossmix_det.errors import UserError, first_line
from lossmix_det.training.checkpoints import random_state, restore_random_state
from lossmix_det.training.optimization import build_optimizer, build_schedule, load_momenta, momenta_of
from lossmix_det.training.resume import check_content, check_continues, check_weights, finite, start_from
from lossmix_det.training.student import StudentStep, weight_of

log = logging.getLogger(__name__)


@dataclass
class RunState:
    """What a run is at one moment.

    Args:
        config: of the run.
        classes: names, in order.
        fingerprints: of its data sets, by name.
        detector: the student.
        student_step: the student with its discriminators, as one module.
        student: the same as the processes share it (under DDP a wrapper).
        optimizer, schedule, scaler: of the student; a scaler in fp16 alone.
        alignment: discriminators; absent: nothing is aligned.
        labeller: with its thresholds and guard; absent without a target.
        teacher: the average, once there is one.
        adapting: burn-in is over.
        step: steps taken.
        best: metric, value and step of the best evaluation so far.
        burned_in: scores of the teacher as burn-in ended, by test set.
        bad_steps: steps in a row whose loss or gradient was not finite.
        skipped_steps: all such steps.
        unreadable: files that could not be read, with the reason.
    """

    config: Config
    classes: list[str]
    fingerprints: dict[str, str]
    detector: Detector
    student_step: StudentStep
    student: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    scaler: Any = None
    alignment: Alignment | None = None
    labeller: Labeller | None = None
    teacher: AveragedModel | None = None
    adapting: bool = False
    step: int = 0
    best: dict[str, Any] | None = None
    burned_in: dict[str, Any] = field(default_factory=dict)
    bad_steps: int = 0
    skipped_steps: int = 0
    unreadable: set[Unreadable] = field(default_factory=set)

    @staticmethod
    def build(
        config: Config, fabric: Fabric, classes: list[str], fingerprints: dict[str, str], *, saved: Sequence[Path] = ()
    ) -> RunState:
        """The state in which a run begins.

        Args:
            config: of the run.
            fabric: launched.
            classes: names, in order.
            fingerprints: of its data sets.
            saved: checkpoints of the run, newest last. The state will become that of one, so that nothing is lost where
                the weights that the run began with are gone.

        Raises:
            UserError: the configuration asks for what does not exist or does not fit together.
        """
        adapts = bool(config.data.target)
        detector = _build(config.model, len(classes), saved)
        detector = to_device(detector, fabric.device, config.train.channels_last)
        if config.adaptation.burn_in_from and not saved:
            start_from(detector, config.adaptation.burn_in_from, classes, "adaptation.burn_in_from")
        labeller = Labeller(config, classes, fabric, detector) if adapts else None
        alignment = _alignment(config, detector, fabric) if adapts else None
        student_step = StudentStep(detector, config.train.loss_weights, alignment, adapts)
        optimizer = build_optimizer(student_step, config.optimizer, _slower(config, detector))
        if alignment is not None:  # until there is something to align; DDP waits for all that learns
            alignment.requires_grad_(False)
        student, optimizer = fabric.setup(student_step, optimizer)
        state = RunState(
            config,
            classes,
            fingerprints,
            detector,
            student_step,
            student,
            optimizer,
            schedule=_schedule(config, optimizer),
            scaler=getattr(fabric.strategy.precision, "scaler", None),
            alignment=alignment,
            labeller=labeller,
        )
        if config.ema.decay and (not adapts or STARTS[config.ema.start].follows):
            # A detector that has learned already needs no warm-up, as in `begin_adaptation`.
            begun = bool(adapts and config.adaptation.burn_in_from)
            state.teacher = averaged(detector, replace(config.ema, warmup=config.ema.warmup and not begun))
        return state

    @property
    def learning(self) -> list[str]:
        """Names of the parameters that learn, discriminators from the beginning."""
        return [name for name, value in self.student_step.named_parameters() if value.requires_grad or _aligns(name)]

    def models(self) -> dict[str, Detector]:
        """What there is to evaluate and export, the one that is reported last."""
        name = "teacher" if self.adapting else "ema"
        return {"student": self.detector} | ({name: self.teacher.module} if self.teacher is not None else {})

    @property
    def finite(self) -> bool:
        """Whether all weights, statistics and momenta are finite numbers."""
        weights = [model.exported() for model in self.models().values()]
        return finite([*weights, self.optimizer.state_dict()["state"]])

    def end_burn_in(self, fabric: Fabric) -> None:
        """Burn-in has ended: the student may start again from its average, and adaptation is prepared."""
        if self.teacher is not None and STARTS[self.config.ema.start].restarts:
            self.detector.load_state_dict(self.teacher.module.state_dict())
            self.optimizer.state.clear()  # momenta are of the weights that are given up
        self.begin_adaptation(fabric)

    def begin_adaptation(self, fabric: Fabric) -> None:
        """From here on there is a teacher, a copy of the student if there was no average, and discriminators learn.

        A copy of what has been trained needs no warm-up of its average: it would be lost within a few steps.
        """
        self.adapting = True
        if self.teacher is None:
            self.teacher = averaged(self.detector, replace(self.config.ema, warmup=False))
        if self.alignment is not None:
            self.alignment.requires_grad_(True)
            self.student = fabric.setup_module(self.student_step)  # DDP takes stock of what learns only once

    def content(self) -> dict[str, Any]:
        """What `load` needs to continue exactly, as a checkpoint holds it."""
        teacher, alignment, labeller, scaler = self.teacher, self.alignment, self.labeller, self.scaler
        return {
            "step": self.step,
            "classes": list(self.classes),
            "student": self.detector.exported(),
            "ema": teacher.module.exported() if teacher is not None else {},
            "ema_updates": int(teacher.n_averaged) if teacher is not None else 0,
            "adapting": self.adapting,
            "learning": self.learning,
            "labeller": labeller.state_dict() if labeller is not None else {},
            "alignment": alignment.state_dict() if alignment is not None else {},
            "optimizer": momenta_of(self.optimizer, self.student_step),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "random": random_state(),
            "best": self.best,
            "burned_in": self.burned_in,
            "bad_steps": [self.bad_steps, self.skipped_steps],
            "unreadable": sorted(map(str, self.unreadable)),
            "fingerprints": self.fingerprints,
            "config": as_dict(self.config),
        }

    def check(self, content: dict[str, Any]) -> None:
        """Whether the state can become that of a checkpoint.

        Raises:
            Unfit: it is not whole; an earlier one may be.
            UserError: it is of another model, or of other classes.
        """
        own = self.content()
        check_content(content, own)
        check_continues(content, self.config, self.classes, self.fingerprints)
        self._check_parts(content)
        check_weights(content, own)

    def load(self, content: dict[str, Any], fabric: Fabric) -> None:
        """Become the state that a checkpoint holds, which `check` let pass.

        Raises:
            UserError: a part of it cannot be taken over.
        """
        try:
            self._load(content, fabric)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{self.config.output_dir}: the checkpoint of step {content['step']} holds what this version cannot "
                f"take over ({type(error).__name__}: {first_line(error)}); delete it to resume from the one before"
            ) from error

    def _load(self, content: dict[str, Any], fabric: Fabric) -> None:
        self.detector.restore(content["student"])
        if content["adapting"] and not self.adapting:
            self.begin_adaptation(fabric)
        if self.teacher is not None:
            self.teacher.module.restore(content["ema"] or content["student"])
            self.teacher.n_averaged.fill_(max(content["ema_updates"], 1))
        if self.labeller is not None and content["labeller"]:
            self.labeller.load_state_dict(content["labeller"], content["step"])
        if self.alignment is not None and content["alignment"]:
            self.alignment.load_state_dict(content["alignment"])
        self._load_optimizer(content["optimizer"], content["step"])
        if self.scaler is not None and content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        restore_random_state(content["random"])
        self.step, self.best, self.burned_in = content["step"], content["best"], content["burned_in"]
        self.bad_steps, self.skipped_steps = 0, content["bad_steps"][1]  # what was changed may have cured the streak
        self.unreadable = set(map(Unreadable.from_text, content["unreadable"]))

    def _check_parts(self, content: dict[str, Any]) -> None:
        folder, burn_in = self.config.output_dir, self.config.adaptation.burn_in_steps
        fresh = content["alignment"] is None  # another run's state, whose discriminators have not learned yet
        saved, own = (
            [name for name in names if not (fresh and _aligns(name))] for names in (content["learning"], self.learning)
        )
        if saved != own:
            raise UserError(
                f"{folder}: the set of trainable parameters changed since it was saved; restore data.target, "
                f"alignment.parts and the zeros in train.loss_weights, or give another output_dir"
            )
        if content["adapting"] and burn_in > content["step"]:
            raise UserError(
                f"{folder} has ended burn-in already, at or before step {content['step']}; "
                f"adaptation.burn_in_steps={burn_in} needs another output_dir"
            )

    def _load_optimizer(self, momenta: dict[str, Any], step: int) -> None:
        """Bring back momenta, and the schedule by running it up to the step, so that changed settings count."""
        self.schedule = _schedule(self.config, self.optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(step):
                self.schedule.step()
        load_momenta(self.optimizer, self.student_step, momenta)


def _build(model: ModelConfig, num_classes: int, saved: Sequence[Path]) -> Detector:
    """The detector, with the weights that it is to begin with; where they are gone, with those of a checkpoint."""
    try:
        return build_detector(model, num_classes)
    except UserError:
        for path in reversed(saved):
            with contextlib.suppress(UserError):
                detector = build_detector(replace(model, weights=str(path)), num_classes, strict=True)
                log.warning("what the run began with cannot be read again; %s has all its weights", path)
                return detector
        raise


@dataclass(frozen=True)
class Start:
    """How adaptation's teacher begins, as ``ema.start`` names it.

    Args:
        follows: the average is kept since the first step; otherwise the teacher is a copy of the burned-in student.
        restarts: the student starts again from that average.
    """

    follows: bool
    restarts: bool = False


STARTS = {"copy": Start(follows=False), "follow": Start(follows=True), "restart": Start(follows=True, restarts=True)}


def _aligns(name: str) -> bool:
    return name.startswith("alignment.")


def _alignment(config: Config, detector: Detector, fabric: Fabric) -> Alignment | None:
    """The discriminators whose losses have a weight; None if there are none."""
    weights = config.train.loss_weights
    parts = [part for part in config.alignment.parts if weight_of(f"alignment/{part}", weights)]
    return Alignment(replace(config.alignment, parts=parts), detector).to(fabric.device) if parts else None


def _slower(config: Config, detector: Detector) -> nn.Module | None:
    """The part of the student that learns at a rate of its own; None if there is none."""
    factor = config.optimizer.backbone_lr_factor
    if factor == 1:
        return None
    require(detector, HasBody, f"optimizer.backbone_lr_factor={factor}", "1")
    return detector.body()


def _schedule(config: Config, optimizer: Optimizer) -> LRScheduler:
    return build_schedule(optimizer, config.optimizer, config.train.steps, config.adaptation.burn_in_steps)
