"""What a run says while it trains: numbers as CSV, JSON and TensorBoard, and a progress bar."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from lossmix_det.config import Config, as_dict, flat
from lossmix_det.report.thumbnails import Thumbnail
from lossmix_det.structures import StepBatch
from lossmix_det.training.metrics import MetricsFile
from lossmix_det.training.trackers import Trackers

log = logging.getLogger(__name__)

RSS_PER_GIB = {"darwin": 2**30}  # everywhere else it is counted in KiB
KINDS = ("source", "target", "mixed", "alignment")  # of losses: the part of their names before the slash


class NotedProgress(Progress):
    """A progress bar with a line of text below it, cut at the width of the terminal."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar and the line."""
        yield from super().get_renderables()
        yield Text(self.note, no_wrap=True, overflow="ellipsis")


class Speed:
    """How fast the steps since the last row were."""

    def __init__(self) -> None:
        self.steps = self.images = 0
        self.seconds = self.waited = 0.0

    def count(self, images: int, seconds: float, waited: float) -> None:
        """Add one step: the images that the student saw, its seconds, and those of them spent waiting for data."""
        self.steps += 1
        self.images, self.seconds, self.waited = self.images + images, self.seconds + seconds, self.waited + waited

    def row(self) -> dict[str, float]:
        """The columns of speed.csv."""
        seconds = max(self.seconds, 1e-9)
        return {
            "seconds_per_step": self.seconds / max(self.steps, 1),
            "images_per_s": self.images / seconds,
            "data_wait_share": self.waited / seconds,
            "memory_gib": memory_gib(),
        }


class Remaining:
    """How long a run still takes, from its last steps and its last evaluation.

    Args:
        total: the last step.
        eval_every: steps from one evaluation to the next; 0: only at the end.
    """

    def __init__(self, total: int, eval_every: int) -> None:
        self.total, self.eval_every = total, eval_every
        self.per_step, self.per_evaluation = math.nan, 0.0

    def seconds(self, step: int) -> float:
        """Seconds from the end of a step to the end of the run, evaluations included once one has been timed."""
        every = self.eval_every or self.total
        evaluations = math.ceil(self.total / every) - step // every
        return (self.total - step) * self.per_step + evaluations * self.per_evaluation

    def text(self, step: int) -> str:
        """For a person; empty while nothing is known."""
        seconds = self.seconds(step)
        return "" if math.isnan(seconds) else f"{_duration(seconds)} left"


