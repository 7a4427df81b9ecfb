"""Seeing that self-training starves or collapses before it has ruined the run."""

from __future__ import annotations

from typing import Any

from lossmix_det.config import AdaptationConfig

FAINT = 0.1  # sum of scores per image below which there is no reference yet
ORDINARY = 1.0  # a teacher that began with less may well find more


class Guard:
    """Watches how much the teacher finds on the target, in windows of ``guard_steps``.

    The measure is the sum of the scores of all its detections per image, which no threshold hides. The first window
    after hand-over is the reference.

    Args:
        config: window and ratio.
        score: the threshold, for the message.
    """

    def __init__(self, config: AdaptationConfig, score: float) -> None:
        self.config, self.score = config, score
        self.recent: list[float] = []
        self.reference: float | None = None
        self.starved = 0
        self.best = 0.0
        self.collapsed = False

    def observe(self, found: float, best_score: float, labels: int) -> str | None:
        """Take note of one step.

        Args:
            found: sum of the teacher's scores per image.
            best_score: its highest score.
            labels: number of pseudo-labels that were kept.

        Returns:
            What is wrong and what to change, when it starts to be; else None.
        """
        self.recent = [*self.recent, found][-self.config.guard_steps :]
        self.starved = 0 if labels else self.starved + 1
        self.best = max(self.best, best_score) if self.starved else 0.0
        if self.starved == self.config.guard_steps:
            return (
                f"no pseudo-label for {self.starved} steps: the teacher's highest score was {self.best:.2f}, "
                f"pseudo_labels.score is {self.score:g}; lower it, or start again with longer adaptation.burn_in_steps"
            )
        return self._collapse()

    def _collapse(self) -> str | None:
        if len(self.recent) < self.config.guard_steps:
            return None
        now = self.level
        if self.reference is None:
            if now < FAINT:  # nothing to collapse from; starvation is said by itself
                return None
            self.reference = now
        ratio = self.config.collapse_ratio
        was, self.collapsed = self.collapsed, not self._within(ratio)
        if not self.collapsed or was:
            return None
        change = "vanish" if now < self.reference else "explode"
        return (
            f"the teacher's detections on the target {change}: {now:.2f} per image (sum of scores) over the last "
            f"{len(self.recent)} steps, {self.reference:.2f} after hand-over; lower adaptation.unsupervised_weight, "
            f"raise pseudo_labels.score or ema.decay, or start again with longer "
            f"adaptation.burn_in_steps"
        )

    @property
    def level(self) -> float:
        """Mean over the window of what the teacher found per image."""
        return sum(self.recent) / len(self.recent)

    @property
    def healthy(self) -> bool:
        """Far from collapse: a checkpoint taken now is one to come back to."""
        return self.reference is None or self._within(self.config.collapse_ratio**0.5)

    def _within(self, ratio: float) -> bool:
        return self.reference / ratio <= self.level <= max(self.reference, ORDINARY) * ratio

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to continue exactly."""
        return {name: getattr(self, name) for name in ("recent", "reference", "starved", "best", "collapsed")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        for name, value in state.items():
            setattr(self, name, value)
