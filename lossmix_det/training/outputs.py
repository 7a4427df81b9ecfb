"""What a finished run leaves: scores, detections, exports, pictures, tables."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lossmix_det.config import Config
from lossmix_det.data.records import ImageSet
from lossmix_det.engines.export import export_model
from lossmix_det.errors import first_line
from lossmix_det.evaluation import print_tables, write_detections, write_results
from lossmix_det.evaluation.scores import Detections, metric_set, report_problems
from lossmix_det.report.run_folder import Row, RunFolder, is_detection
from lossmix_det.training.state import RunState
from lossmix_det.training.streams import Streams

log = logging.getLogger(__name__)

NOISE = 0.5  # points of AP50 that say nothing
RESULTS = ("results.json", "results.csv")
BURNED_IN = "burn-in"  # the teacher as burn-in ended, in tables and files


def publish(
    state: RunState, streams: Streams, results: dict[str, Any], detections: Detections, console: Console
) -> None:
    """Write and print everything; on the first process.

    Args:
        state: of the run as it ended.
        streams: its data sets.
        results: scores by model and test set.
        detections: of the reported model.
        console: where tables go.
    """
    config = state.config
    folder = Path(config.output_dir)
    results = ({BURNED_IN: state.burned_in} if state.burned_in else {}) | results
    print_tables(results, console)  # first: the disk may be full
    write_detections(detections, folder)
    for name, model in state.models().items():
        export_model(model, config, state.classes, folder / "export" / f"{name}.pth")
    write_results(results, folder)  # after the exports: with these a run counts as ended
    report_problems(streams.sets, state.unreadable, folder)
    warn_if_worse(results, folder)
    _draw(state, streams, detections, console)
    if state.skipped_steps:
        log.warning(
            "%d of %d steps were skipped because of a loss that was not finite", state.skipped_steps, state.step
        )
    page = f", and {folder / 'report.html'} shows them" if config.train.report else ""
    console.print(Text(f"results, detections, checkpoints and exports are in {folder}{page}"), soft_wrap=True)


def set_results_aside(folder: Path) -> None:
    """Rename the results of a run that had ended and now trains on, so that they are not taken for its final ones.

    Args:
        folder: of the run; its tables still say at which step it had ended.
    """
    step = RunFolder(folder).step
    for name in RESULTS:
        path = folder / name
        if path.is_file():
            path.replace(path.with_name(f"{path.stem}.at_{step}{path.suffix}"))


def warn_if_worse(results: dict[str, Any], folder: Path) -> None:
    """Say that adaptation lowered AP50 on the last test set, and what its pseudo-labels were like, if that is known.

    Args:
        results: scores by model and test set; without a row of burn-in there is nothing to compare with.
        folder: of the run.
    """
    burned_in, reported = results.get(BURNED_IN, {}), next(reversed(results.values()), {})
    both = [name for name in reported if name in burned_in]  # a run may go on with other test sets
    if not both:
        return
    name = both[-1]
    before, after = (of[name]["AP50"] for of in (burned_in, reported))
    if not before - after > NOISE:  # without objects a score is nan
        return
    log.warning(
        "adaptation lowered AP50 on %s from %.1f to %.1f, so %s is the better detector%s",
        name,
        before,
        after,
        folder / "checkpoints" / "burned_in.pt",
        _of_pseudo_labels(RunFolder(folder).metrics),
    )


def _of_pseudo_labels(metrics: list[Row]) -> str:
    """How good they were in the end, and what to write, where the target has labels to measure them by."""
    kinds = ("pseudo/precision", "pseudo/recall")
    measured = [
        values for row in metrics if not any(map(math.isnan, values := [row.get(kind, math.nan) for kind in kinds]))
    ]
    if not measured:
        return "; look at its pseudo-labels: raise pseudo_labels.score if they are wrong, lower it if they are few"
    precision, recall = measured[-1]
    change = "lower" if precision > recall else "raise"
    return f"; precision of the pseudo-labels was {precision:.0%}, recall {recall:.0%}: {change} pseudo_labels.score"


def burned_in_folder(folder: Path) -> Path:
    """Where a run keeps the detections of the teacher as burn-in ended."""
    return folder / "burn_in"


def warn_of_target_labels(config: Config, streams: Streams) -> None:
    """Say that the best checkpoint is chosen by labels that adaptation is not to know, where it is."""
    image_set = metric_set(config.train.best_metric, streams.test_sets)
    if not streams.target_sets or image_set is None or not config.train.eval_every:
        return
    if _folders([image_set]) & _folders(streams.target_sets):
        log.warning(
            "%s by labels of the target (%s in %s): report the last checkpoint%s, or name a test set of the source in "
            "train.best_metric",
            "best.pt and the last step are chosen" if config.train.patience else "best.pt is chosen",
            config.train.best_metric.rpartition("/")[2],
            image_set.name,
            " of a run with train.patience=0" if config.train.patience else "",
        )


def _folders(sets: list[ImageSet]) -> set[Path]:
    return {record.path.parent for image_set in sets for record in image_set.records}


def _draw(state: RunState, streams: Streams, detections: Detections, console: Console) -> None:
    """Detections before and after adaptation, on the last test set."""
    if not streams.test_sets:
        return
    folder, image_set = Path(state.config.output_dir), streams.test_sets[-1]
    before = burned_in_folder(folder) / f"detections_{image_set.name}.json"
    earlier = _read_detections(before) if before.is_file() else None
    if earlier is None:
        return
    from lossmix_det.evaluation.drawing import draw_before_after  # slow to import, and only needed here

    path = folder / "before_after.png"
    sound = image_set.without({image_set.file_name(problem.path) for problem in state.unreadable})
    draw_before_after(sound, earlier, detections[image_set.name], path, high_bit_depth=state.config.data.high_bit_depth)
    console.print(Text(f"detections before and after adaptation: {path}"), soft_wrap=True)


def _read_detections(path: Path) -> list[dict[str, Any]] | None:
    """What `write_detections` wrote; None, with a word, where somebody else has written there since."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(rows, list) and all(map(is_detection, rows)):
            return rows
        reason = "no detections"
    except (OSError, ValueError, RecursionError) as error:
        reason = first_line(error)
    log.warning("%s cannot be read (%s), so before_after.png is not drawn", path, reason)
    return None
