"""The losses of Faster R-CNN (Ren et al., NeurIPS 2015), weighted per image; the same for every engine.

Network, matching, box coding and inference are the engine's own. What is ours is the last step of each loss: stock
takes a mean over all samples of the batch; here each sample is first multiplied by the weight of its image (and, where
the truth carries weights, of the box that it was matched to), and the same normaliser is kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lossmix_det.engines.contract import Encoding, Marker, Scores
from lossmix_det.engines.two_stage.sampling import KeyedSampler
from lossmix_det.structures import Instances, Supervision

STAGES = ("rpn", "roi")
BACKGROUND, IGNORED = -1, -2  # in place of the index of a matched box


@dataclass(frozen=True)
class Samples:
    """The anchors or proposals that one truth is scored on, of all images that it teaches, one after the other.

    Args:
        images: (S,) index of the image of each sample.
        class_weights, box_weights: (S,) weight of each sample.
        normalizers: (S,) what each sample's loss is divided by.
        foreground: (S,) bool.
    """

    images: Tensor
    class_weights: Tensor
    box_weights: Tensor
    normalizers: Tensor
    foreground: Tensor


class ScoredProposals:
    """Head outputs by proposal, filled as truths ask for them.

    Args:
        counts: proposals per image.
        share: false where the head must see each truth's samples as one batch (it normalises over the batch).
    """

    def __init__(self, counts: list[int], share: bool) -> None:
        self.counts, self.share = counts, share
        self.rows: dict[int, Tensor] = {}
        self.size = 0
        self.outputs: list[Scores] = []

    def place(self, image: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the outputs for the boxes of an image, and which of the boxes are yet to be scored, in this order."""
        count = self.counts[image]
        known = self.rows.setdefault(image, index.new_full((count,), -1))
        proposal = index < count
        row = torch.where(proposal, known[index.clamp(max=count - 1)], -1) if count else torch.full_like(index, -1)
        new = row < 0 if self.share else torch.ones_like(proposal)
        added = int(new.sum())
        row[new] = torch.arange(self.size, self.size + added, device=index.device)
        known[index[new & proposal]] = row[new & proposal]
        self.size += added
        return row, new


