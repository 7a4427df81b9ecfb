"""Drawing boxes on images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window, also where there is a screen

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from lossmix_det.data.images import read
from lossmix_det.data.packed import ImageRecord
from lossmix_det.data.records import ImageSet
from lossmix_det.evaluation.lettering import lettered
from lossmix_det.files import write_atomically
from lossmix_det.structures import Instances

COLOURS = ("#e6550d", "#3182bd", "#31a354", "#756bb1")
SHOWN = 0.5  # least score of a drawn detection


def draw_instances(axis: Axes, instances: Instances, classes: list[str], colour: str, weight: float = 1.0) -> None:
    """Draw boxes with their class names; the less a box weighs, the fainter it is.

    Args:
        axis: that shows the image.
        instances: N boxes; weights or scores of their own are written beside the names.
        classes: names of the K classes.
        colour: of boxes and names.
        weight: of boxes without weights or scores of their own, in [0, 1].
    """
    values = instances.weights if instances.weights is not None else instances.scores
    for index, (x1, y1, x2, y2) in enumerate(instances.boxes.tolist()):
        strength = weight if values is None else float(values[index])
        number = int(instances.classes[index])
        name, letters = lettered(classes[number], f"class {number + 1}")
        text = name + ("" if values is None else f" {strength:.2f}")
        alpha = 0.35 + 0.65 * min(strength, 1.0)
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=2, alpha=alpha))
        outline = [withStroke(linewidth=2, foreground="white")]
        axis.text(x1, y1 - 1, text, color=colour, fontsize=8, path_effects=outline, **letters)


def hide_ticks(axis: Axes) -> None:
    """Take the numbers off both axes."""
    axis.set_xticks([])
    axis.set_yticks([])


def save(figure: Figure, path: Path, dpi: int = 64) -> None:
    """Write a figure as PNG, atomically, and close it."""
    content = io.BytesIO()
    figure.savefig(content, dpi=dpi, format="png")
    plt.close(figure)
    write_atomically(path, content.getvalue())


def draw_before_after(
    image_set: ImageSet,
    before: list[dict[str, Any]],
    after: list[dict[str, Any]],
    path: Path,
    *,
    count: int = 6,
    high_bit_depth: str = "full",
) -> None:
    """Draw a row of images with the truth, if there is one, a row with detections before and a row with those after.

    Args:
        image_set: that was detected on.
        before, after: COCO results.
        path: of the PNG.
        count: how many images, spread over the set.
        high_bit_depth: how 16-bit images are read.
    """
    chosen = np.unique(np.linspace(0, len(image_set) - 1, min(count, len(image_set))).round().astype(int))
    rows = [("truth", None)] if image_set.labelled else []
    rows += [("before", before), ("after", after)]
    figure, axes = plt.subplots(len(rows), len(chosen), figsize=(2.4 * len(chosen), 2.1 * len(rows)), squeeze=False)
    for row, (title, _) in enumerate(rows):
        axes[row][0].set_ylabel(title, fontsize=12)
    for column, record in enumerate(image_set.records[index] for index in chosen):
        image = read(record.path, high_bit_depth)
        for row, (_, results) in enumerate(rows):
            axis = axes[row][column]
            axis.imshow(image)
            hide_ticks(axis)
            instances = _truth(record) if results is None else _detections(results, record, image_set)
            draw_instances(axis, instances, image_set.classes, COLOURS[row - len(rows)])
    name, letters = lettered(image_set.name, "test set")
    title = f"{name}: detections scoring at least {SHOWN}, before and after adaptation"
    figure.suptitle(title, fontsize=11, **letters)
    figure.tight_layout()
    save(figure, path)


def _truth(record: ImageRecord) -> Instances:
    return Instances(torch.from_numpy(record.boxes), torch.from_numpy(record.classes))


def _detections(results: list[dict[str, Any]], record: ImageRecord, image_set: ImageSet) -> Instances:
    rows = [row for row in results if row["image_id"] == record.image_id and row["score"] >= SHOWN]
    boxes = torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    classes = torch.tensor([image_set.category_ids.index(row["category_id"]) for row in rows], dtype=torch.int64)
    return Instances(boxes, classes, torch.tensor([row["score"] for row in rows]))
