"""The first stage: anchors, of which a region proposal network makes proposals."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lossmix_det.engines.contract import SoftTeacher
from lossmix_det.engines.two_stage.encoding import TwoStageEncoding
from lossmix_det.engines.two_stage.samples import SoftSamples, soft_samples
from lossmix_det.engines.two_stage.stage import Scored, Stage
from lossmix_det.engines.weighing import weighted_sum
from lossmix_det.structures import Supervision


class FirstStage(Stage):
    """The region proposal network: objectness and offsets of anchors."""

    loss_names = ("rpn_class", "rpn_box")

    def _losses(
        self, encoding: TwoStageEncoding, supervision: Supervision, soft_teacher: SoftTeacher | None
    ) -> tuple[Tensor, Tensor]:
        active = supervision.active
        truths = [supervision.truths[image].boxes for image in active]
        anchors, ranks = [encoding.anchors[image] for image in active], encoding.ranks
        chosen, matches = self._choose(anchors, truths, ranks and [ranks[image] for image in active])
        anchors = [boxes[index] for boxes, index in zip(anchors, chosen, strict=True)]
        foreground = torch.cat(matches) >= 0
        samples = self._weigh(supervision, matches, foreground)
        index = torch.cat(chosen)
        objectness, offsets = foreground.float(), self._wanted(truths, matches, anchors)
        soft = soft_samples(supervision, samples.images, torch.cat(anchors))
        if soft is not None and soft_teacher is not None:
            there = _in_teachers_encoding(encoding, soft_teacher.encoding, soft, samples.images, index)
            taught = self._ask_about_anchors(
                soft_teacher, soft, there, foreground, torch.cat(anchors), objectness, offsets
            )
            samples = replace(samples, box_weights=samples.box_weights * taught)
        self._tell(Scored(foreground, len(active)))
        rows = encoding.anchor_rows(samples.images, index)
        logits = encoding.objectness[rows].float()
        class_loss = F.binary_cross_entropy_with_logits(logits, objectness, reduction="none")
        predicted = encoding.deltas[rows[foreground]]
        return (
            weighted_sum(class_loss, samples.class_weights, samples.normalizers),
            self._weighted_box_loss(predicted, offsets, samples),
        )

    def _ask_about_anchors(
        self,
        teacher: SoftTeacher,
        soft: SoftSamples,
        there: Tensor,
        foreground: Tensor,
        anchors: Tensor,
        objectness: Tensor,
        offsets: Tensor,
    ) -> Tensor:
        """Write the teacher's objectness (S,), and its offsets (F, 4) where a truth was matched, over the hard ones.

        The teacher's anchor may lie a little beside the student's (S, 4): torchvision spaces those of its coarsest
        level by the canvas, and images are moved by less than a cell. The offsets lead to the same box, as far as the
        student can see it.

        Returns:
            (S,) bool: all but those whose box the student sees too little of.
        """
        seen = there >= 0
        logits = teacher.encoding.objectness[there[seen]]
        objectness[seen] = (logits.float() / teacher.temperature).sigmoid()
        both = seen & foreground
        theirs, deltas = teacher.encoding.anchor_boxes[there[both]], teacher.encoding.deltas[there[both]].float()
        taught = torch.ones_like(both)
        wanted, taught[both] = self._to_the_same(soft, both, theirs, deltas, anchors[both])
        offsets[seen[foreground]] = wanted.to(offsets)
        return taught


def _in_teachers_encoding(
    student: TwoStageEncoding, teacher: TwoStageEncoding, soft: SoftSamples, images: Tensor, index: Tensor
) -> Tensor:
    """(S,) rows among the teacher's anchors of what the student sampled; -1 where it has none, or is not asked."""
    there = torch.full_like(index, -1)
    for indices, canvas in zip(student.indices, student.canvases, strict=True):
        for numbers, seen in zip(teacher.indices, teacher.canvases, strict=True):
            both = soft.mask & _among(images, indices) & _among(soft.images, numbers)
            there[both] = canvas.grid.shifted(index[both], soft.offsets[both, :2].flip(1), seen.grid)
    known = there >= 0
    there[known] = teacher.anchor_rows(soft.images[known], there[known])
    return there


def _among(values: Tensor, numbers: tuple[int, ...]) -> Tensor:
    return torch.isin(values, torch.tensor(numbers, device=values.device))
