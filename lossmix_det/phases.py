"""What a step is made of: which images, mixed with whom, taught which truths."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from lossmix_det.config import Config, MixingConfig
from lossmix_det.mixing import draw_mix, mixup, supervise, unmixed
from lossmix_det.structures import ImageBatch, StepBatch, Supervision, Views


class Lesson:
    """One step's student images and everything that they are taught, by the name its losses are logged under.

    A plain class: Fabric takes dataclasses among a module's inputs apart, and cannot rebuild frozen ones.
    """

    def __init__(self, images: ImageBatch, supervisions: dict[str, list[Supervision]]) -> None:
        self.images, self.supervisions = images, supervisions

    def split(self, count: int) -> list[Lesson]:
        """Cut into equal parts on the same canvas, for gradient accumulation."""
        parts = [{name: [] for name in self.supervisions} for _ in range(count)]
        for name, supervisions in self.supervisions.items():
            for supervision in supervisions:
                for part, piece in zip(parts, supervision.split(count), strict=True):
                    part[name].append(piece)
        return [Lesson(images, part) for images, part in zip(self.images.split(count), parts, strict=True)]


class Phase(Protocol):
    """A stage of training; `compose` never changes its batch."""

    def compose(self, batch: StepBatch, rng: np.random.Generator) -> Lesson: ...


class SourceOnly:
    """Labelled images alone, mixed with one another."""

    def __init__(self, mixing: MixingConfig) -> None:
        self.mixing = mixing

    def compose(self, batch: StepBatch, rng: np.random.Generator) -> Lesson:
        """Mix each view among its own images and join the views into one batch."""
        images, supervisions = [], []
        for view in views_of(batch.source):
            mix = draw_mix(len(view), self.mixing, rng) if self.mixing.rule != "none" else unmixed(len(view))
            images.append(mixup(view.to_float(), mix))
            supervisions.append(supervise(batch.source.truths or (), mix, self.mixing))
        joined = [Supervision.cat(parts) for parts in zip(*supervisions, strict=True)]
        return Lesson(ImageBatch.cat(images), {"source": joined})


def views_of(views: Views) -> list[ImageBatch]:
    """The views that were loaded, strong first."""
    return [view for view in (views.strong, views.weak) if view is not None]


def phase_at(config: Config, step: int) -> Phase:
    """The phase that a step belongs to."""
    clean = step >= config.train.steps - config.mixing.off_last_steps
    return SourceOnly(MixingConfig(rule="none") if clean else config.mixing)
