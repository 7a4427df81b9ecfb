"""The training loop, on Lightning Fabric: the story in `Trainer.train`, one step in `Trainer.learn`."""

from __future__ import annotations

import logging
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console

from lossmix_det.config import Config, TrainConfig
from lossmix_det.errors import UserError
from lossmix_det.evaluation import write_detections
from lossmix_det.evaluation.scores import check_metric, metric_of, report_problems, score_models, share_statistics
from lossmix_det.structures import StepBatch, Supervision
from lossmix_det.training.callbacks import Callbacks
from lossmix_det.training.checkpoints import Checkpoints
from lossmix_det.training.clean_pass import CleanPass
from lossmix_det.training.live_page import LivePage
from lossmix_det.training.optimization import rate_of
from lossmix_det.training.outputs import (
    BURNED_IN,
    burned_in_folder,
    publish,
    set_results_aside,
    warn_of_target_labels,
)
from lossmix_det.training.patience import Patience, keep_best
from lossmix_det.training.phases import Phases
from lossmix_det.training.processes import anywhere, everywhere, mean_over_processes
from lossmix_det.training.provenance import describe, name_of
from lossmix_det.training.recovery import Recovery
from lossmix_det.training.run_lock import run_lock
from lossmix_det.training.runlog import images_seen, open_log
from lossmix_det.training.signals import catching_signals
from lossmix_det.training.state import RunState
from lossmix_det.training.streams import Streams
from lossmix_det.training.student_batch import StudentBatch
from lossmix_det.training.summary import log_summary, warn_of_known_test_images, warn_of_no_partners

log = logging.getLogger(__name__)
T = TypeVar("T")


