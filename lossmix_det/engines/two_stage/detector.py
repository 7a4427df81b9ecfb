"""A detector of two stages; an engine's own says how it encodes and detects."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lossmix_det.engines.canvas_detector import CanvasDetector
from lossmix_det.engines.contract import Features, SoftTeacher
from lossmix_det.engines.two_stage.encoding import EncodedCanvas, TwoStageEncoding
from lossmix_det.engines.two_stage.first_stage import FirstStage
from lossmix_det.engines.two_stage.second_stage import SecondStage
from lossmix_det.engines.weighing import check_truths
from lossmix_det.structures import ImageBatch, Supervision


class TwoStageDetector(CanvasDetector):
    """What every engine's Faster R-CNN shares: losses by stage, feature levels, scored proposals."""

    loss_names = (*FirstStage.loss_names, *SecondStage.loss_names)
    rpn: FirstStage
    roi: SecondStage
    roi_width: int

    @abstractmethod
    def encode_levels(self, levels: dict[str, Tensor], inputs: Any) -> EncodedCanvas:
        """The first stage, on all images of one canvas."""

    def encoding_of(self, images: ImageBatch, canvases: list[EncodedCanvas]) -> TwoStageEncoding:
        """As `CanvasDetector.encoding_of`."""
        return TwoStageEncoding(images, canvases, self.roi.shares_scores)

    def announce(self, encoding: TwoStageEncoding, supervisions: Sequence[Supervision]) -> None:
        """The second stage samples and scores for all of them at once."""
        if not self.left_out.issuperset(self.roi.loss_names):
            self.roi.announce(encoding, supervisions)

    def losses(
        self, encoding: TwoStageEncoding, supervision: Supervision, soft_teacher: SoftTeacher | None = None
    ) -> dict[str, Tensor]:
        """The two losses of each stage, as `Detector.losses`.

        Raises:
            ValueError: as `check_truths`.
        """
        check_truths(supervision, len(encoding.images), self.num_classes)
        stages = [stage for stage in (self.rpn, self.roi) if not self.left_out.issuperset(stage.loss_names)]
        return {k: v for stage in stages for k, v in stage.losses(encoding, supervision, soft_teacher).items()}

    def features(self, encoding: TwoStageEncoding) -> list[Features]:
        """The pyramid's levels, canvas by canvas."""
        pairs = zip(encoding.indices, encoding.canvases, strict=True)
        return [Features(indices, canvas.features, canvas.size) for indices, canvas in pairs]

    def proposal_features(self, encoding: TwoStageEncoding, count: int) -> tuple[Tensor, Tensor]:
        """(R, D) features of the best ``count`` proposals of each image, image after image, and (B,) how many."""
        counts = [min(len(proposals), count) for proposals in encoding.proposals]
        return self.roi.score_proposals(encoding, count).features, torch.tensor(counts)

    def taught_only_by(self, losses: Collection[str]) -> list[nn.Module]:
        """The last layer of each loss; of a stage whose losses are both left out, all that comes before it, too."""
        layers = dict(zip(self.loss_names, self.last_layers(), strict=True))
        heads = zip((self.rpn, self.roi), self.heads(), strict=True)
        whole = [head for stage, head in heads if set(stage.loss_names) <= set(losses)]
        return [*(layers[name] for name in losses), *whole]

    def heads(self) -> tuple[nn.Module, nn.Module]:
        """What only the losses of the first stage teach, and what only those of the second do; not alignment."""
        raise NotImplementedError

    def last_layers(self) -> list[nn.Module]:
        """The layer that each loss alone teaches, in the order of ``loss_names``."""
        raise NotImplementedError
