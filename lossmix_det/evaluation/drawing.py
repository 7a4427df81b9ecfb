"""Drawing boxes on images."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
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
from matplotlib.text import Text
from PIL import Image

from lossmix_det.data.images import read
from lossmix_det.data.packed import ImageRecord
from lossmix_det.data.records import ImageSet
from lossmix_det.evaluation.lettering import lettered
from lossmix_det.files import write_atomically
from lossmix_det.structures import Instances

COLOURS = ("#e6550d", "#3182bd", "#31a354", "#756bb1")
SHOWN = 0.5  # least score of a drawn detection
FONT_SIZE, PAD = 7, 1  # of labels, in points

Area = tuple[float, float, float, float]  # x1, y1, x2, y2


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
    for index, box in enumerate(instances.boxes.tolist()):
        strength = weight if values is None else float(values[index])
        text = BoxText(classes, int(instances.classes[index]), None if values is None else strength)
        draw_box(axis, box, text, colour, strength)


class BoxText:
    """The text beside a box: the name of a class in letters that can be drawn, and a number.

    Args:
        classes: names of the K classes.
        index: of the class.
        value: of the box, such as its score; absent: the name alone.
    """

    def __init__(self, classes: Sequence[str], index: int, value: float | None = None) -> None:
        name, self.letters = lettered(classes[index], f"class {index + 1}")
        self.text = name if value is None else f"{name} {value:.2f}"


def draw_box(axis: Axes, box: Sequence[float], label: BoxText, colour: str, strength: float = 1.0) -> None:
    """Draw a box and its label, which lies inside the image and on no other label if there is room.

    Args:
        axis: that shows the image.
        box: ``xyxy`` pixels.
        label: its text.
        colour: of the box, and behind the text.
        strength: in [0, 1]; the less, the fainter.
    """
    text = label.text
    x1, y1, x2, y2 = box
    alpha = 0.35 + 0.65 * min(strength, 1.0)
    outline = [withStroke(linewidth=3.2, foreground="white", alpha=0.6 * alpha)]  # to be seen on any picture
    rectangle = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.8, alpha=alpha)
    rectangle.set_path_effects(outline)
    axis.add_patch(rectangle)
    x, y, _, _ = _place(box, _extent(axis, text), [_area_of(axis, other) for other in axis.texts], _frame(axis))
    behind = {"facecolor": colour, "edgecolor": "none", "pad": PAD, "alpha": 0.45 + 0.4 * min(strength, 1.0)}
    axis.text(x, y, text, color="white", fontsize=FONT_SIZE, bbox=behind, va="top", ha="left", **label.letters)


def _place(
    box: Sequence[float], extent: tuple[float, float], taken: Sequence[Area], frame: tuple[float, float]
) -> Area:
    """Where a label goes: of the places at the corners of its box, the one that covers least of other labels.

    Args:
        box: ``xyxy``.
        extent: (width, height) of the label.
        taken: by other labels.
        frame: (width, height) of the image, in which labels stay.
    """
    (x1, y1, x2, y2), (width, height) = box, extent
    corners = [(x, y) for y in (y1 - height, y1, y2 - height, y2) for x in (x1, x2 - width)]
    places = []
    for x, y in corners:
        x, y = (max(min(low, whole - side), 0.0) for low, whole, side in zip((x, y), frame, extent, strict=True))
        places.append((x, y, x + width, y + height))
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))


def _overlap(one: Area, other: Area) -> float:
    sides = (min(one[axis + 2], other[axis + 2]) - max(one[axis], other[axis]) for axis in (0, 1))
    return math.prod(max(side, 0.0) for side in sides)


def _frame(axis: Axes) -> tuple[float, float]:
    rows, columns = axis.images[0].get_size()
    return columns - 0.5, rows - 0.5


def _extent(axis: Axes, text: str) -> tuple[float, float]:
    """(width, height) of a label in pixels of the image, a little more than it will be."""
    figure, place, (columns, rows) = axis.get_figure(), axis.get_position(), _frame(axis)
    width, height = place.width * figure.get_figwidth() * 72, place.height * figure.get_figheight() * 72
    pixels = max(columns / width, rows / height)  # to a point
    return (0.62 * FONT_SIZE * len(text) + 2 * PAD) * pixels, (1.2 * FONT_SIZE + 2 * PAD) * pixels


def _area_of(axis: Axes, label: Text) -> Area:
    (x, y), (width, height) = label.get_position(), _extent(axis, label.get_text())
    return x, y, x + width, y + height


def hide_ticks(axis: Axes) -> None:
    """Take the numbers off both axes."""
    axis.set_xticks([])
    axis.set_yticks([])


def save(figure: Figure, path: Path, dpi: int = 64, colours: int | None = None) -> None:
    """Write a figure as PNG, atomically, and close it.

    Args:
        figure: to write.
        path: of the PNG.
        dpi: pixels to an inch.
        colours: at most so many different ones, up to 256, which makes photos a third as large; absent: all.
    """
    content = io.BytesIO()
    figure.savefig(content, dpi=dpi, format="png")
    plt.close(figure)
    if colours:
        picture = Image.open(content).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
        picture.save(content := io.BytesIO(), format="png", optimize=True)
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
        image = read(record.path, high_bit_depth, exif=record.exif)
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
    image_id = image_set.id_of(record.image_id)
    rows = [row for row in results if row["image_id"] == image_id and row["score"] >= SHOWN]
    boxes = torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    classes = torch.tensor([image_set.category_ids.index(row["category_id"]) for row in rows], dtype=torch.int64)
    return Instances(boxes, classes, torch.tensor([row["score"] for row in rows]))
