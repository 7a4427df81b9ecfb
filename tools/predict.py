#!/usr/bin/env python
"""Detect on images and videos.

python tools/predict.py runs/my photos/                                   # pictures and COCO JSON in predictions/
python tools/predict.py runs/my/export/teacher.pth 'shots/*.jpg' clip.mp4 --output found --write drawn csv yolo
"""

import sys

try:
    from lossmix_det.commands.predict import main
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed for {sys.executable}; install this package with pip install -e .")

if __name__ == "__main__":
    sys.exit(main())
