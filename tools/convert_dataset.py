#!/usr/bin/env python
"""Convert a data set to VOC, COCO or YOLO.

python tools/convert_dataset.py /data/mine /data/mine_yolo --to yolo --splits train valid
"""

import sys

try:
    from lossmix_det.commands.convert import main
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed for {sys.executable}; install this package with pip install -e .")

if __name__ == "__main__":
    sys.exit(main())
