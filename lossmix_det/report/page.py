"""The page of a run: one HTML file that needs nothing else, or a page of several runs side by side."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lossmix_det.data.records import ImageSet
from lossmix_det.evaluation.detect import METRICS
from lossmix_det.evaluation.tables import TITLES
from lossmix_det.files import write_atomically
from lossmix_det.report.charts import comparison_charts, diagnosis_charts, run_charts
from lossmix_det.report.gallery import gallery, snapshots_gallery
from lossmix_det.report.mixed_batch import mixed_gallery
from lossmix_det.report.run_folder import RunFolder, text_of, unreadable_of
from lossmix_det.report.sections import Cell, Header, Section, Table, render

log = logging.getLogger(__name__)

PAGE = "report.html"
CLASSES_SHOWN = 20  # of a confusion table; the most confused of more


def write_page(
    folder: Path,
    test_sets: Sequence[ImageSet] = (),
    target_sets: Sequence[ImageSet] = (),
    detections: Mapping[str, list[dict[str, Any]]] | None = None,
    *,
    high_bit_depth: str = "full",
    references: Mapping[str, RunFolder] | None = None,
) -> Path:
    """Write ``report.html`` into the folder of a run.

    Args:
        folder: of the run; the page shows what it holds by now.
        test_sets: with their truths, where there are any; without them the page has no pictures of the test sets.
        target_sets: that pseudo-labels were followed on.
        detections: COCO results by test set; absent: those that the run wrote when it ended.
        high_bit_depth: how 16-bit images are read.
        references: other runs that the scores are held to, by what they are: source-only, oracle.

    Returns:
        The path of the page.
    """
    run = RunFolder(folder)
    sections = [
        Section("Scores", SCORES, tables=[scores_table({"": run}, references)]),
        Section("Curves", charts=run_charts(run)),
        Section("Classes", CLASSES, tables=class_tables(run)),
    ]
    for image_set in test_sets:
        found = detections.get(image_set.name) if detections is not None else run.detections(image_set.name)
        if found is not None:
            sections += _of_test_set(image_set.without(unreadable_of(run, image_set.name)), found, high_bit_depth)
    followed = snapshots_gallery(run, target_sets, high_bit_depth)
    sections.append(Section("Pseudo-labels over time", SNAPSHOTS, rows=followed, wide=True))
    sections.append(Section("A mixed batch", MIXED, rows=mixed_gallery(folder)))
    path = folder / PAGE
    details = {"Settings": text_of(run.config_path), "Data problems": run.problems_text}
    write_atomically(path, render(Header(run.name, _status(run), _facts(run)), sections, details))
    return path


def write_comparison(runs: Sequence[RunFolder], path: Path, references: Mapping[str, RunFolder] | None = None) -> None:
    """Write a page of several runs side by side.

    Args:
        runs: whose names differ.
        path: of the page.
        references: as of `write_page`.
    """
    named = {run.name: run for run in runs}
    sections = [
        Section("Scores", SCORES, tables=[scores_table(named, references)]),
        Section("Curves", charts=comparison_charts(named)),
        Section("Classes", CLASSES, tables=[table for run in runs for table in class_tables(run, run.name)]),
    ]
    facts = [(name, f"{run.path}: {_status(run)}") for name, run in named.items()]
    details = {f"Settings of {name}": text_of(run.config_path) for name, run in named.items()}
    write_atomically(path, render(Header(f"{len(runs)} runs", "side by side", facts), sections, details))


SCORES = (
    "Average precision in percent. COCO's AP is the mean over IoU 0.5 to 0.95; AP50 and PASCAL VOC's are at IoU 0.5. "
    "Of its models, a run reports the one in the last row of a test set."
)
CLASSES = "AP50 in percent for each class, by model."
SNAPSHOTS = (
    "What the teacher labelled on a few target images, evaluation by evaluation: the boxes that would be taught."
)
MIXED = (
    "Images that the student was taught in one step, with the boxes of every truth. Weights say how much of the loss "
    "each truth teaches. With a target, truths of annotations are orange and pseudo-labels blue."
)


def scores_table(runs: Mapping[str, RunFolder], references: Mapping[str, RunFolder] | None = None) -> Table:
    """All metrics of all models and test sets.

    Args:
        runs: one (named "") or several.
        references: runs that stand below them, by what they are; only the model that each reports, on the test sets of
            the others.
    """
    several, rows = list(runs) != [""], []
    for name, run in runs.items():
        for model, sets in run.latest_scores().items():
            rows += [([*([name] if several else []), model, test_set], scores) for test_set, scores in sets.items()]
    tested = {names[-1] for names, _ in rows}
    for role, run in (references or {}).items():
        (model, sets), name = run.reported(), f"{role}, {run.name}"
        names = [name, model] if several else [name]
        rows += [([*names, test_set], scores) for test_set, scores in sets.items() if test_set in tested]
    head = [*(["run"] if several else []), "model", "test set", *(TITLES[metric] for metric in METRICS)]
    cells = [(names, [number(scores.get(metric)) for metric in METRICS]) for names, scores in rows]
    return Table("Scores of every model on every test set", head, cells, names=2 + several)


def class_tables(run: RunFolder, prefix: str = "") -> list[Table]:
    """AP50 of each class by model, a table for each test set; none before the run has ended."""
    by_set: dict[str, dict[str, dict[str, Any]]] = {}
    for model, sets in run.results.items():
        for test_set, scores in sets.items():
            by_set.setdefault(test_set, {})[model] = scores.get("classes", {})
    tables = []
    for test_set, models in by_set.items():
        classes = list(dict.fromkeys(name for classes in models.values() for name in classes))
        rows = [
            ([name], [number(of.get(name, {}).get("AP50"), bar=True) for of in models.values()]) for name in classes
        ]
        tables.append(Table(f"{prefix + ', ' if prefix else ''}{test_set}", ["class", *models], rows))
    return tables


def _of_test_set(image_set: ImageSet, found: list[dict[str, Any]], high_bit_depth: str) -> list[Section]:
    """What went right and wrong on one test set; where it has no truths, only pictures."""
    if not image_set.labelled:
        rows = gallery(image_set, found, None, high_bit_depth)
        return [Section(f"Detections on {image_set.name}", rows=rows)]
    from lossmix_det.evaluation.diagnosis import SURE, diagnose

    diagnosis = diagnose(image_set, found)
    text = f"Objects and detections are paired at IoU 0.5; detections that score below {SURE} are left out."
    mistakes = Section(f"Mistakes on {image_set.name}", text, charts=diagnosis_charts(diagnosis))
    mistakes.tables = [confusion_table(diagnosis.confusion, image_set.classes)]
    pictures = Section(f"Pictures of {image_set.name}", PICTURES)
    pictures.rows = gallery(image_set, found, diagnosis, high_bit_depth)
    return [mistakes, pictures]


PICTURES = "Truth in green, detections in orange with their scores. F1 of an image joins its precision and its recall."


def confusion_table(confusion: Any, classes: Sequence[str]) -> Table:
    """Counts of what objects of each class were taken for; a row is shaded by its shares."""
    last = len(classes)
    wrong = confusion.sum(axis=1) - confusion.diagonal()
    shown = sorted(sorted(range(last), key=lambda row: -wrong[row])[:CLASSES_SHOWN])
    more = f" (the {CLASSES_SHOWN} most confused of {last} classes)" if last > CLASSES_SHOWN else ""
    rows = []
    for row in (*shown, last):
        total = max(int(confusion[row].sum()), 1)
        cells = [Cell(str(int(value)) if value else "", int(value) / total) for value in confusion[row, [*shown, last]]]
        rows.append(([classes[row] if row < last else "no object"], cells))
    head = ["object", *(classes[row] for row in shown), "not found"]
    return Table(f"What objects were detected as{more}", head, rows, shaded=True)


def number(value: Any, bar: bool = False) -> Cell:
    """A score in percent, a dash where there is none."""
    if not isinstance(value, int | float) or math.isnan(value):
        return Cell("–")
    return Cell(f"{value:.1f}", min(max(value / 100, 0.0), 1.0) if bar else None)


def _status(run: RunFolder) -> str:
    written = f"written {time.strftime('%Y-%m-%d %H:%M')}"
    if run.results:
        return f"ended after {run.step} steps, {written}"
    return f"step {run.step} of {run.steps}, {written}; still training, or ended before its last step"


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    """What was run, and on what."""
    about = run.about
    versions = about.get("versions") if isinstance(about.get("versions"), dict) else {}
    sets = about.get("datasets") if isinstance(about.get("datasets"), dict) else {}
    uses = {use: run.setting("data", use) or [] for use in ("train", "target", "test")}
    facts = [
        (use, "; ".join(f"{name}, {sets.get(name, {}).get('images', '?')} images" for name in names))
        for use, names in uses.items()
        if names
    ]
    model = [run.setting("model", key) for key in ("engine", "detector", "architecture")]
    facts += [
        ("model", ", ".join(str(part) for part in model if part)),
        ("command", " ".join(map(str, about.get("command", [])))),
        ("started", str(about.get("started", ""))),
        ("device", str(about.get("device", ""))),
        ("seed", str(about.get("seed", ""))),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
        ("revision", str(about.get("git_revision") or "")),
    ]
    return [(name, value) for name, value in facts if value]
