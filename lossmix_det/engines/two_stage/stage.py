"""The losses of Faster R-CNN (Ren et al., NeurIPS 2015), weighted per image; the same for every engine.

Network, matching, box coding and inference are the engine's own. What is ours is the last step of each loss: stock
takes a mean over all samples of the batch; here each sample is first multiplied by the weight of its image (and, where
the truth carries weights, of the box that it was matched to), and the same normaliser is kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from lossmix_det.engines.contract import SoftTeacher
from lossmix_det.engines.normalizers import Normalizer
from lossmix_det.engines.two_stage.encoding import TwoStageEncoding
from lossmix_det.engines.two_stage.samples import SoftSamples
from lossmix_det.engines.two_stage.sampling import RankedSampler
from lossmix_det.engines.weighing import Samples, weigh_samples, weighted_sum
from lossmix_det.structures import Supervision

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


def indices_of(masks: list[Tensor]) -> list[Tensor]:
    """Where each (A,) mask is true; a GPU is waited for once, not once for each."""
    counts = torch.stack([mask.sum() for mask in masks]).tolist()
    starts = accumulate([0, *(len(mask) for mask in masks[:-1])])
    found = torch.cat(masks).nonzero()[:, 0].split(counts)
    return [index - start for index, start in zip(found, starts, strict=True)]
