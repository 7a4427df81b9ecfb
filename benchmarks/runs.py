"""The runs that a comparison is made of."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lossmix_det.config import Config, load_config
from lossmix_det.errors import UserError, nearest
from lossmix_det.report.run_folder import RunFolder
from lossmix_det.training.provenance import read_run


@dataclass(frozen=True)
class Method:
    """One row of a comparison: a YAML, and settings over it."""

    name: str
    config: Path
    overrides: tuple[str, ...] = ()


def methods_in(folder: Path, names: Iterable[str]) -> tuple[Method, ...]:
    """Methods that differ in one YAML each, ``<name>.yaml`` of a folder."""
    return tuple(Method(name, folder / f"{name}.yaml") for name in names)


# Of a folder of one's own: the methods that gains are counted from, and that which comes last.
BASELINES, CEILING = ("source_only", "baseline", "adaptive_teacher"), "oracle"


def suite_in(folder: Path) -> Suite:
    """A suite of one's own: every YAML of a folder is a method, by its name; names that begin with _ or . are left out.

    Raises:
        UserError: it is no folder, holds no YAML, or one that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"--suite-dir {folder} is no folder; give one that holds a YAML for each method")
    names = sorted(path.stem for path in folder.glob("*.yaml") if not path.name.startswith(("_", ".")))
    short = sorted(path.name for path in folder.glob("*.yml") if not path.name.startswith(("_", ".")))
    if short or not names:
        found = f"{short[0]}, which is not read" if short else "no YAML"
        raise UserError(f"--suite-dir {folder} holds {found}; each method is one file, <name>.yaml")
    first = [name for name in BASELINES if name in names]
    ordered = [*first, *(name for name in names if name not in (*first, CEILING)), *({CEILING} & {*names})]
    adapts = any(load_config(folder / f"{name}.yaml").data.target for name in names)
    name = folder.resolve().name
    return Suite(f"Comparison: {name}", name, methods_in(folder, ordered), tuple(first), adapts)


@dataclass(frozen=True)
class Part:
    """A table of its own on the page.

    Args:
        title: of the table.
        baseline: the method that differences are counted from.
        rows: names of methods by how they are called in this table.
        groups: methods whose mean difference is given too, by how they are called together. One seed of one method
            says little; a mean over many methods says more about what they have in common.
    """

    title: str
    baseline: str
    rows: dict[str, str]
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def label(self, method: str) -> str:
        """How a method is called in this table."""
        return next(label for label, name in self.rows.items() if name == method)


@dataclass(frozen=True)
class Suite:
    """Methods to compare.

    Args:
        title: of the page.
        name: of the folder that its runs are kept in.
        methods: in the order of the table.
        baselines: the methods that gains are counted from.
        adapts: draw curves of scores and pseudo-labels, and a table by class of the last test set.
        text: a sentence on what is compared.
        parts: several tables instead of one.
    """

    title: str
    name: str
    methods: tuple[Method, ...]
    baselines: tuple[str, ...] = ()
    adapts: bool = False
    text: str = ""
    parts: tuple[Part, ...] = ()

    def names_of(self, patterns: Iterable[str]) -> list[str]:
        """As `matching`, of this suite."""
        return matching([method.name for method in self.methods], patterns)


def matching(known: list[str], patterns: Iterable[str]) -> list[str]:
    """The methods that are meant by names or shell patterns, each once.

    Raises:
        UserError: nothing is called so.
    """
    chosen: dict[str, None] = {}
    for pattern in patterns:
        matched = fnmatch.filter(known, pattern)
        if not matched:
            raise UserError(f"unknown method {pattern!r}{nearest(pattern, known)}")
        chosen.update(dict.fromkeys(matched))
    return list(chosen)


@dataclass(frozen=True)
class Run:
    """One method with one seed, in a folder of its own."""

    method: str
    seed: int
    config: Path
    folder: Path
    overrides: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether it has trained to its end and was scored."""
        return bool(self.results())

    def scores(self) -> dict[str, Any] | None:
        """Scores by test set of the model that the run reports, which is the last; None if it has not finished."""
        return list(self.results().values())[-1] if self.finished else None

    def results(self) -> dict[str, Any]:
        """Scores by model and test set; none if the run has not finished."""
        return RunFolder(self.folder).results

    @property
    def log(self) -> Path:
        """Everything that the run printed."""
        return self.folder / "log.txt"

    def settings(self, overrides: list[str]) -> Config:
        """The configuration of the run, with settings that hold for all runs of the comparison."""
        return load_config(self.config, self.words(overrides))

    def words(self, overrides: list[str]) -> list[str]:
        """The settings of the run as they stand on its command line."""
        return [f"output_dir={self.folder}", f"train.seed={self.seed}", *self.overrides, *overrides]

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
    by_name = {method.name: method for method in suite.methods}
    chosen = [by_name[name] for name in dict.fromkeys(methods)]
    return [
        Run(method.name, seed, method.config, folder / suite.name / f"{method.name}_seed{seed}", method.overrides)
        for seed in dict.fromkeys(seeds)
        for method in chosen
    ]
