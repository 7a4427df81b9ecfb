"""The second stage: proposals, which RoI heads classify and move."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lossmix_det.engines.canvases import row_order
from lossmix_det.engines.contract import SoftTeacher
from lossmix_det.engines.normalizers import Normalizer
from lossmix_det.engines.two_stage.encoding import EncodedCanvas, Scores, TwoStageEncoding
from lossmix_det.engines.two_stage.samples import ChosenBoxes, Sampled, SoftSamples, soft_samples
from lossmix_det.engines.two_stage.sampling import random_ranks
from lossmix_det.engines.two_stage.stage import Scored, Stage
from lossmix_det.engines.weighing import Samples, weighted_sum
from lossmix_det.structures import Instances, Supervision


class SecondStage(Stage):
    """The RoI heads: class and offsets of sampled proposals, the truth boxes being among them.

    Args:
        normalize: of `NORMALIZERS`.
        background: its place among the class logits; classes follow in order, from 0 or from 1.
    """

    loss_names = ("roi_class", "roi_box")

    def __init__(self, normalize: Normalizer, background: int) -> None:
        super().__init__(normalize)
        self.background = background

    shares_scores: bool  # false where the head normalises over the samples that it is given

    @abstractmethod
    def pool(self, canvas: EncodedCanvas, boxes: list[Tensor]) -> Tensor:
        """(R, …) features within any boxes, (R, 4) per image of a canvas, one image after the other."""

    @abstractmethod
    def judge(self, pooled: Tensor) -> Scores:
        """Head outputs of R boxes, of whatever canvases, given what `pool` gave of them."""

    def score(self, encoding: TwoStageEncoding, boxes: list[Tensor]) -> Scores:
        """Head outputs of any boxes, (R, 4) per image, one image after the other; part of the one forward pass.

        The head sees the boxes of all canvases at once: its large layers are read, and their gradients written, once.
        """
        pooled = [
            self.pool(canvas, [boxes[index] for index in indices])
            for indices, canvas in zip(encoding.indices, encoding.canvases, strict=True)
        ]
        scores = self.judge(pooled[0] if len(pooled) == 1 else torch.cat(pooled))
        order = row_order(encoding.indices, [len(of_image) for of_image in boxes])
        return scores if order is None else scores.take(order.to(scores.logits.device))

    def score_proposals(self, encoding: TwoStageEncoding, count: int) -> Scores:
        """Head outputs of the first ``count`` proposals of each image, those that truths had scored being reused."""
        best = [proposals[:count] for proposals in encoding.proposals]
        chosen = {image: (torch.arange(len(boxes), device=boxes.device), boxes) for image, boxes in enumerate(best)}
        (row,) = self._score(encoding, [chosen])
        return encoding.scored.take(row)

    def announce(self, encoding: TwoStageEncoding, supervisions: Sequence[Supervision]) -> None:
        """Sample for several supervisions, and score all samples at once.

        Without keys nothing is done ahead, because sampling then draws from torch's generator in the order of losses.
        """
        if not encoding.scored.share or encoding.images.keys is None:
            return
        sampled = [self._sample(encoding, supervision) for supervision in supervisions if supervision.active]
        rows = self._score(encoding, [samples.by_image for samples in sampled])
        for samples, row in zip(sampled, rows, strict=True):
            encoding.scored.announced[id(samples.supervision)] = samples, row

    def _sample(self, encoding: TwoStageEncoding, supervision: Supervision) -> Sampled:
        active = supervision.active
        truths = [supervision.truths[image].boxes for image in active]
        proposals = [encoding.proposals[image] for image in active]
        candidates = [torch.cat([boxes, truth.to(boxes)]) for boxes, truth in zip(proposals, truths, strict=True)]
        keys = encoding.images.keys
        ranks = keys and [
            random_ranks([keys[image]], torch.arange(len(boxes), device=boxes.device))[0]
            for image, boxes in zip(active, candidates, strict=True)
        ]
        chosen, matches = self._choose(candidates, truths, ranks)
        boxes = [candidate[index] for candidate, index in zip(candidates, chosen, strict=True)]
        return Sampled(supervision, truths, chosen, matches, boxes)

    def _losses(
        self, encoding: TwoStageEncoding, supervision: Supervision, soft_teacher: SoftTeacher | None
    ) -> tuple[Tensor, Tensor]:
        if id(supervision) in encoding.scored.announced:
            sampled, row = encoding.scored.announced.pop(id(supervision))
        else:
            sampled = self._sample(encoding, supervision)
            (row,) = self._score(encoding, [sampled.by_image])
        active, matches, boxes = supervision.active, sampled.matches, sampled.boxes
        labels = [self._labels(supervision.truths[image], match) for image, match in zip(active, matches, strict=True)]
        label = torch.cat(labels)
        samples = self._weigh(supervision, matches, label != self.background)
        scores = encoding.scored.take(row)
        self._tell(Scored(samples.foreground, len(active), label, scores.logits.detach()))
        wanted = self._wanted(sampled.truths, matches, boxes)
        soft = soft_samples(supervision, samples.images, torch.cat(boxes))
        if soft is None or soft_teacher is None:
            class_loss = F.cross_entropy(scores.logits.float(), label, reduction="none")
        else:
            targets = F.one_hot(label, scores.logits.shape[1]).float()
            samples, label, wanted = self._soften(soft_teacher, soft, samples, torch.cat(boxes), label, targets, wanted)
            class_loss = F.cross_entropy(scores.logits.float(), targets, reduction="none")
        predicted = _of_class(scores.deltas, label)[samples.foreground]
        return (
            weighted_sum(class_loss, samples.class_weights, samples.normalizers),
            self._weighted_box_loss(predicted, wanted, samples),
        )

    def _labels(self, truth: Instances, match: Tensor) -> Tensor:
        """(S,) place among the class logits of what each proposal was matched to."""
        first = 0 if self.background else 1
        classes = truth.classes if len(truth) else truth.classes.new_zeros(1)
        return torch.where(match >= 0, classes[match.clamp(min=0)] + first, self.background)

    def _score(self, encoding: TwoStageEncoding, asked: Sequence[dict[int, ChosenBoxes]]) -> list[Tensor]:
        """Score the chosen boxes of several truths at once, a proposal once for all truths.

        Args:
            encoding: keeps what was scored.
            asked: of each truth, the boxes that were chosen of some images, image after image.

        Returns:
            Of each truth, the rows of its boxes in `ScoredProposals`.
        """
        rows, boxes, images = [], [encoding.proposals[0].new_zeros((0, 4))], []
        for chosen in asked:
            index, of_images = zip(*chosen.values(), strict=True)
            row, new = encoding.scored.rows_of(list(chosen), index)
            counts = torch.tensor([len(of_image) for of_image in index], device=new.device)
            rows.append(row)
            boxes.append(torch.cat(of_images)[new])
            images.append(torch.tensor(list(chosen), device=new.device).repeat_interleave(counts)[new])
        if images:
            encoding.scored.outputs.append(self._score_in_order(encoding, torch.cat(boxes), torch.cat(images)))
        return rows

    def _score_in_order(self, encoding: TwoStageEncoding, boxes: Tensor, images: Tensor) -> Scores:
        """Head outputs of (R, 4) boxes of any (R,) images, in their order."""
        order = images.argsort(stable=True)
        counts = images.bincount(minlength=len(encoding.images)).tolist()
        return self.score(encoding, list(boxes[order].split(counts))).take(order.argsort())

    def _soften(
        self,
        teacher: SoftTeacher,
        soft: SoftSamples,
        samples: Samples,
        boxes: Tensor,
        label: Tensor,
        targets: Tensor,
        wanted: Tensor,
    ) -> tuple[Samples, Tensor, Tensor]:
        """Let the teacher say what the samples of soft truths are, writing its class probabilities into ``targets``.

        A sample may reach beyond the teacher's image, and then it scores the part that it saw: its offsets start from
        that part, the student's from the whole sample. They lead to the same box, as far as the student can see it.

        Returns:
            Samples, labels and offsets in which the foreground is where the teacher sees an object.
        """
        mask, numbers, inside = _in_teachers_images(teacher.encoding, soft, boxes)
        order = numbers.argsort(stable=True)
        counts = numbers.bincount(minlength=len(teacher.encoding.images)).tolist()
        with torch.no_grad():
            scores = teacher.detector.roi.score(teacher.encoding, list(inside[order].split(counts)))
        logits, deltas = torch.empty_like(scores.logits), torch.empty_like(scores.deltas)
        logits[order], deltas[order] = scores.logits, scores.deltas
        targets[mask] = (logits.float() / teacher.temperature).softmax(dim=1)
        label = label.clone()
        label[mask] = logits.argmax(dim=1)
        offsets = wanted.new_zeros(len(label), 4)
        offsets[samples.foreground] = wanted
        deltas = _of_class(deltas, label[mask]).float()
        taught = torch.ones_like(mask)
        soft_offsets, taught[mask] = self._to_the_same(soft, mask, inside, deltas, boxes[mask])
        offsets[mask] = soft_offsets.to(offsets)
        foreground = label != self.background
        samples = replace(samples, foreground=foreground, box_weights=samples.box_weights * taught)
        return samples, label, offsets[foreground]


def _in_teachers_images(encoding: TwoStageEncoding, soft: SoftSamples, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(S,) mask of the samples that the teacher can see, the image of each of those, and their boxes in it."""
    numbers = soft.images
    boxes = boxes - soft.offsets
    sizes = torch.tensor(encoding.images.sizes, device=boxes.device)[numbers.clamp(min=0)]
    limits = sizes.flip(1).repeat(1, 2).to(boxes)  # a mixed image may be larger than the one that the teacher saw
    boxes = torch.minimum(boxes.clamp(min=0), limits)
    mask = soft.mask & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return mask, numbers[mask], boxes[mask]


def _of_class(deltas: Tensor, label: Tensor) -> Tensor:
    """(R, 4) offsets for each box's class; a class-agnostic head has one for all."""
    column = label.clamp(max=deltas.shape[1] - 1)
    return deltas[torch.arange(len(label), device=label.device), column]
