#!/usr/bin/env python
"""Compare methods over seeds, or measure what a step costs.

python tools/benchmark.py --suite mixing --seeds 1 2 3     # trains every method with every seed; may be interrupted
python tools/benchmark.py --suite cost                     # time of a LossMix step, of loading, of the average
"""

import sys

from lossmix_det.cli import run_tool
from lossmix_det.report.benchmark import main

if __name__ == "__main__":
    sys.exit(run_tool(main))
