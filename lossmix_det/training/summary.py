"""What a run opens with: its data, its model and its steps in a few lines."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from torch import nn

from lossmix_det.config import Config, ModelConfig
from lossmix_det.data.records import ImageSet

log = logging.getLogger(__name__)

NOTES = {"target": " (to adapt to; boxes, if any, only measure the pseudo-labels)"}


def log_summary(config: Config, sets: dict[str, list[ImageSet]], detector: nn.Module, device: str) -> None:
    """Log what `summary` gives, a line each."""
    for name, text in summary(config, sets, detector, device):
        log.info("%-8s %s", name, text)


def warn_of_no_partners(config: Config, processes: int) -> None:
    """Say that nothing will be mixed, where every image of a step is alone and so has no partner.

    Args:
        config: of the run.
        processes: that share the images of a step.
    """
    alone = config.data.batch_size == processes and not config.data.target
    if alone and config.mixing.probability:
        log.warning(
            "nothing will be mixed, because a step has one image%s, which has no partner: raise data.batch_size, or "
            "set mixing.probability=0",
            "" if processes == 1 else " for each process",
        )


def warn_of_known_test_images(train: list[ImageSet], test: list[ImageSet]) -> None:
    """Say which test sets hold images that are learned with their labels, and so flatter the score."""
    learned = _files(train)
    for image_set in test:
        known = len(_files([image_set]) & learned)
        if known:
            log.warning(
                "%d of the %d images of test set %s are trained on with their labels: its score says how well they "
                "were learned, not what the detector finds in new images; test on others",
                known,
                len(image_set.records),
                image_set.name,
            )


def _files(sets: list[ImageSet]) -> set[Path]:
    """The images, whatever link leads to their folder."""
    paths = [record.path for image_set in sets for record in image_set.records]
    folders = {folder: folder.resolve() for folder in {path.parent for path in paths}}
    return {folders[path.parent] / path.name for path in paths}


def summary(config: Config, sets: dict[str, list[ImageSet]], detector: nn.Module, device: str) -> list[tuple[str, str]]:
    """Pairs of a title and what there is to say under it.

    Args:
        config: of the run.
        sets: data sets by what they are for: train, target, test.
        detector: with its weights loaded.
        device: that it runs on.
    """
    classes = [name for image_sets in sets.values() for one in image_sets for name in one.classes]
    classes = list(dict.fromkeys(classes))
    return [
        *((use, _data(one) + NOTES.get(use, "")) for use, image_sets in sets.items() for one in image_sets),
        ("classes", f"{len(classes)}: {', '.join(classes)}"),
        ("model", f"{_model(config.model)}, {_parameters(detector)}"),
        ("weights", config.adaptation.burn_in_from or config.model.weights or "random"),
        ("batch", _batch(config)),
        ("loading", _loading(config.data.workers)),
        ("steps", _steps(config)),
        ("device", f"{device}, precision {config.train.precision}, seed {config.train.seed}"),
        ("output", config.output_dir),
    ]


def _data(image_set: ImageSet) -> str:
    text = f"{image_set.name}: {len(image_set)} images"
    if not image_set.labelled:
        return f"{text}, not labelled"
    return f"{text}, {len(image_set.records.boxes)} boxes"


def _model(config: ModelConfig) -> str:
    networks = {"detectron2": config.detectron2_config or "R50-C4, its default"}
    return f"{config.engine} {networks.get(config.engine, f'{config.detector} {config.architecture}')}"


def _parameters(detector: nn.Module) -> str:
    counts = {True: 0, False: 0}
    for parameter in detector.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    return f"{counts[True] / 1e6:.2f} M parameters learn, {counts[False] / 1e6:.2f} M are frozen"


def _batch(config: Config) -> str:
    data, parts = config.data, config.train.accumulate
    text = f"{data.batch_size} source images in {' and '.join(data.views)} view"
    if data.target:
        text += f", {data.target_batch_size or data.batch_size} target images"
    return f"{text} per step" + (f", in {parts} micro-batches" if parts > 1 else "")


def _loading(workers: int) -> str:
    text = f"data.workers={workers} per training process"
    cores = os.cpu_count() or 1
    return text if workers <= cores else f"{text}, more than the {cores} cores; lower data.workers if loading is slow"


def _steps(config: Config) -> str:
    steps, burn_in = config.train.steps, config.adaptation.burn_in_steps
    if not config.data.target:
        return f"{steps}"
    return f"{steps}: {burn_in} of burn-in, {steps - burn_in} of adaptation"
