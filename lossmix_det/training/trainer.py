"""The training loop, on Lightning Fabric: one page of prose in `Trainer.train`, one step in `Trainer.learn`."""

from __future__ import annotations

import logging
import math
import random
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from lossmix_det.adaptation.alignment import Alignment
from lossmix_det.adaptation.labeller import Labeller
from lossmix_det.adaptation.teacher import averaged
from lossmix_det.config import Config
from lossmix_det.engines import Detector, build_detector, place
from lossmix_det.errors import UserError
from lossmix_det.evaluation.scores import check_metric, metric_of, report_problems, score_models
from lossmix_det.files import read_checkpoint, save_tensors
from lossmix_det.structures import StepBatch, Supervision
from lossmix_det.training.checkpoints import Checkpoints
from lossmix_det.training.optimization import build_optimizer, build_schedule
from lossmix_det.training.outputs import BURNED_IN, burned_in_folder, publish, write_detections
from lossmix_det.training.phases import Lesson, phase_at
from lossmix_det.training.provenance import describe
from lossmix_det.training.run_lock import held
from lossmix_det.training.runlog import RunLog, images_seen
from lossmix_det.training.signals import catching_signals
from lossmix_det.training.state import collect, restore, start_from
from lossmix_det.training.streams import Streams
from lossmix_det.training.student import StudentStep, weight_of
from lossmix_det.training.summary import log_summary

log = logging.getLogger(__name__)


