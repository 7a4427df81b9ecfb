"""The losses of one-stage detectors, weighted per image.

Network, matching, box coding and inference are the engine's own. What is ours is the last step of each loss: stock sums
over the anchors of the batch; here each anchor's loss is first multiplied by the weight of its image (and, where the
truth carries weights, of the box that it was matched to), and the same normaliser is kept: the number of foreground
anchors. S anchors of all images that a supervision teaches, image after image; F of them are foreground.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from lossmix_det.engines.canvas_detector import CanvasDetector
from lossmix_det.engines.canvases import in_order
from lossmix_det.engines.contract import Features, SoftTeacher
from lossmix_det.engines.normalizers import Normalizer
from lossmix_det.engines.one_stage.encoding import EncodedCanvas, Matched, OneStageEncoding
from lossmix_det.engines.weighing import check_truths, weigh_samples, weighted_sum
from lossmix_det.structures import ImageBatch, Instances, Supervision

IGNORED = -2  # in place of the index of a matched box; -1 is background


@dataclass(frozen=True)
class Foreground:
    """The anchors that were matched to a box.

    Args:
        outputs: what the heads say of each, (F, …) by the engine's names.
        anchors: (F, 4).
        boxes: (F, 4) that they were matched to.
    """

    outputs: dict[str, Tensor]
    anchors: Tensor
    boxes: Tensor


class OneStageDetector(CanvasDetector):
    """What RetinaNet and FCOS share: a focal loss of every anchor, and losses of the foreground alone."""

    normalize: Normalizer  # of `NORMALIZERS`

    @abstractmethod
    def encode_levels(self, levels: dict[str, Tensor], inputs: Any) -> EncodedCanvas:
        """The heads, on all images of one canvas."""

    @abstractmethod
    def detect_canvas(self, canvas: EncodedCanvas) -> list[Instances]:
        """What the network finds on one canvas, in pixels of each image, best first."""

    @abstractmethod
    def match(self, canvas: EncodedCanvas, anchors: list[Tensor], truths: list[Tensor]) -> list[Tensor]:
        """For each of some images the (A,) index of the box that each anchor is matched to, -1 or `IGNORED`.

        Args:
            canvas: for what is the same of all its images.
            anchors: (A, 4) of each of these images.
            truths: (N, 4) boxes of each.
        """

    @abstractmethod
    def foreground_losses(self, foreground: Foreground) -> list[Tensor]:
        """(F,) losses of the foreground, in the order of ``loss_names`` from the second on."""

    def encoding_of(self, images: ImageBatch, canvases: list[EncodedCanvas]) -> OneStageEncoding:
        """As `CanvasDetector.encoding_of`."""
        return OneStageEncoding(images, canvases)

    def detections(self, encoding: OneStageEncoding) -> list[Instances]:
        """The engine's inference, canvas by canvas."""
        return in_order(encoding.indices, [self.detect_canvas(canvas) for canvas in encoding.canvases])

    def announce(self, encoding: OneStageEncoding, supervisions: Sequence[Supervision]) -> None:
        """As `Detector.announce`."""
        found, weights = 0.0, 0.0
        with torch.autocast(encoding.logits[0].device.type, enabled=False):
            for supervision in supervisions:
                if supervision.active:
                    matched = encoding.matched[id(supervision)] = self._match_all(encoding, supervision)
                    weight = supervision.class_weights[supervision.active].double()
                    found += float((weight * matched.counts).sum())
                    weights += float(weight.sum())
        encoding.average = found / weights if weights else None

    def losses(
        self, encoding: OneStageEncoding, supervision: Supervision, soft_teacher: SoftTeacher | None = None
    ) -> dict[str, Tensor]:
        """As `Detector.losses`; soft teachers are refused before training begins.

        Raises:
            ValueError: as `check_truths`.
        """
        check_truths(supervision, len(encoding.images), self.num_classes)
        if not supervision.active:
            return {name: torch.zeros((), device=encoding.logits[0].device) for name in self.loss_names}
        with torch.autocast(encoding.logits[0].device.type, enabled=False):
            values = self._losses(encoding, supervision)
        return dict(zip(self.loss_names, values, strict=True))

    def features(self, encoding: OneStageEncoding) -> list[Features]:
        """The pyramid's levels, canvas by canvas."""
        pairs = zip(encoding.indices, encoding.canvases, strict=True)
        return [Features(indices, canvas.features, canvas.size) for indices, canvas in pairs]

    def _losses(self, encoding: OneStageEncoding, supervision: Supervision) -> list[Tensor]:
        active = supervision.active
        truths = [supervision.truths[image] for image in active]
        matched = encoding.matched.pop(id(supervision), None) or self._match_all(encoding, supervision)
        matches = matched.matches
        images = supervision.mean_over or len(supervision)
        normalizers = self.normalize(matched.counts, images, None, encoding.average)
        samples = weigh_samples(supervision, matches, torch.cat(matches) >= 0, normalizers)
        chosen, taught = samples.foreground, torch.cat(matches) != IGNORED
        classes = _matched([truth.classes for truth in truths], matches)
        class_loss = _focal_loss(encoding.rows(encoding.logits, active), chosen, classes + 1)
        foreground = Foreground(
            {name: encoding.rows(values, active)[chosen] for name, values in encoding.localization.items()},
            torch.cat([encoding.anchors[image] for image in active])[chosen],
            _matched([truth.boxes for truth in truths], matches),
        )
        weights, normalizers = samples.box_weights[chosen], samples.normalizers[chosen]
        return [
            weighted_sum(class_loss, samples.class_weights * taught, samples.normalizers),
            *(weighted_sum(loss, weights, normalizers) for loss in self.foreground_losses(foreground)),
        ]

    def _match_all(self, encoding: OneStageEncoding, supervision: Supervision) -> Matched:
        """`match`, canvas by canvas, for the images that teach anything."""
        active, matches = supervision.active, {}
        boxes = {image: supervision.truths[image].boxes for image in active}
        for indices, canvas in zip(encoding.indices, encoding.canvases, strict=True):
            here = [image for image in indices if image in boxes]
            if here:
                anchors = [encoding.anchors[image] for image in here]
                matches |= zip(here, self.match(canvas, anchors, [boxes[image] for image in here]), strict=True)
        in_turn = [matches[image] for image in active]
        return Matched(in_turn, torch.stack([(match >= 0).sum() for match in in_turn]).cpu())


def _focal_loss(logits: Tensor, foreground: Tensor, labels: Tensor) -> Tensor:
    """(S,) loss of (S, K + 1) logits, every output for itself, given the (F,) labels of the foreground."""
    wanted = torch.zeros_like(logits)
    wanted[foreground, labels] = 1.0
    return sigmoid_focal_loss(logits, wanted).sum(1)


def _matched(values: list[Tensor], matches: list[Tensor]) -> Tensor:
    """(F, …) value of the box that each foreground anchor was matched to, from (N, …) of each image's boxes."""
    return torch.cat([value[match[match >= 0]] for value, match in zip(values, matches, strict=True)])
