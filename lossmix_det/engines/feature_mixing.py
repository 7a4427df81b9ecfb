"""Mixing the features of images within a network, at one of its stages (Manifold Mixup)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lossmix_det.structures import ImageBatch, Size

PYRAMID = "fpn"


@dataclass(frozen=True)
class FeatureMix:
    """How the features of N images become those of B mixed ones.

    Args:
        stage: of the network, as `MixingPoints` names it.
        sources: (B, K) index of each source among the N images.
        shares: (B, K) in [0, 1], rows sum to 1.
        sizes: (height, width) in pixels of each mixed image: as large as what is seen of its sources.
    """

    stage: str
    sources: Tensor
    shares: Tensor
    sizes: tuple[Size, ...]

    def __len__(self) -> int:
        return len(self.sizes)

    def __call__(self, features: Tensor) -> Tensor:
        """(N, C, h, w) features to (B, C, h, w); a share of 1 gives those of that source, bit for bit."""
        index, shares = self.sources.to(features.device), self.shares.to(features)
        mixed, seen = features[index[:, -1]], shares[:, -1]
        for k in reversed(range(index.shape[1] - 1)):  # what is there so far fades as the next source comes in
            seen = seen + shares[:, k]
            share = torch.where(seen > 0, shares[:, k] / seen.clamp(min=1e-12), 0.0) if k else shares[:, k]
            mixed = torch.lerp(mixed, features[index[:, k]], share.view(-1, 1, 1, 1))
        return mixed

    def take(self, indices: Sequence[int]) -> tuple[FeatureMix, list[int]]:
        """The mix of some of the mixed images, and which of the N images it needs."""
        chosen = list(indices)
        sources, shares = self.sources[chosen], self.shares[chosen]
        needed = sorted(set(sources[shares > 0].tolist()))
        places = {image: place for place, image in enumerate(needed)}
        # What is not seen may be any image.
        moved = torch.tensor([[places.get(image, 0) for image in row] for row in sources.tolist()])
        return FeatureMix(self.stage, moved, shares, tuple(self.sizes[index] for index in chosen)), needed

    def images_of(self, inputs: ImageBatch) -> ImageBatch:
        """Sizes and keys of the mixed images, given the N images; the pixels are those of the images themselves."""
        own = self.sources[:, 0].tolist()
        keys = None if inputs.keys is None else tuple(inputs.keys[index] for index in own)
        return ImageBatch(inputs.pixels[own], self.sizes, keys)


@dataclass(frozen=True)
class MixingPoints:
    """Where features can be mixed in a backbone.

    Args:
        body: gives levels (N, C, h, w) by name.
        stages: by name ``1``, ``2``, …: the module that ends a stage, and the levels that are complete before it does.
        pyramid: gives its levels by name; absent: there is none.
    """

    body: nn.Module
    stages: dict[str, tuple[nn.Module, tuple[str, ...]]]
    pyramid: nn.Module | None = None

    @property
    def names(self) -> list[str]:
        """Of all stages, from the first to the last."""
        return [*self.stages, *([PYRAMID] if self.pyramid is not None else [])]

    @contextmanager
    def mixing(self, mix: FeatureMix) -> Iterator[None]:
        """Within the block the network mixes at the stage; levels that it gave before are mixed as they leave it."""
        handles = [part.register_forward_hook(hook) for part, hook in self._hooks(mix)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, mix: FeatureMix) -> list[tuple[nn.Module, Callable]]:
        if mix.stage not in self.stages:
            return [(self.pyramid, _on_levels(mix))]
        stage, earlier = self.stages[mix.stage]
        return [(stage, lambda _, __, features: mix(features)), (self.body, _on_levels(mix, earlier))]


def _on_levels(mix: FeatureMix, names: Sequence[str] | None = None) -> Callable:
    """A hook that mixes some levels, or all."""

    def hook(module: nn.Module, _: object, levels: dict[str, Tensor]) -> dict[str, Tensor]:
        chosen = levels if names is None else names
        return type(levels)((name, mix(level) if name in chosen else level) for name, level in levels.items())

    return hook
