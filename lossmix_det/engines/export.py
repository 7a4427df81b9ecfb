"""Writing a model so that plain torchvision, or plain Detectron2, loads it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lossmix_det.config import Config
from lossmix_det.engines.contract import Detector
from lossmix_det.engines.recorded import recorded_reading
from lossmix_det.files import save_tensors, write_atomically


def export_model(detector: Detector, config: Config, classes: list[str], path: Path) -> None:
    """Write ``<name>.pth``, ``<name>.json`` saying what it is of, and whatever else its library needs beside it.

    For torchvision a bare state dict; class k of ``classes`` is its label k + 1, label 0 background. For Detectron2 the
    state dict under ``model``, as its checkpointer expects, and its whole configuration as ``<name>.yaml``; class k is
    its class k.
    """
    exported = detector.exported().items()
    state = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in exported}
    model, reading = config.model, recorded_reading(config)
    sizes = {key: reading[key] for key in ("min_size", "max_size")}
    export = detector.export(state, model, sizes)
    save_tensors(export.content, path)
    for suffix, text in export.files.items():
        write_atomically(path.with_suffix(suffix), text)
    about = {
        "engine": model.engine,
        **export.about,
        "norm": detector.norm,
        "classes": classes,
        **reading,
        "box_score_thresh": model.score_threshold,
        "box_nms_thresh": model.nms_threshold,
        "box_detections_per_img": model.detections_per_image,
    }
    write_atomically(path.with_suffix(".json"), json.dumps(about, indent=2) + "\n")
