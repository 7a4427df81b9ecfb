"""Evaluating the models of a run over all processes, and reporting what was wrong with the data."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed
from lightning_fabric import Fabric
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lossmix_det.config import Config, DataConfig
from lossmix_det.data.loaders import evaluation_loader
from lossmix_det.data.records import ImageSet, Unreadable
from lossmix_det.engines import Detector
from lossmix_det.errors import UserError
from lossmix_det.evaluation.detect import METRICS, detect_all, evaluate
from lossmix_det.evaluation.tables import Results
from lossmix_det.files import write_atomically

log = logging.getLogger(__name__)


Detections = dict[str, list[dict[str, Any]]]  # COCO results by test set


class Scored(NamedTuple):
    """What evaluating some models gave.

    Args:
        results: scores by model and test set; test sets without truths have none.
        detections: of the last model, as COCO results by test set.
        unreadable: files that could not be read.
    """

    results: Results
    detections: Detections
    unreadable: set[Unreadable]


def score_models(
    models: dict[str, Detector], test_sets: list[ImageSet], config: Config, fabric: Fabric, console: Console
) -> Scored:
    """Detect with every model on every test set, over all processes, and score the detections.

    Args:
        models: by the name that their scores get.
        test_sets: with or without truths.
        config: of the run; ``data`` says how images are loaded, and what happens to unreadable ones.
        fabric: launched.
        console: shows progress.

    Raises:
        UserError: a file cannot be read and ``data.on_error`` is ``raise``.
    """
    scored = Scored({name: {} for name in models}, {}, set())
    for model in models.values():
        share_statistics(model, fabric)
    shown = fabric.is_global_zero and console.is_terminal
    with Progress(console=console, disable=not shown, transient=True) as progress:
        for name, model in models.items():
            for image_set in test_sets:
                task = progress.add_task(escape(f"{name} on {image_set.name}"), total=len(image_set))
                advance = partial(progress.advance, task)
                detections, unreadable = _detect(model, image_set, config.data, fabric, advance)
                scored.unreadable.update(unreadable.values())
                scored.detections[image_set.name] = detections
                if image_set.labelled:
                    scored.results[name][image_set.name] = _score(
                        image_set, detections, list(unreadable.values()), config.model.detections_per_image
                    )
    return scored


def _detect(
    model: Detector, image_set: ImageSet, config: DataConfig, fabric: Fabric, advance: Callable[[int], None]
) -> tuple[list[dict[str, Any]], dict[int, Unreadable]]:
    """Detections of all processes, and by index the images that could not be read."""
    loader = evaluation_loader(image_set, config, rank=fabric.global_rank, world=fabric.world_size)
    detections, unreadable = detect_all(model, image_set, loader, fabric.device, advance)
    detections, unreadable = _gather(detections, fabric), dict(_gather(list(unreadable.items()), fabric))
    if unreadable:
        ON_ERROR[config.on_error](min(unreadable.values(), key=str))
    return detections, unreadable


def _refuse(problem: Unreadable) -> None:
    raise UserError(f"{problem}; correct it, or set data.on_error=skip to leave it out")


def _leave_out(problem: Unreadable) -> None:
    """The image is reported when everything has been scored."""


ON_ERROR: dict[str, Callable[[Unreadable], None]] = {"raise": _refuse, "skip": _leave_out}


def check_metric(metric: str, test_sets: list[ImageSet]) -> None:
    """Refuse a metric that no evaluation will compute.

    Args:
        metric: ``<metric>`` of the last test set, or ``<test set>/<metric>``.
        test_sets: those without truths have no scores.

    Raises:
        UserError: naming the metrics and test sets that there are.
    """
    name, _, short = metric.rpartition("/")
    scored = [image_set.name for image_set in test_sets if image_set.labelled]
    if short not in METRICS or (name and name not in scored):
        raise UserError(
            f"train.best_metric={metric!r} is not among the scores; test sets: {', '.join(scored)}; "
            f"metrics: {', '.join(METRICS)}"
        )


def metric_set(metric: str, test_sets: list[ImageSet]) -> ImageSet | None:
    """The test set whose labels give that metric; None if none is labelled."""
    name = metric.rpartition("/")[0]
    scored = [image_set for image_set in test_sets if image_set.labelled and name in ("", image_set.name)]
    return scored[-1] if scored else None


def metric_of(metric: str, results: Results) -> float:
    """A metric (as in `check_metric`) of the reported model, which is the last one; nan where nothing was scored."""
    name, _, short = metric.rpartition("/")
    sets = list(results.values())[-1]
    return sets[name or next(reversed(sets))][short] if sets else math.nan


def report_problems(sets: list[ImageSet], unreadable: set[Unreadable], folder: Path) -> None:
    """Log how many faults the data have, and list them in ``data_problems.txt``; without faults there is no such file.

    Args:
        sets: data sets with what was found on reading them.
        unreadable: images that could not be loaded later.
        folder: of the run.
    """
    problems = [image_set.problems for image_set in sets]
    skipped = [line for each in problems for line in each.skipped] + sorted(map(str, unreadable))
    left_out = [line for each in problems for line in each.left_out]
    notes = [line for each in problems for line in each.notes]
    sections = {"skipped": skipped, "left out": left_out, "noted": notes}
    sections = {title: list(dict.fromkeys(lines)) for title, lines in sections.items()}
    path = folder / "data_problems.txt"
    if not any(sections.values()):
        path.unlink(missing_ok=True)
        return
    text = "\n\n".join("\n".join([f"{title} ({len(lines)})", *lines]) for title, lines in sections.items())
    write_atomically(path, f"{text}\n".encode("utf-8", "backslashreplace"))  # names of files may be of any bytes
    counts = (len(lines) for lines in sections.values())
    first = next(lines[0] for lines in (skipped, notes, left_out) if lines)
    log.warning(
        "data: %d faulty images or boxes skipped, %d files, images or lines left out, %d notes; "
        "listed in %s; the first: %s",
        *counts,
        path,
        first.encode("utf-8", "backslashreplace").decode(),
    )


def share_statistics(model: nn.Module, fabric: Fabric) -> None:
    """Give every process the running statistics that the first has in its BatchNorm; each has seen other images.

    DDP does so for the student when it learns, which is too late for a clean pass before that, and for the teacher that
    follows it. The first process alone saves, so that what the others have seen would be lost on resuming.
    """
    if fabric.world_size > 1:
        for part in model.modules():
            if isinstance(part, _BatchNorm):
                for buffer in part.buffers():
                    torch.distributed.broadcast(buffer, src=0)


def _score(
    image_set: ImageSet, detections: list[dict[str, Any]], unreadable: list[Unreadable], limit: int
) -> dict[str, Any]:
    """As `evaluate`, without the images that could not be read, which do not count and are listed."""
    if not unreadable:
        return evaluate(image_set, detections, limit)
    names = sorted(image_set.file_name(problem.path) for problem in unreadable)
    return evaluate(image_set.without(names), detections, limit) | {"unreadable": names}


def _gather(values: list[Any], fabric: Fabric) -> list[Any]:
    """The lists of all processes as one, in the order of the processes."""
    if fabric.world_size == 1:
        return values
    parts: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(parts, values)
    return [value for part in parts for value in part]
