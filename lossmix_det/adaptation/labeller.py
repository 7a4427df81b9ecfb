"""The teacher's side of a step: pseudo-labels for the target, how good they are, and whether all is well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from lossmix_det.adaptation.guards import Guard
from lossmix_det.adaptation.mirror import agreed, mirrored
from lossmix_det.adaptation.pseudo_labels import build_thresholds, excused, match_truths, select, to_cpu
from lossmix_det.config import Config, PseudoLabelConfig
from lossmix_det.engines import Detector, Encoding, ScoresBoxes, SoftTeacher, require
from lossmix_det.engines.contract import inference_mode_of
from lossmix_det.errors import UserError
from lossmix_det.mixing import RULES, Recipe
from lossmix_det.structures import ImageBatch, Instances, Supervision, Views


class HardLabels:
    """Boxes and classes above the threshold are truths like any other (Adaptive Teacher).

    Args:
        config: ``empty``, ``box_score`` and ``box_agreement``.
    """

    needs: type | None = None  # capability of a detector
    has_boxes = True  # that a rule may join with others

    def __init__(self, config: PseudoLabelConfig) -> None:
        self.weight_of_empty = WEIGHT_OF_EMPTY[config.empty]
        self.teaches_boxes = config.teaches_boxes

    def supervision(self, kept: list[Instances]) -> Supervision:
        """What the kept detections teach, at full weight."""
        weights = torch.tensor([1.0 if len(labels) else self.weight_of_empty for labels in kept])
        return Supervision(tuple(kept), weights, weights * self.teaches_boxes)

    def soft_teacher(self, teacher: Detector, encoding: Encoding) -> SoftTeacher | None:
        """Who scores the student's samples: nobody, they are scored against the boxes."""
        return None


class SoftLabels:
    """The teacher scores the samples that the student draws; its boxes only decide which these are (ALDI).

    Args:
        config: ``temperature``.
    """

    needs: type | None = ScoresBoxes
    has_boxes = False

    def __init__(self, config: PseudoLabelConfig) -> None:
        self.temperature = config.temperature

    def supervision(self, kept: list[Instances]) -> Supervision:
        """Every image teaches, also one in which the teacher sees nothing."""
        truths = [replace(labels, box_weights=None, teacher_image=index) for index, labels in enumerate(kept)]
        return Supervision.full(truths)

    def soft_teacher(self, teacher: Detector, encoding: Encoding) -> SoftTeacher | None:
        """The teacher itself."""
        return SoftTeacher(teacher, encoding, self.temperature)


WEIGHT_OF_EMPTY = {"skip": 0.0, "background": 1.0}  # of a target image without a pseudo-label
KINDS = {"hard": HardLabels, "soft": SoftLabels}


