"""Where an image is worth looking at, on a coarse grid over the canvas, as `mixing.saliency` names it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lossmix_det.errors import UserError
from lossmix_det.structures import ImageBatch, Instances, Size

MOST_CELLS = 48  # along the longer side of the canvas
CELLS = tuple(2**power for power in range(13))  # sides of a cell in pixels
EVEN = 1e-6  # grey values that differ by less are of one colour
BLUR = (0.05, 0.25, 0.4, 0.25, 0.05)  # a Gaussian of σ = 1 cell, over five cells

# Gives (P, H, W) ≥ 0, how much the student's loss of each image changes with each of its pixels.
InputGradient = Callable[[], Tensor]


class Saliency(Protocol):
    """A source of saliency."""

    needs_gradient: bool  # of a student's loss

    def __call__(
        self, images: ImageBatch, truths: Sequence[Instances], gradient: InputGradient | None = None
    ) -> Tensor:
        """(P, h, w) ≥ 0, zero outside of each image; sums to 1 over each image that has a whole cell.

        Args:
            images: P images on one canvas.
            truths: boxes that are known of each.
            gradient: of the student's loss, if it is needed.
        """


def cell_of(canvas: Size) -> int:
    """The side in pixels of a cell of the grid over a canvas."""
    return next((cell for cell in CELLS if max(canvas) <= MOST_CELLS * cell), CELLS[-1])


def covered(canvas: Size) -> Size:
    """(height, width) in pixels that the cells over a canvas cover; those at its right and lower edge may reach out."""
    cell = cell_of(canvas)
    return -(-canvas[0] // cell) * cell, -(-canvas[1] // cell) * cell


def spectral(images: ImageBatch, truths: Sequence[Instances]) -> Tensor:
    """The spectral residual (Hou & Zhang, CVPR 2007): what is left of the log spectrum without its local mean."""
    cell = cell_of(images.canvas)
    grey = F.avg_pool2d(images.pixels.float().mean(1, keepdim=True), cell, ceil_mode=True, count_include_pad=False)[
        :, 0
    ]
    maps = torch.zeros_like(grey)
    for index, (rows, columns) in enumerate(_whole_cells(images.sizes, cell)):
        inside = grey[index, :rows, :columns]
        if not rows * columns or inside.max() - inside.min() <= EVEN:
            continue  # an image of one colour has no salient place
        spectrum = torch.fft.fft2(inside)
        amplitude = spectrum.abs()
        amplitude = amplitude.clamp(min=1e-3 * float(amplitude.mean()) + 1e-12).log()
        residual = amplitude - _mean3(amplitude)
        found = torch.fft.ifft2(torch.polar(residual.exp(), spectrum.angle())).abs().square()
        maps[index, :rows, :columns] = _blurred(found)
    return _normalised(maps, images.sizes, cell)


def boxes(images: ImageBatch, truths: Sequence[Instances]) -> Tensor:
    """Truths or pseudo-labels as soft boxes: a Gaussian of half their sides over each; images without one are even."""
    cell = cell_of(images.canvas)
    height, width = (-(-side // cell) for side in images.canvas)
    device = images.pixels.device
    y, x = (torch.arange(count + 1, device=device) * float(cell) for count in (height, width))
    maps = torch.zeros(len(images), height, width, device=device)
    for of_image, truth in zip(maps, truths, strict=True):
        x1, y1, x2, y2 = truth.boxes.to(device).float().unbind(1)
        rows, columns = (_in_cells(*axis) for axis in ((y, y1, y2), (x, x1, x2)))
        of_image += torch.einsum("nh,nw->hw", rows, columns)
    return _normalised(maps, images.sizes, cell)


def _in_cells(edges: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """(N, C) mean over each cell, up to a factor that all boxes share, of a Gaussian whose σ is half a side.

    So a small box between the centres of two cells counts too.

    Args:
        edges: (C + 1,) of the cells.
        low, high: (N,) edges of N boxes.
    """
    sigma = ((high - low) / 2).clamp(min=1e-3)[:, None]
    below = torch.special.ndtr((edges - (low + high)[:, None] / 2) / sigma)
    return sigma * below.diff(dim=1) / (edges[1] - edges[0])


def by_gradient(images: ImageBatch, gradient: Tensor) -> Tensor:
    """The norm of the loss's gradient (Kim et al., PuzzleMix, ICML 2020), blurred (Ma et al., SAGE, BMVC 2022).

    Images whose truth is unknown have no loss, so they are even.

    Args:
        images: P images on one canvas.
        gradient: (P, H, W) ≥ 0, norm over the colours.
    """
    cell = cell_of(images.canvas)
    coarse = F.avg_pool2d(gradient[:, None].float(), cell, ceil_mode=True, count_include_pad=False)[:, 0]
    coarse = coarse.nan_to_num(0.0, 0.0, 0.0)
    maps = torch.zeros_like(coarse)
    for index, (rows, columns) in enumerate(_whole_cells(images.sizes, cell)):
        if rows * columns:
            inside = coarse[index, :rows, :columns]
            # Gradients are small numbers; what is compared with 1e-12 later is their share.
            maps[index, :rows, :columns] = _blurred(inside / inside.sum().clamp(min=1e-30))
    return _normalised(maps, images.sizes, cell)


class OfImages:
    """Saliency that images and boxes tell alone.

    Args:
        function: from images and their truths to maps.
    """

    needs_gradient = False

    def __init__(self, function: Callable[[ImageBatch, Sequence[Instances]], Tensor]) -> None:
        self.function = function

    def __call__(
        self, images: ImageBatch, truths: Sequence[Instances], gradient: InputGradient | None = None
    ) -> Tensor:
        """As `Saliency.__call__`."""
        return self.function(images, truths)


class OfGradient:
    """Saliency that only a student can tell."""

    needs_gradient = True

    def __call__(
        self, images: ImageBatch, truths: Sequence[Instances], gradient: InputGradient | None = None
    ) -> Tensor:
        """As `Saliency.__call__`.

        Raises:
            UserError: there is no student here.
        """
        if gradient is None:
            raise UserError("mixing.saliency=gradient needs a student in training; use spectral or boxes here")
        return by_gradient(images, gradient())


SALIENCIES: dict[str, Saliency] = {"spectral": OfImages(spectral), "boxes": OfImages(boxes), "gradient": OfGradient()}


def _whole_cells(sizes: Sequence[Size], cell: int) -> list[Size]:
    """(rows, columns) of the cells that lie wholly inside each image."""
    return [(height // cell, width // cell) for height, width in sizes]


def _normalised(maps: Tensor, sizes: Sequence[Size], cell: int) -> Tensor:
    """Zero outside of the whole cells of each image, and of sum 1; even where nothing is salient."""
    result = torch.zeros_like(maps)
    for index, (rows, columns) in enumerate(_whole_cells(sizes, cell)):
        inside = maps[index, :rows, :columns]
        total = inside.sum()
        even = torch.full_like(inside, 1 / max(rows * columns, 1))
        result[index, :rows, :columns] = torch.where(total > 1e-12, inside / total.clamp(min=1e-12), even)
    return result


def _mean3(values: Tensor) -> Tensor:
    """Mean over 3×3 of a spectrum, which goes round."""
    return F.avg_pool2d(F.pad(values[None, None], (1, 1, 1, 1), mode="circular"), 3, stride=1)[0, 0]


def _blurred(values: Tensor) -> Tensor:
    kernel = values.new_tensor(BLUR)
    kernel = (kernel[:, None] * kernel)[None, None]
    edge = torch.ones_like(values)  # beyond the edge there is nothing, which is not counted
    both = F.conv2d(torch.stack([values, edge])[:, None], kernel, padding=2)[:, 0]
    return both[0] / both[1]
