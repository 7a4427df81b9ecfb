"""What only several data sets together tell: images in two of them, class names that are nearly the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import combinations

import numpy as np

from lossmix_det.data.survey import Survey

EXAMPLES = 20  # pairs of images that are named
ALIKE = 0.85  # likeness of two names, of 1
# What PASCAL VOC calls otherwise than COCO.
SYNONYMS = {
    frozenset(pair)
    for pair in (
        *(("aeroplane", "airplane"), ("motorbike", "motorcycle"), ("sofa", "couch"), ("tvmonitor", "tv")),
        *(("person", "pedestrian"), ("bike", "bicycle"), ("automobile", "car")),
    )
}


@dataclass(frozen=True)
class Shared:
    """Images whose pixels are the same.

    Args:
        first, second: data sets; the same one: images that it has twice.
        count: of images of the second that the first has too.
        examples: (path in the first, path in the second).
        wrong: scores are not to be trusted, because the detector learns from what it is tested on.
    """

    first: str
    second: str
    count: int
    examples: list[tuple[str, str]]
    wrong: bool


@dataclass
class Comparison:
    """What several data sets together tell.

    Args:
        shared: images that are there twice.
        alike: pairs of class names that may be meant to be one.
    """

    shared: list[Shared] = field(default_factory=list)
    alike: list[tuple[str, str]] = field(default_factory=list)

    def faults(self) -> list[str]:
        """A line for each two data sets that must not share images."""
        return [
            f"{each.count} images are in both {each.first} and {each.second}, so scores on it say little; the first: "
            f"{' and '.join(each.examples[0])}"
            for each in self.shared
            if each.wrong
        ]

    def notes(self) -> list[str]:
        """A line for everything else."""
        twice = [
            f"{each.first}: {each.count} images have the same pixels as another; the first: "
            f"{' and '.join(each.examples[0])}"
            if each.first == each.second
            else f"{each.count} images are in both {each.first} and {each.second}"
            for each in self.shared
            if not each.wrong
        ]
        names = [
            f"class names {one!r} and {other!r} are nearly the same; are they one class?" for one, other in self.alike
        ]
        return twice + names


def compare(surveys: Sequence[Survey]) -> Comparison:
    """Hold data sets against each other.

    Args:
        surveys: with their looks.
    """
    read = [survey for survey in surveys if survey.looks is not None]
    shared = [_shared(survey, survey) for survey in read]
    shared += [_shared(*pair) for pair in combinations(read, 2)]
    names = {name for survey in surveys for name in (*survey.names, *survey.classes)}
    return Comparison([each for each in shared if each is not None], alike(names))


def _shared(first: Survey, second: Survey) -> Shared | None:
    """The images of the second data set that are among those of the first; or those that one data set repeats."""
    table: dict[bytes, int] = {}
    found: list[tuple[int, int]] = []
    for index in np.flatnonzero(first.looks.readable).tolist():
        known = table.setdefault(first.looks.digests[index].tobytes(), index)
        if first is second and known != index:
            found.append((known, index))
    if first is not second:
        for index in np.flatnonzero(second.looks.readable).tolist():
            known = table.get(second.looks.digests[index].tobytes())
            if known is not None:
                found.append((known, index))
    pairs = [(first.records.name(one), second.records.name(other)) for one, other in found[:EXAMPLES]]
    wrong = {first.use, second.use} == {"train", "test"}
    return Shared(first.name, second.name, len(found), pairs, wrong) if found else None


def alike(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that may be meant to be one: ``Car`` and ``car``, ``traffic-light`` and ``trafficlight``."""
    ordered = sorted(names)
    folded = {name: "".join(letter for letter in name.casefold() if letter.isalnum()) for name in ordered}
    return [(one, other) for one, other in combinations(ordered, 2) if _are_alike(folded[one], folded[other])]


def _are_alike(one: str, other: str) -> bool:
    if one == other or frozenset((one, other)) in SYNONYMS:
        return True
    if one[-1:].isdigit() or other[-1:].isdigit():  # numbered classes differ on purpose
        return False
    shorter, longer = sorted((one, other), key=len)
    if longer in (f"{shorter}s", f"{shorter}es"):
        return True
    return len(shorter) > 3 and SequenceMatcher(None, one, other).ratio() >= ALIKE