class Labeller:
    """Turns what the teacher sees in weak views into the supervision of the target.

    Args:
        config: of the run.
        classes: names, in order.
        fabric: for sums over processes.
        student: the detector to be taught.

    Raises:
        UserError: the pseudo-labels are of a kind that the student cannot be taught, or name an unknown class.
    """

    def __init__(self, config: Config, classes: Sequence[str], fabric: Fabric, student: Detector) -> None:
        self.adaptation, self.labels, self.steps = config.adaptation, config.pseudo_labels, config.train.steps
        self.classes, self.fabric = classes, fabric
        self.kind = KINDS[self.labels.kind](self.labels)
        setting = f"pseudo_labels.kind={self.labels.kind}"
        if self.kind.needs is not None:
            require(student, self.kind.needs, setting, "pseudo_labels.kind=hard")
        if RULES[config.mixing.rule].joins_boxes and not self.kind.has_boxes:
            raise UserError(
                f"{setting} has no boxes that mixing.rule={config.mixing.rule} could join; use lossmix or own"
            )
        if Recipe(config.mixing).tears_boxes and not self.kind.has_boxes:
            raise UserError(
                f"{setting} has no boxes that could follow the blocks of mixing.mixer={config.mixing.mixer}; "
                "set mixing.puzzle.transport=false"
            )
        self.thresholds = build_thresholds(self.labels, classes)
        self.guard = Guard(config.adaptation, self.labels.score)
        self.factor, self.restores = 1.0, 0  # of the unsupervised weight; halved by each restoration
        self.problem: str | None = None
        self.counts: dict[str, Tensor] = {}  # since the last row, over all processes

    def label(self, teacher: Detector, target: Views, step: int) -> tuple[Supervision, SoftTeacher | None]:
        """Let the teacher look at the weak views, once; with ``box_agreement`` at their mirror images too.

        Args:
            teacher: in whatever mode.
            target: its truths, if there are any, are only measured against; what it holds that does not count is
                neither found nor missed.
            step: of the run, for the ramp.

        Returns:
            The supervision of the target's images, and for soft labels who scores the student's samples.
        """
        images = target.weak.to_float()
        with inference_mode_of(teacher), self.fabric.autocast():
            encoding = teacher.encode(images)
            detections = teacher.detections(encoding)
        if self.thresholds.learns:
            seen = self._sum({"scores": self.thresholds.count(detections)})
            self.thresholds.remember(seen["scores"])
        self.thresholds.advance(self._progress(step))
        kept = self._agreed(teacher, images, self.select(detections, images))
        self._watch(detections, kept, target)
        supervision = self.kind.supervision(kept).scaled(self.unsupervised_weight(step))
        return supervision, self.kind.soft_teacher(teacher, encoding)

    def _agreed(self, teacher: Detector, images: ImageBatch, kept: list[Instances]) -> list[Instances]:
        """The same labels; their boxes as the mirror images confirm them, if that is asked for."""
        least = self.labels.box_agreement
        if least is None:
            return kept
        with inference_mode_of(teacher), self.fabric.autocast():
            mirror = teacher.detect(mirrored(images))
        return [
            agreed(*of_image, width, least) for *of_image, (_, width) in zip(kept, mirror, images.sizes, strict=True)
        ]

    def _progress(self, step: int) -> float:
        """The share of adaptation that is done."""
        done = step - self.adaptation.burn_in_steps
        return min(max(done / max(self.steps - self.adaptation.burn_in_steps, 1), 0.0), 1.0)

    def unsupervised_weight(self, step: int) -> float:
        """Weight of the pseudo-labels, after the ramp and restorations."""
        adaptation = self.adaptation
        done = step - adaptation.burn_in_steps + 1
        ramp = min(done / adaptation.ramp_steps, 1.0) if adaptation.ramp_steps else 1.0
        return adaptation.unsupervised_weight * ramp * self.factor

    def row(self) -> dict[str, float]:
        """What is logged of the pseudo-labels since the last row."""
        if not self.counts:
            return {}
        images, labels, matched, truths = (self.counts[name] for name in ("images", "labels", "matched", "truths"))
        judged = labels - self.counts["excused"]
        total = float(images.sum())
        row = {
            "pseudo/per_image": float(labels.sum()) / total,
            "pseudo/images_without": float(self.counts["empty"]) / total,
        }
        measured = bool(self.counts["measured"])
        if measured:
            row |= {
                "pseudo/precision": _share(matched.sum(), judged.sum()),
                "pseudo/recall": _share(matched.sum(), truths.sum()),
            }
        for index, name in enumerate(self.classes):
            row[f"pseudo/per_image/{name}"] = float(labels[index]) / total
            if measured:
                row[f"pseudo/precision/{name}"] = _share(matched[index], judged[index])
                row[f"pseudo/recall/{name}"] = _share(matched[index], truths[index])
        if self.thresholds.learns:
            least = self.thresholds.least().tolist()
            row |= {f"pseudo/threshold/{name}": value for name, value in zip(self.classes, least, strict=True)}
        self.counts = {}
        return row

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to continue exactly."""
        return {
            "histogram": self.thresholds.histogram,
            "guard": self.guard.state_dict(),
            "factor": [self.factor, self.restores],
            "counts": self.counts,
        }

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Continue from what `state_dict` gave before a step of the run."""
        self.thresholds.histogram = state["histogram"]
        self.thresholds.advance(self._progress(step - 1))  # as when it labelled last
        self.guard.load_state_dict(state["guard"])
        self.factor, self.restores = state["factor"]
        self.counts = state["counts"]

    def select(self, detections: list[Instances], images: ImageBatch) -> list[Instances]:
        """The detections that are pseudo-labels by now.

        Args:
            detections: of the teacher, in pixels of each image.
            images: that it looked at.
        """
        least = self.thresholds.least()
        pairs = zip(detections, images.sizes, strict=True)
        return [select(instances, least, size, self.labels) for instances, size in pairs]

    def _watch(self, detections: list[Instances], kept: list[Instances], target: Views) -> None:
        """Count what was found, and let the guard see it."""
        scores = torch.cat([instances.scores for instances in detections])
        labels = to_cpu(kept)
        step = {
            "found": scores.sum().reshape(1).cpu().double(),
            "images": torch.tensor([float(len(labels))]),
            "empty": torch.tensor([float(sum(not len(of_image) for of_image in labels))]),
            "measured": torch.tensor([float(target.truths is not None)]),
            "labels": self._by_class(labels),
            "matched": torch.zeros(len(self.classes)),
            "truths": torch.zeros(len(self.classes)),
            "excused": torch.zeros(len(self.classes)),
        }
        if target.truths is not None:
            truths = to_cpu(target.truths)
            matches = [match_truths(*pair) for pair in zip(labels, truths, strict=True)]
            matched = [of_image[match] for of_image, match in zip(labels, matches, strict=True)]
            step |= {"matched": self._by_class(matched), "truths": self._by_class(truths)}
            if target.uncounted is not None:
                wrong = [of_image[~match] for of_image, match in zip(labels, matches, strict=True)]
                pairs = zip(wrong, target.uncounted, strict=True)
                step["excused"] = self._by_class([of_image[excused(of_image, others)] for of_image, others in pairs])
        step = self._sum(step)
        self.counts = {name: self.counts.get(name, 0) + value for name, value in step.items()}
        per_image = float(step["found"]) / float(step["images"])
        best = float(scores.max()) if len(scores) else 0.0
        self.problem = self.guard.observe(per_image, best, int(step["labels"].sum()))

    def _by_class(self, instances: Sequence[Instances]) -> Tensor:
        classes = torch.cat([of_image.classes for of_image in instances])
        return classes.bincount(minlength=len(self.classes))

    def _sum(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Over all processes, in one message."""
        flat = torch.cat([value.double().flatten() for value in values.values()])
        if self.fabric.world_size > 1:
            flat = self.fabric.all_reduce(flat.to(self.fabric.device), reduce_op="sum").cpu()
        sums = flat.split([value.numel() for value in values.values()])
        return {name: total.view_as(values[name]) for name, total in zip(values, sums, strict=True)}


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole else float("nan")
