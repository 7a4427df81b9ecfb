#!/usr/bin/env python
"""Write COCO annotations of KITTI's object training set.

    python datasets/prepare_kitti.py [ROOT]

ROOT is the folder that holds training/image_2 and training/label_2; default: `kitti` where data sets are looked for.
"""

import sys

from lossmix_det.commands.options import run_tool
from lossmix_det.commands.prepare_kitti import main

if __name__ == "__main__":
    sys.exit(run_tool(main))
