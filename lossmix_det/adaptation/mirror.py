"""What the teacher sees in the mirror image too: how sure it is of where a box is, and a box nearer to the object.

Soft Teacher (Xu et al., ICCV 2021) moves boxes a little and lets the second stage refine them; where the results
differ, it does not teach the box. Here the image is mirrored instead. This needs one more pass of the teacher, and no
part of its network, so that it works for every detector. It is ours.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torchvision.ops import box_iou

from lossmix_det.structures import ImageBatch, Instances


def mirrored(images: ImageBatch) -> ImageBatch:
    """The images with left and right exchanged, each within its own size; padding stays where it is."""
    pixels = images.pixels.clone()
    for index, (height, width) in enumerate(images.sizes):
        pixels[index, :, :height, :width] = images.pixels[index, :, :height, :width].flip(-1)
    return replace(images, pixels=pixels)


def agreed(labels: Instances, mirror: Instances, width: int, least: float) -> Instances:
    """Pseudo-labels of which those teach box regression that were found in the mirror image as well.

    Args:
        labels: N of them, with ``box_weights``.
        mirror: what was detected in the mirror image, in its pixels.
        width: of the image, in pixels.
        least: intersection over union with the best box of the same class there, mirrored back.

    Returns:
        The same instances. Where both boxes agree, the box is the mean of both; elsewhere it stays, and its
        ``box_weights`` is 0.
    """
    if not len(labels) or not len(mirror):
        return replace(labels, box_weights=torch.zeros_like(labels.box_weights))
    boxes = _exchanged(mirror.boxes, width)
    overlaps = box_iou(labels.boxes, boxes) * (labels.classes[:, None] == mirror.classes)
    best, index = overlaps.max(dim=1)
    agree = (best >= least) & (best > 0)
    mean = (labels.boxes + boxes[index]) / 2
    return replace(
        labels,
        boxes=torch.where(agree[:, None], mean, labels.boxes),
        box_weights=labels.box_weights * agree,
    )


def _exchanged(boxes: Tensor, width: int) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=1)
