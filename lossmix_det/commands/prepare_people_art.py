"""The command line of `datasets/prepare_people_art.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from lossmix_det.data.builtin import datasets_root
from lossmix_det.data.formats.coco import write_coco
from lossmix_det.data.people_art import convert

IMAGES = {"photos_train": 804, "art_train": 2917, "art_test": 1567, "art_test_people": 508, "art_test_small": 300}


def main() -> int:
    """Write the annotations of photos and art with people; returns the exit status.

    Raises:
        UserError: a file is missing, or is not of its publisher's layout.
    """
    parser = argparse.ArgumentParser(description="Write COCO annotations of photos and art with people.")
    parser.add_argument(
        "root", type=Path, nargs="?", help="holds the checkouts; default: the built-in data set's folder"
    )
    root = parser.parse_args().root or datasets_root() / "people_art"
    for name, content in convert(root).items():
        write_coco(root / "annotations" / f"{name}.json", content, expected=IMAGES[name])
    return 0
