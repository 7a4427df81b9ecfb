"""Data sets that were checked before are not checked again, as long as no file has changed.

Reading the headers of many images takes long; asking the file system whether they are still what they were does not. A
data set is remembered by its declaration and by the code that read it, in one file of `memory_folder`; it is
forgotten as soon as the size or the time of any file that it was read from differs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lossmix_det.config import DatasetConfig
from lossmix_det.data.packed import Records
from lossmix_det.data.problems import Problems
from lossmix_det.data.records import ImageSet
from lossmix_det.files import write_atomically

log = logging.getLogger(__name__)

SETTLED = 2.0  # seconds; a file that is younger may be written once more without its time telling


def memory_folder() -> Path:
    """$LOSSMIX_CACHE, else ``lossmix_det`` in the user's folder for what can be made again."""
    own, caches = os.environ.get("LOSSMIX_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own or caches:
        return Path(own) if own else Path(caches) / "lossmix_det"
    try:
        return Path.home() / ".cache" / "lossmix_det"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / "lossmix_det"


def remembered(
    entry: DatasetConfig, sources: Iterable[Path] | None, asked: dict[str, Any], check: Callable[[], ImageSet]
) -> ImageSet:
    """A data set as it was found before, else as it is found now, which is remembered.

    Args:
        entry: its declaration.
        sources: the files and folders that say which images and boxes there are; None: nobody knows, so that nothing
            is remembered.
        asked: what else the result depends on.
        check: reads and checks it.

    Raises:
        UserError: of ``check``.
    """
    if sources is None:
        return check()
    key = json.dumps(
        [_reading_code(), str(Path(entry.root).resolve()), dataclasses.asdict(entry), asked], sort_keys=True
    )
    path = memory_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    started = time.time()
    stamps = _stamps(map(os.fspath, sources))
    known = _recall(path, stamps)
    if known is not None:
        return known
    found = check()
    if not found.problems.skipped and stamps is not None:  # what was left out may be mended elsewhere
        _remember(path, found, stamps, started)
    return found


@cache
def _reading_code() -> str:
    """Tells whether the same code reads: one that reads more, or mends a fault, is to read everything again."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _stamps(paths: Iterable[str]) -> np.ndarray | None:
    """(n, 3) size, time of the content and time of the entry of each file; None if one is missing.

    The last cannot be set back, as copying with times does with the other.
    """
    try:
        found = [os.stat(path) for path in paths]
    except OSError:
        return None
    stamps = [(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in found]
    return np.array(stamps, dtype=np.int64).reshape(-1, 3)


def _image_stamps(records: Records) -> np.ndarray | None:
    return _stamps(records.name(number) for number in range(len(records)))


def _recall(path: Path, stamps: np.ndarray | None) -> ImageSet | None:
    """What was written, if every file is still what it was."""
    try:
        with np.load(path, allow_pickle=False) as content:
            stored = dict(content)
        about = json.loads(str(stored.pop("about")))
        sources, images = stored.pop("sources"), stored.pop("images")
        records = Records(**stored)
        problems = Problems(notes=about.pop("notes"), left_out=about.pop("left_out"))
        about["ids"] = {int(number): image_id for number, image_id in about["ids"].items()}
    except Exception as error:  # absent, damaged, or of another program: it is only a memory
        log.debug("%s is not used: %s", path, error)
        return None
    if stamps is None or not np.array_equal(stamps, sources) or not _same(images, _image_stamps(records)):
        return None
    return ImageSet(records=records, problems=problems, **about)


def _same(before: np.ndarray, now: np.ndarray | None) -> bool:
    return now is not None and np.array_equal(before, now)


def _remember(path: Path, found: ImageSet, stamps: np.ndarray, started: float) -> None:
    images = _image_stamps(found.records)
    if images is None:
        return
    latest = max(stamps[:, 1].max(initial=0), images[:, 1].max(initial=0)) / 1e9
    if latest > started - SETTLED:  # written while it was checked, or so shortly before that it may be again
        return
    keys = ("name", "classes", "labelled", "category_ids", "fingerprint", "root", "ids")
    about = {key: getattr(found, key) for key in keys}
    arrays = {spec.name: getattr(found.records, spec.name) for spec in dataclasses.fields(Records)}
    arrays = {name: values for name, values in arrays.items() if values is not None}
    content = io.BytesIO()
    text = np.array(json.dumps({**about, "notes": found.problems.notes, "left_out": found.problems.left_out}))
    np.savez(content, about=text, sources=stamps, images=images, **arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())
    except OSError as error:
        log.debug("%s is not remembered: %s", found.name, error)
