"""The pictures of a mixed batch, as a run keeps them for its page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lossmix_det.files import write_atomically
from lossmix_det.report.sheets import Picture, as_bytes
from lossmix_det.report.thumbnails import Thumbnail, thumbnail

MIXED_BATCH = "mixed_batch.json"  # of a run's folder


def thumbnails_of(pictures: Sequence[Picture], classes: Sequence[str]) -> list[Thumbnail]:
    """Small pictures of student images with everything that they are taught."""
    return [
        thumbnail(
            as_bytes(picture.pixels),
            picture.marks,
            classes,
            picture.title,
            f"student image with {len(picture.marks)} boxes: {picture.title}",
        )
        for picture in pictures
    ]


def keep_mixed(folder: Path, phase: str, step: int, pictures: Sequence[Thumbnail]) -> None:
    """Write the pictures of a step in place of earlier ones of its phase.

    Args:
        folder: of the run.
        phase: of the step, in words.
        step: that taught them.
        pictures: of the step.
    """
    kept = _read(folder) | {phase: {"step": step, "pictures": [vars(picture) for picture in pictures]}}
    write_atomically(folder / MIXED_BATCH, json.dumps(kept))


def mixed_gallery(folder: Path) -> dict[str, list[Thumbnail]]:
    """A row of pictures for each phase that a run kept some of."""
    rows = {}
    for phase, kept in _read(folder).items():
        try:
            pictures = [Thumbnail(**picture) for picture in kept["pictures"]]
            rows[f"{phase}, step {int(kept['step'])}"] = pictures
        except (KeyError, TypeError, ValueError):
            continue
    return {title: pictures for title, pictures in rows.items() if pictures}


def _read(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / MIXED_BATCH).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}
