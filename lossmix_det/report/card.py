"""A card that goes with a detector: what it is, what it was trained on, how well it does, and what is not known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lossmix_det.errors import UserError
from lossmix_det.evaluation.predictor import Predictor, find_weights
from lossmix_det.evaluation.tables import TITLES
from lossmix_det.files import read_checkpoint
from lossmix_det.report.run_folder import RunFolder

SCORES = ("AP", "AP50", "AP75", "VOC_AP50", "VOC07_AP50")


def card(name: str, weights: str, predictor: Predictor) -> str:
    """The text of a card, as Markdown.

    Args:
        name: of the model.
        weights: folder or file that it was made of; what its run wrote is looked for beside it.
        predictor: made of them.
    """
    file, reading = Path(find_weights(weights)), predictor.reading
    run = _run_of(file)
    step = _step_of(file, run)
    lines = [
        f"# {_text(name)}",
        "",
        f"An object detector of {len(predictor.classes)} classes, trained with lossmix_det.",
        "",
        f"* Input: one image, RGB in [0, 1], resized to a shorter side of {reading.short_side} and a longer side of at "
        f"most {reading.max_size} pixels.",
        f"* Classes, in order: {', '.join(map(_text, predictor.classes))}.",
        f"* Made of: {_text(str(weights))}.",
        *_training(run, step),
        "",
        *_scores(run, step),
        "## Licence and limits",
        "",
        "The licence of the weights is not recorded. It depends on the data that they were trained on, and on the "
        f"weights that training began with: {_text(str(_begun(run)))}.",
        "Scores hold for images like those of the test sets. Judge it on your own images before you rely on it.",
        "",
    ]
    return "\n".join(lines)


def _run_of(file: Path) -> RunFolder | None:
    """The run that wrote a checkpoint or an export; None where there is none around it."""
    folders = (file.parent.parent, file.parent)
    return next((RunFolder(folder) for folder in folders if (folder / "run.json").is_file()), None)


def _step_of(file: Path, run: RunFolder | None) -> int | None:
    """The step that weights are of; an export does not say, but is of the last one of a run that has ended."""
    try:
        return int(read_checkpoint(file)["step"])
    except UserError:
        return run.step if run is not None and run.results else None


def _training(run: RunFolder | None, step: int | None) -> list[str]:
    if run is None:
        return ["* Training: not recorded beside the weights."]
    steps = "not recorded" if step is None else f"{step} of {run.steps}"
    lines = [f"* Steps: {steps}; seed {run.about.get('seed', 'not recorded')}."]
    sets: dict[str, Any] = run.about.get("datasets") or {}
    for use in ("train", "target", "test"):
        names = run.setting("data", use) or []
        counted = [
            f"{_text(str(name))} ({sets.get(name, {}).get('images', 'unknown number of')} images)" for name in names
        ]
        lines += [f"* {USES[use]}: {', '.join(counted)}."] if counted else []
    return lines


USES = {"train": "Trained on the labels of", "target": "Adapted, without labels, to", "test": "Tested on"}


def _scores(run: RunFolder | None, step: int | None) -> list[str]:
    if run is None or step is None:
        return []
    scores = run.latest_scores() if run.results and step == run.step else run.scores_of(step)
    if not scores:
        return ["## Scores", "", f"Its run measured none at step {step}.", ""]
    head = ["model", "test set", *(TITLES[key] for key in SCORES)]
    lines = ["## Scores", "", "In percent, as its run measured them.", "", "| " + " | ".join(head) + " |"]
    lines.append("|---|---|" + "---:|" * len(SCORES))
    for model, sets in scores.items():
        for test_set, values in sets.items():
            cells = [_number(values.get(key, math.nan)) for key in SCORES]
            lines.append(f"| {_text(model)} | {_text(test_set)} | {' | '.join(cells)} |")
    return [*lines, ""]


def _begun(run: RunFolder | None) -> str:
    if run is None:
        return "not recorded"
    return run.setting("adaptation", "burn_in_from") or run.setting("model", "weights") or "none, at random"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"


def _text(name: str) -> str:
    """A name as text: Markdown would read some characters as markup."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#$" else letter for letter in name)
