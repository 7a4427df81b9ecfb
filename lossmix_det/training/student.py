"""The student's part of a step, as one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lossmix_det.adaptation.alignment import Alignment
from lossmix_det.engines import Detector
from lossmix_det.errors import UserError, nearest
from lossmix_det.training.student_batch import StudentBatch

KINDS = ("source", "target", "mixed")
ALIGNMENTS = ("alignment/image", "alignment/instance")
DEFAULT_WEIGHTS = {"alignment": 0.1}  # Adaptive Teacher's; 1 for all others


class StudentStep(nn.Module):
    """One forward pass over everything a step teaches; a single module, so that DDP sees all of it.

    Args:
        detector: the student.
        loss_weights: by ``<kind>/<loss>`` or ``<kind>``; not named: 0.1 for alignment, 1 for all others.
        alignment: reads the same encoding where a batch has domains; absent: nothing is aligned.
        adapts: there is a target, so that there are other kinds than ``source``.

    Raises:
        UserError: a loss of that name does not exist, or none is left.
    """

    def __init__(
        self,
        detector: Detector,
        loss_weights: dict[str, float],
        alignment: Alignment | None = None,
        adapts: bool = False,
    ) -> None:
        super().__init__()
        self.detector, self.loss_weights, self.alignment = detector, loss_weights, alignment
        kinds = KINDS if adapts else KINDS[:1]
        self.loss_names = [f"{kind}/{name}" for kind in kinds for name in detector.loss_names]
        self.loss_names += ALIGNMENTS if adapts else ()
        self._check_names([*self.loss_names, *kinds, *(["alignment"] if adapts else [])])
        left_out = [name for name in detector.loss_names if not self.weight(f"source/{name}")]
        if len(left_out) == len(detector.loss_names):
            raise UserError("train.loss_weights leaves no loss with a weight; nothing would be learned")
        if adapts:
            self._check_kinds()
        detector.left_out = frozenset(
            name for name in left_out if not any(self.weight(f"{kind}/{name}") for kind in kinds)
        )
        for part in detector.taught_only_by(left_out):  # declared, because DDP waits for all other gradients
            part.requires_grad_(False)
        self.train()  # once more: norms of what was just frozen now rest

    def _check_names(self, known: list[str]) -> None:
        for name in self.loss_weights:
            if name not in known:
                raise UserError(f"train.loss_weights names no loss {name!r}{nearest(name, known)}")

    def _check_kinds(self) -> None:
        for name in self.detector.loss_names:
            if bool(self.weight(f"mixed/{name}")) != bool(self.weight(f"source/{name}")):
                raise UserError(
                    f"train.loss_weights leaves out {name} of one kind only; give source/{name} and mixed/{name} a "
                    f"weight above 0 both, or 0 both, because an image may be either"
                )
            if self.weight(f"target/{name}") > self.weight(f"source/{name}") == 0:
                raise UserError(
                    f"train.loss_weights gives {name} a weight for the target alone, but what only pseudo-labels teach "
                    f"is not trained; give source/{name} and mixed/{name} a weight too, or target/{name} 0"
                )

    def forward(self, batch: StudentBatch) -> dict[str, Tensor]:
        """Losses by ``<kind>/<loss>``, summed over the supervisions of a kind.

        Terms of weight 0 are left out, and a kind whose every term has weight 0 is not computed.
        """
        encoding = batch.encode(self.detector)
        taught = [
            (kind, supervision)
            for kind, supervisions in batch.supervisions.items()
            if any(self.weight(f"{kind}/{name}") for name in self.detector.loss_names)
            for supervision in supervisions
        ]
        self.detector.announce(encoding, [supervision for _, supervision in taught])
        losses: dict[str, Tensor] = {}
        for kind, supervision in taught:
            for name, value in self.detector.losses(encoding, supervision, batch.soft_teacher).items():
                key = f"{kind}/{name}"
                losses[key] = losses[key] + value if key in losses else value
        if self.alignment is not None and batch.domains is not None:
            losses |= self.alignment(self.detector, encoding, batch.sizes, batch.domains)
        return {name: value for name, value in losses.items() if self.weight(name)}

    def weight(self, name: str) -> float:
        """The weight of a loss, as named itself or by its kind."""
        return weight_of(name, self.loss_weights)

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum."""
        return sum(self.weight(name) * value for name, value in losses.items())

    def objective(self, losses: dict[str, Tensor], clean_share: float) -> Tensor:
        """What a micro-batch descends on, where a share of the loss was learned from unmixed images.

        Alignment has its whole weight, because the pass over unmixed images aligns nothing. Where no truth of the
        micro-batch has a weight, it is 0, and the gradient of every parameter is 0 too.
        """
        aligned = {name: value for name, value in losses.items() if name in ALIGNMENTS}
        taught = {name: value for name, value in losses.items() if name not in ALIGNMENTS}
        total = (1 - clean_share) * self.total(taught) + self.total(aligned)
        if torch.is_tensor(total) and total.requires_grad:
            return total
        return total + 0.0 * sum(each.sum() for each in self.parameters() if each.requires_grad)


def weight_of(name: str, loss_weights: dict[str, float]) -> float:
    """The weight of a loss, as named itself or by its kind, else the default."""
    kind = name.partition("/")[0]
    return loss_weights.get(name, loss_weights.get(kind, DEFAULT_WEIGHTS.get(kind, 1.0)))
