"""What a mixer is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from lossmix_det.mixing.blend import Mix
from lossmix_det.structures import ImageBatch, Instances


class Mixer(Protocol):
    """Chooses pixels; what a mixed image is taught is the rule's affair.

    One whose mixes have ``blocks`` also has ``tears_boxes = True``.
    """

    partners: int  # of each image: K - 1
    needs_saliency: bool

    def draw(self, pool: ImageBatch, partners: np.ndarray, saliency: Tensor | None, rng: np.random.Generator) -> Mix:
        """Draw how each image is mixed with its partners.

        Args:
            pool: the B images first, then others that may be partners.
            partners: (B, K - 1) index of each partner in the pool; the image's own index where it has none, and twice
                the same where there are too few.
            saliency: (B, h, w) ≥ 0 in low resolution, over the canvas, of every image of the pool; if it is needed.
            rng: the only source of chance.
        """


@runtime_checkable
class MixesObjects(Protocol):
    """A mixer that looks at boxes in place of saliency."""

    partners: int

    def draw_objects(
        self, pool: ImageBatch, partners: np.ndarray, truths: Sequence[Instances], rng: np.random.Generator
    ) -> Mix:
        """As `Mixer.draw`, given the boxes.

        Args:
            pool: the B images first, then others that may be partners.
            partners: (B, K - 1) index of each partner in the pool.
            truths: annotated or pseudo-labelled boxes of every image of the pool; none where nothing is known.
            rng: the only source of chance.
        """


@runtime_checkable
class Choice(Protocol):
    """Several mixers, one of which is drawn, with equal chances, for each step."""

    mixers: Sequence[Mixer]