class Trainer:
    """The loop of a run; what it must remember is its `RunState`.

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
        check_metric(config.train.best_metric, self.streams.test_sets)
        warn_of_target_labels(config, self.streams)
        self.patience, self.callbacks = Patience(config), Callbacks(config.train.callbacks, fabric.is_global_zero)
        self.patience.check(self.streams.test_sets)
        self.page = LivePage(config, self.streams, fabric)
        self.phases = Phases(config)
        fingerprints = self.streams.fingerprints()
        seed_everything(config.train.seed)  # again: code of the user may have drawn numbers on being imported
        self.state = RunState.build(config, fabric, self.streams.classes, fingerprints, saved=self.checkpoints.paths())
        self.phases.check(self.state.detector)
        self.recovery = Recovery(config, self.state, self.checkpoints, fabric)
        self.results: dict[str, Any] = {}
        self.detections: dict[str, list[dict[str, Any]]] = {}
        self.stopping = self.improved = False
        if resume:
            self._resume()

    # ------------------------------------------------------------------------------------------------- story

    def train(self) -> bool:
        """Train to the end, evaluating and saving on the way; true if it got there, false if told to stop.

        The end is the last step, or an earlier one if ``train.patience`` is over.
        """
        with run_lock(self.folder, self.fabric.is_global_zero, lambda here: everywhere(self.fabric, here)):
            if self.fabric.is_global_zero:
                self.checkpoints.clear_drafts()
                device = name_of(self.fabric.device)
                describe(self.folder, self.config, device, self.streams.sets, self.state.step)
                log_summary(self.config, self.streams.by_use, self.state.detector, device)
                warn_of_no_partners(self.config, self.fabric.world_size)
                warn_of_known_test_images(self.streams.train_sets, self.streams.test_sets)
                report_problems(self.streams.sets, self.state.unreadable, self.folder)
                if self.state.step < self.config.train.steps and not self.patience.is_over(self.state):
                    set_results_aside(self.folder)
            self.recovery.prepare()
            with catching_signals(self.stop):
                while not self.patience.is_over(self.state) and self._learn_on():
                    log.warning("continuing from step %d", self.state.step)
            steps = self.state.step, self.config.train.steps
            if self.state.step < self.config.train.steps:
                if not self.patience.is_over(self.state):
                    self.save()
                    log.warning("stopped at step %d of %d; continue with --resume", *steps)
                    return False
                log.info("ended early at step %d of %d: %s", *steps, self.patience.reason(self.state))
            self._finish()
            return True

    def _learn_on(self) -> bool:
        """Learn from here to the end, or until told to stop; true if an earlier state was restored on the way."""
        state = self.state
        self.log = open_log(self.config, state.step, self.console, self.fabric.is_global_zero)
        try:
            start, save = state.step, self.recovery.save
            batches = self.streams.batches(start, lambda: self.stopping, state.unreadable)
            for batch, waited in saving(batches, lambda: state.step > start and save()):
                if self.config.data.target and not state.adapting and state.step >= self.phases.burn_in_steps:
                    self._hand_over()
                started = time.perf_counter()
                losses = self.learn(batch)
                share_statistics(state.detector, self.fabric)
                if state.teacher is not None:
                    state.teacher.update_parameters(state.detector)
                state.step += 1
                images = images_seen(batch, state.adapting)
                self._record(losses, images, time.perf_counter() - started + waited, waited)
                if self.recovery.is_needed(
                    must_be_finite=is_used(state.step, self.config.train, self.phases.burn_in_steps)
                ):
                    self.recovery.restore()
                    return True
                self._evaluate_and_save()
                self.stopping = anywhere(self.fabric, self.stopping)
                if self.stopping or self.patience.is_over(state):
                    break
        finally:
            self.log.close()
        return False

    def _evaluate_and_save(self) -> None:
        """What is due after this step; if evaluation fails, what was learned is saved first."""
        state, train = self.state, self.config.train
        is_last = state.step == train.steps
        if is_scored(state.step, train):
            try:
                self.evaluate()
                if not (is_last or self.patience.is_over(state)):  # then it is written when everything else is
                    self.page.write(self.detections)
            except Exception:  # because of a damaged test image, say
                self.recovery.save()
                raise
        is_last |= self.patience.is_over(state)
        if is_due(state.step, train.save_every) or is_last or self.improved:
            self.save()

    def stop(self) -> None:
        """Save and stop after the current step."""
        self.stopping = True

    # -------------------------------------------------------------------------------------------------- step

    def learn(self, batch: StepBatch) -> dict[str, float]:
        """Teach the student one batch; a batch whose loss is not finite teaches nothing and is counted."""
        seed_step(self.config.train.seed, self.state.step, self.fabric.global_rank)
        student_batch = self.compose(batch.to(self.fabric.device))
        if is_scored(self.state.step + 1, self.config.train):
            self.page.look_at(student_batch, self.state)
        losses = self._accumulate(student_batch.split(self.config.train.accumulate, self.state.detector.multiple))
        norm = self._descend() if losses is not None else math.nan
        self.state.optimizer.zero_grad(set_to_none=True)
        rate = rate_of(self.state.optimizer)
        with warnings.catch_warnings():  # of a first step that was skipped
            warnings.simplefilter("ignore", UserWarning)
            self.state.schedule.step()
        self.recovery.note(losses, norm)
        return {"lr": rate, **(losses or {"loss": math.nan}), "grad_norm": norm}

    def compose(self, batch: StepBatch) -> StudentBatch:
        """What the student is to learn from a batch; in adaptation the teacher labels the target's images first."""
        state = self.state
        rng = np.random.default_rng([self.config.train.seed, 1 << 21, state.step, self.fabric.global_rank])
        pseudo_labels: Supervision | None = None
        soft_teacher = None
        if state.adapting:
            labelled = state.labeller.label(state.teacher.module, batch.target, state.step)
            pseudo_labels, soft_teacher = labelled
        unlabelled = batch.target and batch.target.unlabelled()
        phase, train, mixing = self.phases.at(state.step), self.config.train, self.config.mixing
        self.clean_pass = CleanPass(state, self.fabric, mixing.clean_share, train.accumulate, soft_teacher)
        clean_pass = self.clean_pass if phase.recipe.needs_gradient else None
        student_batch = phase.compose(replace(batch, target=unlabelled), rng, pseudo_labels, clean_pass)
        student_batch.soft_teacher = soft_teacher
        if not state.adapting:
            student_batch.domains = None
        return student_batch

    def _accumulate(self, micro_batches: list[StudentBatch]) -> dict[str, float] | None:
        """Add up the gradients of micro-batches, and average their losses; None if one is not finite."""
        student, count = self.state.student, len(micro_batches)
        share, sums = self.clean_pass.learned, dict(self.clean_pass.losses)
        if not everywhere(self.fabric, all(bool(torch.isfinite(loss)) for loss in sums.values())):
            return None
        for number, micro_batch in enumerate(micro_batches, start=1):
            with self.fabric.no_backward_sync(student, enabled=number < count):
                losses = student(micro_batch)
                total = student.objective(losses, share)
                if not everywhere(self.fabric, bool(torch.isfinite(total))):
                    return None
                self.fabric.backward(total / count)
            for name, value in {"loss": total, **losses}.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float() / count
        step = self.state.step + 1
        if step % self.config.train.log_every and step != self.config.train.steps:
            return {"loss": 0.0}  # nobody asks, and a GPU need not be waited for
        values = {name: float(value) for name, value in sums.items()}
        return mean_over_processes(self.fabric, values, ["loss", *self.state.student_step.loss_names])

    def _descend(self) -> float:
        """Clip, and step the optimizer unless the gradient is not finite; returns the gradient's norm."""
        state, limit = self.state, self.config.optimizer.clip_norm or math.inf
        norm = self.fabric.clip_gradients(state.student, state.optimizer, max_norm=limit, error_if_nonfinite=False)
        if bool(torch.isfinite(norm)):
            state.optimizer.step()
        elif state.scaler is not None:
            # fp16: the scaler skips the step itself and halves its scale, which is no fault until there is none left.
            fault = state.scaler.get_scale() <= 1
            state.optimizer.step()
            return math.inf if fault else 0.0
        return float(norm)

    def _hand_over(self) -> None:
        """Burn-in has ended: the teacher begins, and what adaptation starts from is scored."""
        state = self.state
        state.end_burn_in(self.fabric)
        log.info("step %d: burn-in ends; the teacher labels the target from here on", state.step)
        if self.streams.test_sets:
            models = {BURNED_IN: state.teacher.module}
            results, detections, problems = score_models(
                models, self.streams.test_sets, self.config, self.fabric, self.console
            )
            state.burned_in = results[BURNED_IN]
            state.unreadable.update(problems)
            self.log.scores(state.step, results)
            if self.fabric.is_global_zero:
                write_detections(detections, burned_in_folder(self.folder))
        self.save(ends_burn_in=True)

    # ------------------------------------------------------------------------------------- evaluating, saving

    def evaluate(self) -> None:
        """Score every model on every test set, and remember whether the reported one is the best so far."""
        state = self.state
        with self.log.evaluating():
            scored = score_models(state.models(), self.streams.test_sets, self.config, self.fabric, self.console)
        self.results, self.detections, problems = scored
        state.unreadable.update(problems)
        self.log.scores(state.step, self.results)
        value = metric_of(self.config.train.best_metric, self.results)
        if not math.isnan(value) and (state.best is None or value > state.best["value"]):
            state.best = {"metric": self.config.train.best_metric, "value": value, "step": state.step}
            self.improved = True  # until it is saved
        self.callbacks.on_evaluate(state, self.results)
        self.log.pictures(state.step, self.page.follow(state, self.detections))

    def save(self, *, ends_burn_in: bool = False) -> None:
        """Write a checkpoint from which the run continues exactly as if it had never stopped."""
        self.log.flush()
        path = self.recovery.save(is_best=self.improved, ends_burn_in=ends_burn_in)
        self.improved = False
        if path is not None:
            self.callbacks.on_save(self.state, path)
        self.fabric.barrier()

    def _finish(self) -> None:
        if not self.results:  # resumed after the last step
            self.log = open_log(self.config, self.state.step, self.console, active=False)
            self.evaluate()
        if self.fabric.is_global_zero:
            publish(self.state, self.streams, self.results, self.detections, self.console)
            self.page.write(self.detections)

    def _resume(self) -> None:
        content = self.checkpoints.load_latest(self.state.check)
        if content is None:
            log.info("%s holds no checkpoint yet; starting from the beginning", self.folder)
            return
        self.state.load(content, self.fabric)
        keep_best(self.state, content["config"])
        log.info("resuming at step %d of %d", self.state.step, self.config.train.steps)

    def _record(self, losses: dict[str, float], images: int, seconds: float, waited: float) -> None:
        state = self.state
        self.log.count(images * self.fabric.world_size, seconds, waited)
        self.log.step(state.step)
        known: dict[str, float] = {}
        if is_due(state.step, self.config.train.log_every) or state.step == self.config.train.steps:
            pseudo = state.labeller.row() if state.adapting else {}
            known = {**losses, **pseudo}
            self.log.row(state.step, known)
        self.callbacks.on_step(state, known)


def saving(batches: Iterator[T], save: Callable[[], object]) -> Iterator[T]:
    """Batches as they come; if one cannot be loaded, because of a damaged image perhaps, `save` comes first."""
    try:
        yield from batches
    except Exception:
        save()
        raise


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens after this one; 0 means never."""
    return every > 0 and step % every == 0


def is_scored(step: int, train: TrainConfig) -> bool:
    """Whether an evaluation follows a step."""
    return is_due(step, train.eval_every) or step == train.steps


def is_used(step: int, train: TrainConfig, burn_in_steps: int) -> bool:
    """Whether the weights after a step are scored or saved."""
    return is_scored(step, train) or is_due(step, train.save_every) or step == burn_in_steps


def seed_everything(seed: int) -> None:
    """Seed every global generator; the streams of data, mixing and sampling have their own seeds per step."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, process: int) -> None:
    """Let drop-path and the like draw by seed, step and process, so that every process resumes exactly."""
    torch.manual_seed(int(np.random.SeedSequence([seed, 1 << 22, step, process]).generate_state(1)[0]))
