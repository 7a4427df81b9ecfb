"""Writing a model so that plain torchvision loads it."""

from __future__ import annotations

import json
from pathlib import Path

from lossmix_det.checkpoint import save_tensors, write_atomically
from lossmix_det.config import Config
from lossmix_det.engines import Detector


def export_model(detector: Detector, config: Config, classes: list[str], path: Path) -> None:
    """Write ``<name>.pth``, a bare state dict, and ``<name>.json`` saying what it is of.

    Class k of ``classes`` is torchvision's label k + 1; label 0 is background.
    """
    save_tensors({name: value.detach().cpu().clone() for name, value in detector.exported().items()}, path)
    augment = config.data.augment
    content = {
        "architecture": config.model.architecture,
        "norm": detector.norm,
        "num_classes": len(classes) + 1,
        "classes": classes,
        "min_size": augment.test_size or augment.min_sizes[-1],
        "max_size": augment.max_size,
        "box_score_thresh": config.model.score_threshold,
        "box_nms_thresh": config.model.nms_threshold,
        "box_detections_per_img": config.model.detections_per_image,
    }
    write_atomically(path.with_suffix(".json"), json.dumps(content, indent=2) + "\n")
