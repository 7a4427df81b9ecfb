"""What a run leaves behind to be read: numbers as CSV, JSON and TensorBoard, a progress bar, and their origin."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from lossmix_det.config import Config, as_dict, save_config
from lossmix_det.data.records import ImageSet
from lossmix_det.files import write_atomically

log = logging.getLogger(__name__)

PACKAGES = (
    "lossmix-det",
    "torch",
    "torchvision",
    "lightning-fabric",
    "albumentations",
    "opencv-python-headless",
    "numpy",
    "pycocotools",
    "omegaconf",
)


class MetricsFile:
    """Rows of numbers by step, as CSV while the run goes on and as JSON at every checkpoint.

    Only what a resumed run repeats exactly belongs here; timings go elsewhere.

    Args:
        path: of the CSV.
        resume_at: rows after this step are dropped, because those steps will run again.
    """

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        self.path = path
        self.rows = [row for row in _read_rows(path) if row["step"] <= resume_at] if resume_at else []
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row))
        write_atomically(path, self._text(self.rows, header=True) if self.rows else "")

    def add(self, row: dict[str, float]) -> None:
        """Append one row; a name that was not there before rewrites the file with another column.

        A second row of a step is merged into the first.
        """
        again = bool(self.rows) and self.rows[-1]["step"] == row["step"]
        row = {**self.rows[-1], **row} if again else row
        self.rows = [*self.rows[:-1], row] if again else [*self.rows, row]
        if set(row) <= set(self.columns) and not again:
            with open(self.path, "a") as file:
                file.write(self._text([row]))
        else:
            self.columns += [name for name in row if name not in self.columns]
            write_atomically(self.path, self._text(self.rows, header=True))

    def write_json(self) -> None:
        rows = [{k: None if math.isnan(value) else value for k, value in row.items()} for row in self.rows]
        write_atomically(self.path.with_suffix(".json"), json.dumps(rows, indent=1) + "\n")

    def _text(self, rows: list[dict[str, float]], header: bool = False) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def _read_rows(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    with open(path) as file:
        # A line that a kill cut short has fewer cells, or a cell that is no number; its step will run again.
        rows = [_numbers(row) for row in csv.DictReader(file)]
    return [row for row in rows if row]


def _numbers(row: dict[str, str | None]) -> dict[str, float]:
    try:
        cells = {name: float(cell) for name, cell in row.items() if cell}
        return {**cells, "step": int(cells["step"])}
    except (ValueError, KeyError):
        return {}


class NotedProgress(Progress):
    """A progress bar with a line of text below it."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.note)


class RunLog:
    """Metrics files, TensorBoard and progress of one run; silent on all processes but the first."""

    def __init__(self, folder: Path, start: int, total: int, console: Console, active: bool) -> None:
        self.active, self.total, self.console = active, total, console
        self.seconds = self.waited = 0.0
        self.images = 0
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only needed here

        self.metrics = MetricsFile(folder / "metrics.csv", start)
        self.speed = MetricsFile(folder / "speed.csv", start)
        self.history = MetricsFile(folder / "scores.csv", start)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start or None)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = NotedProgress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.progress.add_task("train", total=total, completed=start)
        self.progress.start()

    def count(self, images: int, seconds: float, waited: float) -> None:
        """Add one step's share to the speed since the last row."""
        self.images, self.seconds, self.waited = self.images + images, self.seconds + seconds, self.waited + waited

    def step(self, step: int) -> None:
        if self.active:
            self.progress.update(self.task, completed=step)

    def row(self, step: int, values: dict[str, float]) -> None:
        """Record one row of losses, and the speed since the last."""
        speed = {
            "images_per_s": self.images / max(self.seconds, 1e-9),
            "data_wait_share": self.waited / max(self.seconds, 1e-9),
            "memory_gib": memory_gib(),
        }
        self.images, self.seconds, self.waited = 0, 0.0, 0.0
        if not self.active:
            return
        self.metrics.add({"step": step, **values})
        self.speed.add({"step": step, **{name: round(value, 4) for name, value in speed.items()}})
        for name, value in {**values, **{f"speed/{name}": value for name, value in speed.items()}}.items():
            self.board.add_scalar(name, value, step)
        text = (
            f"{_in_words(values)} | {speed['images_per_s']:.1f} images/s, "
            f"waiting for data {speed['data_wait_share']:.0%}, {speed['memory_gib']:.1f} GiB"
        )
        self.progress.note = text
        if not self.console.is_terminal:
            log.info("step %d/%d  %s", step, self.total, text)

    def scores(self, step: int, results: dict[str, Any]) -> None:
        if not self.active:
            return
        row = {
            f"{model}/{name}/{key}": value
            for model, sets in results.items()
            for name, metrics in sets.items()
            for key, value in metrics.items()
            if isinstance(value, float) and not math.isnan(value)
        }
        for name, value in row.items():
            self.board.add_scalar(name, value, step)
        if row:
            self.history.add({"step": step, **row})

    def flush(self) -> None:
        if self.active:
            self.metrics.write_json()
            self.board.flush()

    def close(self) -> None:
        if self.active:
            self.flush()
            self.progress.stop()
            self.board.close()


def _in_words(values: dict[str, float]) -> str:
    """Losses, by kind where there are several kinds, and the state of the pseudo-labels."""
    names = [name for name in values if name.partition("/")[0] in ("source", "target", "mixed", "alignment")]
    kinds = list(dict.fromkeys(name.partition("/")[0] for name in names))
    if len(kinds) == 1:
        parts = [f"{name.partition('/')[2]} {values[name]:.3f}" for name in names]
    else:
        sums = {kind: sum(values[name] for name in names if name.startswith(f"{kind}/")) for kind in kinds}
        parts = [f"{kind} {value:.3f}" for kind, value in sums.items()]
    text = f"loss {values['loss']:.3f} ({' '.join(parts)})"
    if "pseudo/per_image" in values:
        text += f" | pseudo-labels {values['pseudo/per_image']:.1f} per image"
    if "pseudo/precision" in values:
        text += f", precision {values['pseudo/precision']:.0%}, recall {values['pseudo/recall']:.0%}"
    return text


def memory_gib() -> float:
    """Peak memory so far: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # Windows has none
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def provenance(config: Config, device: str, datasets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Everything needed to tell where a number came from."""
    return {
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seed": config.train.seed,
        "device": device,
        "cpu_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        "git_revision": git_revision(),
        "datasets": datasets,
        "config": as_dict(config),
    }


def git_revision() -> str | None:
    """Commit of the source tree, with ``+changes`` if it differs; None outside of one."""
    file = Path(__file__).resolve()
    describe = ["describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    words = (["ls-files", "--error-unmatch", file.name], describe)  # first: is this file of that repository at all?
    try:
        for command in words:
            line = ["git", "-C", str(file.parent), *command]
            done = subprocess.run(line, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe(folder: Path, config: Config, device: str, sets: list[ImageSet]) -> None:
    """Say in the folder of a run what the run is."""
    save_config(config, folder / "config.yaml")
    datasets = {each.name: {"images": len(each), "fingerprint": each.fingerprint} for each in sets}
    content = provenance(config, device, datasets)
    write_atomically(folder / "run.json", json.dumps(content, indent=2) + "\n")
