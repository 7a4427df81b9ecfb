"""FMix (Harris et al., 2020, arXiv 2002.12047): patches of irregular outline, cut out of low-frequency noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lossmix_det.config import MixingConfig
from lossmix_det.mixing.blend import Mix
from lossmix_det.mixing.mixers.grid import common_frame, grid_cell, own_masks, shares_of
from lossmix_det.mixing.mixers.pairwise import Pairwise, with_partners
from lossmix_det.structures import ImageBatch


class FMix(Pairwise):
    """The partner is seen where noise, whose spectrum falls as 1 / frequency^decay, is among its lowest 1 - λ.

    λ ~ Beta(α, α), moved into ``lam_range``. Only the area that both images cover is cut; the image keeps its size.

    Args:
        config: ``alpha``, ``lam_range``, and ``fmix_decay`` (the authors' is 3).
    """

    def __init__(self, config: MixingConfig) -> None:
        super().__init__(config)
        self.decay = config.fmix_decay

    def draw(self, pool: ImageBatch, partners: np.ndarray, saliency: Tensor | None, rng: np.random.Generator) -> Mix:
        """As `Mixer.draw`."""
        count, cell = len(partners), grid_cell(pool.canvas)
        lam = self.draw_lam(count, rng)
        masks = own_masks(count, 2, pool.canvas, cell)
        for index, partner in enumerate(partners[:, 0].tolist()):
            rows, columns = common_frame(pool, (index, partner), cell)
            noise = low_frequency_noise((rows, columns), self.decay, rng)
            lowest = torch.from_numpy(among_the_lowest(noise, 1 - lam[index])).float()
            masks[index, 1, :rows, :columns] = lowest
            masks[index, 0, :rows, :columns] = 1 - lowest
        return Mix(with_partners(partners), shares_of(masks, pool.sizes[:count], cell), masks)


def low_frequency_noise(shape: tuple[int, int], decay: float, rng: np.random.Generator) -> np.ndarray:
    """(h, w) real noise: complex Gaussian numbers, each divided by the decay-th power of its frequency.

    Args:
        shape: h, w.
        decay: how smooth it is; 0 gives white noise.
        rng: draws 2·h·w numbers.
    """
    rows, columns = shape
    spectrum = rng.standard_normal((2, rows, columns))
    if not rows * columns:
        return np.zeros(shape)
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.fftfreq(columns))
    frequency = np.maximum(frequency, 1 / max(shape))  # the mean has the weight of the lowest frequency
    return np.fft.ifft2((spectrum[0] + 1j * spectrum[1]) / frequency**decay).real


def among_the_lowest(values: np.ndarray, share: float) -> np.ndarray:
    """(h, w) bool: the lowest share of the values, rounded to whole cells."""
    lowest = np.zeros(values.size, dtype=bool)
    lowest[values.flatten().argsort(kind="stable")[: round(share * values.size)]] = True
    return lowest.reshape(values.shape)
