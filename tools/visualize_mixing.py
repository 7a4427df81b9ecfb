#!/usr/bin/env python
"""Draw a batch as the student sees it: mixed images, and the boxes of every truth with their weights.

python tools/visualize_mixing.py --config-file configs/shapes/lossmix.yaml --output mixing.png
"""

import sys

try:
    from lossmix_det.commands.visualize_mixing import main
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed for {sys.executable}; install this package with pip install -e .")

if __name__ == "__main__":
    sys.exit(main())
