#!/usr/bin/env python
"""Compare methods over seeds, or measure what a step costs.

python tools/benchmark.py --suite mixing --seeds 1 2 3     # trains every method with every seed; may be interrupted
python tools/benchmark.py --suite-dir my_configs           # a folder of your own: every YAML in it is a method
python tools/benchmark.py --suite ablation                 # one setting of LossMix at a time
python tools/benchmark.py --suite mixers --methods 'source_only*' oracle   # every mixer; rows by name or shell pattern
python tools/benchmark.py --suite cost                     # time of a LossMix step, of loading, of the average
python tools/benchmark.py --suite mixer_cost               # time of a step with each mixer
python tools/benchmark.py --suite speed                    # a whole step of adaptation, beside other structures
python tools/benchmark.py --suite time_to_quality          # how soon adaptation reaches a score
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the suites are of the checkout, not of the package

try:
    from benchmarks.suites import main
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed for {sys.executable}; install this package with pip install -e .")

if __name__ == "__main__":
    sys.exit(main())
