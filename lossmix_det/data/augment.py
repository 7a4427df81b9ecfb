"""Weak and strong views of one image, in one geometry (Adaptive Teacher's recipe, Li et al., CVPR 2022).

weak = crop, flip, resize; strong = weak + colour jitter, greyscale, blur, erasing, masking. Randomness comes from a
seed per image alone, so it does not depend on workers, order or resumption.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no look-up over the network on import

import albumentations as A
import cv2
import numpy as np
import torch

from lossmix_det.config import AugmentConfig
from lossmix_det.data.masking import BlockMasking
from lossmix_det.instances import clipped_masks

# (scale, ratio) of Adaptive Teacher's three erasings
ERASINGS = (((0.05, 0.2), (0.3, 3.3)), ((0.02, 0.2), (0.1, 6.0)), ((0.02, 0.2), (0.05, 8.0)))
# Two places in the first pixel, counted from its middle: where they go tells where everything goes.
MARKS = np.array([[0.0, 0.0], [0.25, 0.25]], dtype=np.float32)


@dataclass(frozen=True)
class AugmentedViews:
    """The views of one image.

    Attributes:
        weak, strong: (H, W, 3) uint8, of one size; None if not asked for.
        boxes: (N, 4) float32 ``xyxy`` pixels, the same in both views.
        kept: (N,) int64, which boxes of the image they are; a crop may leave some out.
        masks: (N, S, S) bool over each box; None if none were given.
    """

    weak: np.ndarray | None
    strong: np.ndarray | None
    boxes: np.ndarray
    kept: np.ndarray
    masks: np.ndarray | None = None


class RandomErasing(A.ImageOnlyTransform):
    """Fill a rectangle with noise (Zhong et al., AAAI 2020), drawn as torchvision draws it.

    albumentations' own erasing limits the area so that the rectangle fits. On images that are not square this departs
    from the recipe, and it fails if nothing fits.

    Args:
        scale: range of the share of the image that is erased.
        ratio: range of height over width.
        p: probability.
    """

    tries = 10

    class InitSchema(A.ImageOnlyTransform.InitSchema):
        """The types that albumentations checks the arguments against."""

        scale: tuple[float, float]
        ratio: tuple[float, float]

    def __init__(self, scale: tuple[float, float], ratio: tuple[float, float], p: float = 0.5) -> None:
        super().__init__(p=p)
        self.scale, self.ratio = scale, ratio

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the rectangle (top, left, height, width), None if no try fits, and the seed of its noise."""
        rng = self.random_generator
        height, width = params["shape"][:2]
        for _ in range(self.tries):
            area = rng.uniform(*self.scale) * height * width
            ratio = np.exp(rng.uniform(*np.log(self.ratio)))
            size = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if 0 < size[0] < height and 0 < size[1] < width:
                corner = int(rng.integers(height - size[0] + 1)), int(rng.integers(width - size[1] + 1))
                return {"rectangle": (*corner, *size), "seed": int(rng.integers(2**31))}
        return {"rectangle": None, "seed": 0}

    def apply(self, img: np.ndarray, rectangle: tuple[int, ...] | None, seed: int, **params: Any) -> np.ndarray:
        """The image (H, W, 3) with noise in the rectangle; the image itself if there is none."""
        if rectangle is None:
            return img
        top, left, height, width = rectangle
        erased = img.copy()
        noise = np.random.default_rng(seed).integers(0, 256, (height, width, *img.shape[2:]), dtype=np.uint8)
        erased[top : top + height, left : left + width] = noise
        return erased


