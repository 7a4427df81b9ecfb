"""The teacher's side of a step: pseudo-labels for the target, how good they are, and whether all is well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from lossmix_det.adaptation.guards import Guard
from lossmix_det.adaptation.pseudo_labels import Thresholds, right, select
from lossmix_det.config import Config
from lossmix_det.engines import Detector, Marker
from lossmix_det.engines.contract import inference_mode_of
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
        self.counts: dict[str, Tensor] = {}  # since the last row, over all processes

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
        if self.labels.threshold == "adaptive":
            seen = self._sum({"scores": self.thresholds.count(detections)})
            self.thresholds.remember(seen["scores"])
        kept = self._select(detections, images)
        self._watch(detections, kept, target.truths)
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
        if not self.counts:
            return {}
        images, labels, right, truths = (self.counts[name] for name in ("images", "labels", "right", "truths"))
        total = float(images.sum())
        row = {
            "pseudo/per_image": float(labels.sum()) / total,
            "pseudo/images_without": float(self.counts["empty"]) / total,
        }
        measured = bool(self.counts["measured"])
        if measured:
            row |= {
                "pseudo/precision": _share(right.sum(), labels.sum()),
                "pseudo/recall": _share(right.sum(), truths.sum()),
            }
        for index, name in enumerate(self.classes):
            row[f"pseudo/per_image/{name}"] = float(labels[index]) / total
            if measured:
                row[f"pseudo/precision/{name}"] = _share(right[index], labels[index])
                row[f"pseudo/recall/{name}"] = _share(right[index], truths[index])
        if self.labels.threshold == "adaptive":
            least = self.thresholds.least().tolist()
            row |= {f"pseudo/threshold/{name}": value for name, value in zip(self.classes, least, strict=True)}
        self.counts = {}
        return row

    def state_dict(self) -> dict[str, Any]:
        return {
            "histogram": self.thresholds.histogram,
            "guard": self.guard.state_dict(),
            "factor": [self.factor, self.restores],
            "counts": self.counts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.thresholds.histogram = state["histogram"]
        self.guard.load_state_dict(state["guard"])
        self.factor, self.restores = state["factor"]
        self.counts = state["counts"]

    def _select(self, detections: list[Instances], images: ImageBatch) -> list[Instances]:
        least = self.thresholds.least()
        pairs = zip(detections, images.sizes, strict=True)
        return [select(found, least, size, self.labels) for found, size in pairs]

    def _watch(self, detections: list[Instances], kept: list[Instances], truths: tuple[Instances, ...] | None) -> None:
        """Count what was found, and let the guard see it."""
        found = torch.cat([each.scores for each in detections])
        step = {
            "found": found.sum().reshape(1).cpu().double(),
            "images": torch.tensor([float(len(kept))]),
            "empty": torch.tensor([float(sum(not len(each) for each in kept))]),
            "measured": torch.tensor([float(truths is not None)]),
            "labels": self._by_class(kept),
            "right": torch.zeros(len(self.classes)),
            "truths": torch.zeros(len(self.classes)),
        }
        if truths is not None:
            hits = [each[right(each, truth)] for each, truth in zip(kept, truths, strict=True)]
            step |= {"right": self._by_class(hits), "truths": self._by_class(truths)}
        step = self._sum(step)
        self.counts = {name: self.counts.get(name, 0) + value for name, value in step.items()}
        per_image = float(step["found"]) / float(step["images"])
        best = float(found.max()) if len(found) else 0.0
        self.problem = self.guard.observe(per_image, best, int(step["labels"].sum()))

    def _by_class(self, instances: Sequence[Instances]) -> Tensor:
        classes = torch.cat([each.classes for each in instances]).cpu()
        return classes.bincount(minlength=len(self.classes))

    def _sum(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Over all processes, in one message."""
        flat = torch.cat([value.double().flatten() for value in values.values()])
        if self.fabric.world_size > 1:
            flat = self.fabric.all_reduce(flat.to(self.fabric.device), reduce_op="sum").cpu()
        parts = flat.split([value.numel() for value in values.values()])
        return {name: part.view_as(values[name]) for name, part in zip(values, parts, strict=True)}


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole else float("nan")
