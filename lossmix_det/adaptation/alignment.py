"""Domain alignment: discriminators behind gradient reversal (Ganin & Lempitsky, ICML 2015).

The discriminator learns to tell source (0) from target (1); the detector receives the negative of its gradient. A mixed
image has the weight of its target pixels as its label; under a mask, every cell of the features has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lossmix_det.config import AlignmentConfig
from lossmix_det.engines import Detector, Encoding, Features, HasFeatures, ScoresBoxes, require
from lossmix_det.errors import UserError
from lossmix_det.structures import MAP_CELL, Domains, Size


class ReverseGradient(torch.autograd.Function):
    """Identity, whose gradient is the negative of what comes back."""

    @staticmethod
    def forward(_: object, values: Tensor) -> Tensor:
        """The values themselves."""
        return values.view_as(values)

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        """The gradient that came back, negated."""
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
        UserError: the backbone has no such level, or the detector has not what a part reads.
    """

    def __init__(self, config: AlignmentConfig, detector: Detector) -> None:
        super().__init__()
        self.config, self.weigh = config, WEIGHTS[config.mixed]
        self.parts = {name: part for name, part in PARTS.items() if name in config.parts}
        for name, part in self.parts.items():
            require(detector, part.needs, f"alignment.parts=[{name}]", part.instead)
        self.level = self._level(detector)
        self.discriminators = nn.ModuleDict(
            {name: part.discriminator(detector, self.level) for name, part in self.parts.items()}
        )

    def _level(self, detector: Detector) -> str:
        """The level of the image part, the coarsest if none is named."""
        if not isinstance(detector, HasFeatures):
            return ""
        levels = detector.levels()
        level = self.config.level or list(levels)[-1]
        if level not in levels:
            raise UserError(f"alignment.level={level!r} is no feature level; there are {', '.join(levels)}")
        return level

    def forward(
        self, detector: Detector, encoding: Encoding, sizes: Sequence[Size], domains: Domains
    ) -> dict[str, Tensor]:
        """``alignment/image`` and ``alignment/instance``: for each, source's mean and target's mean added up.

        Args:
            detector: the student.
            encoding: of its images.
            sizes: (height, width) of these in pixels.
            domains: of these.
        """
        return {
            f"alignment/{name}": part.loss(self, detector, encoding, sizes, domains)
            for name, part in self.parts.items()
        }

    def image_loss(self, detector: HasFeatures, encoding: Encoding, sizes: Sequence[Size], domains: Domains) -> Tensor:
        """Every cell that lies inside its image is judged; an image's loss is the mean over its cells."""
        return sum(
            self._canvas_loss(features, [sizes[index] for index in features.indices], domains)
            for features in detector.features(encoding)
        )

    def _canvas_loss(self, features: Features, sizes: list[Size], domains: Domains) -> Tensor:
        """The part of the images on one canvas."""
        logits = self.discriminators["image"](ReverseGradient.apply(features.levels[self.level]))[:, 0].float()
        weights = self.weigh(domains)[list(features.indices)].to(logits)
        inside = cells_inside(sizes, features.canvas, logits.shape[1:]).to(logits)
        labels = target_of_cells(domains, features, logits.shape[1:], sizes).to(logits)
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return (weights * (losses * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)).sum()

    def instance_loss(
        self, detector: ScoresBoxes, encoding: Encoding, sizes: Sequence[Size], domains: Domains
    ) -> Tensor:
        """The best proposals of each image are judged; an image's loss is the mean over them."""
        features, counts = detector.proposal_features(encoding, self.config.instances)
        logits = self.discriminators["instance"](ReverseGradient.apply(features))[:, 0].float()
        shares = domains.shares.repeat_interleave(counts).to(logits)
        weights = self.weigh(domains)
        weights = (weights / counts.clamp(min=1)).repeat_interleave(counts).to(logits)
        return (weights * F.binary_cross_entropy_with_logits(logits, shares, reduction="none")).sum()


def target_of_cells(domains: Domains, features: Features, cells: Size, sizes: Sequence[Size]) -> Tensor:
    """(b, h, w) in [0, 1]: how much of the target is seen in each cell of a level of b images.

    Args:
        domains: of all images of the batch.
        features: of the images on one canvas.
        cells: (h, w) of the level.
        sizes: (height, width) of the b images in pixels; what of a cell lies beyond its image does not count.
    """
    indices = list(features.indices)
    if domains.maps is None:
        return domains.shares[indices].view(-1, 1, 1).expand(-1, *cells)
    rows, columns = (-(-side // MAP_CELL) for side in features.canvas)
    maps = domains.maps[indices, None, :rows, :columns]
    limits = torch.tensor(sizes, device=maps.device)
    down, right = (
        ((limits[:, side, None] - MAP_CELL * torch.arange(count, device=maps.device)) / MAP_CELL).clamp(0, 1)
        for side, count in enumerate((rows, columns))
    )
    inside = (down[:, :, None] * right[:, None, :])[:, None].to(maps)
    shown, inside = (F.adaptive_avg_pool2d(values, tuple(cells))[:, 0] for values in (maps * inside, inside))
    return (shown / inside.clamp(min=1e-6)).clamp(max=1.0)


def cells_inside(sizes: Sequence[Size], canvas: Size, cells: Size) -> Tensor:
    """(B, h, w) bool: which cells of a level begin inside their image.

    Args:
        sizes: (height, width) of B images in pixels.
        canvas: (height, width) that the level covers, in pixels.
        cells: (h, w) of the level.
    """
    limits = torch.tensor(sizes)
    rows, columns = (
        torch.arange(count) * pixels // count < limits[:, side, None]
        for side, (count, pixels) in enumerate(zip(cells, canvas, strict=True))
    )
    return rows[:, :, None] & columns[:, None, :]


class Part(NamedTuple):
    """One kind of alignment: what it needs of a detector, its discriminator of (detector, level), and its loss.

    ``instead`` is the setting that does without what it needs.
    """

    needs: type
    instead: str
    discriminator: Callable[[Detector, str], nn.Module]
    loss: Callable[..., Tensor]


PARTS = {
    "image": Part(
        HasFeatures,
        "alignment.parts=[]",
        lambda detector, level: ImageDiscriminator(detector.levels()[level]),
        Alignment.image_loss,
    ),
    "instance": Part(
        ScoresBoxes,
        "alignment.parts=[image]",
        lambda detector, level: InstanceDiscriminator(detector.roi_width),
        Alignment.instance_loss,
    ),
}

# Mixed images have the share of the target as their label, or are left out.
WEIGHTS: dict[str, Callable[[Domains], Tensor]] = {
    "soft": lambda domains: domains.weights,
    "skip": lambda domains: domains.unmixed_weights,
}
