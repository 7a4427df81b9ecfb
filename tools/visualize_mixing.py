#!/usr/bin/env python
"""Draw a batch as the student sees it: mixed images, and the boxes of every truth with their weights.

python tools/visualize_mixing.py --config-file configs/shapes/lossmix.yaml --output mixing.png
"""

import sys

from lossmix_det.commands.train import run_tool
from lossmix_det.commands.visualize_mixing import main

if __name__ == "__main__":
    sys.exit(run_tool(main))
