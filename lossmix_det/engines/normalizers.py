"""What the loss of each image is divided by, as `model.normalizer` names it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# From the (I,) counts of what is averaged over in each image that teaches something, the number of images that the
# loss is a mean over, and the count that stock takes for every image (None: those found), to (I,) divisors.
Normalizer = Callable[[Tensor, float, int | None], Tensor]


def by_samples(counts: Tensor, images: float, quota: int | None) -> Tensor:
    """One mean over the samples of the batch, as in stock.

    Images that teach nothing count as images with as many samples as the others have on average. Where there is no
    sample at all, the sum stays a sum.
    """
    if quota:
        return torch.full_like(counts, quota) * images
    return (counts.sum() * images / len(counts)).clamp(min=1).expand(len(counts))


def by_images(counts: Tensor, images: float, quota: int | None) -> Tensor:
    """The mean over images of the mean over the samples of each."""
    return counts.clamp(min=1) * images


NORMALIZERS: dict[str, Normalizer] = {"samples": by_samples, "images": by_images}
