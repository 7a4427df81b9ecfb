"""A detector of two stages; an engine's own says how it encodes and detects."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from lossmix_det.engines.contract import Detector, SoftTeacher
from lossmix_det.engines.two_stage.encoding import TwoStageEncoding
from lossmix_det.engines.two_stage.stages import FirstStage, SecondStage
from lossmix_det.structures import Supervision


class TwoStageDetector(Detector):
    """What every engine's Faster R-CNN shares: losses by stage, feature levels, scored proposals."""

    loss_names = (*FirstStage.loss_names, *SecondStage.loss_names)
    rpn: FirstStage
    roi: SecondStage
    roi_width: int

    def losses(
        self, encoding: TwoStageEncoding, supervision: Supervision, soft_teacher: SoftTeacher | None = None
    ) -> dict[str, Tensor]:
        """The two losses of each stage, as `Detector.losses`.

        Raises:
            ValueError: the supervision is of another number of images.
        """
        if len(supervision) != len(encoding.images):
            raise ValueError(f"supervision is of {len(supervision)} images, the encoding of {len(encoding.images)}")
        stages = (self.rpn, self.roi)
        return {k: v for stage in stages for k, v in stage.losses(encoding, supervision, soft_teacher).items()}

    def features(self, encoding: TwoStageEncoding) -> dict[str, Tensor]:
        """The pyramid's levels, (B, C, h, w) each, by name."""
        return encoding.features

    def proposal_features(self, encoding: TwoStageEncoding, count: int) -> tuple[Tensor, Tensor]:
        """(R, D) features of the best ``count`` proposals of each image, image after image, and (B,) how many."""
        counts = [min(len(proposals), count) for proposals in encoding.proposals]
        return self.roi.score_proposals(encoding, count).features, torch.tensor(counts)

    def taught_only_by(self, losses: Collection[str]) -> list[nn.Module]:
        """The last layer of each loss."""
        layers = dict(zip(self.loss_names, self.last_layers(), strict=True))
        return [layers[name] for name in losses]

    def last_layers(self) -> list[nn.Module]:
        """The layer that each loss alone teaches, in the order of ``loss_names``."""
        raise NotImplementedError
