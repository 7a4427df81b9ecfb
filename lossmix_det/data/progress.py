"""A progress bar where somebody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.progress import track

Item = TypeVar("Item")


def progress(items: Sequence[Item], title: str) -> Iterable[Item]:
    """The items one by one, with a bar that goes when all are done; without a terminal nothing is printed."""
    return track(items, title, transient=True, disable=not sys.stdout.isatty())
