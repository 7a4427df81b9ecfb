"""Evaluating the models of a run over all processes, and reporting what was wrong with the data."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed
from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import Progress

from lossmix_det.config import Config
from lossmix_det.data.loaders import evaluation_loader
from lossmix_det.data.records import ImageSet, Unreadable
from lossmix_det.engines import Detector
from lossmix_det.errors import UserError
from lossmix_det.evaluation import detect_all, evaluate
from lossmix_det.evaluation.tables import SUMMARY
from lossmix_det.files import write_atomically

log = logging.getLogger(__name__)


def score_models(
    models: dict[str, Detector], test_sets: list[ImageSet], config: Config, fabric: Fabric, console: Console
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]], set[Unreadable]]:
    """Detect and score.

    Returns:
        Scores by model and test set; detections of the last model by test set; files that could not be read. Sets
        without truths have detections but no scores.

    Raises:
        UserError: a file cannot be read and ``data.on_error`` is ``raise``.
    """
    results: dict[str, dict[str, Any]] = {name: {} for name in models}
    detections: dict[str, list[dict[str, Any]]] = {}
    problems: set[Unreadable] = set()
    _share_buffers(models, fabric)
    shown = fabric.is_global_zero and console.is_terminal
    with Progress(console=console, disable=not shown, transient=True) as progress:
        for name, model in models.items():
            for image_set in test_sets:
                loader = evaluation_loader(image_set, config.data, rank=fabric.global_rank, world=fabric.world_size)
                task = progress.add_task(f"{name} on {image_set.name}", total=len(image_set))
                found, unreadable = detect_all(
                    model, image_set, loader, fabric.device, lambda count, task=task: progress.advance(task, count)
                )
                found, unreadable = _gather(found, fabric), dict(_gather(list(unreadable.items()), fabric))
                if unreadable and config.data.on_error == "raise":
                    raise UserError(
                        f"{min(map(str, unreadable.values()))}; correct it, or set data.on_error=skip to leave it out"
                    )
                problems.update(unreadable.values())
                detections[image_set.name] = found
                if image_set.labelled:
                    results[name][image_set.name] = evaluate(_without(image_set, set(unreadable)), found)
    return results, detections, problems


def check_metric(metric: str, test_sets: list[ImageSet]) -> None:
    """Refuse a metric that no evaluation will give.

    Args:
        metric: ``<metric>`` of the last test set, or ``<test set>/<metric>``.
        test_sets: those without truths have no scores.

    Raises:
        UserError: with what there is instead.
    """
    name, _, short = metric.rpartition("/")
    scored = [image_set.name for image_set in test_sets if image_set.labelled]
    if short not in SUMMARY or (name and name not in scored):
        raise UserError(
            f"train.best_metric={metric!r} is not among the scores; test sets: {', '.join(scored)}; "
            f"metrics: {', '.join(SUMMARY)}"
        )


def metric_of(metric: str, results: dict[str, dict[str, Any]]) -> float:
    """That metric of the model that is reported, the last one; nan where nothing was scored."""
    name, _, short = metric.rpartition("/")
    sets = list(results.values())[-1]
    return sets[name or next(reversed(sets))][short] if sets else math.nan


def report_problems(sets: list[ImageSet], unreadable: set[Unreadable], folder: Path) -> None:
    """Count and list in ``data_problems.txt`` what was left out, and what is worth knowing."""
    skipped = [line for image_set in sets for line in image_set.problems.skipped] + sorted(map(str, unreadable))
    notes = [line for image_set in sets for line in image_set.problems.notes]
    skipped, notes = list(dict.fromkeys(skipped)), list(dict.fromkeys(notes))
    path = folder / "data_problems.txt"
    if not skipped and not notes:
        path.unlink(missing_ok=True)
        return
    lines = [f"skipped ({len(skipped)})", *skipped, "", f"noted ({len(notes)})", *notes]
    write_atomically(path, "\n".join(lines) + "\n")
    log.warning("data: %d images or boxes skipped, %d notes; listed in %s", len(skipped), len(notes), path)


def _share_buffers(models: dict[str, Detector], fabric: Fabric) -> None:
    """Give every process the running statistics of the first: each has seen other images."""
    if fabric.world_size > 1:
        for model in models.values():
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)


def _without(image_set: ImageSet, left_out: set[int]) -> ImageSet:
    """The set without some images: those that could not be read were not looked at, so they do not count."""
    records = [record for index, record in enumerate(image_set.records) if index not in left_out]
    return replace(image_set, records=records)


def _gather(values: list[Any], fabric: Fabric) -> list[Any]:
    """The lists of all processes as one, in the order of the processes."""
    if fabric.world_size == 1:
        return values
    parts: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(parts, values)
    return [value for part in parts for value in part]
