"""How masks become weights, as `mixing.weighting` names it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lossmix_det.mixing.blend import Mix
from lossmix_det.structures import ImageBatch, Instances, Size
from lossmix_det.visible import around, mean_inside

TIP = 1  # cells of an instance mask at the tip of an object that may fall between pixels without being hidden

# From a mix, the number of a source, its truths (where they are now) and the mixed images, to how much of each box is
# seen: (N,) in [0, 1] for each image, or None where that is the share of the source.
Weighting = Callable[[Mix, int, Sequence[Instances], ImageBatch], list[Tensor | None]]


def by_share(mix: Mix, source: int, truths: Sequence[Instances], images: ImageBatch) -> list[Tensor | None]:
    """One number for each truth: the share of its source in the whole image."""
    return [None] * len(truths)


def by_visibility(mix: Mix, source: int, truths: Sequence[Instances], images: ImageBatch) -> list[Tensor | None]:
    """One number for each box: the mean of its source's mask inside it, before it is clipped to what is seen of it.

    Ours. A box that is half covered weighs a half, whatever is left of it. Where the mask of the object is known, it is
    the mean over the pixels of the object. If the mix has no masks it is the share.
    """
    if mix.masks is None:
        return [None] * len(truths)
    height, width = images.pixels.shape[2:]
    masks = mix.masks[:, source]
    scale = torch.tensor([masks.shape[2] / width, masks.shape[1] / height] * 2, dtype=torch.float64)
    return [
        seen_of(truth, truth.boxes.double() * scale.to(truth.boxes.device), mask).to(truth.boxes) if mixed else None
        for mask, truth, mixed in zip(masks, truths, mix.mixed.tolist(), strict=True)
    ]


def seen_of(truth: Instances, cells: Tensor, mask: Tensor) -> Tensor:
    """(N,) how much of each object is seen: the mean of a (h, w) mask over it.

    Args:
        truth: N objects; those without masks of their own fill their boxes.
        cells: (N, 4) their boxes, ``xyxy`` in cells of the mask.
        mask: (h, w).
    """
    seen = mean_inside(mask, cells)
    if truth.masks is None:
        return seen
    shown = (sampled(mask, cells, truth.masks.shape[1]).to(seen) * truth.masks).sum((1, 2))
    return torch.where(truth.masks.all(2).all(1), seen, shown / truth.masks.sum((1, 2)).clamp(min=1))


def sampled(mask: Tensor, cells: Tensor, count: int) -> Tensor:
    """(N, count, count) values of a (h, w) mask at as many places of each box, evenly spread; in cells of the mask."""
    steps = (torch.arange(count, device=cells.device) + 0.5) / count
    low, sides = cells[:, :2, None], (cells[:, 2:] - cells[:, :2])[:, :, None]
    places = (low + steps * sides).long().clamp(min=0)  # (N, 2, count): x, y
    columns, rows = (places[:, axis].clamp(max=mask.shape[1 - axis] - 1) for axis in (0, 1))
    return mask.to(cells.device)[rows[:, :, None], columns[:, None]]


def within(truth: Instances, offset: Sequence[float], size: Size) -> Tensor:
    """(N',) share of the area of each box that lies on the image after a move, for those that `Instances.moved` keeps.

    Args:
        truth: N boxes in pixels.
        offset: (down, right) in pixels.
        size: (height, width) of the image that they are on then.
    """
    (down, right), (height, width) = offset, size
    boxes = truth.boxes + truth.boxes.new_tensor([right, down, right, down])
    clipped = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))
    sides, before = clipped[:, 2:] - clipped[:, :2], boxes[:, 2:] - boxes[:, :2]
    return (sides / before.clamp(min=1e-12)).prod(1)[(sides > 0).all(1)]


def clipped_to_mask(
    truth: Instances, mask: Tensor, canvas: Size, least: float, share: Tensor | None = None
) -> tuple[Instances, Tensor]:
    """Boxes of which enough is seen, each clipped to the smallest box around what is seen of it.

    Args:
        truth: N boxes in pixels.
        mask: (h, w) of their source, over the canvas.
        canvas: (height, width) in pixels.
        least: the share that is seen of a box, under which it is dropped; a box of which nothing is seen always is.
        share: (N,) of each box that lies on the image at all; absent: 1.

    Returns:
        The boxes, and (N,) bool: which of all they are.
    """
    if not len(truth):
        return truth, torch.zeros(0, dtype=torch.bool, device=truth.boxes.device)
    scale = truth.boxes.new_tensor([mask.shape[1] / canvas[1], mask.shape[0] / canvas[0]] * 2)
    mask = mask.to(truth.boxes.device)
    cells = truth.boxes * scale
    visible, clipped = seen_of(truth, cells.double(), mask), around(mask, cells)
    if truth.masks is not None:
        of_objects = _around_objects(truth.masks, sampled(mask, cells, truth.masks.shape[1]) > 0, cells)
        clipped = torch.where(truth.masks.all(2).all(1)[:, None], clipped, of_objects)
    boxes = torch.where(clipped == cells, truth.boxes, clipped / scale)  # what is not cut stays to the last bit
    kept = (visible * (1 if share is None else share) >= least) & (visible > 0)
    return truth.clipped(boxes)[kept], kept


def _around_objects(masks: Tensor, shown: Tensor, boxes: Tensor) -> Tensor:
    """(N, 4) boxes whose sides are moved to what is shown of the masks, where that is less than all of a mask.

    Args:
        masks: (N, S, S) over each box.
        shown: (N, S, S) which cells are shown at all.
        boxes: (N, 4) ``xyxy``.
    """
    sides, result = (boxes[:, 2:] - boxes[:, :2]) / masks.shape[1], boxes.clone()
    for axis in (0, 1):
        lines = [cells.any(1 + axis).int() for cells in (masks, masks & shown)]  # (N, S) columns, or rows
        for edge, sign in ((axis, 1), (axis + 2, -1)):
            own, seen = ((line if sign > 0 else line.flip(1)).argmax(1) for line in lines)  # the first from this side
            moved = boxes[:, edge] + sign * seen * sides[:, axis]
            result[:, edge] = torch.where(seen > own + TIP, moved, boxes[:, edge])
    return result


WEIGHTINGS: dict[str, Weighting] = {"share": by_share, "visibility": by_visibility}
