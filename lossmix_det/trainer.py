"""The training loop, on Lightning Fabric: one page of prose in `Trainer.train`, one step in `Trainer.learn`."""

from __future__ import annotations

import json
import logging
import math
import random
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor

from lossmix_det.checkpoint import Checkpoints, random_state, restore_random_state, write_atomically
from lossmix_det.config import Config, as_dict, save_config
from lossmix_det.data.catalog import load_sets
from lossmix_det.data.loaders import training_loader
from lossmix_det.engines import Detector, build_detector
from lossmix_det.errors import UserError
from lossmix_det.evaluation import print_tables, write_results
from lossmix_det.evaluation.tables import SUMMARY
from lossmix_det.export import export_model
from lossmix_det.optimization import build_optimizer, build_schedule
from lossmix_det.phases import Lesson, phase_at
from lossmix_det.resume import check_continues
from lossmix_det.runlog import RunLog, provenance
from lossmix_det.scoring import report_problems, score_models
from lossmix_det.signals import catching_signals
from lossmix_det.structures import StepBatch
from lossmix_det.student import StudentStep
from lossmix_det.teacher import averaged

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
        with fabric.rank_zero_first():  # the first process generates the benchmark, the others find it there
            self.train_sets, self.test_sets = load_sets(config)
        self._check_best_metric()
        self.classes = self.train_sets[0].classes
        detector = build_detector(config.model, len(self.classes))
        self.detector: Detector = detector.to(fabric.device)
        self.ema = averaged(self.detector, config.ema) if config.ema.decay else None
        student = StudentStep(self.detector, config.train.loss_weights)
        optimizer = build_optimizer(student, config.optimizer)
        self.schedule = build_schedule(optimizer, config.optimizer, config.train.steps)
        self.student, self.optimizer = fabric.setup(student, optimizer)
        self.step = self.bad_steps = self.skipped_steps = 0
        self.best: dict[str, Any] | None = None
        self.unreadable: set[str] = set()
        self.results: dict[str, Any] = {}
        self.stopping = False
        if resume:
            self._resume()

    # ------------------------------------------------------------------------------------------------- story

    def train(self) -> bool:
        """Train to the last step, evaluating and saving on the way; true if it got there, false if told to stop."""
        self._open_folder()
        steps = self.config.train.steps
        self.log = RunLog(self.folder, self.step, steps, self.console, self.fabric.is_global_zero)
        try:
            with catching_signals(self.stop):
                for batch, waited in self._batches():
                    started = time.perf_counter()
                    losses = self.learn(batch)
                    if self.ema is not None:
                        self.ema.update_parameters(self.detector)
                    self.step += 1
                    self._record(losses, len(batch.source.truths or ()), time.perf_counter() - started + waited, waited)
                    if self._due(self.config.train.eval_every) or self.step == steps:
                        self._evaluate_safely()
                    if self._due(self.config.train.save_every) or self.step in (steps, self._best_step):
                        self.save()
                    self.stopping = self._anywhere(self.stopping)
                    if self.stopping:
                        break
                if self.step < steps:
                    self.save()
                    log.warning("stopped at step %d of %d; continue with --resume", self.step, steps)
                    return False
        finally:
            self.log.close()
        self._finish()
        return True

    def stop(self) -> None:
        """Save and stop after the current step."""
        self.stopping = True

    def learn(self, batch: StepBatch) -> dict[str, float]:
        """Teach the student one batch; a batch whose loss is not finite teaches nothing and is counted."""
        seed = self.config.train.seed
        rng = np.random.default_rng([seed, 1 << 21, self.step, self.fabric.global_rank])
        lesson = phase_at(self.config, self.step).compose(self._on_device(batch), rng)
        losses = self._accumulate(lesson.split(self.config.train.accumulate))
        norm = self._descend() if losses is not None else math.nan
        self.optimizer.zero_grad(set_to_none=True)
        with warnings.catch_warnings():  # of a first step that was skipped
            warnings.simplefilter("ignore", UserWarning)
            self.schedule.step()
        self._guard(losses is not None and math.isfinite(norm))
        return {**(losses or {"loss": math.nan}), "grad_norm": norm}

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
        elif self._scaler is not None:
            # fp16: the scaler skips the step itself and halves its scale, which is no fault until there is none left.
            fault = self._scaler.get_scale() <= 1
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
        if self.bad_steps >= limit:
            raise UserError(
                f"loss or gradient not finite for {limit} steps in a row, up to step {self.step + 1}; "
                f"lower optimizer.lr, lengthen optimizer.warmup_steps or train with precision=32, then use --resume"
            )

    # -------------------------------------------------------------------------------------------- evaluation

    def models(self) -> dict[str, Detector]:
        """What there is to evaluate and export, the one that is reported last."""
        return {"student": self.detector} | ({"ema": self.ema.module} if self.ema is not None else {})

    def evaluate(self) -> None:
        """Score every model on every test set, and remember whether the reported one is the best so far."""
        scored = score_models(self.models(), self.test_sets, self.config, self.fabric, self.console)
        self.results, detections, problems = scored
        self.unreadable.update(problems)
        self.log.scores(self.step, self.results)
        self.detections = detections
        value = self._best_value()
        if not math.isnan(value) and (self.best is None or value > self.best["value"]):
            self.best = {"metric": self.config.train.best_metric, "value": value, "step": self.step}

    def _evaluate_safely(self) -> None:
        """Evaluate; if that fails, because of a damaged test image say, what was learned is saved first."""
        try:
            self.evaluate()
        except Exception:
            self._write_checkpoint()
            raise

    def _check_best_metric(self) -> None:
        """Refuse a metric that no evaluation will give, before anything is trained."""
        name, _, metric = self.config.train.best_metric.rpartition("/")
        scored = [image_set.name for image_set in self.test_sets if image_set.labelled]
        if metric not in SUMMARY or (name and name not in scored):
            raise UserError(
                f"train.best_metric={self.config.train.best_metric!r} is not among the scores; "
                f"test sets: {', '.join(scored)}; metrics: {', '.join(SUMMARY)}"
            )

    def _best_value(self) -> float:
        name, _, metric = self.config.train.best_metric.rpartition("/")
        sets = list(self.results.values())[-1]
        name = name or next(reversed(sets), "")
        if not sets:
            return math.nan
        return sets[name][metric]

    def _finish(self) -> None:
        """Write scores, detections and exports, and print the tables."""
        if not self.results:  # resumed after the last step
            self.log = RunLog(self.folder, self.step, self.step, self.console, False)
            self.evaluate()
        if not self.fabric.is_global_zero:
            return
        write_results(self.results, self.folder)
        for name, found in self.detections.items():
            write_atomically(self.folder / f"detections_{name}.json", json.dumps(found))
        for name, model in self.models().items():
            export_model(model, self.config, self.classes, self.folder / "export" / f"{name}.pth")
        report_problems([*self.train_sets, *self.test_sets], self.unreadable, self.folder)
        print_tables(self.results, self.console)
        if self.skipped_steps:
            log.warning(
                "%d of %d steps were skipped because of a loss that was not finite", self.skipped_steps, self.step
            )
        self.console.print(f"results, detections, checkpoints and exports are in {self.folder}", soft_wrap=True)

    # ------------------------------------------------------------------------------------- saving, resuming

    def save(self) -> None:
        """Write a checkpoint from which the run continues exactly as if it had never stopped."""
        self.log.flush()
        self._write_checkpoint()
        self.fabric.barrier()

    def _write_checkpoint(self) -> None:
        if not self.fabric.is_global_zero:
            return
        content = {
            "step": self.step,
            "classes": list(self.classes),
            "student": self.detector.exported(),
            "ema": self.ema.module.exported() if self.ema is not None else {},
            "ema_updates": int(self.ema.n_averaged) if self.ema is not None else 0,
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self._scaler.state_dict() if self._scaler is not None else {},
            "random": random_state(),
            "best": self.best,
            "bad_steps": [self.bad_steps, self.skipped_steps],
            "unreadable": sorted(self.unreadable),
            "fingerprints": self._fingerprints(),
            "config": as_dict(self.config),
        }
        self.checkpoints.save(content, is_best=self._best_step == self.step)

    def _resume(self) -> None:
        content = self.checkpoints.load_latest()
        if content is None:
            log.info("%s holds no checkpoint yet; starting from the beginning", self.folder)
            return
        check_continues(content, self.config, self.classes, self._fingerprints())
        self.detector.model.load_state_dict(content["student"])
        if self.ema is not None:
            self.ema.module.model.load_state_dict(content["ema"] or content["student"])
            self.ema.n_averaged.fill_(max(content["ema_updates"], 1))
        self._restore_optimizer(content["optimizer"], content["step"])
        if self._scaler is not None and content["scaler"]:
            self._scaler.load_state_dict(content["scaler"])
        restore_random_state(content["random"])
        self.step, self.best = content["step"], content["best"]
        self.bad_steps, self.skipped_steps = content["bad_steps"]
        self.unreadable = set(content["unreadable"])
        log.info("resuming at step %d of %d", self.step, self.config.train.steps)

    def _restore_optimizer(self, state: dict[int, Any], step: int) -> None:
        """Bring back momenta, and the schedule by running it up to the step, so that changed settings count."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(step):
                self.schedule.step()
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    # ---------------------------------------------------------------------------------------------- helpers

    def _batches(self) -> Iterator[tuple[StepBatch, float]]:
        """Batches from the current step to the last, each with the seconds waited for it."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        seed = self.config.train.seed
        loader = training_loader(self.train_sets, self.config.data, seed=seed, start=self.step, rank=rank, world=world)
        stream = iter(loader)
        for _ in range(self.step, self.config.train.steps):
            started = time.perf_counter()
            try:
                views, problems = next(stream)
            except RuntimeError:
                if self.stopping:  # the signal reached the loading processes too
                    return
                raise
            self._note_unreadable(problems)
            yield StepBatch(source=views), time.perf_counter() - started

    def _note_unreadable(self, problems: list[str]) -> None:
        for problem in problems:
            if self.config.data.on_error == "raise":
                raise UserError(f"{problem}; correct it, or set data.on_error=skip to leave it out")
            if problem not in self.unreadable:
                log.warning("skipped: %s", problem)
                self.unreadable.add(problem)
        if problems and len(self.unreadable) >= sum(len(image_set) for image_set in self.train_sets):
            raise UserError("no training image can be read; see the messages above")

    def _on_device(self, batch: StepBatch) -> StepBatch:
        return StepBatch(batch.source.to(self.fabric.device), batch.target and batch.target.to(self.fabric.device))

    def _record(self, losses: dict[str, float], images: int, seconds: float, waited: float) -> None:
        self.log.count(images * self.fabric.world_size, seconds, waited)
        self.log.step(self.step)
        if self._due(self.config.train.log_every) or self.step == self.config.train.steps:
            self.log.row(self.step, {"lr": self.schedule.get_last_lr()[0], **losses})

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
    def _best_step(self) -> int | None:
        return self.best["step"] if self.best else None

    @property
    def _scaler(self) -> Any:
        return getattr(self.fabric.strategy.precision, "scaler", None)

    def _fingerprints(self) -> dict[str, str]:
        return {image_set.name: image_set.fingerprint for image_set in [*self.train_sets, *self.test_sets]}

    def _open_folder(self) -> None:
        if not self.fabric.is_global_zero:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output_dir={self.folder} cannot be written to ({error})") from None
        save_config(self.config, self.folder / "config.yaml")
        datasets = {
            image_set.name: {"images": len(image_set), "fingerprint": image_set.fingerprint}
            for image_set in [*self.train_sets, *self.test_sets]
        }
        content = provenance(self.config, str(self.fabric.device), datasets)
        write_atomically(self.folder / "run.json", json.dumps(content, indent=2) + "\n")
        report_problems([*self.train_sets, *self.test_sets], self.unreadable, self.folder)


def seed_everything(seed: int) -> None:
    """Seed every global generator; the streams of data, mixing and sampling have their own seeds per step."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
