#!/usr/bin/env python
"""Write a configuration that trains on your folders as it is.

python tools/init_config.py photos/                                     # labelled images
python tools/init_config.py photos/ drawings/ --target-test drawn_test/ # and images to adapt to
python tools/init_config.py videos:bright_train videos:dark_train       # splits of one folder
"""

import sys

try:
    from lossmix_det.commands.init_config import main
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed for {sys.executable}; install this package with pip install -e .")

if __name__ == "__main__":
    sys.exit(main())
