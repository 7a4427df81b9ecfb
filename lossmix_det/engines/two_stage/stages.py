"""The losses of Faster R-CNN (Ren et al., NeurIPS 2015), weighted per image; the same for every engine.

Network, matching, box coding and inference are the engine's own. What is ours is the last step of each loss: stock
takes a mean over all samples of the batch; here each sample is first multiplied by the weight of its image (and, where
the truth carries weights, of the box that it was matched to), and the same normaliser is kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lossmix_det.engines.canvases import row_order
from lossmix_det.engines.contract import SoftTeacher
from lossmix_det.engines.normalizers import Normalizer
from lossmix_det.engines.two_stage.encoding import EncodedCanvas, Scores, TwoStageEncoding
from lossmix_det.engines.two_stage.samples import ChosenBoxes, Sampled, SoftSamples, soft_samples
from lossmix_det.engines.two_stage.sampling import RankedSampler, random_ranks
from lossmix_det.engines.weighing import Samples, weigh_samples, weighted_sum
from lossmix_det.structures import Instances, Supervision

BACKGROUND, IGNORED = -1, -2  # in place of the index of a matched box


class Scored(NamedTuple):
    """What a stage has scored for one truth, for whoever counts it: samples of so many images; logits of RoI heads."""

    foreground: Tensor
    images: int
    labels: Tensor | None = None
    logits: Tensor | None = None


class Stage(ABC):
    """One of the two stages: what the engine says of it, and the two losses that follow from it.

    Args:
        normalize: of `NORMALIZERS`.
    """

    loss_names: tuple[str, str]  # class and box
    loss_weights = (1.0, 1.0)  # the engine's own
    quota: int | None = None  # samples that stock divides by for every image; None: by those that were chosen
    watch: Callable[[Scored], None] | None = None  # is told what was scored
    sampler: RankedSampler  # chooses among anchors or proposals

    def __init__(self, normalize: Normalizer) -> None:
        self.normalize = normalize

    @abstractmethod
    def match(self, boxes: Tensor, truth: Tensor) -> Tensor:
        """(R,) index of the truth box that each anchor or proposal is matched to, `BACKGROUND` or `IGNORED`."""

    @abstractmethod
    def offsets(self, truth: Tensor, boxes: Tensor) -> Tensor:
        """(F, 4) offsets from boxes to the truths that they were matched to, as the engine encodes them."""

    @abstractmethod
    def moved(self, boxes: Tensor, offsets: Tensor) -> Tensor:
        """(F, 4) boxes that offsets lead to, as the engine decodes them."""

    @abstractmethod
    def box_loss(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        """(F,) loss of predicted (F, 4) offsets."""

    def announce(self, encoding: TwoStageEncoding, supervisions: Sequence[Supervision]) -> None:  # noqa: B027
        """As `Detector.announce`."""

    def losses(
        self, encoding: TwoStageEncoding, supervision: Supervision, soft_teacher: SoftTeacher | None = None
    ) -> dict[str, Tensor]:
        """The two losses of this stage by name, as `Detector.losses`."""
        if not supervision.active:
            return {name: encoding.objectness.new_zeros(()) for name in self.loss_names}
        values = self._losses(encoding, supervision, soft_teacher)
        named = zip(self.loss_names, values, self.loss_weights, strict=True)
        return {name: value * weight for name, value, weight in named}

    @abstractmethod
    def _losses(
        self, encoding: TwoStageEncoding, supervision: Supervision, soft_teacher: SoftTeacher | None
    ) -> tuple[Tensor, Tensor]:
        """Class and box loss."""

    def _choose(
        self, boxes: list[Tensor], truths: list[Tensor], ranks: list[Tensor] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Indices of the sampled boxes of each image, and what each was matched to."""
        self.sampler.ranks = ranks
        matches = [self.match(candidates, truth) for candidates, truth in zip(boxes, truths, strict=True)]
        labels = [torch.where(match >= 0, 1.0, torch.where(match == BACKGROUND, 0.0, -1.0)) for match in matches]
        masks = [(pos > 0) | (neg > 0) for pos, neg in zip(*self.sampler(labels), strict=True)]
        chosen = indices_of(masks)
        return chosen, [match[index] for match, index in zip(matches, chosen, strict=True)]

    def _wanted(self, truths: list[Tensor], matches: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """(F, 4) offsets from the foreground anchors or proposals to the boxes that they were matched to."""
        starts = accumulate([0, *(len(truth) for truth in truths[:-1])])
        among_all = torch.cat([match + start for match, start in zip(matches, starts, strict=True)])
        foreground = (torch.cat(matches) >= 0).nonzero()[:, 0]  # a GPU is waited for once
        return self.offsets(torch.cat(truths)[among_all[foreground]], torch.cat(boxes)[foreground])

    def _to_the_same(
        self, soft: SoftSamples, chosen: Tensor, theirs: Tensor, deltas: Tensor, ours: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Offsets from the student's boxes to where the teacher's lead, as far as the student can see it.

        Args:
            soft: of S samples.
            chosen: (S,) bool, C of them.
            theirs, deltas: (C, 4) boxes in the teacher's images, and its offsets from them.
            ours: (C, 4) the student's boxes.

        Returns:
            (C, 4) offsets, and (C,) bool: which of the boxes the student sees enough of to be taught.
        """
        meant = self.moved(theirs, deltas) + soft.offsets[chosen]
        visible, taught = soft.clipped(meant, chosen)
        same = ((theirs + soft.offsets[chosen] == ours) & (visible == meant)).all(dim=1)
        # To the last bit the teacher's, where nothing differs.
        return torch.where(same[:, None], deltas, self.offsets(visible, ours)), taught

    def _weigh(self, supervision: Supervision, matches: list[Tensor], foreground: Tensor) -> Samples:
        counts = torch.tensor([len(match) for match in matches])
        normalizers = self.normalize(counts, supervision.mean_over or len(supervision), self.quota, None)
        return weigh_samples(supervision, matches, foreground, normalizers)

    def _weighted_box_loss(self, predicted: Tensor, wanted: Tensor, samples: Samples) -> Tensor:
        """Of the foreground samples, divided by the number of all samples, as both stock stages do."""
        loss = self.box_loss(predicted.float(), wanted.float())
        return weighted_sum(loss, samples.box_weights[samples.foreground], samples.normalizers[samples.foreground])

    def _tell(self, scored: Scored) -> None:
        if self.watch is not None:
            self.watch(scored)


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


def indices_of(masks: list[Tensor]) -> list[Tensor]:
    """Where each (A,) mask is true; a GPU is waited for once, not once for each."""
    counts = torch.stack([mask.sum() for mask in masks]).tolist()
    starts = accumulate([0, *(len(mask) for mask in masks[:-1])])
    found = torch.cat(masks).nonzero()[:, 0].split(counts)
    return [index - start for index, start in zip(found, starts, strict=True)]


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
