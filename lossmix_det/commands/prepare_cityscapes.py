"""The command line of `datasets/prepare_cityscapes.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from lossmix_det.data.builtin import datasets_root
from lossmix_det.data.cityscapes import FOG_LEVELS, convert_all


def main() -> int:
    """Write the annotations of Cityscapes and Foggy Cityscapes; returns the exit status.

    Raises:
        UserError: a folder is missing, or a file is not of Cityscapes' layout.
    """
    parser = argparse.ArgumentParser(description="Write COCO annotations of (Foggy) Cityscapes from gtFine.")
    parser.add_argument("root", type=Path, nargs="?", help="holds gtFine; default: the built-in data set's folder")
    parser.add_argument("--fog", choices=FOG_LEVELS, default="0.02", help="density of foggy_cityscapes_{train,val}")
    options = parser.parse_args()
    convert_all(options.root or datasets_root() / "cityscapes", options.fog)
    return 0
