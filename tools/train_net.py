#!/usr/bin/env python
"""Train, resume or evaluate a detector.

python tools/train_net.py                                        # the quick run on the generated `shapes`
python tools/train_net.py --config-file configs/my.yaml --num-gpus 8 train.steps=18000
python tools/train_net.py --config-file configs/my.yaml --eval-only      # scores the last checkpoint
python tools/train_net.py --config-file configs/my.yaml --eval-only model.weights=runs/my/checkpoints/best.pt
"""

import sys

try:
    from lossmix_det.commands.train import main
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed for {sys.executable}; install this package with pip install -e .")

if __name__ == "__main__":
    sys.exit(main())
