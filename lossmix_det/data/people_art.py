"""Writes down a pair of domains with people: photos of PASCAL VOC, and the paintings and cartoons of People-Art.

People-Art (Westlake, Cai and Hall, 2016) has boxes of people on images of many styles. The photos are those of PASCAL
VOC that two public repositories carry; one of these also lists their boxes. The images stay where they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import defusedxml.ElementTree as ElementTree

from lossmix_det.data.images import probe
from lossmix_det.data.progress import progress
from lossmix_det.errors import UserError

PERSON = 14  # its number among the 20 classes of PASCAL VOC, as the lists of boxes count them
LISTS = ("voc2012.txt", "voc2007.txt", "voc2007test.txt")
PHOTOS = (Path("vocpose", "images"), Path("yolov1", "testimg"))
ART = Path("PeopleArt")
OWN_PHOTOS = "photo"  # a "style" of People-Art that is no art
SMALL = 150  # images with people in the small test set, and as many without
SPLITS = {"train": ("train", "val"), "test": ("test",)}

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Listed:
    """An image, below the folder of all checkouts, with the ``xyxy`` boxes of its people in pixels from 0."""

    path: Path
    people: list[Box]


def convert(root: Path) -> dict[str, dict[str, Any]]:
    """COCO content by name: the photos to train on, and the art to train on and to test on.

    Args:
        root: holds the checkouts as ``PeopleArt``, ``vocpose`` and ``yolov1``.

    Raises:
        UserError: a file is missing, or is not of its publisher's layout.
    """
    art = {split: list(_art(root, lists)) for split, lists in SPLITS.items()}
    with_people = [image for image in art["test"] if image.people]
    without = [image for image in art["test"] if not image.people]
    return {
        "photos_train": _content(root, _photos(root)),
        "art_train": _content(root, art["train"]),
        "art_test": _content(root, art["test"]),
        "art_test_people": _content(root, with_people),
        "art_test_small": _content(
            root, with_people[:: _every(with_people)][:SMALL] + without[:: _every(without)][:SMALL]
        ),
    }


def _every(images: list[Listed]) -> int:
    """How far apart the images of the small test set are, so that all styles are in it."""
    return max(len(images) // SMALL, 1)


def _photos(root: Path) -> list[Listed]:
    """The photos with a person on them, each once."""
    people: dict[str, list[Box]] = {}
    for name in LISTS:
        path = root / "yolov1" / name
        for number, line in enumerate(_lines(path), start=1):
            file, _, numbers = line.partition(" ")
            people[file] = _people(numbers, f"{path}:{number}")
    found = {path.name: path for folder in reversed(PHOTOS) for path in _jpegs(root / folder)}
    return [Listed(path.relative_to(root), people[name]) for name, path in sorted(found.items()) if people.get(name)]


def _people(numbers: str, where: str) -> list[Box]:
    """Of one line of boxes: x1 y1 x2 y2 class, and again, in pixels from 1."""
    try:
        values = list(map(float, numbers.split()))
        rows = [values[start : start + 5] for start in range(0, len(values), 5)]
        return [_box(*row[:4]) for row in rows if row[4] == PERSON]
    except (ValueError, IndexError) as error:
        raise UserError(f"{where}: not a list of boxes ({error}); check yolov1 out again") from None


def _box(x1: float, y1: float, x2: float, y2: float) -> Box:
    """In pixels from 0, of corners in pixels from 1."""
    if not (math.isfinite(x1 + y1 + x2 + y2) and x1 <= x2 and y1 <= y2):
        raise ValueError(f"the box {x1, y1, x2, y2} has no area")
    return max(x1 - 1, 0.0), max(y1 - 1, 0.0), x2, y2


def _art(root: Path, lists: Iterable[str]) -> Iterator[Listed]:
    """The images of some of People-Art's lists, those of no person too, but for its photos."""
    for name in lists:
        path = root / ART / "Annotations" / f"person_{name}.txt"
        for number, line in enumerate(_lines(path), start=1):
            image, _, flag = line.rpartition(" ")
            if flag not in ("1", "-1"):
                raise UserError(f"{path}:{number}: not an image and 1 or -1; check PeopleArt out again")
            image = image.strip()
            if not image.startswith(f"{OWN_PHOTOS}/"):
                people = _boxes_of(root / ART / "Annotations" / f"{image}.xml") if flag == "1" else []
                yield Listed(ART / "JPEGImages" / image, people)


def _boxes_of(path: Path) -> list[Box]:
    try:
        boxes = ElementTree.parse(path).getroot().iter("bndbox")
        return [_box(*(float(box.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax"))) for box in boxes]
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise UserError(f"{path}: cannot be read ({error}); check PeopleArt out again") from None


def _content(root: Path, images: list[Listed]) -> dict[str, Any]:
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(progress(images, "people_art"), start=1):
        try:
            width, height = probe(root / image.path).upright
        except OSError as error:
            raise UserError(f"{root / image.path}: cannot be read ({error}); check it out again") from None
        entries.append({"id": number, "file_name": image.path.as_posix(), "width": width, "height": height})
        for box in image.people:
            x1, y1, x2, y2 = box[0], box[1], min(box[2], width), min(box[3], height)
            if x2 - x1 >= 1 and y2 - y1 >= 1:
                annotation = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0, **annotation}
                )
    return {"images": entries, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); datasets/README.md says what to check out where") from None


def _jpegs(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.jpg"))
    if not found:
        raise UserError(f"{folder}: no *.jpg; datasets/README.md says what to check out where")
    return found
