#!/usr/bin/env python
"""Score a detector on the test sets of a configuration.

python tools/evaluate.py --config-file configs/my.yaml                                # the last checkpoint of the run
python tools/evaluate.py --config-file configs/my.yaml model.weights=runs/my/export/teacher.pth
"""

import sys

try:
    from lossmix_det.commands.evaluate import main
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed for {sys.executable}; install this package with pip install -e .")

if __name__ == "__main__":
    sys.exit(main())
