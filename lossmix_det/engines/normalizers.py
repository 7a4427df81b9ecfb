"""What the loss of each image is divided by, as `model.normalizer` names it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# From the (I,) counts of what is averaged over in each image that teaches something, the number of images that the
# loss is a mean over, the count that stock takes for every image (None: those found), and the count that an image has
# on average (None: the mean of these counts), to (I,) divisors.
Normalizer = Callable[[Tensor, float, int | None, float | None], Tensor]


def by_samples(counts: Tensor, images: float, quota: int | None, average: float | None) -> Tensor:
    """One mean over the samples of the batch, as in stock.

    Images that teach nothing count as images with as many samples as one has on average. So a mixed image whose partner
    shows no object is not alone in its sum. Where there is no sample at all, the sum stays a sum.
    """
    if quota:
        return torch.full_like(counts, quota) * images
    found, others = counts.sum(), images - len(counts)
    if average is None or others <= 0:
        return (found * images / len(counts)).clamp(min=1).expand(len(counts))
    return (found + others * average).clamp(min=1).expand(len(counts))


def by_images(counts: Tensor, images: float, quota: int | None, average: float | None) -> Tensor:
    """The mean over images of the mean over the samples of each."""
    return counts.clamp(min=1) * images


NORMALIZERS: dict[str, Normalizer] = {"samples": by_samples, "images": by_images}
