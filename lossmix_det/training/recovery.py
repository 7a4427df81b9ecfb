"""What happens when a step is not finite, or when the teacher collapses."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, Protocol

from lightning_fabric import Fabric

from lossmix_det.config import Config
from lossmix_det.errors import UserError
from lossmix_det.files import read_checkpoint
from lossmix_det.training.checkpoints import Checkpoints
from lossmix_det.training.processes import everywhere
from lossmix_det.training.state import RunState

log = logging.getLogger(__name__)

CALMER = "lower optimizer.lr, lengthen optimizer.warmup_steps or train with precision=32, then use --resume"


class OnCollapse(Protocol):
    """What `train.on_collapse` names."""

    restores: bool  # goes back to a healthy state

    def react(self, recovery: Recovery, problem: str) -> None:
        """Act on a problem that was just said."""


class Warn:
    """Say it and go on."""

    restores = False

    def react(self, recovery: Recovery, problem: str) -> None:
        """Nothing more."""


class Stop:
    """Save, and end the run."""

    restores = False

    def react(self, recovery: Recovery, problem: str) -> None:
        """Save, and raise.

        Raises:
            UserError: always.
        """
        recovery.save()
        recovery.fabric.barrier()  # a process that ends early takes the others down
        raise UserError(f"stopped at step {recovery.state.step}: {problem}")


class Restore(Warn):
    """Go back to the last healthy checkpoint, with half the weight of pseudo-labels."""

    restores = True


ON_COLLAPSE: dict[str, OnCollapse] = {"warn": Warn(), "stop": Stop(), "restore": Restore()}


class Recovery:
    """Counts steps that taught nothing, saves, and goes back to a healthy state.

    Args:
        config: of the run.
        state: of the run; read and restored.
        checkpoints: where it is saved.
        fabric: launched.
    """

    def __init__(self, config: Config, state: RunState, checkpoints: Checkpoints, fabric: Fabric) -> None:
        self.config, self.state, self.checkpoints, self.fabric = config, state, checkpoints, fabric
        self.reaction = ON_COLLAPSE[config.train.on_collapse]

    @property
    def restorable(self) -> bool:
        """Whether the run goes back to a healthy state when it must."""
        return self.state.adapting and self.reaction.restores

    def prepare(self) -> None:
        """Where the setting is newer than the run: save a healthy state to come back to, or come back if it is late."""
        if not self.restorable:
            return
        if self.state.labeller.guard.collapsed and self.state.step < self.config.train.steps:
            log.warning("step %d: the teacher had collapsed before it was to be restored", self.state.step)
            self.restore()
        elif not self.checkpoints.healthy.is_file():
            self.save()

    def save(self, *, is_best: bool = False, ends_burn_in: bool = False) -> Path | None:
        """Write a checkpoint of the state, unless its weights are not finite; on the first process.

        Returns:
            Its path; None if nothing was written.
        """
        if not self.fabric.is_global_zero:
            return None
        if not self.state.finite:
            log.warning("step %d is not saved: its weights are not finite", self.state.step)
            return None
        healthy = self.restorable and self.state.labeller.guard.healthy and not self.state.bad_steps
        known_as = (
            (is_best, self.checkpoints.best),
            (healthy, self.checkpoints.healthy),
            (ends_burn_in, self.checkpoints.burned_in),
        )
        return self.checkpoints.save(self.state.content(), *(path for holds, path in known_as if holds))

    def note(self, losses: dict[str, float] | None, norm: float) -> None:
        """Take note of a step: whether its losses (None: not finite) and its gradient were finite.

        Raises:
            UserError: too many in a row were not, and there is nothing to go back to.
        """
        state, limit = self.state, self.config.train.max_bad_steps
        finite = losses is not None and math.isfinite(norm)
        state.bad_steps = 0 if finite else state.bad_steps + 1
        state.skipped_steps += not finite
        if state.bad_steps == 1:
            log.warning("step %d: the loss or its gradient is not finite; the step is skipped", state.step + 1)
        if state.bad_steps >= limit and not self.restorable:
            raise UserError(
                f"loss or gradient not finite for {limit} steps in a row, up to step {state.step + 1}; {CALMER}"
            )

    def is_needed(self, *, must_be_finite: bool = False) -> bool:
        """Say what is wrong, if anything is; true if the run is to go back to a healthy state.

        Args:
            must_be_finite: the weights are about to be scored or saved.

        Raises:
            UserError: they are not finite, and there is nothing to go back to.
        """
        state = self.state
        problem = state.labeller.problem if state.adapting else None
        # Starvation is not cured by weighing pseudo-labels less: there are none.
        curable = state.adapting and state.labeller.guard.collapsed
        if state.bad_steps >= self.config.train.max_bad_steps:
            problem, curable = f"loss or gradient not finite for {state.bad_steps} steps in a row", True
        elif must_be_finite and not everywhere(self.fabric, state.finite):
            problem, curable = "the weights are no longer finite", True
            if not self.restorable:
                raise UserError(f"step {state.step}: {problem}, and are not saved; {CALMER}")
        if problem is None:
            return False
        log.warning("step %d: %s", state.step, problem)
        if curable:
            self.reaction.react(self, problem)
        return self.restorable and curable

    def restore(self) -> None:
        """Go back to the last healthy checkpoint, and let pseudo-labels weigh half of what they did.

        Raises:
            UserError: this has been done too often, or there is no such checkpoint.
        """
        state, labeller = self.state, self.state.labeller
        factor, restores = labeller.factor / 2, labeller.restores + 1
        if restores > self.config.adaptation.restores:
            raise UserError(
                f"collapsed again after {restores - 1} restorations; lower adaptation.unsupervised_weight, lengthen "
                f"adaptation.burn_in_steps, or raise adaptation.restores"
            )
        best = state.best  # its file stays, and is of the same run
        self.fabric.barrier()
        state.load(self._healthy(), self.fabric)
        labeller.factor, labeller.restores = factor, restores
        state.best, state.bad_steps = best, 0
        if self.fabric.is_global_zero:
            self.checkpoints.rewind(state.content())
        self.fabric.barrier()
        log.warning("restored step %d; pseudo-labels now weigh %g of what is set", state.step, factor)

    def _healthy(self) -> dict[str, Any]:
        """The last healthy checkpoint; where the run had collapsed before it kept any, that of the end of burn-in."""
        for path in (self.checkpoints.healthy, self.checkpoints.burned_in):
            if path.is_file():
                try:
                    content = read_checkpoint(path)
                    self.state.check(content)
                except UserError as error:
                    log.warning("%s cannot be restored (%s)", path, error)
                else:
                    return content
        raise UserError(
            f"{self.checkpoints.folder}: the teacher has collapsed, and no checkpoint is from before; train again into "
            f"another output_dir, or set train.on_collapse=warn"
        )
