"""Who is mixed with whom."""

from __future__ import annotations

import numpy as np


def draw_partners(count: int, rng: np.random.Generator) -> np.ndarray:
    """A partner for each of ``count`` images, each image being the partner of exactly one other.

    The images are laid in a random circle and everyone takes the next, so nobody is paired with itself (but one image
    alone, which has nobody else).
    """
    circle = rng.permutation(count)
    partner = np.empty(count, dtype=np.int64)
    partner[circle] = np.roll(circle, -1)
    return partner
