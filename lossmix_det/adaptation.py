"""The teacher's side of a step: pseudo-labels for the target, how good they are, and whether all is well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from lossmix_det.config import Config
from lossmix_det.engines import Detector, Marker
from lossmix_det.engines.base import inference_mode_of
from lossmix_det.guards import Guard
from lossmix_det.pseudo_labels import Thresholds, matches, select
from lossmix_det.structures import ImageBatch, Instances, Supervision, Views


class Labeller:
    """Turns what the teacher sees in weak views into the supervision of the target.

    Args:
        config: of the run.
        classes: names, in order.
        fabric: for sums over processes.
    """

    def __init__(self, config: Config, classes: Sequence[str], fabric: Fabric) -> None:
        self.config, self.labels, self.classes, self.fabric = config, config.pseudo_labels, classes, fabric
        self.thresholds = Thresholds(self.labels, classes)
        self.guard = Guard(config.adaptation, self.labels.score)
        self.factor, self.restores = 1.0, 0  # of the unsupervised weight; halved by each restoration
        self.problem: str | None = None
        self._forget()

    def label(
        self, teacher: Detector, target: Views, canvas: tuple[int, int], step: int
    ) -> tuple[Supervision, Marker | None]:
        """Let the teacher look at the weak views, once.

        Args:
            teacher: in whatever mode.
            target: its truths, if there are any, are only measured against.
            canvas: (height, width) of the student's batch; soft labels need the same one.
            step: of the run, for the ramp.

        Returns:
            The supervision of the target's images, and for soft labels who scores the student's samples.
        """
        soft = self.labels.kind == "soft"
        images = target.weak.to_float()
        with inference_mode_of(teacher), self.fabric.autocast():
            encoding = teacher.encode(images.on_canvas(*canvas) if soft else images)
            detections = teacher.detections(encoding)
        counts = self._sum(self.thresholds.count(detections))
        self.thresholds.remember(counts)
        kept = self._select(detections, images)
        self._watch(detections, kept, len(images))
        self._measure(kept, target.truths)
        weights = torch.tensor([float(soft or bool(len(each)) or self.labels.empty == "background") for each in kept])
        weights *= self.unsupervised_weight(step)
        if soft:
            kept = [replace(each, box_weights=None, teacher_image=index) for index, each in enumerate(kept)]
        teaches_boxes = soft or self.labels.box_score is not None
        supervision = Supervision(tuple(kept), weights, weights * teaches_boxes)
        return supervision, Marker(teacher, encoding, self.labels.temperature) if soft else None

    def unsupervised_weight(self, step: int) -> float:
        """Weight of the pseudo-labels, after the ramp and restorations."""
        adaptation = self.config.adaptation
        done = step - adaptation.burn_in_steps + 1
        ramp = min(done / adaptation.ramp_steps, 1.0) if adaptation.ramp_steps else 1.0
        return adaptation.unsupervised_weight * ramp * self.factor

    def row(self) -> dict[str, float]:
        """What is logged of the pseudo-labels since the last row."""
        names = ("images", "empty", "labels", "right", "truths")
        images, empty, labels, right, truths = self._sum(torch.tensor([self.counts[n] for n in names])).tolist()
        by_class = self._sum(self.by_class).tolist()
        row = {}
        if images:
            row = {"pseudo/per_image": labels / images, "pseudo/images_without": empty / images}
            row |= {f"pseudo/{name}": n / images for name, n in zip(self.classes, by_class, strict=True)}
            if self.labels.threshold == "adaptive":
                least = self.thresholds.least().tolist()
                row |= {f"threshold/{name}": value for name, value in zip(self.classes, least, strict=True)}
            if self.measured:
                row["pseudo/precision"] = right / labels if labels else float("nan")
                row["pseudo/recall"] = right / truths if truths else float("nan")
        self._forget()
        return row

    def state_dict(self) -> dict[str, Any]:
        return {
            "histogram": self.thresholds.histogram,
            "guard": self.guard.state_dict(),
            "factor": [self.factor, self.restores],
            "counts": self.counts,
            "by_class": self.by_class,
            "measured": self.measured,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.thresholds.histogram = state["histogram"]
        self.guard.load_state_dict(state["guard"])
        self.factor, self.restores = state["factor"]
        self.counts, self.by_class, self.measured = state["counts"], state["by_class"], state["measured"]

    def _select(self, detections: list[Instances], images: ImageBatch) -> list[Instances]:
        least = self.thresholds.least()
        pairs = zip(detections, images.sizes, strict=True)
        return [select(found, least, size, self.labels) for found, size in pairs]

    def _watch(self, detections: list[Instances], kept: list[Instances], images: int) -> None:
        sums = torch.tensor([sum(float(found.scores.sum()) for found in detections), sum(map(len, kept)), images])
        score, labels, images = self._sum(sums).tolist()
        best = max((float(found.scores.max()) for found in detections if len(found)), default=0.0)
        self.problem = self.guard.observe(score / images, best, int(labels))

    def _measure(self, kept: list[Instances], truths: tuple[Instances, ...] | None) -> None:
        self.counts["images"] += len(kept)
        self.counts["empty"] += sum(not len(each) for each in kept)
        self.counts["labels"] += sum(map(len, kept))
        for each in kept:
            self.by_class += each.classes.cpu().bincount(minlength=len(self.classes))
        if truths is not None:
            self.measured = True
            self.counts["truths"] += sum(map(len, truths))
            self.counts["right"] += sum(matches(each, truth) for each, truth in zip(kept, truths, strict=True))

    def _forget(self) -> None:
        self.counts = dict.fromkeys(("images", "empty", "labels", "right", "truths"), 0.0)
        self.by_class = torch.zeros(len(self.classes), dtype=torch.float64)
        self.measured = False

    def _sum(self, values: Tensor) -> Tensor:
        """Over all processes."""
        if self.fabric.world_size == 1:
            return values
        moved = values.to(self.fabric.device, torch.float32 if self.fabric.device.type == "mps" else torch.float64)
        return self.fabric.all_reduce(moved, reduce_op="sum").cpu()
