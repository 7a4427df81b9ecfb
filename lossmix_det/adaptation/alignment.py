"""Domain alignment: discriminators behind gradient reversal (Ganin & Lempitsky, ICML 2015).

The discriminator learns to tell source (0) from target (1); the detector receives the negative of its gradient. A mixed
image has the weight of its target pixels as its label.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lossmix_det.config import AlignmentConfig
from lossmix_det.engines import Detector, Encoding
from lossmix_det.errors import UserError
from lossmix_det.structures import Domains


class ReverseGradient(torch.autograd.Function):
    """Identity, whose gradient is the negative of what comes back."""

    @staticmethod
    def forward(_: object, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        return -gradient


class ImageDiscriminator(nn.Sequential):
    """(B, C, h, w) features to (B, 1, h, w) logits: four 3×3 convolutions (Adaptive Teacher, Li et al., CVPR 2022)."""

    def __init__(self, channels: int) -> None:
        widths = (channels, 256, 128, 128)
        layers: list[nn.Module] = []
        for inner, outer in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))


class InstanceDiscriminator(nn.Sequential):
    """(R, D) features of proposals to (R, 1) logits: one hidden layer of 1024."""

    def __init__(self, features: int) -> None:
        super().__init__(nn.Linear(features, 1024), nn.ReLU(), nn.Linear(1024, 1))


class Alignment(nn.Module):
    """The discriminators that the configuration asks for, reading the student's one encoding.

    Args:
        config: ``parts``, ``level`` and the treatment of mixed images.
        detector: whose features are read; only its widths are looked at.

    Raises:
        UserError: the backbone has no such level.
    """

    def __init__(self, config: AlignmentConfig, detector: Detector) -> None:
        super().__init__()
        self.config = config
        levels = detector.levels()
        self.level = config.level or list(levels)[-1]
        if self.level not in levels:
            raise UserError(f"alignment.level={self.level!r} is no feature level; there are {', '.join(levels)}")
        self.discriminators = nn.ModuleDict()
        if "image" in config.parts:
            self.discriminators["image"] = ImageDiscriminator(levels[self.level])
        if "instance" in config.parts:
            self.discriminators["instance"] = InstanceDiscriminator(detector.roi_width)

    def forward(self, detector: Detector, encoding: Encoding, domains: Domains) -> dict[str, Tensor]:
        """``alignment/image`` and ``alignment/instance``: for each, source's mean and target's mean added up."""
        weights = domains.weights if self.config.mixed == "soft" else domains.unmixed_weights
        losses = {}
        if "image" in self.discriminators:
            losses["alignment/image"] = self._image_loss(encoding, domains.shares, weights)
        if "instance" in self.discriminators:
            losses["alignment/instance"] = self._instance_loss(detector, encoding, domains.shares, weights)
        return losses

    def _image_loss(self, encoding: Encoding, shares: Tensor, weights: Tensor) -> Tensor:
        """Every cell that lies inside its image is judged; an image's loss is the mean over its cells."""
        features = encoding.features[self.level]
        logits = self.discriminators["image"](ReverseGradient.apply(features))[:, 0].float()
        shares, weights = shares.to(logits), weights.to(logits)
        inside = F.interpolate(encoding.batch.valid().to(logits), size=logits.shape[1:], mode="nearest")[:, 0]
        losses = F.binary_cross_entropy_with_logits(logits, shares.view(-1, 1, 1).expand_as(logits), reduction="none")
        return (weights * (losses * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)).sum()

    def _instance_loss(self, detector: Detector, encoding: Encoding, shares: Tensor, weights: Tensor) -> Tensor:
        """The best proposals of each image are judged; an image's loss is the mean over them."""
        scores = detector.score_proposals(encoding, self.config.instances)
        logits = self.discriminators["instance"](ReverseGradient.apply(scores.features))[:, 0].float()
        counts = torch.tensor([min(len(found), self.config.instances) for found in encoding.proposals])
        shares = shares.repeat_interleave(counts).to(logits)
        weights = (weights / counts.clamp(min=1)).repeat_interleave(counts).to(logits)
        return (weights * F.binary_cross_entropy_with_logits(logits, shares, reduction="none")).sum()
