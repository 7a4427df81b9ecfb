"""Blocks of an image that are hidden from the student, so that it has to tell objects from what surrounds them.

Masked image consistency (Hoyer et al., CVPR 2023), as ALDI++ (Kay et al., TMLR 2025) uses it on the target.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no look-up over the network on import

import albumentations as A
import cv2
import numpy as np


class BlockMasking(A.ImageOnlyTransform):
    """Black out blocks of a grid, each by a draw of its own.

    The grid has as many rows and columns as blocks fit, rounded; blocks are stretched a little to fill the image.

    Args:
        ratio: probability of each block.
        block: pixels of a side of a block.
        p: probability of masking anything.
    """

    class InitSchema(A.ImageOnlyTransform.InitSchema):
        """The types that albumentations checks the arguments against."""

        ratio: float
        block: int

    def __init__(self, ratio: float, block: int, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.ratio, self.block = ratio, block

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw which blocks are seen: (rows, columns) uint8, 0 or 1."""
        rows, columns = (max(round(side / self.block), 1) for side in params["shape"][:2])
        return {"seen": (self.random_generator.random((rows, columns)) >= self.ratio).astype(np.uint8)}

    def apply(self, img: np.ndarray, seen: np.ndarray, **params: Any) -> np.ndarray:
        """The image (H, W, 3), black where it is not seen."""
        height, width = img.shape[:2]
        return img * cv2.resize(seen, (width, height), interpolation=cv2.INTER_NEAREST)[:, :, None]