class Trainer:
    """Everything a run holds; `train` is its story.

    Args:
        config: of the whole run.
        fabric: launched.
        resume: continue from the last checkpoint in the output folder, if there is one.
        console: where tables and progress go.

    Raises:
        UserError: data, weights or folder are not usable.
    """

    def __init__(self, config: Config, fabric: Fabric, *, resume: bool = False, console: Console | None = None) -> None:
        self.config, self.fabric = config, fabric
        self.console = console or Console()
        self.folder = Path(config.output_dir)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", config.train.keep_last)
        if self.checkpoints.paths() and not resume:
            raise UserError(f"{self.folder} already holds a run; continue it with --resume, or give another output_dir")
        seed_everything(config.train.seed)
        self.streams = Streams(config, fabric)
        self.classes = self.streams.classes
        check_metric(config.train.best_metric, self.streams.test_sets)
        detector = build_detector(config.model, len(self.classes))
        self.detector: Detector = place(detector, fabric.device, config.train.channels_last)
        if config.adaptation.burn_in_from and not self.checkpoints.paths():
            start_from(self.detector, config.adaptation.burn_in_from, self.classes, "adaptation.burn_in_from")
        self._build()
        self.step = self.bad_steps = self.skipped_steps = 0
        self.best: dict[str, Any] | None = None
        self.burned_in: dict[str, Any] = {}  # scores as burn-in ended
        self.results: dict[str, Any] = {}
        self.detections: dict[str, list[dict[str, Any]]] = {}
        self.stopping = self.improved = False
        if resume:
            self._resume()

    def _build(self) -> None:
        """The student with its optimizer, and what adapts it."""
        config = self.config
        self.adapting = False
        self.labeller = Labeller(config, self.classes, self.fabric) if config.data.target else None
        self.alignment = self._build_alignment()
        adapts = bool(config.data.target)
        self.student_step = StudentStep(self.detector, config.train.loss_weights, self.alignment, adapts)
        self.learning = [name for name, value in self.student_step.named_parameters() if value.requires_grad]
        optimizer = build_optimizer(self.student_step, config.optimizer)
        if self.alignment is not None:  # until there is something to align; DDP waits for all that learns
            self.alignment.requires_grad_(False)
        self.student, self.optimizer = self.fabric.setup(self.student_step, optimizer)
        self.new_schedule()
        follows = not config.data.target or config.ema.start != "copy"
        self.teacher: AveragedModel | None = None
        if config.ema.decay and follows:
            self.teacher = averaged(self.detector, config.ema)

    def _build_alignment(self) -> Alignment | None:
        config, weights = self.config, self.config.train.loss_weights
        parts = [part for part in config.alignment.parts if weight_of(f"alignment/{part}", weights)]
        if not parts or not config.data.target:
            return None
        return Alignment(replace(config.alignment, parts=parts), self.detector).to(self.fabric.device)

    def new_schedule(self) -> None:
        config = self.config
        burn_in_steps = config.adaptation.burn_in_steps
        self.schedule = build_schedule(self.optimizer, config.optimizer, config.train.steps, burn_in_steps)

    # ------------------------------------------------------------------------------------------------- story

    def train(self) -> bool:
        """Train to the last step, evaluating and saving on the way; true if it got there, false if told to stop."""
        with held(self.folder, self.fabric.is_global_zero, self._everywhere):
            if self.fabric.is_global_zero:
                describe(self.folder, self.config, str(self.fabric.device), self.streams.sets, self.step)
                log_summary(self.config, self.streams.by_use, self.detector, str(self.fabric.device))
                report_problems(self.streams.sets, self.streams.unreadable, self.folder)
            if self._restorable and not self.checkpoints.healthy.is_file():  # the setting is newer than the run
                self._write_checkpoint()
            with catching_signals(self.stop):
                while self._learn_on():
                    log.warning("going on from step %d", self.step)
            if self.step < self.config.train.steps:
                self.save()
                log.warning("stopped at step %d of %d; continue with --resume", self.step, self.config.train.steps)
                return False
            self._finish()
            return True

    def _learn_on(self) -> bool:
        """Learn from here to the end, or until told to stop; true if an earlier state was restored on the way."""
        steps = self.config.train.steps
        self.log = RunLog(self.folder, self.step, steps, self.console, self.fabric.is_global_zero)
        try:
            for batch, waited in self.streams.batches(self.step, lambda: self.stopping):
                if self.labeller is not None and not self.adapting and self.step >= self._burn_in_steps:
                    self._hand_over()
                started = time.perf_counter()
                losses = self.learn(batch)
                if self.teacher is not None:
                    self.teacher.update_parameters(self.detector)
                self.step += 1
                images = images_seen(batch, self.adapting)
                self._record(losses, images, time.perf_counter() - started + waited, waited)
                if self._in_trouble():
                    self._restore_healthy()
                    return True
                if self._due(self.config.train.eval_every) or self.step == steps:
                    self._evaluate_safely()
                if self._due(self.config.train.save_every) or self.step == steps or self.improved:
                    self.save()
                self.stopping = self._anywhere(self.stopping)
                if self.stopping:
                    break
        finally:
            self.log.close()
        return False

    def stop(self) -> None:
        """Save and stop after the current step."""
        self.stopping = True

    def learn(self, batch: StepBatch) -> dict[str, float]:
        """Teach the student one batch; a batch whose loss is not finite teaches nothing and is counted."""
        batch = self._on_device(batch)
        lesson = self.lesson(batch)
        losses = self._accumulate(lesson.split(self.config.train.accumulate))
        norm = self._descend() if losses is not None else math.nan
        self.optimizer.zero_grad(set_to_none=True)
        with warnings.catch_warnings():  # of a first step that was skipped
            warnings.simplefilter("ignore", UserWarning)
            self.schedule.step()
        self._guard(losses is not None and math.isfinite(norm))
        return {**(losses or {"loss": math.nan}), "grad_norm": norm}

    def lesson(self, batch: StepBatch) -> Lesson:
        """What the student is to learn from a batch; in adaptation the teacher labels the target's images first."""
        rng = np.random.default_rng([self.config.train.seed, 1 << 21, self.step, self.fabric.global_rank])
        pseudo_labels: Supervision | None = None
        marker = None
        if self.adapting:
            pseudo_labels, marker = self.labeller.label(self.teacher.module, batch.target, batch.canvas, self.step)
        unlabelled = batch.target and replace(batch.target, truths=None)
        lesson = phase_at(self.config, self.step).compose(replace(batch, target=unlabelled), rng, pseudo_labels)
        lesson.marker = marker
        if not self.adapting:
            lesson.domains = None
        return lesson

    def _accumulate(self, parts: list[Lesson]) -> dict[str, float] | None:
        """Add up the gradients of equal parts of a batch, and average their losses; None if one is not finite."""
        sums: dict[str, Tensor] = {}
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            with self.fabric.no_backward_sync(self.student, enabled=not last):
                losses = self.student(part)
                total = self.student.total(losses)
                if not self._everywhere(bool(torch.isfinite(total))):
                    return None
                self.fabric.backward(total / len(parts))
            for name, value in {"loss": total, **losses}.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float() / len(parts)
        wanted = (self.step + 1) % self.config.train.log_every == 0 or self.step + 1 == self.config.train.steps
        return {name: float(value) for name, value in sums.items()} if wanted else {"loss": 0.0}

    def _descend(self) -> float:
        """Clip, and step the optimizer unless the gradient is not finite; returns the gradient's norm."""
        limit = self.config.optimizer.clip_norm or math.inf
        norm = self.fabric.clip_gradients(self.student, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
        elif self.scaler is not None:
            # fp16: the scaler skips the step itself and halves its scale, which is no fault until there is none left.
            fault = self.scaler.get_scale() <= 1
            self.optimizer.step()
            return math.inf if fault else 0.0
        return float(norm)

    def _guard(self, finite: bool) -> None:
        """Count steps that taught nothing, and give up when they come in a row."""
        self.bad_steps = 0 if finite else self.bad_steps + 1
        self.skipped_steps += not finite
        limit = self.config.train.max_bad_steps
        if self.bad_steps == 1:
            log.warning("step %d: the loss or its gradient is not finite; the step is skipped", self.step + 1)
        if self.bad_steps >= limit and not self._restorable:
            raise UserError(
                f"loss or gradient not finite for {limit} steps in a row, up to step {self.step + 1}; "
                f"lower optimizer.lr, lengthen optimizer.warmup_steps or train with precision=32, then use --resume"
            )

    # -------------------------------------------------------------------------------------------- adaptation

    @property
    def _burn_in_steps(self) -> int:
        return self.config.adaptation.burn_in_steps

    def _hand_over(self) -> None:
        """Burn-in has ended: the teacher begins, and what adaptation starts from is scored."""
        if self.teacher is not None and self.config.ema.start == "restart":
            self.detector.load_state_dict(self.teacher.module.state_dict())
        self.prepare_adaptation()
        log.info("step %d: burn-in ends; the teacher labels the target from here on", self.step)
        if self.streams.test_sets:
            scored = score_models(
                {BURNED_IN: self.detector}, self.streams.test_sets, self.config, self.fabric, self.console
            )
            results, detections, problems = scored
            self.burned_in = results[BURNED_IN]
            self.streams.unreadable.update(problems)
            self.log.scores(self.step, results)
            if self.fabric.is_global_zero:
                write_detections(detections, burned_in_folder(self))
        if self.fabric.is_global_zero:
            save_tensors(collect(self), self.checkpoints.burned_in)
        self.save()

    def prepare_adaptation(self) -> None:
        """From here on there is a teacher, a copy of the student if there was no average, and discriminators learn."""
        self.adapting = True
        if self.teacher is None:
            self.teacher = averaged(self.detector, self.config.ema)
        if self.alignment is not None:
            self.alignment.requires_grad_(True)
            self.student = self.fabric.setup_module(self.student_step)  # DDP takes stock of what learns only once

    @property
    def _restorable(self) -> bool:
        return self.adapting and self.config.train.on_collapse == "restore"

    def _in_trouble(self) -> bool:
        """Say what is wrong, if anything is; true if the run is to go back to a healthy state."""
        problem = self.labeller.problem if self.adapting else None
        # Starvation is not cured by weighing pseudo-labels less: there are none.
        curable = self.adapting and self.labeller.guard.collapsed
        if self.bad_steps >= self.config.train.max_bad_steps:
            problem, curable = f"loss or gradient not finite for {self.bad_steps} steps in a row", True
        if problem is None:
            return False
        log.warning("step %d: %s", self.step, problem)
        if self.config.train.on_collapse == "stop":
            self.save()
            raise UserError(f"stopped at step {self.step}: {problem}")
        return self._restorable and curable

    def _restore_healthy(self) -> None:
        """Go back to the last healthy checkpoint, and let pseudo-labels weigh half of what they did."""
        factor, restores = self.labeller.factor / 2, self.labeller.restores + 1
        if restores > self.config.adaptation.restores:
            raise UserError(
                f"collapsed again after {restores - 1} restorations; lower adaptation.unsupervised_weight, lengthen "
                f"adaptation.burn_in_steps, or raise adaptation.restores"
            )
        best = self.best  # its file stays, and is of the same run
        self.fabric.barrier()
        restore(self, read_checkpoint(self.checkpoints.healthy))
        self.labeller.factor, self.labeller.restores = factor, restores
        self.best, self.bad_steps = best, 0
        if self.fabric.is_global_zero:
            self.checkpoints.rewind(collect(self))
        self.fabric.barrier()
        log.warning("restored step %d; pseudo-labels now weigh %g of what is set", self.step, factor)

    # -------------------------------------------------------------------------------------------- evaluation

    def models(self) -> dict[str, Detector]:
        """What there is to evaluate and export, the one that is reported last."""
        name = "teacher" if self.adapting else "ema"
        return {"student": self.detector} | ({name: self.teacher.module} if self.teacher is not None else {})

    def evaluate(self) -> None:
        """Score every model on every test set, and remember whether the reported one is the best so far."""
        scored = score_models(self.models(), self.streams.test_sets, self.config, self.fabric, self.console)
        self.results, self.detections, problems = scored
        self.streams.unreadable.update(problems)
        self.log.scores(self.step, self.results)
        value = metric_of(self.config.train.best_metric, self.results)
        if not math.isnan(value) and (self.best is None or value > self.best["value"]):
            self.best = {"metric": self.config.train.best_metric, "value": value, "step": self.step}
            self.improved = True  # until it is saved

    def _evaluate_safely(self) -> None:
        """Evaluate; if that fails, because of a damaged test image say, what was learned is saved first."""
        try:
            self.evaluate()
        except Exception:
            self._write_checkpoint()
            raise

    def _finish(self) -> None:
        if not self.results:  # resumed after the last step
            self.log = RunLog(self.folder, self.step, self.step, self.console, False)
            self.evaluate()
        if self.fabric.is_global_zero:
            publish(self)

    # ------------------------------------------------------------------------------------- saving, resuming

    def save(self) -> None:
        """Write a checkpoint from which the run continues exactly as if it had never stopped."""
        self.log.flush()
        self._write_checkpoint()
        self.fabric.barrier()

    def _write_checkpoint(self) -> None:
        if self.fabric.is_global_zero:
            healthy = self._restorable and self.labeller.guard.healthy and not self.bad_steps
            self.checkpoints.save(collect(self), is_best=self.improved, is_healthy=healthy)
        self.improved = False

    def _resume(self) -> None:
        content = self.checkpoints.load_latest()
        if content is None:
            log.info("%s holds no checkpoint yet; starting from the beginning", self.folder)
            return
        restore(self, content)
        log.info("resuming at step %d of %d", self.step, self.config.train.steps)

    # ---------------------------------------------------------------------------------------------- helpers

    def _on_device(self, batch: StepBatch) -> StepBatch:
        return StepBatch(batch.source.to(self.fabric.device), batch.target and batch.target.to(self.fabric.device))

    def _record(self, losses: dict[str, float], images: int, seconds: float, waited: float) -> None:
        self.log.count(images * self.fabric.world_size, seconds, waited)
        self.log.step(self.step)
        if self._due(self.config.train.log_every) or self.step == self.config.train.steps:
            pseudo = self.labeller.row() if self.adapting else {}
            self.log.row(self.step, {"lr": self.schedule.get_last_lr()[0], **losses, **pseudo})

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _everywhere(self, here: bool) -> bool:
        """True if it holds on every process, so that all of them take the same branch."""
        if self.fabric.world_size == 1:
            return here
        return bool(self.fabric.strategy.reduce_boolean_decision(here, all=True))

    def _anywhere(self, here: bool) -> bool:
        return not self._everywhere(not here)

    @property
    def scaler(self) -> Any:
        return getattr(self.fabric.strategy.precision, "scaler", None)


def seed_everything(seed: int) -> None:
    """Seed every global generator; the streams of data, mixing and sampling have their own seeds per step."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
