"""The command line of `datasets/prepare_kitti.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from lossmix_det.data.builtin import datasets_root
from lossmix_det.data.formats.coco import write_coco
from lossmix_det.data.kitti import IMAGES, convert


def main() -> int:
    """Write the annotations of KITTI's training set; returns the exit status.

    Raises:
        UserError: a folder or an image is missing, or a label file is not of KITTI's layout.
    """
    parser = argparse.ArgumentParser(description="Write COCO annotations of KITTI's object training set.")
    parser.add_argument("root", type=Path, nargs="?", help="holds training; default: the built-in data set's folder")
    root = parser.parse_args().root or datasets_root() / "kitti"
    write_coco(root / "annotations" / "kitti_train.json", convert(root), expected=IMAGES)
    return 0
