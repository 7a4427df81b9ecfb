"""The runs that a comparison is made of."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossmix_det.config import Config, load_config
from lossmix_det.training.provenance import read_run


@dataclass(frozen=True)
class Suite:
    """Methods that differ in one YAML each.

    Args:
        title: of the page.
        configs: folder of ``<method>.yaml``.
        methods: in the order of the table.
        baselines: the methods that gains are counted from.
        adapts: draw curves of scores and pseudo-labels, and a table by class of the last test set.
    """

    title: str
    configs: Path
    methods: tuple[str, ...]
    baselines: tuple[str, ...]
    adapts: bool = False


@dataclass(frozen=True)
class Run:
    """One method with one seed, in a folder of its own."""

    method: str
    seed: int
    config: Path
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether it has trained to its end and was scored."""
        return (self.folder / "results.json").is_file()

    def scores(self) -> dict[str, Any] | None:
        """Scores by test set of the model that the run reports, which is the last; None if it has not finished."""
        if not self.finished:
            return None
        return list(json.loads((self.folder / "results.json").read_text()).values())[-1]

    @property
    def log(self) -> Path:
        """Everything that the run printed."""
        return self.folder / "log.txt"

    def settings(self, overrides: list[str]) -> Config:
        """The configuration of the run, with settings that hold for all runs of the comparison."""
        return load_config(self.config, self.words(overrides))

    def words(self, overrides: list[str]) -> list[str]:
        """The settings of the run as they stand on its command line."""
        return [f"output_dir={self.folder}", f"train.seed={self.seed}", *overrides]

    def about(self) -> dict[str, Any] | None:
        """What the run recorded of itself; None if it has not begun."""
        return read_run(self.folder)

    def complaint(self) -> str:
        """The last line that a run logged, which says why it failed."""
        path = self.log
        lines = path.read_text(errors="replace").strip().splitlines() if path.is_file() else []
        return lines[-1] if lines else "not run"


def planned(suite: Suite, folder: Path, methods: Iterable[str], seeds: Iterable[int]) -> list[Run]:
    """Every method with every seed, seed by seed, whether or not it has run.

    Args:
        suite: that the methods are of.
        folder: that the runs of all suites are kept in.
        methods, seeds: in order; one that is named twice is taken once.
    """
    place, methods = folder / suite.configs.name, dict.fromkeys(methods)
    return [
        Run(method, seed, suite.configs / f"{method}.yaml", place / f"{method}_seed{seed}")
        for seed in dict.fromkeys(seeds)
        for method in methods
    ]
