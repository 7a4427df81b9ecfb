"""Images that a file lists more than once, as exporters with a line for each box do."""

from __future__ import annotations

from pathlib import Path

from lossmix_det.data.problems import Problems
from lossmix_det.data.records import RawImage


def once(images: list[RawImage], problems: Problems, source: Path) -> list[RawImage]:
    """Each image once, with the objects of all its entries; the same box of the same class counts once.

    Otherwise it would be trained on and scored as often, and boxes of one entry would be background of the other.

    Args:
        images: in the order of the file; the first entry of an image gives its id and size.
        problems: told how many entries were put together.
        source: the file, for messages.
    """
    first: dict[Path, RawImage] = {}
    repeated = []
    for image in images:
        known = first.setdefault(image.path, image)
        if known is not image:
            repeated.append(image.where)
            boxes = {(item.name, item.box) for item in known.objects}
            known.objects.extend(item for item in image.objects if (item.name, item.box) not in boxes)
    problems.note_all(
        repeated, f"{source}: {{count}} entries are of images that are listed before, and were put together"
    )
    return list(first.values())
