"""One step's student images, and everything that they are taught."""

from __future__ import annotations

from dataclasses import replace

from lossmix_det.engines import SoftTeacher
from lossmix_det.engines.canvases import plan
from lossmix_det.structures import STRIDE, Domains, ImageBatch, Supervision


class StudentBatch:
    """What a phase composes and the student learns from.

    A plain class: Fabric takes dataclasses among a module's inputs apart, and cannot rebuild frozen ones.

    Args:
        images: all that the student sees.
        supervisions: by the kind under which its losses are logged: source, target, mixed.
        blocks: sizes of the runs of images of one kind, each of which every micro-batch gets its share of.
        domains: absent while nothing is aligned.
        soft_teacher: scores the student's samples where truths are soft.
    """

    def __init__(
        self,
        images: ImageBatch,
        supervisions: dict[str, list[Supervision]],
        blocks: list[int] | None = None,
        domains: Domains | None = None,
        soft_teacher: SoftTeacher | None = None,
    ) -> None:
        self.images, self.supervisions, self.blocks = images, supervisions, blocks or [len(images)]
        self.domains, self.soft_teacher = domains, soft_teacher

    def split(self, count: int, multiple: int = STRIDE) -> list[StudentBatch]:
        """Cut into micro-batches that are alike in kind, for gradient accumulation.

        Every image stays on the canvas that is planned for the whole batch, so that its losses stay what they are.

        Args:
            count: of micro-batches.
            multiple: of pixels, as `Detector.multiple`.

        Raises:
            ValueError: a block is no multiple of ``count``.
        """
        if count == 1:
            return [self]
        planned = replace(self.images, canvases=plan(self.images, multiple))
        return [self._micro_batch(planned, number, count) for number in range(count)]

    def _micro_batch(self, images: ImageBatch, number: int, count: int) -> StudentBatch:
        indices, start = [], 0
        for block in self.blocks:
            if block % count:
                raise ValueError(f"{block} images cannot be cut into {count} equal parts")
            share = block // count
            indices += range(start + number * share, start + (number + 1) * share)
            start += block
        supervisions = {
            kind: [supervision.take(indices) for supervision in of_kind] for kind, of_kind in self.supervisions.items()
        }
        blocks = [block // count for block in self.blocks]
        domains = self.domains and self.domains.take(indices)
        return StudentBatch(images.take(indices), supervisions, blocks, domains, self.soft_teacher)
