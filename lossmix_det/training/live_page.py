"""Keeps the page of a run up to date, so that it can be left open in a browser."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from lossmix_det.config import Config
from lossmix_det.errors import first_line
from lossmix_det.training.snapshots import Snapshots
from lossmix_det.training.state import RunState
from lossmix_det.training.streams import Streams

log = logging.getLogger(__name__)


class LivePage:
    """Writes ``report.html`` on the first process, if ``train.report`` is on. A page that fails never ends a run.

    Args:
        config: of the run.
        streams: its data sets.
        fabric: launched.
    """

    def __init__(self, config: Config, streams: Streams, fabric: Fabric) -> None:
        self.config, self.streams, self.fabric = config, streams, fabric
        self.active = config.train.report and fabric.is_global_zero
        self.snapshots = Snapshots(Path(config.output_dir), streams.target_sets, config.data)

    def update(self, state: RunState, detections: dict[str, list[dict[str, Any]]]) -> Path | None:
        """Write the page as things are, and follow the teacher's labels.

        Args:
            state: of the run.
            detections: of the reported model, as COCO results by test set.

        Returns:
            Its path; None if it was not written.
        """
        if not self.active:
            return None
        from lossmix_det.report.page import write_page  # slow to import, and only needed here

        streams, depth = self.streams, self.config.data.high_bit_depth
        try:
            if state.adapting:
                self.snapshots.take(state, self.fabric.device)
            folder = Path(self.config.output_dir)
            return write_page(folder, streams.test_sets, streams.target_sets, detections, high_bit_depth=depth)
        except Exception as error:  # of a page; what was learned matters more
            log.warning("the page of the run was not written (%s: %s)", type(error).__name__, first_line(error))
            return None
