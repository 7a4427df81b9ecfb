"""Writing a model so that plain torchvision, or plain Detectron2, loads it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lossmix_det.config import Config
from lossmix_det.engines import Detector
from lossmix_det.files import save_tensors, write_atomically


def export_model(detector: Detector, config: Config, classes: list[str], path: Path) -> None:
    """Write ``<name>.pth`` and ``<name>.json`` saying what it is of.

    For torchvision a bare state dict; class k of ``classes`` is its label k + 1, label 0 background. For Detectron2 the
    state dict under ``model``, as its checkpointer expects, and its whole configuration as ``<name>.yaml``; class k is
    its class k.
    """
    exported = detector.exported().items()
    state = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in exported}
    augment, own = config.data.augment, config.model
    sizes = {"min_size": augment.test_size or augment.min_sizes[-1], "max_size": augment.max_size}
    if own.engine == "detectron2":
        save_tensors({"model": state}, path)
        model = {"detectron2_config": own.detectron2_config, "detectron2_options": own.detectron2_options}
        model |= {"num_classes": len(classes)}
        cfg = detector.cfg.clone()
        cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cuda"
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = sizes.values()
        write_atomically(path.with_suffix(".yaml"), cfg.dump())
    else:
        save_tensors(state, path)
        model = {"architecture": own.architecture, "num_classes": len(classes) + 1}
    content = {
        "engine": own.engine,
        **model,
        "norm": detector.norm,
        "classes": classes,
        **sizes,
        "box_score_thresh": config.model.score_threshold,
        "box_nms_thresh": config.model.nms_threshold,
        "box_detections_per_img": config.model.detections_per_image,
    }
    write_atomically(path.with_suffix(".json"), json.dumps(content, indent=2) + "\n")
