"""What is allowed in a data set, but probably not what its maker meant."""

from __future__ import annotations

from lossmix_det.data.paths import composed, differs_by
from lossmix_det.data.problems import Problems
from lossmix_det.errors import UserError

REACHES_OUT = "and was clipped"  # how the note on a box ends that reaches out of its image
MANY = 0.25  # share of such boxes from which on it is no carelessness


def doubt_boxes(name: str, count: int, largest: float, problems: Problems) -> None:
    """Refuse boxes that can only be in shares of an image, and note it where many seem to be given by their corners.

    Args:
        name: of the data set, for messages.
        count: of its boxes.
        largest: of their coordinates, in pixels.
        problems: with a note on each box that reaches out of its image.

    Raises:
        UserError: all boxes lie inside of the first pixel.
    """
    if count and largest <= 1:
        raise UserError(
            f"data set {name!r}: all {count} boxes lie inside of the first pixel, so they seem to be in shares of the "
            "width and height; write them in pixels, or as YOLO, whose boxes are in shares"
        )
    out = sum(line.endswith(REACHES_OUT) for line in problems.notes)
    if out > max(count * MANY, 1):
        sentence = f"{name}: {out} of {count} boxes reach out of their image and were clipped; are they of images of "
        problems.notes.insert(0, f"{sentence}another size, or corners x1, y1, x2, y2 in place of x, y, width, height?")


def note_alike(name: str, classes: list[str], problems: Problems) -> None:
    """Note classes that are probably one, such as ``Car`` and ``car``.

    Args:
        name: of the data set, for messages.
        classes: names, which may be there twice.
        problems: told of each such pair.
    """
    first: dict[str, str] = {}
    for label in dict.fromkeys(classes):
        other = first.setdefault("".join(composed(label).casefold().split()), label)
        if other != label:
            problems.note(
                f"{name}: the classes {other!r} and {label!r} differ {differs_by(other, label)}; are they one?"
            )
