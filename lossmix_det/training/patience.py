"""Early stopping: a run ends once its scores have not improved for a while."""

from __future__ import annotations

import logging
from typing import Any

from lossmix_det.config import Config
from lossmix_det.data.records import ImageSet
from lossmix_det.errors import UserError
from lossmix_det.evaluation.scores import metric_set
from lossmix_det.training.state import RunState

log = logging.getLogger(__name__)


class Patience:
    """Counts the evaluations since the best one; nothing is remembered but the best itself, so that resuming is exact.

    In a run that adapts, only evaluations after burn-in count, because that is where the teacher begins.

    Args:
        config: of the run; ``train.patience`` evaluations, 0 never stops.
    """

    def __init__(self, config: Config) -> None:
        self.patience, self.every, self.metric = (
            config.train.patience,
            config.train.eval_every,
            config.train.best_metric,
        )
        self.adapts, self.burn_in_steps = bool(config.data.target), config.adaptation.burn_in_steps

    def check(self, test_sets: list[ImageSet]) -> None:
        """Refuse to wait for scores that there will never be.

        Raises:
            UserError: no test set has labels, or that of the metric has no object that counts.
        """
        if not self.patience:
            return
        watched = metric_set(self.metric, test_sets)
        if watched is not None and _counts_any(watched):
            return
        reason = "no test set has labels" if watched is None else f"{watched.name} has no object that counts"
        raise UserError(
            f"train.patience={self.patience} has no score to watch, because {reason}; name another set in data.test or "
            "train.best_metric, or set train.patience=0"
        )

    def is_over(self, state: RunState) -> bool:
        """Whether the last `patience` evaluations all were no better than one before them."""
        if not self.patience or (self.adapts and not state.adapting):
            return False
        best = max(state.best["step"], state.best.get("counted_from", 0)) if state.best else 0
        since = max(best, self.burn_in_steps if self.adapts else 0)
        return state.step // self.every - since // self.every >= self.patience

    def reason(self, state: RunState) -> str:
        """Why the run ended, for a person."""
        best = f"{state.best['value']:.1f} at step {state.best['step']}" if state.best else "none"
        return f"no better {self.metric} in {self.patience} evaluations (train.patience); the best was {best}"


def keep_best(state: RunState, before: dict[str, Any]) -> None:
    """Let the best score of a resumed run go where it is of another metric, and count anew where evaluations are.

    Args:
        state: resumed; its ``best`` is what the checkpoint brought.
        before: the configuration with which that was saved.
    """
    train, best = state.config.train, state.best
    if best is None:
        return
    sets = before["data"]["test"], state.config.data.test
    if best["metric"] != train.best_metric or ("/" not in train.best_metric and sets[0][-1:] != sets[1][-1:]):
        log.info("the best %s of before says nothing of %s; the best is sought anew", best["metric"], train.best_metric)
        state.best = None
    elif before["train"]["eval_every"] != train.eval_every:
        state.best = {**best, "counted_from": state.step}


def _counts_any(image_set: ImageSet) -> bool:
    """Whether there is an object that a detector could miss."""
    return any(not (record.crowd | record.difficult).all() for record in image_set.records)
