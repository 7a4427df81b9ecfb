"""The student's part of a step, as one module."""

from __future__ import annotations

from torch import Tensor, nn

from lossmix_det.adaptation.alignment import Alignment
from lossmix_det.engines import LOSSES, Detector
from lossmix_det.errors import UserError, nearest
from lossmix_det.training.phases import Lesson

KINDS = ("source", "target", "mixed")
ALIGNMENT_WEIGHT = 0.1  # Adaptive Teacher's


class StudentStep(nn.Module):
    """One forward pass over everything a step teaches; a single module, so that DDP sees all of it.

    Args:
        detector: the student.
        loss_weights: by ``<kind>/<loss>`` or ``<kind>``; not named: 0.1 for alignment, 1 for all others.
        alignment: reads the same encoding where a lesson has domains; absent: nothing is aligned.
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
        known = [f"{kind}/{name}" for kind in kinds for name in LOSSES] + [*kinds]
        known += ["alignment", "alignment/image", "alignment/instance"] if adapts else []
        for name in loss_weights:
            if name not in known:
                raise UserError(f"train.loss_weights names no loss {name!r}{nearest(name, known)}")
        off = [name for name in LOSSES if not self.weight(f"source/{name}")]
        if len(off) == len(LOSSES):
            raise UserError("train.loss_weights leaves no loss with a weight; nothing would be learned")
        for name in LOSSES if adapts else ():
            if bool(self.weight(f"mixed/{name}")) != bool(self.weight(f"source/{name}")):
                raise UserError(
                    f"train.loss_weights leaves out {name} of one kind only; give source/{name} and mixed/{name} a "
                    f"weight above 0 both, or 0 both, because an image may be either"
                )
        for name in off:  # declared as not learning, because DDP waits for the gradient of everything else
            detector.heads()[name].requires_grad_(False)

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        """Losses by ``<kind>/<loss>``, summed over the supervisions of a kind; terms of weight 0 are left out."""
        encoding = self.detector.encode(lesson.images)
        losses: dict[str, Tensor] = {}
        for kind, parts in lesson.supervisions.items():
            for supervision in parts:
                for name, value in self.detector.losses(encoding, supervision, lesson.marker).items():
                    key = f"{kind}/{name}"
                    losses[key] = losses[key] + value if key in losses else value
        if self.alignment is not None and lesson.domains is not None:
            losses |= self.alignment(self.detector, encoding, lesson.domains)
        return {name: value for name, value in losses.items() if self.weight(name)}

    def weight(self, name: str) -> float:
        return weight_of(name, self.loss_weights)

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        return sum(self.weight(name) * value for name, value in losses.items())


def weight_of(name: str, loss_weights: dict[str, float]) -> float:
    """The weight of a loss, as named itself or by its kind."""
    kind = name.partition("/")[0]
    return loss_weights.get(name, loss_weights.get(kind, ALIGNMENT_WEIGHT if kind == "alignment" else 1.0))
