"""Images and their objects as they stand in the files of a data set, in any format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RawObject:
    """One annotated object as it stands in its file.

    Attributes:
        where: file and line or index, for messages.
        name: of its class.
        box: ``xyxy`` float pixels; the first pixel begins at 0.
        difficult: VOC: never scored, and trained on only if wanted.
        crowd: COCO: a group of objects; neither trained on nor scored.
        area: in square pixels; None takes the area of the box.
        relative: the box and the outline are given in shares of the width and height of their image.
        outline: COCO's ``segmentation``, whatever it is: polygons [[x, y, x, y, …], …], or a table of run lengths.
            It is looked at only where masks are wanted.
    """

    where: str
    name: str
    box: tuple[float, float, float, float]
    difficult: bool = False
    crowd: bool = False
    area: float | None = None
    relative: bool = False
    outline: Any = None


@dataclass(frozen=True)
class RawImage:
    """One image and its objects as they stand in the files.

    Attributes:
        where: file and line or index, for messages.
        path: of the image file, which need not exist.
        objects: empty if nothing is annotated, or the image is not labelled.
        size: (width, height) in pixels as declared; None if it is not.
        image_id: its number or name in a COCO file; None counts from 1.
    """

    where: str
    path: Path
    objects: list[RawObject]
    size: tuple[int, int] | None = None
    image_id: int | str | None = None
