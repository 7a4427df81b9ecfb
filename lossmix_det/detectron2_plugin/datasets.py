"""Our data sets under Detectron2's names."""

from __future__ import annotations

from functools import partial

from lossmix_det.config import Config
from lossmix_det.data.catalog import find, known_classes, load
from lossmix_det.data.formats import FORMATS
from lossmix_det.data.formats.detectron2 import register
from lossmix_det.errors import UserError


def register_datasets(names: list[str], config: Config | None = None) -> list[str]:
    """Make data sets of our catalogue known to Detectron2, under the same names.

    Args:
        names: of the generated benchmark, of known data sets, or declared in ``config.datasets``.
        config: its ``data.classes``, absent those of the first data set, become the classes of all.

    Returns:
        The classes.

    Raises:
        UserError: a data set is unknown or not there, or Detectron2's own.
    """
    config = config or Config()
    classes = config.data.classes or known_classes(names[0], config) or load(names[0], config).classes
    for name in names:
        entry = find(name, config)  # what is missing is said now
        if not FORMATS[entry.format].declarable:
            raise UserError(f"data set {name!r} is registered with Detectron2 already; use it by that name")
        register(name, classes, partial(load, name, config, classes))
    return classes
