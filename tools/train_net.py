#!/usr/bin/env python
"""Train, resume or evaluate a detector.

python tools/train_net.py                                        # the quick run on the generated `shapes`
python tools/train_net.py --config-file configs/my.yaml --num-gpus 8 train.steps=18000
python tools/train_net.py --config-file configs/my.yaml --eval-only model.weights=runs/my/checkpoints/best.pt
"""

import sys

from lossmix_det.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