class TwoStageLosses(ABC):
    """What an engine says of its two stages, ``rpn`` and ``roi``, and the losses that follow from it."""

    normalizer: str  # as in `model.normalizer`
    background: int  # its place among the class logits; classes follow in order, from 0 or from 1

    @abstractmethod
    def match(self, stage: str, boxes: Tensor, truth: Tensor) -> Tensor:
        """(R,) index of the truth box that each anchor or proposal is matched to, `BACKGROUND` or `IGNORED`."""

    @abstractmethod
    def sampler(self, stage: str) -> KeyedSampler:
        """Chooses among them."""

    @abstractmethod
    def offsets(self, stage: str, truth: Tensor, boxes: Tensor) -> Tensor:
        """(F, 4) offsets from boxes to the truths that they were matched to, as the engine encodes them."""

    @abstractmethod
    def box_loss(self, stage: str, predicted: Tensor, wanted: Tensor) -> Tensor:
        """(F,) loss of predicted (F, 4) offsets."""

    @abstractmethod
    def score(self, encoding: Encoding, boxes: list[Tensor]) -> Scores:
        """Head outputs of any boxes, as `Detector.score`."""

    def quota(self, stage: str) -> int | None:
        """The number of samples that stock divides by for every image; None: by those that it found."""
        return None

    def losses(self, encoding: Encoding, supervision: Supervision, marker: Marker | None = None) -> dict[str, Tensor]:
        if len(supervision) != len(encoding.batch):
            raise ValueError(f"supervision is of {len(supervision)} images, the encoding of {len(encoding.batch)}")
        return {
            name: loss
            for stage in STAGES
            for name, loss in self.stage_losses(stage, encoding, supervision, marker).items()
        }

    def stage_losses(
        self, stage: str, encoding: Encoding, supervision: Supervision, marker: Marker | None = None
    ) -> dict[str, Tensor]:
        """The two losses of one stage."""
        active, keys = supervision.active, encoding.batch.keys
        if not active:
            return {f"{stage}_{part}": encoding.objectness.new_zeros(()) for part in ("class", "box")}
        self.sampler(stage).keys = None if keys is None else [keys[image] for image in active]
        score = self._rpn_losses if stage == "rpn" else self._roi_losses
        return score(encoding, supervision, active, marker)

    def score_proposals(self, encoding: Encoding, count: int) -> Scores:
        best = [proposals[:count] for proposals in encoding.proposals]
        chosen = {image: (torch.arange(len(boxes), device=boxes.device), boxes) for image, boxes in enumerate(best)}
        return self._scores(encoding, chosen)

    # ------------------------------------------------------------------------------------------- first stage

    def _rpn_losses(
        self, encoding: Encoding, supervision: Supervision, active: list[int], marker: Marker | None
    ) -> dict[str, Tensor]:
        """Objectness and anchor offsets."""
        truths = [supervision.truths[image].boxes for image in active]
        anchors = [encoding.anchors[image] for image in active]
        chosen, matched = self._choose("rpn", anchors, truths)
        anchors = [own[index] for own, index in zip(anchors, chosen, strict=True)]
        foreground = torch.cat(matched) >= 0
        samples = self._samples("rpn", supervision, active, matched, foreground)
        index = torch.cat(chosen)
        objectness, offsets = foreground.float(), self._offsets("rpn", truths, matched, anchors)
        soft = _soft_samples(supervision, samples)
        if soft is not None and marker is not None:
            mask, teacher_images = soft
            place = teacher_images[mask], index[mask]
            objectness[mask] = (marker.encoding.objectness[place].float() / marker.temperature).sigmoid()
            both = mask & foreground
            offsets[mask[foreground]] = marker.encoding.deltas[teacher_images[both], index[both]].to(offsets)
        logits = encoding.objectness[samples.images, index].float()
        class_loss = F.binary_cross_entropy_with_logits(logits, objectness, reduction="none")
        predicted = encoding.deltas[samples.images[foreground], index[foreground]]
        return {
            "rpn_class": _weighted_sum(class_loss, samples.class_weights, samples.normalizers),
            "rpn_box": self._weighted_box_loss("rpn", predicted, offsets, samples),
        }

    # ------------------------------------------------------------------------------------------ second stage

    def _roi_losses(
        self, encoding: Encoding, supervision: Supervision, active: list[int], marker: Marker | None
    ) -> dict[str, Tensor]:
        """Class and box of sampled proposals, the truth boxes being among them."""
        truths = [supervision.truths[image].boxes for image in active]
        pairs = zip(active, truths, strict=True)
        candidates = [
            torch.cat([encoding.proposals[image], truth.to(encoding.proposals[image])]) for image, truth in pairs
        ]
        chosen, matched = self._choose("roi", candidates, truths)
        boxes = [own[index] for own, index in zip(candidates, chosen, strict=True)]
        labels = [self._labels(supervision.truths[image], match) for image, match in zip(active, matched, strict=True)]
        label = torch.cat(labels)
        samples = self._samples("roi", supervision, active, matched, label != self.background)
        scores = self._scores(encoding, dict(zip(active, zip(chosen, boxes, strict=True), strict=True)))
        wanted = self._offsets("roi", truths, matched, boxes)
        soft = _soft_samples(supervision, samples)
        if soft is None or marker is None:
            class_loss = F.cross_entropy(scores.logits.float(), label, reduction="none")
        else:
            targets = F.one_hot(label, scores.logits.shape[1]).float()
            samples, label, wanted = self._marked(marker, soft, samples, torch.cat(boxes), label, targets, wanted)
            class_loss = F.cross_entropy(scores.logits.float(), targets, reduction="none")
        predicted = _of_class(scores.deltas, label)[samples.foreground]
        return {
            "roi_class": _weighted_sum(class_loss, samples.class_weights, samples.normalizers),
            "roi_box": self._weighted_box_loss("roi", predicted, wanted, samples),
        }

    def _labels(self, truth: Instances, matched: Tensor) -> Tensor:
        """(S,) place among the class logits of what each proposal was matched to."""
        first = 0 if self.background else 1
        classes = truth.classes if len(truth) else truth.classes.new_zeros(1)
        return torch.where(matched >= 0, classes[matched.clamp(min=0)] + first, self.background)

    def _scores(self, encoding: Encoding, chosen: dict[int, tuple[Tensor, Tensor]]) -> Scores:
        """Head outputs of the chosen boxes, image after image; a proposal is scored once for all truths.

        Args:
            encoding: keeps what was scored.
            chosen: per image the indices of the boxes among its proposals (beyond them: of the truth) and the boxes.
        """
        scored = encoding.scored
        rows, fresh = [], [found.new_zeros((0, 4)) for found in encoding.proposals]
        for image, (index, boxes) in chosen.items():
            row, new = scored.place(image, index)
            rows.append(row)
            fresh[image] = boxes[new]
        scored.outputs.append(self.score(encoding, fresh))
        row = torch.cat(rows)
        return Scores(*(torch.cat(parts)[row] for parts in zip(*scored.outputs, strict=True)))

    def _marked(
        self,
        marker: Marker,
        soft: tuple[Tensor, Tensor],
        samples: Samples,
        boxes: Tensor,
        label: Tensor,
        targets: Tensor,
        wanted: Tensor,
    ) -> tuple[Samples, Tensor, Tensor]:
        """Let the teacher say what the samples of soft truths are, writing its class probabilities into ``targets``.

        Returns:
            Samples, labels and offsets in which the foreground is where the teacher sees an object.
        """
        mask, teacher_images = soft
        numbers = teacher_images[mask]
        order = numbers.argsort(stable=True)
        counts = numbers.bincount(minlength=len(marker.encoding.batch)).tolist()
        with torch.no_grad():
            scores = marker.detector.score(marker.encoding, list(boxes[mask][order].split(counts)))
        logits, deltas = torch.empty_like(scores.logits), torch.empty_like(scores.deltas)
        logits[order], deltas[order] = scores.logits, scores.deltas
        targets[mask] = (logits.float() / marker.temperature).softmax(dim=1)
        label = label.clone()
        label[mask] = logits.argmax(dim=1)
        offsets = wanted.new_zeros(len(label), 4)
        offsets[samples.foreground] = wanted
        offsets[mask] = _of_class(deltas, label[mask]).to(offsets)
        foreground = label != self.background
        return replace(samples, foreground=foreground), label, offsets[foreground]

    # ------------------------------------------------------------------------------------- samples and weights

    def _choose(self, stage: str, boxes: list[Tensor], truths: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Indices of the sampled boxes of each image, and what each was matched to."""
        matches = [self.match(stage, own, truth) for own, truth in zip(boxes, truths, strict=True)]
        labels = [torch.where(match >= 0, 1.0, torch.where(match == BACKGROUND, 0.0, -1.0)) for match in matches]
        positive, negative = self.sampler(stage)(labels)
        chosen = [torch.where((pos > 0) | (neg > 0))[0] for pos, neg in zip(positive, negative, strict=True)]
        return chosen, [match[index] for match, index in zip(matches, chosen, strict=True)]

    def _offsets(self, stage: str, truths: list[Tensor], matched: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """(F, 4) offsets from the foreground anchors or proposals to the boxes that they were matched to."""
        taught = [truth[match[match >= 0]] for truth, match in zip(truths, matched, strict=True)]
        own = [box[match >= 0] for box, match in zip(boxes, matched, strict=True)]
        return self.offsets(stage, torch.cat(taught), torch.cat(own))

    def _samples(
        self, stage: str, supervision: Supervision, active: list[int], matched: list[Tensor], foreground: Tensor
    ) -> Samples:
        """Weights and normalisers of sampled anchors or proposals, given the box that each was matched to, or -1."""
        device = foreground.device
        counts = torch.tensor([len(match) for match in matched])
        images = supervision.mean_over or len(supervision)
        if self.normalizer == "images":
            normalizer = counts * images
        elif self.quota(stage):
            normalizer = torch.full_like(counts, self.quota(stage)) * images
        else:  # images that teach nothing count as images with as many samples as the others have on average
            normalizer = (counts.sum() * images / len(active)).expand(len(counts))
        truths = [supervision.truths[image] for image in active]
        background = supervision.background_weight
        share, box_share = (
            torch.cat([_instance_weights(w, match, background) for w, match in zip(weights, matched, strict=True)])
            for weights in (
                [truth.weights for truth in truths],
                [truth.weights if truth.box_weights is None else truth.box_weights for truth in truths],
            )
        )

        def per_sample(values: Tensor) -> Tensor:
            return values.repeat_interleave(counts).to(device)

        return Samples(
            images=per_sample(torch.tensor(active)),
            class_weights=per_sample(supervision.class_weights[active]) * share,
            box_weights=per_sample(supervision.box_weights[active]) * box_share,
            normalizers=per_sample(normalizer.float()),
            foreground=foreground,
        )

    def _weighted_box_loss(self, stage: str, predicted: Tensor, wanted: Tensor, samples: Samples) -> Tensor:
        """Of the foreground samples, divided by the number of all samples, as both stock stages do."""
        loss = self.box_loss(stage, predicted.float(), wanted.float())
        return _weighted_sum(loss, samples.box_weights[samples.foreground], samples.normalizers[samples.foreground])


def _of_class(deltas: Tensor, label: Tensor) -> Tensor:
    """(R, 4) offsets for each box's class; a class-agnostic head has one for all."""
    place = label.clamp(max=deltas.shape[1] - 1)
    return deltas[torch.arange(len(label), device=label.device), place]


def _soft_samples(supervision: Supervision, samples: Samples) -> tuple[Tensor, Tensor] | None:
    """(S,) mask of the samples that a teacher scores, and (S,) which of its images; None if there are none."""
    numbers = [-1 if truth.teacher_image is None else truth.teacher_image for truth in supervision.truths]
    if max(numbers) < 0:
        return None
    teacher_images = torch.tensor(numbers, device=samples.images.device)[samples.images]
    return teacher_images >= 0, teacher_images


def _instance_weights(weights: Tensor | None, matched: Tensor, background_weight: float) -> Tensor:
    """(S,) weight of the matched box of each sample; all 1 if the truth carries no weights."""
    if weights is None:
        return torch.ones(len(matched), device=matched.device)
    if not len(weights):
        return torch.full((len(matched),), background_weight, device=matched.device)
    return torch.where(matched >= 0, weights[matched.clamp(min=0)], background_weight)


def _weighted_sum(losses: Tensor, weights: Tensor, normalizers: Tensor) -> Tensor:
    return (losses * weights / normalizers).sum()
