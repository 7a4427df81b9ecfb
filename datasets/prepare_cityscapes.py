#!/usr/bin/env python
"""Write COCO annotations of Cityscapes and Foggy Cityscapes from gtFine: a box around each visible object of 8 classes.

    python datasets/prepare_cityscapes.py [ROOT] [--fog 0.02]

ROOT is the folder that holds gtFine and leftImg8bit; default: `cityscapes` where data sets are looked for.
"""

import sys

from lossmix_det.commands.options import run_tool
from lossmix_det.commands.prepare_cityscapes import main

if __name__ == "__main__":
    sys.exit(run_tool(main))
