#!/usr/bin/env python
"""Read every image and annotation before any training, and report what is in them.

python tools/check_dataset.py configs/my.yaml                      # the data sets of a configuration
python tools/check_dataset.py photos/ drawings/                    # folders: a source, and a target beside it
python tools/check_dataset.py photos/ --write-clean photos_clean/  # what can be used, in a new folder
"""

import sys

try:
    from lossmix_det.commands.check_dataset import main
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed for {sys.executable}; install this package with pip install -e .")

if __name__ == "__main__":
    sys.exit(main())
