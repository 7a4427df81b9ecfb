"""A pass over unmixed images, whose gradient says what is salient in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lossmix_det.engines import SoftTeacher
from lossmix_det.training.state import RunState
from lossmix_det.training.student_batch import StudentBatch


class CleanPass:
    """Forward and backward over unmixed images (SAGE, PuzzleMix), for one step.

    The same pass may teach the student: with a share above 0 the gradient of its weights is kept, times that share.
    Without one the pass leaves no trace in the student. As in the code of PuzzleMix and Co-Mixup, norms that learn then
    go by their running statistics; else these would see the images of a step twice.

    Args:
        state: of the run.
        fabric: launched.
        share: of the step's loss, in [0, 1].
        parts: images pass in so many parts, to save memory.
        soft_teacher: scores the student's samples where truths are soft.
    """

    def __init__(
        self,
        state: RunState,
        fabric: Fabric,
        share: float = 0.0,
        parts: int = 1,
        soft_teacher: SoftTeacher | None = None,
    ) -> None:
        self.state, self.fabric, self.share, self.parts = state, fabric, share, parts
        self.soft_teacher = soft_teacher
        self.loss: Tensor | None = None  # of what has passed, the mean over views; None: nothing has

    @property
    def learned(self) -> float:
        """The share of the step's loss that has been learned from unmixed images."""
        return self.share if self.loss is not None else 0.0

    @property
    def losses(self) -> dict[str, Tensor]:
        """What that adds to the step's loss."""
        return {"loss": self.share * self.loss} if self.learned else {}

    def __call__(self, batch: StudentBatch, share: float = 1.0) -> Tensor:
        """(P, H, W) norm over the colours of the loss's gradient by each pixel; in fp16 times the scale of the loss.

        Args:
            batch: images as they are, and what is known of them.
            share: of this pass among those of the step.
        """
        indices = torch.arange(len(batch.images)).tensor_split(min(self.parts, len(batch.images)))
        return torch.cat([self._part(batch, part.tolist(), share) for part in indices])

    def _part(self, batch: StudentBatch, indices: list[int], share: float) -> Tensor:
        """The gradient of some of the images, which have their part of the loss."""
        step, part = self.state.student_step, share * len(indices) / len(batch.images)
        images = batch.images.take(indices)
        pixels = images.pixels.detach().clone().requires_grad_()
        supervisions = {
            kind: [supervision.take(indices) for supervision in of_kind] for kind, of_kind in batch.supervisions.items()
        }
        passed = StudentBatch(replace(images, pixels=pixels), supervisions, soft_teacher=self.soft_teacher)
        norms = nullcontext() if self.share else _resting_norms(step)
        with norms, self.fabric.autocast():
            total = step.total(step(passed)) * part
        if not torch.is_tensor(total) or not total.requires_grad:  # nothing is known of these images
            return torch.zeros_like(pixels[:, 0])
        self.loss = total.detach() + (0.0 if self.loss is None else self.loss)
        if self.share:
            self.fabric.backward(total * self.share)
            gradient = pixels.grad
        else:
            scaler = self.state.scaler  # in fp16 a small gradient would become 0; only its relative size is asked for
            (gradient,) = torch.autograd.grad(total if scaler is None else scaler.scale(total), pixels)
        return gradient.detach().float().square().sum(1).sqrt()


@contextmanager
def _resting_norms(module: nn.Module) -> Iterator[None]:
    """BatchNorm by its running statistics, which stay as they are."""
    learning = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
    for part in learning:
        part.eval()
    try:
        yield
    finally:
        for part in learning:
            part.train()
