#!/usr/bin/env python
"""Write a detector as an ONNX file, with a card that says what it is.

python tools/export.py runs/quick --output quick.onnx
"""

import sys

try:
    from lossmix_det.commands.export import main
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed for {sys.executable}; install this package with pip install -e .")

if __name__ == "__main__":
    sys.exit(main())
