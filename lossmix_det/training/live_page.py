"""Keeps the page of a run up to date, so that it can be left open in a browser."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from lossmix_det.config import Config
from lossmix_det.errors import first_line
from lossmix_det.report.sheets import Picture
from lossmix_det.report.thumbnails import Thumbnail
from lossmix_det.training.mixed_batch import pictures_of
from lossmix_det.training.snapshots import Snapshots
from lossmix_det.training.state import RunState
from lossmix_det.training.streams import Streams
from lossmix_det.training.student_batch import StudentBatch

log = logging.getLogger(__name__)

MIXED_SHOWN = 6  # pictures of a mixed batch

Pictures = dict[str, Thumbnail]  # by their names in TensorBoard


class LivePage:
    """Writes ``report.html`` on the first process, if ``train.report`` is on. A page that fails never ends a run.

    Args:
        config: of the run.
        streams: its data sets.
        fabric: launched.
    """

    def __init__(self, config: Config, streams: Streams, fabric: Fabric) -> None:
        self.config, self.streams, self.fabric = config, streams, fabric
        self.folder = Path(config.output_dir)
        self.active = config.train.report and fabric.is_global_zero
        self.snapshots = Snapshots(self.folder, streams.target_sets, config.data)
        self.mixed: list[Picture] = []
        self.mixed_in: tuple[str, int] = ("", 0)  # phase and step

    def look_at(self, batch: StudentBatch, state: RunState) -> None:
        """Keep some mixed images of a step; where it has none, earlier ones stay.

        Args:
            batch: that the student is about to learn.
            state: before it has.
        """
        self._try(lambda: self._look_at(batch, state))

    def _look_at(self, batch: StudentBatch, state: RunState) -> None:
        mixed = [] if batch.mixed is None else batch.mixed.nonzero().flatten().tolist()
        if mixed:
            few = mixed[:: max(len(mixed) // MIXED_SHOWN, 1)][:MIXED_SHOWN]
            self.mixed, self.mixed_in = pictures_of(batch, few), (_phase(self.config, state), state.step + 1)

    def follow(self, state: RunState, detections: dict[str, list[dict[str, Any]]]) -> Pictures:
        """Follow the teacher's labels and the detections on a few images, and write the mixed images that were kept.

        Args:
            state: of the run, after an evaluation.
            detections: of the reported model, as COCO results by test set.
        """
        found: Pictures = {}
        self._try(lambda: found.update(self._follow(state, detections)))
        return found

    def _follow(self, state: RunState, detections: dict[str, list[dict[str, Any]]]) -> Pictures:
        from lossmix_det.report.gallery import last_snapshots, on_followed  # slow to import, and only needed here
        from lossmix_det.report.mixed_batch import keep_mixed, thumbnails_of

        streams, depth = self.streams, self.config.data.high_bit_depth
        shown: dict[str, list[Thumbnail]] = {}
        if state.adapting:
            self.snapshots.take(state, self.fabric.device)
            shown["pseudo-labels"] = last_snapshots(self.folder, streams.target_sets, depth)
        for image_set in streams.test_sets:
            shown[f"detections/{image_set.name}"] = on_followed(image_set, detections[image_set.name], depth)
        if self.mixed:
            shown["mixed batch"] = thumbnails_of(self.mixed, state.classes)
            keep_mixed(self.folder, *self.mixed_in, shown["mixed batch"])
            self.mixed = []
        return {f"{name}/{number}": one for name, row in shown.items() for number, one in enumerate(row, start=1)}

    def write(self, detections: dict[str, list[dict[str, Any]]]) -> None:
        """Write the page as things are.

        Args:
            detections: as in `follow`.
        """
        from lossmix_det.report.page import write_page  # slow to import, and only needed here

        streams, depth = self.streams, self.config.data.high_bit_depth
        sets = streams.test_sets, streams.target_sets
        self._try(lambda: write_page(self.folder, *sets, detections, high_bit_depth=depth))

    def _try(self, act: Callable[[], object]) -> None:
        if not self.active:
            return
        try:
            act()
        except Exception as error:  # of a page; what was learned matters more
            log.warning("the page of the run lacks something (%s: %s)", type(error).__name__, first_line(error))


def _phase(config: Config, state: RunState) -> str:
    if not config.data.target:
        return "Training"
    return "Adaptation" if state.adapting else "Burn-in"
