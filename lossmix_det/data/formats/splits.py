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
        split: a word of the path, such as ``train`` in ``train/x.json`` or ``instances_train2017.json``; empty: any.
        key: the setting that names the path instead, for messages.

    Raises:
        NoSuchSplit: none of the paths fits.
        UserError: several do.
    """
    fitting = [path for path in paths if not split or names(split) & set(re.split(r"[^a-z]+", path.lower()))]
    if len(fitting) == 1:
        return fitting[0]
    problem = f"split {split!r} is in" if split else "the data set is not one file but"
    found = ", ".join(fitting or paths)
    how_many = "several of these" if fitting else "none of these"
    kind = UserError if fitting or not split else NoSuchSplit
    raise kind(f"{root}: {problem} {how_many}: {found}; set split, or {key} to one of them")
