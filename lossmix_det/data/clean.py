"""Writing what can be used of a data set, beside the original and in its format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from lossmix_det.data.packed import ImageRecord, Records
from lossmix_det.data.survey import Survey
from lossmix_det.data.writers import ALL, ONE_SPLIT, PUT, WRITERS, below_shared

OTHERWISE = "coco"  # for formats without a writer
# The file that a declaration must name, by format and split.
FILES: dict[str, Callable[[str], dict[str, str]]] = {
    "coco": lambda split: {"annotations": f"annotations/{split}.json"},
    "yolo": lambda split: {"annotations": "data.yaml"},
}


def write_clean(survey: Survey, folder: Path) -> tuple[str, list[str]]:
    """Write the images that can be read with the boxes that can be used, each once; images are links.

    Args:
        survey: with its looks, of a labelled data set.
        folder: new.

    Returns:
        The declaration of the clean data set, as a line of YAML; and a line for each kind of thing that is lost.

    Raises:
        UserError: a name cannot be written in the format.
    """
    kind = survey.entry.format if survey.entry.format in WRITERS else OTHERWISE
    split = survey.entry.split.replace("/", "_") or ONE_SPLIT.get(kind, ALL)
    folder.mkdir(parents=True)
    readable = survey.records.take(np.flatnonzero(survey.looks.readable))
    # Else folders of YOLO would be nested.
    clean = below_shared(replace(survey.image_set, records=Records.pack(_once(readable))))
    writer = WRITERS[kind](folder, clean.classes, PUT["link"])
    writer.write(split, clean)
    writer.finish()
    settings = {"format": kind, "root": str(folder.absolute()), "split": split}
    settings |= FILES.get(kind, lambda split: {})(split)
    if not all(record.exif for record in readable):
        settings["exif"] = "ignore"  # the images are the same
    return ", ".join(f"{key}: {value}" for key, value in settings.items()), writer.lost


def _once(records: Records) -> Iterator[ImageRecord]:
    """Each image once, and each box of a class once."""
    seen: set[Path] = set()
    for record in records:
        if record.path in seen:
            continue
        seen.add(record.path)
        rows = np.concatenate([record.boxes, record.classes[:, None]], axis=1)
        _, first = np.unique(rows, axis=0, return_index=True)
        kept = np.sort(first)
        per_box = {key: getattr(record, key)[kept] for key in ("boxes", "classes", "difficult", "crowd", "areas")}
        yield replace(record, **per_box)