class RunLog:
    """Metrics files, TensorBoard and progress of one run; silent on all processes but the first.

    Args:
        folder: of the run.
        start: the step that it begins or resumes at.
        total: the last step.
        console: shows progress, if it is a terminal; else progress goes to the log.
        active: this is the first process.
        eval_every: steps from one evaluation to the next.
        trackers: that get the same numbers; absent: none.
    """

    def __init__(
        self,
        folder: Path,
        start: int,
        total: int,
        console: Console,
        active: bool,
        *,
        eval_every: int = 0,
        trackers: Trackers | None = None,
    ) -> None:
        self.active, self.total, self.console = active, total, console
        self.speed, self.remaining = Speed(), Remaining(total, eval_every)
        self.trackers = trackers or Trackers((), folder, {})
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only needed here

        self.metrics = MetricsFile(folder / "metrics.csv", start)
        self.speeds = MetricsFile(folder / "speed.csv", start)
        self.history = MetricsFile(folder / "scores.csv", start)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start or None)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.progress = NotedProgress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.progress.add_task("train", total=total, completed=start, left="")
        self.progress.start()

    def count(self, images: int, seconds: float, waited: float) -> None:
        """Add one step to the speed since the last row.

        Args:
            images: that the student saw, over all processes.
            seconds: that the step took, waiting for data included.
            waited: seconds of these that were spent waiting for data.
        """
        self.speed.count(images, seconds, waited)

    def step(self, step: int) -> None:
        """Move the progress bar."""
        if self.active:
            self.progress.update(self.task, completed=step, left=self.remaining.text(step))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Time an evaluation, so that those to come are counted in the time that is left."""
        started = time.perf_counter()
        yield
        self.remaining.per_evaluation = time.perf_counter() - started

    def row(self, step: int, values: dict[str, float]) -> None:
        """Record one row of losses, and the speed since the last row."""
        speed = self.speed.row()
        self.speed, self.remaining.per_step = Speed(), speed["seconds_per_step"]
        if not self.active:
            return
        self.metrics.add({"step": step, **values})
        self.speeds.add({"step": step, **{name: round(value, 4) for name, value in speed.items()}})
        self._send(step, {**values, **{f"speed/{name}": value for name, value in speed.items()}})
        text = " | ".join(filter(None, (_losses(values), _speed(speed), self.remaining.text(step))))
        self.progress.note = text
        if not self.console.is_terminal:
            log.info("step %d/%d  %s", step, self.total, text)

    def scores(self, step: int, results: dict[str, Any]) -> None:
        """Record the scores of an evaluation.

        Args:
            step: after which it was.
            results: by model and test set.
        """
        if not self.active:
            return
        row = {
            f"{model}/{name}/{key}": value
            for model, sets in results.items()
            for name, metrics in sets.items()
            for key, value in metrics.items()
            if isinstance(value, float) and not math.isnan(value)
        }
        if row:
            self._send(step, row)
            self.history.add({"step": step, **row})

    def pictures(self, step: int, pictures: Mapping[str, Thumbnail]) -> None:
        """Show small pictures in TensorBoard.

        Args:
            step: after which they were taken.
            pictures: by name.
        """
        if not self.active or not pictures:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        # As the JPEG that they are: a writer's `add_image` would make them PNG, which is many times larger.
        images = {name: Summary.Image(encoded_image_string=picture.jpeg) for name, picture in pictures.items()}
        values = [Summary.Value(tag=name, image=image) for name, image in images.items()]
        self.board.file_writer.add_summary(Summary(value=values), step)

    def _send(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        self.trackers.log(step, values)

    def flush(self) -> None:
        """Bring everything recorded so far to the disk."""
        if self.active:
            self.metrics.write_json()
            self.board.flush()

    def close(self) -> None:
        """Flush, and end the progress bar."""
        if self.active:
            self.flush()
            self.progress.stop()
            self.board.close()
            self.trackers.close()


def open_log(config: Config, start: int, console: Console, active: bool) -> RunLog:
    """The log of a run that begins or resumes at a step, its trackers included.

    Args:
        config: of the run.
        start: the step.
        console: shows progress.
        active: this is the first process.
    """
    folder, train = Path(config.output_dir), config.train
    trackers = Trackers(train.trackers if active else (), folder, flat(as_dict(config)))
    return RunLog(folder, start, train.steps, console, active, eval_every=train.eval_every, trackers=trackers)


def images_seen(batch: StepBatch, adapting: bool) -> int:
    """How many images the student sees in a step.

    Args:
        batch: whose source images it sees in every view.
        adapting: then it sees the target's strong views too.
    """
    target = batch.target.strong if adapting and batch.target else None
    return sum(len(view) for view in (batch.source.weak, batch.source.strong, target) if view is not None)


def _losses(values: dict[str, float]) -> str:
    """Losses, summed by kind where there are several kinds, and the state of the pseudo-labels."""
    names = [name for name in values if name.partition("/")[0] in KINDS]
    kinds = list(dict.fromkeys(name.partition("/")[0] for name in names))
    if len(kinds) > 1:
        sums = {kind: sum(values[name] for name in names if name.startswith(f"{kind}/")) for kind in kinds}
        terms = [f"{kind} {value:.3f}" for kind, value in sums.items()]
    else:
        terms = [f"{name.partition('/')[2]} {values[name]:.3f}" for name in names]
    text = f"loss {values['loss']:.3f} ({' '.join(terms)})"
    if "pseudo/per_image" in values:
        text += f" | pseudo-labels {values['pseudo/per_image']:.1f} per image"
    if "pseudo/precision" in values:
        text += f", precision {_percent(values['pseudo/precision'])}, recall {_percent(values['pseudo/recall'])}"
    return text


def _speed(speed: dict[str, float]) -> str:
    return (
        f"{speed['seconds_per_step']:.2f} s/step, {speed['images_per_s']:.1f} images/s, "
        f"waiting for data {speed['data_wait_share']:.0%}, {speed['memory_gib']:.1f} GiB"
    )


def _duration(seconds: float) -> str:
    """Rounded as a person would: 40 s, 12 min, 3 h 05 min."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _percent(share: float) -> str:
    """A share in percent, or a dash where there is nothing to take it of."""
    return "–" if math.isnan(share) else f"{share:.0%}"


def memory_gib() -> float:
    """Peak memory so far: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # Windows has none
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / RSS_PER_GIB.get(sys.platform, 2**20)
