"""What a run has written so far, whether it goes on, has ended or was killed."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossmix_det.data.records import ImageSet

Row = dict[str, float]


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run; files that are missing or damaged count as empty.

    Args:
        path: of the folder.
    """

    path: Path

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.path.resolve().name

    @cached_property
    def about(self) -> dict[str, Any]:
        """``run.json``: what it began with."""
        return _json(self.path / "run.json")

    @cached_property
    def results(self) -> dict[str, Any]:
        """``results.json``: scores by model and test set, once it has ended."""
        models = _json(self.path / "results.json").items()
        return {
            model: {name: scores for name, scores in sets.items() if isinstance(scores, dict)}
            for model, sets in models
            if isinstance(sets, dict)
        }

    @cached_property
    def metrics(self) -> list[Row]:
        """``metrics.csv``: losses and pseudo-labels by step."""
        return _rows(self.path / "metrics.csv")

    @cached_property
    def speed(self) -> list[Row]:
        """``speed.csv``."""
        return _rows(self.path / "speed.csv")

    @cached_property
    def scores(self) -> list[Row]:
        """``scores.csv``: scores by step, under ``<model>/<test set>/<metric>``."""
        return _rows(self.path / "scores.csv")

    @property
    def config_path(self) -> Path:
        """The file of the settings that it was last started with."""
        changed = [entry for entry in _resumptions(self.about) if entry.get("changed")]
        return self.path / (f"config.resumed_at_{changed[-1].get('step')}.yaml" if changed else "config.yaml")

    @property
    def problems_text(self) -> str:
        """``data_problems.txt``; empty where the data had none."""
        return text_of(self.path / "data_problems.txt")

    @property
    def step(self) -> int:
        """The last step that it wrote numbers of."""
        return int(max((row["step"] for row in (*self.metrics, *self.scores)), default=0))

    @property
    def steps(self) -> int:
        """How many steps it was to take."""
        return int(self.setting("train", "steps") or self.step)

    def setting(self, *keys: str) -> Any:
        """A setting that it was last started with, as ``setting("train", "steps")``; None if it is not known."""
        for entry in reversed(_resumptions(self.about)):
            changed = entry.get("changed")
            if isinstance(changed, dict) and ".".join(keys) in changed:
                return changed[".".join(keys)][-1]
        value: Any = self.about.get("config")
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def latest_scores(self) -> dict[str, dict[str, Row]]:
        """By model and test set: the last score of every metric, from `results` or from the last evaluation."""
        if self.results:
            return {
                model: {name: _numbers(scores) for name, scores in sets.items()} for model, sets in self.results.items()
            }
        return _by_model(self.scores)

    def scores_of(self, step: int) -> dict[str, dict[str, Row]]:
        """By model and test set: the scores of one step."""
        return _by_model([row for row in self.scores if row["step"] == step])

    def reported(self) -> tuple[str, dict[str, Row]]:
        """The model that it reports, and its last scores by test set."""
        return next(reversed(self.latest_scores().items()), ("", {}))

    def detections(self, test_set: str) -> list[dict[str, Any]] | None:
        """Of the reported model on a test set, once the run has ended."""
        content = _load(self.path / f"detections_{test_set}.json") if self.results else None
        return content if isinstance(content, list) and all(map(is_detection, content)) else None


def unreadable_of(run: RunFolder, test_set: str) -> list[str]:
    """Names of the images of a test set that could not be read, and so do not count in the scores of a run."""
    return next(reversed(run.results.values()), {}).get(test_set, {}).get("unreadable", [])


def is_detection(row: Any) -> bool:
    """Whether something is a COCO result as runs write them."""
    if not isinstance(row, dict) or not row.keys() >= {"image_id", "category_id", "bbox", "score"}:
        return False
    box = row["bbox"]
    values = [row["score"], *box] if isinstance(box, list) and len(box) == 4 else [None]
    known = isinstance(row["image_id"], int | str) and isinstance(row["category_id"], int)
    return known and all(isinstance(value, int | float) for value in values)


def is_as_recorded(run: RunFolder, image_set: ImageSet) -> bool:
    """Whether a data set is what the run was made with; so it is taken to be where that was not recorded."""
    recorded = run.about.get("datasets")
    entry = recorded.get(image_set.name) if isinstance(recorded, dict) else None
    return not isinstance(entry, dict) or entry.get("fingerprint", image_set.fingerprint) == image_set.fingerprint


def _resumptions(about: dict[str, Any]) -> list[dict[str, Any]]:
    entries = about.get("resumed")
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _by_model(rows: list[Row]) -> dict[str, dict[str, Row]]:
    """The last value of every score, by model, test set and metric."""
    latest: dict[str, dict[str, Row]] = {}
    for row in rows:
        for key, value in row.items():
            model, _, rest = key.partition("/")
            name, _, metric = rest.rpartition("/")
            if name and not math.isnan(value):
                latest.setdefault(model, {}).setdefault(name, {})[metric] = value
    return latest


def _numbers(scores: dict[str, Any]) -> Row:
    return {key: value for key, value in scores.items() if isinstance(value, int | float)}


def _json(path: Path) -> dict[str, Any]:
    content = _load(path)
    return content if isinstance(content, dict) else {}


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def text_of(path: Path) -> str:
    """What a file of a run says; nothing if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _rows(path: Path) -> list[Row]:
    """The rows of a CSV that have a step; an empty cell is nan."""
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            rows = [{key: _number(value) for key, value in row.items() if key} for row in csv.DictReader(file)]
    except (OSError, csv.Error):
        return []
    return [row for row in rows if not math.isnan(row.get("step", math.nan))]


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan
