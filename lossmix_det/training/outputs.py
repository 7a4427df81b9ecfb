"""What a finished run leaves: scores, detections, exports, pictures, tables."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossmix_det.engines.export import export_model
from lossmix_det.evaluation import print_tables, write_results
from lossmix_det.evaluation.scores import report_problems
from lossmix_det.files import write_atomically

if TYPE_CHECKING:
    from lossmix_det.training.trainer import Trainer

log = logging.getLogger(__name__)

BURNED_IN = "burn-in"  # the student as burn-in ended, in tables and files
Found = dict[str, list[dict[str, Any]]]


def publish(run: Trainer) -> None:
    """Write and print everything; on the first process."""
    results = ({BURNED_IN: run.burned_in} if run.burned_in else {}) | run.results
    write_results(results, run.folder)
    write_detections(run.detections, run.folder)
    for name, model in run.models().items():
        export_model(model, run.config, run.classes, run.folder / "export" / f"{name}.pth")
    report_problems(run.streams.sets, run.streams.unreadable, run.folder)
    print_tables(results, run.console)
    _draw(run)
    if run.skipped_steps:
        log.warning("%d of %d steps were skipped because of a loss that was not finite", run.skipped_steps, run.step)
    run.console.print(f"results, detections, checkpoints and exports are in {run.folder}", soft_wrap=True)


def write_detections(found: Found, folder: Path) -> None:
    for name, rows in found.items():
        write_atomically(folder / f"detections_{name}.json", json.dumps(rows))


def burned_in_folder(run: Trainer) -> Path:
    """Where the detections of the student are kept as burn-in ended."""
    return run.folder / "burn_in"


def _draw(run: Trainer) -> None:
    """Detections before and after adaptation, on the last test set."""
    if not run.streams.test_sets:
        return
    image_set = run.streams.test_sets[-1]
    before = burned_in_folder(run) / f"detections_{image_set.name}.json"
    if not before.is_file():
        return
    from lossmix_det.evaluation.drawing import draw_before_after  # slow to import, and only needed here

    path = run.folder / "before_after.png"
    bad = {problem.path for problem in run.streams.unreadable}
    sound = replace(image_set, records=[record for record in image_set.records if record.path not in bad])
    found = json.loads(before.read_text()), run.detections[image_set.name]
    draw_before_after(sound, *found, path, high_bit_depth=run.config.data.high_bit_depth)
    run.console.print(f"detections before and after adaptation: {path}", soft_wrap=True)
