"""A mix as it was drawn, and the one function that applies every mix to pixels.

B mixed images, K sources each: source 0 is the image itself, the others are its partners. λ is the share of the image
itself; torchvision and timm count the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lossmix_det.mixing.blocks import in_place, moved_blocks
from lossmix_det.structures import ImageBatch, Size

SUM_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Mix:
    """What a mixer drew, before it is applied.

    Args:
        sources: (B, K) int64, index of each source in the pool; column 0 is the image itself.
        shares: (B, K) float in [0, 1], rows sum to 1: how much of each source is seen.
        masks: (B, K, h, w) float in [0, 1], sums to 1 over K: how much of each source is seen where. It covers the
            canvas, in full or in a lower resolution. Absent: the share everywhere.
        offsets: (B, K, 2) whole pixels (down, right) that each source was moved by. Absent: none was moved.
        blocks: (B, K, h, w) int64 over the cells of the masks, which are numbered row by row: the cell of the source
            whose pixels each cell shows; a permutation for each source. Absent: each shows its own. A source is either
            moved or torn into blocks.
        factors: (B,) float ≥ 0, how much a mixed image teaches, on top of the rule. Absent: 1.
        stage: of the network, whose features are mixed in place of pixels (Manifold Mixup); empty: pixels are.

    Raises:
        ValueError: shapes disagree, shares lie outside [0, 1] or do not sum to 1, or there are offsets and blocks.
    """

    sources: Tensor
    shares: Tensor
    masks: Tensor | None = None
    offsets: Tensor | None = None
    blocks: Tensor | None = None
    factors: Tensor | None = None
    stage: str = ""

    def __post_init__(self) -> None:
        if self.sources.shape != self.shares.shape or self.shares.ndim != 2:
            raise ValueError(
                f"sources and shares must both have shape (B, K), got {tuple(self.sources.shape)} "
                f"and {tuple(self.shares.shape)}"
            )
        for name, values in (("masks", self.masks), ("offsets", self.offsets)):
            if values is not None and values.shape[:2] != self.shares.shape:
                raise ValueError(f"{name} must begin with shape {tuple(self.shares.shape)}, got {tuple(values.shape)}")
        if self.blocks is not None and (self.offsets is not None or self.masks is None):
            raise ValueError("blocks need masks, and no offsets")
        if self.blocks is not None and self.blocks.shape != self.masks.shape:
            raise ValueError(f"blocks must have shape {tuple(self.masks.shape)}, got {tuple(self.blocks.shape)}")
        if len(self.shares) and not (self.shares.min() >= 0 and self.shares.max() <= 1):
            raise ValueError(f"shares must lie in [0, 1], got {self.shares.tolist()}")
        if ((self.shares.sum(1) - 1).abs() > SUM_TOLERANCE).any():
            raise ValueError(f"shares of an image must sum to 1, got {self.shares.tolist()}")

    def __len__(self) -> int:
        return len(self.shares)

    @property
    def lam(self) -> Tensor:
        """(B,) share of the image itself; 1 leaves it as it is."""
        return self.shares[:, 0]

    @property
    def mixed(self) -> Tensor:
        """(B,) bool: which images others are blended into."""
        return self.lam < 1

    def where(self, chosen: Tensor) -> Mix:
        """The same mix for the images chosen by a (B,) bool, and none for the others."""
        alone = torch.zeros_like(self.shares)
        alone[:, 0] = 1
        masks, offsets, blocks = self.masks, self.offsets, self.blocks
        if masks is not None:
            masks = torch.where(chosen.view(-1, 1, 1, 1), masks, alone[:, :, None, None])
        if offsets is not None:
            offsets = torch.where(chosen.view(-1, 1, 1), offsets, 0)
        if blocks is not None:
            blocks = torch.where(chosen.view(-1, 1, 1, 1), blocks, in_place(blocks.shape[2:]))
        shares = torch.where(chosen[:, None], self.shares, alone)
        return replace(self, shares=shares, masks=masks, offsets=offsets, blocks=blocks)

    def whole(self, chosen: Tensor) -> Mix:
        """The same mix, but the images themselves that are chosen by a (B,) bool are not torn into blocks."""
        if self.blocks is None:
            return self
        itself = (torch.arange(self.shares.shape[1]) == 0).view(1, -1, 1, 1)
        kept = chosen.view(-1, 1, 1, 1) & itself
        return replace(self, blocks=torch.where(kept, in_place(self.blocks.shape[2:]), self.blocks))

    def with_lam(self, lam: Tensor) -> Mix:
        """Another share (B,) of the images themselves; those of their partners shrink or grow alike, masks too."""
        others = self.shares[:, 1:]
        rest = others.sum(1, keepdim=True)
        others = (1 - lam)[:, None] * torch.where(rest > 0, others / rest, 0.0)
        masks = self.masks
        if masks is not None:
            factor = torch.where(rest > 0, (1 - lam)[:, None] / rest, 0.0)
            # Shares are rounded; where a partner is hardly seen, the factor of what stays as it is may be more than 1.
            partners = (masks[:, 1:] * factor[:, :, None, None]).clamp(max=1)
            partners = partners / partners.sum(1, keepdim=True).clamp(min=1)
            masks = torch.cat([1 - partners.sum(1, keepdim=True), partners], dim=1)
        return replace(self, shares=torch.cat([lam[:, None], others], dim=1), masks=masks)

    def largest_first(self) -> Mix:
        """Every image exchanges its share, and its mask, with the partner of which most would be seen."""
        rows, largest = torch.arange(len(self)), self.shares.argmax(1)
        order = torch.arange(self.shares.shape[1]).repeat(len(self), 1)
        order[rows, largest], order[:, 0] = 0, largest
        masks = None if self.masks is None else self.masks[rows[:, None], order]
        return replace(self, shares=self.shares.gather(1, order), masks=masks).with_lam(self.shares[rows, largest])


def unmixed(count: int, sources: int = 2) -> Mix:
    """Every image alone; its other sources are itself, and not seen."""
    alone = torch.zeros(count, sources)
    alone[:, 0] = 1
    return Mix(torch.arange(count)[:, None].repeat(1, sources), alone)


def confined(mix: Mix, chosen: Tensor, pool: ImageBatch) -> Mix:
    """Partners are seen only in cells that they and the image cover whole; the image itself is seen in all others.

    Args:
        mix: with masks.
        chosen: (B,) bool, the images that this is done to.
        pool: that the mix is of.
    """
    masks, shares = mix.masks.clone(), mix.shares.clone()
    cell = [side / count for side, count in zip(pool.canvas, masks.shape[2:], strict=True)]
    for index in chosen.nonzero().flatten().tolist():
        size = pool.sizes[int(mix.sources[index, 0])]
        for k, source in enumerate(mix.sources[index, 1:].tolist(), start=1):
            by = (0, 0) if mix.offsets is None else mix.offsets[index, k].tolist()
            rows, columns = (
                slice(math.ceil(max(move, 0) / side), max(int(min(own, other + move) / side), 0))
                for own, other, move, side in zip(size, pool.sizes[source], by, cell, strict=True)
            )
            kept = torch.zeros_like(masks[index, k])
            kept[rows, columns] = masks[index, k][rows, columns]
            masks[index, k] = kept
        masks[index, 0] = 1 - masks[index, 1:].sum(0)
        area = size[0] * size[1] / (cell[0] * cell[1])
        shares[index, 1:] = masks[index, 1:].sum((1, 2)) / area
        shares[index, 0] = 1 - shares[index, 1:].sum()
    return replace(mix, masks=masks, shares=shares)


def blend(pool: ImageBatch, mix: Mix) -> ImageBatch:
    """Mix images: x~ = Σ_k share_k · x_k, by mask where there is one.

    All are aligned at the top-left corner and zero-filled (Zhang et al., arXiv 1902.04103). The mixed image is as large
    as what is seen of its sources. A share of 1 gives that source itself, bit for bit, at its own size.

    Args:
        pool: float pixels; every image that may be a source, on one canvas.
        mix: of indices into it.
    """
    device = pool.pixels.device
    count, sources = mix.shares.shape
    shares = mix.shares.to(pool.pixels)
    if mix.masks is None:
        weights = shares.view(count, sources, 1, 1, 1)
    else:
        weights = F.interpolate(mix.masks.to(pool.pixels), size=pool.pixels.shape[2:], mode="nearest")[:, :, None]
    images = [_source(pool, mix, k, device) for k in range(sources)]
    # From the last to the first: what is there so far fades as the next one comes in.
    pixels, seen = images[-1], weights[:, -1]
    for k in reversed(range(sources - 1)):
        seen = seen + weights[:, k]
        share = weights[:, k] if not k else torch.where(seen > 0, weights[:, k] / seen, 0.0)
        pixels = torch.lerp(pixels, images[k], share)
    keys = None if pool.keys is None else tuple(pool.keys[index] for index in mix.sources[:, 0].tolist())
    mixed = ImageBatch(pixels, mixed_sizes(pool, mix), keys)
    # What was moved, or masked in whole cells, may reach out of the image.
    return mixed if mix.masks is None else replace(mixed, pixels=torch.where(mixed.valid(), pixels, 0.0))


def _source(pool: ImageBatch, mix: Mix, k: int, device: torch.device) -> Tensor:
    """(B, 3, H, W) pixels of the k-th source of every image, where it was moved to."""
    index = mix.sources[:, k]
    in_order = torch.equal(index, torch.arange(len(index)))
    pixels = pool.pixels[: len(index)] if in_order else pool.pixels[index.to(device)]
    if mix.blocks is not None:
        return moved_blocks(pixels, mix.blocks[:, k])
    if mix.offsets is None or not mix.offsets[:, k].any():
        return pixels
    return torch.stack(
        [_moved(image, *offset) for image, offset in zip(pixels, mix.offsets[:, k].tolist(), strict=True)]
    )


def _moved(image: Tensor, down: int, right: int) -> Tensor:
    """(3, H, W) moved over the canvas; what it leaves is black, what leaves the canvas is lost."""
    height, width = image.shape[1:]
    return F.pad(image, (right, -right, down, -down))[:, :height, :width]


def mixed_sizes(pool: ImageBatch, mix: Mix) -> tuple[tuple[int, int], ...]:
    """(height, width) in pixels of each mixed image: where what is seen of its sources ends."""
    canvas, (count, sources) = pool.canvas, mix.shares.shape
    offsets = [[(0, 0)] * sources] * count if mix.offsets is None else mix.offsets.tolist()
    masked = [[canvas] * sources] * count if mix.masks is None else _mask_ends(mix.masks, canvas)
    sizes = []
    for row in zip(mix.sources.tolist(), mix.shares.tolist(), offsets, masked, strict=True):
        visible = [(pool.sizes[index], by, end) for index, share, by, end in zip(*row, strict=True) if share > 0]
        ends = [[min(size[side] + math.ceil(by[side]), end[side]) for side in (0, 1)] for size, by, end in visible]
        # Where nothing visible is left on the canvas, one black pixel is.
        sizes.append(tuple(min(max(1, *(end[side] for end in ends)), canvas[side]) for side in (0, 1)))
    return tuple(sizes)


def _mask_ends(masks: Tensor, canvas: Size) -> list[list[Size]]:
    """(down, right) in pixels where the mask of each source of each image ends."""
    ends = []
    for side, other in ((2, 3), (3, 2)):
        seen = (masks > 0).any(dim=other)  # (B, K, cells)
        cells = torch.arange(1, masks.shape[side] + 1, device=masks.device)
        last = (seen * cells).amax(2)
        ends.append([[math.ceil(end * canvas[side - 2] / masks.shape[side]) for end in row] for row in last.tolist()])
    return [list(zip(*pair, strict=True)) for pair in zip(*ends, strict=True)]
