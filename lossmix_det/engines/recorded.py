"""What a file of weights is of: its model and classes, and how it wants images, as far as anything recorded it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lossmix_det.config import TIMM_PREFIX, Config, ModelConfig, as_dict
from lossmix_det.engines.backbones import BACKBONES
from lossmix_det.engines.classes import ANCHORS, CLASS_HEADS, labels_of
from lossmix_det.engines.timm_body import NORMS as NORMS_OF_TIMM
from lossmix_det.engines.timm_fpn import AUTO
from lossmix_det.engines.weights import COUNTERS, as_named_in, read_weights
from lossmix_det.errors import UserError
from lossmix_det.files import Damaged, read_checkpoint

Table = dict[str, Any]

ABOUT = ("high_bit_depth", "exif")  # of a `Reading`, as they stand in the JSON beside an export
THRESHOLDS = {  # settings of the model, by their names in that JSON
    "score_threshold": "box_score_thresh",
    "nms_threshold": "box_nms_thresh",
    "detections_per_image": "box_detections_per_img",
}


@dataclass(frozen=True)
class Reading:
    """How images are read and resized for a detector; the defaults are torchvision's.

    Args:
        short_side: in pixels.
        max_size: of the longer side, in pixels.
        high_bit_depth: ``data.high_bit_depth``.
        exif: turn images by their EXIF orientation.
    """

    short_side: int = 800
    max_size: int = 1333
    high_bit_depth: str = "full"
    exif: bool = True


@dataclass(frozen=True)
class Recorded:
    """What is known of a file of weights.

    Args:
        model: its settings; ``weights`` is the file.
        num_classes: K, without background.
        classes: their names in order; None where nothing tells them.
        reading: how it wants images.
        imports: modules that its run imported (``data.imports``), which may have added parts of the model.
    """

    model: ModelConfig
    num_classes: int
    classes: list[str] | None
    reading: Reading
    imports: tuple[str, ...] = ()


def recorded_of(source: str) -> Recorded:
    """What is recorded of weights, in the file itself or beside it; else what their names and shapes tell.

    Args:
        source: path of a checkpoint of ours, an export or a state dict of torchvision; or its name of weights.

    Raises:
        UserError: there is no such file, it cannot be read, or it is of no known network.
    """
    path = Path(source)
    about = _read_json(path.with_suffix(".json"))
    if about is not None and path.is_file():
        return _of_export(path, about)
    try:
        content = read_checkpoint(path)
    except Damaged:
        raise
    except UserError:  # none of ours
        return _of_state(source, read_weights(source))
    return _of_checkpoint(path, content)


def reading_of(settings: Table) -> Reading:
    """How a run evaluates images.

    Args:
        settings: of the run, as plain dictionaries.
    """
    data = settings.get("data", {})
    augment = data.get("augment", {})
    datasets = settings.get("datasets", {})
    declared = [datasets[name] for name in (data.get("test") or data.get("train") or []) if name in datasets]
    ignores = bool(declared) and all(entry.get("exif") == "ignore" for entry in declared)
    short_side = augment.get("test_size") or augment.get("min_sizes", [Reading.short_side])[-1]
    return Reading(
        short_side, augment.get("max_size", Reading.max_size), data.get("high_bit_depth", "full"), not ignores
    )


def recorded_reading(config: Config) -> Table:
    """What is written beside an export so that its images are read as the run read them."""
    reading = reading_of(as_dict(config))
    sizes = {"min_size": reading.short_side, "max_size": reading.max_size}
    imports = {"imports": config.data.imports} if config.data.imports else {}
    return sizes | {key: getattr(reading, key) for key in ABOUT} | imports


# --------------------------------------------------------------------------------------------------- our own files


def _of_checkpoint(path: Path, content: Table) -> Recorded:
    settings, classes = content.get("config"), content.get("classes")
    if not isinstance(settings, dict) or not isinstance(classes, list):
        raise UserError(f"{path}: says neither its classes nor its settings; give an export of that run instead")
    model = _moved(_known(settings.get("model", {})), path)
    imports = settings.get("data", {}).get("imports") or ()
    return Recorded(replace(model, weights=str(path)), len(classes), classes, reading_of(settings), tuple(imports))


def _moved(model: ModelConfig, path: Path) -> ModelConfig:
    """The settings with the Detectron2 file that the run has exported, where the one it was trained with is gone."""
    exported = path.parent.parent / "export" / "student.yaml"
    if not model.detectron2_config or Path(model.detectron2_config).is_file() or not exported.is_file():
        return model
    return replace(model, detectron2_config=str(exported), detectron2_options=[])


def _read_json(path: Path) -> Table | None:
    """The JSON of an export; None where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and "engine" in content else None


