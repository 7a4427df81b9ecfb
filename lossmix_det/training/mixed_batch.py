"""What the student was taught in one step, as pictures."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from lossmix_det.report.sheets import Picture, Taught
from lossmix_det.training.student_batch import StudentBatch


def pictures_of(batch: StudentBatch, chosen: Iterable[int] | None = None) -> list[Picture]:
    """Student images of a step with every truth that they are taught; mixed features are shown as mixed pixels.

    Args:
        batch: of the step.
        chosen: indices of images; absent: all.
    """
    seen = batch.images.pixels if batch.features is None else batch.features(batch.images.pixels)
    return [_picture(batch, seen, index) for index in (range(len(batch.sizes)) if chosen is None else chosen)]


def _picture(batch: StudentBatch, seen: Tensor, index: int) -> Picture:
    height, width = batch.sizes[index]
    pixels = seen[index, :, :height, :width].float().permute(1, 2, 0).clamp(0, 1).cpu().numpy()
    taught = [
        Taught(name, supervision.truths[index], float(supervision.class_weights[index]))
        for name, supervisions in batch.supervisions.items()
        for supervision in supervisions
    ]
    return Picture(pixels, taught, two_domains=batch.domains is not None or "mixed" in batch.supervisions)