class Augment:
    """Turns an image and its boxes into the views asked for.

    Args:
        config: probabilities and sizes.
        views: ``weak``, ``strong`` or both.
    """

    def __init__(self, config: AugmentConfig, views: list[str]) -> None:
        self.config = config
        makers = {"weak": self._unchanged, "strong": self._strengthened}
        self.makers = {view: makers[view] for view in views}
        box_params = A.BboxParams(
            "pascal_voc", label_fields=["indices"], min_visibility=config.min_visibility, clip=True
        )
        marks = A.KeypointParams("xy", remove_invisible=False)
        self.geometry = A.Compose(_geometry(config), bbox_params=box_params, keypoint_params=marks)
        self.appearance = A.Compose(_appearance(config))

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, seed: int, masks: np.ndarray | None = None
    ) -> AugmentedViews:
        """Draw the views of one image.

        Args:
            image: (H, W, 3) uint8.
            boxes: (N, 4) ``xyxy`` pixels inside the image.
            seed: fixes everything that is drawn.
            masks: (N, S, S) bool over each box; nothing that is drawn depends on them.
        """
        rng = np.random.default_rng(seed)
        short_side = int(rng.choice(self.config.min_sizes))
        self.geometry.set_random_seed(int(rng.integers(2**31)))
        marks = {} if masks is None else {"keypoints": MARKS}
        moved = self.geometry(image=image, bboxes=boxes, indices=np.arange(len(boxes)), **marks)
        kept = np.asarray(moved["indices"], dtype=np.int64)
        clipped = np.asarray(moved["bboxes"], dtype=np.float32).reshape(-1, 4)
        if masks is not None:
            masks = follow(masks[kept], boxes[kept], clipped, np.asarray(moved["keypoints"]))
        resized, clipped = resize(moved["image"], clipped, short_side, self.config.max_size)
        views = {view: make(resized, rng) for view, make in self.makers.items()}
        return AugmentedViews(views.get("weak"), views.get("strong"), clipped, kept, masks)

    def _unchanged(self, image: np.ndarray, _: np.random.Generator) -> np.ndarray:
        return image

    def _strengthened(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Colour, blur, erasing and masking."""
        self.appearance.set_random_seed(int(rng.integers(2**31)))
        return self.appearance(image=image)["image"]


def follow(masks: np.ndarray, before: np.ndarray, after: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """The masks of boxes that were moved, mirrored and clipped along with their image.

    Args:
        masks: (N, S, S) bool over each box.
        before, after: (N, 4) ``xyxy`` of the boxes.
        marks: (2, 2) where `MARKS` are now.
    """
    turns = np.sign(marks[1] - marks[0])  # -1 where mirrored, in x and in y
    corners = (before.reshape(-1, 2, 2) - 0.5) * turns + marks[0] + 0.5
    moved = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)
    mirrored = masks[:, :: int(turns[1]), :: int(turns[0])]
    return clipped_masks(*(torch.from_numpy(np.ascontiguousarray(part)) for part in (mirrored, moved, after))).numpy()


def resize(image: np.ndarray, boxes: np.ndarray, short_side: int, max_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale an image and its boxes.

    Args:
        image: (H, W, 3) uint8.
        boxes: (N, 4) ``xyxy`` pixels.
        short_side: in pixels, after scaling; less if the long side would exceed ``max_size``.
        max_size: the longest that the long side may be, in pixels.

    Returns:
        The scaled image and boxes; the arguments themselves if the size stays.
    """
    height, width = image.shape[:2]
    scale = min(short_side / min(height, width), max_size / max(height, width))
    # At least two pixels: OpenCV drops the axis of the channels, or takes it for a side, where a side is one pixel.
    new_height, new_width = max(2, round(height * scale)), max(2, round(width * scale))
    if (new_height, new_width) == (height, width):
        return image, boxes
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image, (new_width, new_height), interpolation=interpolation)
    return resized, boxes * np.array([new_width / width, new_height / height] * 2, dtype=np.float32)


def _geometry(config: AugmentConfig) -> list[A.BasicTransform]:
    steps: list[A.BasicTransform] = []
    if config.crop:
        steps.append(A.RandomCropFromBorders(0.25, 0.25, 0.25, 0.25, p=config.crop))
    steps.append(A.HorizontalFlip(p=config.flip))
    return steps


def _appearance(config: AugmentConfig) -> list[A.BasicTransform]:
    steps: list[A.BasicTransform] = [
        A.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-config.hue, config.hue), p=config.jitter),
        A.ToGray(p=config.grayscale),
        A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=config.blur),
    ]
    for probability, (scale, ratio) in zip(config.erasing, ERASINGS, strict=False):
        steps.append(RandomErasing(scale, ratio, p=probability))
    if config.masking.ratio:
        steps.append(BlockMasking(config.masking.ratio, config.masking.block))
    return steps
