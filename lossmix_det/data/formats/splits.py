"""Data sets that come in parts: train, valid, test."""

from __future__ import annotations

import re
from pathlib import Path

from lossmix_det.errors import NoSuchSplit, UserError

# What people call the same part.
SAME = ({"train", "training"}, {"valid", "val", "validation"}, {"test", "testing"})


def names(split: str) -> set[str]:
    """A split's name and its other names: ``val`` is also ``valid``."""
    return {split}.union(*(group for group in SAME if split in group))


def choose(root: Path, paths: list[str], split: str, key: str) -> str:
    """The one of several files that a split means.

    Args:
        root: of the data set, for messages.
        paths: relative to it, at least one.
        split: words and numbers of the path, in a row, in capitals or not: ``train``, ``train2017`` and
            ``instances_train`` all fit ``instances_train2017.json``. If it fits several, it means the file or the
            folder that is called exactly so. Empty: any.
        key: the setting that names the path instead, for messages.

    Raises:
        NoSuchSplit: none of the paths fits.
        UserError: several do.
    """
    fitting = [path for path in paths if not split or _fits(split, path)]
    if len(fitting) > 1 and split:
        called_so = [path for path in fitting if _is_called(split, path)]
        fitting = called_so or fitting
    if len(fitting) == 1:
        return fitting[0]
    problem = f"split {split!r} is in" if split else "the data set is not one file but"
    found = ", ".join(fitting or paths)
    how_many = "several of these" if fitting else "none of these"
    kind = UserError if fitting or not split else NoSuchSplit
    raise kind(f"{root}: {problem} {how_many}: {found}; set split, or {key} to one of them")


def _fits(split: str, path: str) -> bool:
    """Whether the words of a split, or of its other names, follow each other in a path."""
    there = _words(path)
    wanted = [_words(name) for name in names(split.lower())]
    return any(there[start : start + len(words)] == words for words in wanted if words for start in range(len(there)))


def _is_called(split: str, path: str) -> bool:
    """Whether a folder of a path, or its file without suffix, is called by a name of the split."""
    called = Path(path.lower())
    return bool(names(split.lower()) & {*called.parent.parts, called.stem})


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+|\d+", text.lower())
