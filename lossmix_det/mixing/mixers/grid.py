"""What mixers that cut images into parts share: masks on a grid of small cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lossmix_det.structures import ImageBatch, Size

CELL = 4  # pixels; what is cut lies on a grid, so that masks are small


def grid_cell(canvas: Size) -> int:
    """Pixels to a cell; the canvas is a multiple of it."""
    return CELL if not (canvas[0] % CELL or canvas[1] % CELL) else 1


def own_masks(count: int, sources: int, canvas: Size, cell: int) -> Tensor:
    """(B, K, h, w) masks that show each image itself and nothing of its partners."""
    masks = torch.zeros(count, sources, canvas[0] // cell, canvas[1] // cell)
    masks[:, 0] = 1.0
    return masks


def common_frame(pool: ImageBatch, images: Sequence[int], cell: int) -> list[int]:
    """(rows, columns) of the whole cells that all of some images cover."""
    return [min(pool.sizes[image][side] for image in images) // cell for side in (0, 1)]


def shares_of(masks: Tensor, sizes: Sequence[Size], cell: int) -> Tensor:
    """(B, K) mean of each mask over the real area of its image, to the pixel; the first is what the others leave.

    Args:
        masks: (B, K, h, w), those of partners zero beyond the image.
        sizes: (height, width) of each image in pixels.
        cell: pixels to a side of a cell of the masks.
    """
    area = torch.tensor([height * width for height, width in sizes], dtype=torch.float64)
    others = (masks[:, 1:].double().sum((2, 3)) * cell**2 / area[:, None]).clamp(max=1.0)
    first = (1 - others.sum(1, keepdim=True)).clamp(min=0.0)
    return torch.cat([first, others], dim=1).float()