def _of_export(path: Path, about: Table) -> Recorded:
    classes = about.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{path.with_suffix('.json')}: names no classes; export the model again")
    whole = path.with_suffix(".yaml")
    settings = {name: about[key] for name, key in THRESHOLDS.items() if key in about}
    if whole.is_file():  # Detectron2's whole configuration, which needs none of the files that it was made of
        settings |= {"detectron2_config": str(whole), "detectron2_options": []}
    if about.get("norm") not in NORMS_OF_TIMM and str(about.get("architecture", "")).startswith(TIMM_PREFIX):
        settings["norm"] = AUTO  # told is what the network has, which is no choice
    model = replace(_known(about | settings), weights=str(path))
    defaults = Reading()
    more = {key: about.get(key, getattr(defaults, key)) for key in ABOUT}
    sizes = about.get("min_size", defaults.short_side), about.get("max_size", defaults.max_size)
    return Recorded(model, len(classes), classes, Reading(*sizes, **more), tuple(about.get("imports", ())))


def _known(table: Table) -> ModelConfig:
    """The settings of this version among those that another may have written."""
    names = {spec.name for spec in fields(ModelConfig)}
    return ModelConfig(**{key: value for key, value in table.items() if key in names})


# ------------------------------------------------------------------------------------------- torchvision's networks


def _of_state(source: str, state: dict[str, Tensor]) -> Recorded:
    """What names and shapes tell.

    Raises:
        UserError: no network of torchvision has these.
    """
    detector = next((name for end, name in TELLING.items() if any(key.endswith(end) for key in state)), None)
    if detector is None or any("proposal_generator." in key for key in state):
        raise UserError(
            f"{source}: is no detector of torchvision, and no checkpoint of lossmix_det; for an export of Detectron2 "
            "keep the .json and the .yaml beside it that were written with it"
        )
    outputs = next(len(value) for key, value in state.items() if key.endswith(CLASS_HEADS))
    num_classes = outputs // ANCHORS.get(detector, 1) - 1
    for model in _candidates(detector):
        if _fits(model, num_classes, state):
            classes = labels_of(source, detector, state)
            return Recorded(replace(model, weights=source), num_classes, classes, Reading())
    raise UserError(
        f"{source}: is a {detector} of a network that is not known here; give a checkpoint or an export, which name it"
    )


# Names that only one of the detectors has, from the first that is found.
TELLING = {
    "roi_heads.box_predictor.cls_score.bias": "faster_rcnn",
    "head.regression_head.bbox_ctrness.weight": "fcos",
    "head.classification_head.cls_logits.bias": "retinanet",
}


def _candidates(detector: str) -> Iterator[ModelConfig]:
    from lossmix_det.engines.torchvision.networks import ZOO

    whole = [name for name in ZOO if name.startswith(detector.replace("_", ""))]
    return (ModelConfig(detector=detector, architecture=name) for name in (*whole, *BACKBONES))


def _fits(model: ModelConfig, num_classes: int, state: dict[str, Tensor]) -> bool:
    """Whether the network has all tensors of a state, and no other."""
    from lossmix_det.engines.torchvision import DETECTORS

    norm = "frozen" if any(name.endswith("running_mean") for name in state) else "group"
    if norm == "group" and model.architecture not in BACKBONES:  # torchvision's own have no variant with it
        return False
    with torch.device("meta"):  # names and shapes alone
        own = DETECTORS[model.detector](replace(model, norm=norm), num_classes).exported()
    named = as_named_in(own, state)
    return _shapes(own) == _shapes(named)


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items() if not name.endswith(COUNTERS)}
