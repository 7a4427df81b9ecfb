#!/usr/bin/env python
"""Write the page of a run, or of several runs side by side.

python tools/report.py runs/quick                                  # runs/quick/report.html
python tools/report.py runs/a runs/b --output comparison.html
"""

import sys

try:
    from lossmix_det.commands.report import main
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed for {sys.executable}; install this package with pip install -e .")

if __name__ == "__main__":
    sys.exit(main())
