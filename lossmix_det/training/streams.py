"""The batches of a run: source, and target where there is one, from any step on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from lightning_fabric import Fabric

from lossmix_det.config import Config
from lossmix_det.data.catalog import load_sets, load_target
from lossmix_det.data.loaders import target_loader, training_loader
from lossmix_det.data.records import ImageSet, Unreadable
from lossmix_det.data.workers import WorkerLost, batches
from lossmix_det.errors import UserError
from lossmix_det.evaluation.scores import ON_ERROR
from lossmix_det.structures import StepBatch

log = logging.getLogger(__name__)


class Streams:
    """The data sets of a run, and the files among them that could not be read.

    Args:
        config: of the run.
        fabric: launched; its first process generates the benchmark, the others find it there.

    Raises:
        UserError: something is missing or wrong.
    """

    def __init__(self, config: Config, fabric: Fabric) -> None:
        self.config, self.fabric = config, fabric
        with fabric.rank_zero_first():
            self.train_sets, self.test_sets = load_sets(config)
            self.classes = self.train_sets[0].classes
            self.target_sets = [load_target(name, config, self.classes) for name in config.data.target]
        bare = [image_set.name for image_set in self.target_sets if not image_set.labelled]
        self.target_labelled = not bare
        if 0 < len(bare) < len(self.target_sets):
            log.warning("pseudo-labels are not measured, because %s has no labels", ", ".join(bare))

    @property
    def by_use(self) -> dict[str, list[ImageSet]]:
        """The data sets by what they are for."""
        return {"train": self.train_sets, "target": self.target_sets, "test": self.test_sets}

    @property
    def sets(self) -> list[ImageSet]:
        """Those to train on, to adapt to and to test on."""
        return [*self.train_sets, *self.target_sets, *self.test_sets]

    def fingerprints(self) -> dict[str, str]:
        """Of every data set, by name."""
        return {image_set.name: image_set.fingerprint for image_set in self.sets}

    def batches(
        self, start: int, stopping: Callable[[], bool], unreadable: set[Unreadable]
    ) -> Iterator[tuple[StepBatch, float]]:
        """Batches from a step to the last, each with the seconds waited for it.

        Args:
            start: the step.
            stopping: whether the run has been told to stop; then a failing loader only ends the stream.
            unreadable: files that cannot be read are added to it.
        """
        where = {"rank": self.fabric.global_rank, "world": self.fabric.world_size}
        where |= {"seed": self.config.train.seed, "start": start}
        loaders = [training_loader(self.train_sets, self.config.data, **where)]
        if self.target_sets:
            loaders.append(target_loader(self.target_sets, self.config.data, source=loaders[0], **where))
        streams = [batches(loader) for loader in loaders]
        for _ in range(start, self.config.train.steps):
            started = time.perf_counter()
            try:
                loaded = [next(stream) for stream in streams]
            except WorkerLost:
                if stopping():  # the signal reached the loading processes too
                    return
                raise
            self._note([problem for _, problems in loaded for problem in problems], unreadable)
            views = [view for view, _ in loaded]
            if self.target_sets and not self.target_labelled:
                views[1] = views[1].unlabelled()
            yield StepBatch(*views), time.perf_counter() - started

    def _note(self, problems: list[Unreadable], unreadable: set[Unreadable]) -> None:
        known = len(unreadable)
        for problem in problems:
            ON_ERROR[self.config.data.on_error](problem)
            if problem not in unreadable:
                log.warning("skipped: %s", problem)
                unreadable.add(problem)
        if len(unreadable) > known:
            bad = {problem.path for problem in unreadable}
            for sets in (self.train_sets, self.target_sets):
                files = {record.path for image_set in sets for record in image_set.records}
                if files and files <= bad:
                    raise UserError("no training image can be read; see the messages above")
