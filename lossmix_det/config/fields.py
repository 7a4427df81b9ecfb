"""How a setting is declared with its limits, and how a tree of settings is held against them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import field, fields
from typing import Any

from lossmix_det.errors import UserError, not_one_of

# Whether something holds, and the sentence to say if not; the sentence begins with the name of a field.
Rule = tuple[Any, str]


class Settings:
    """A dataclass of settings. Limits of one field stand beside it; `rules` says what several must fulfil together."""

    def rules(self) -> list[Rule]:
        """What the fields must fulfil together; the fields themselves have been checked by then."""
        return []


def choice(default: str, *others: str, gone: Mapping[str, str] | None = None) -> Any:
    """A field that takes one of the given strings.

    Args:
        default: the first choice.
        others: the other choices.
        gone: choices of earlier versions, each with what to write instead, for example
            ``{"noise": "mixing.rule=own"}``.
    """
    return field(default=default, metadata={"choices": (default, *others), "gone": gone or {}})


def number(default: Any, low: float = -math.inf, high: float = math.inf) -> Any:
    """A number within [low, high]. A field that may be null is checked only when it is set."""
    return field(default=default, metadata={"low": low, "high": high})


def items(*default: Any) -> Any:
    """A list with these default entries."""
    return field(default_factory=lambda: list(default))


def file(default: str = "") -> Any:
    """The path of a file. In a YAML it is first looked for beside that YAML, then from the working directory."""
    return field(default=default, metadata={"file": True})


def path(default: str = "") -> Any:
    """The path of a file or folder, or the name of something else; ``~`` at its start is the user's folder."""
    return field(default=default, metadata={"path": True})


def among(chosen: list[str], known: tuple[str, ...]) -> bool:
    """Whether a list names known things, each at most once."""
    return set(chosen) <= set(known) and len(set(chosen)) == len(chosen)


def names(key: str, values: list[Any] | None) -> Rule:
    """The rule of a list of names."""
    return all(isinstance(value, str) for value in values or []), f"{key}={values} must be a list of names"


def shares(key: str, values: list[float]) -> Rule:
    """The rule of a list of shares or probabilities."""
    return all(0 <= value <= 1 for value in values), f"{key}={values} must lie within 0 … 1"


def weights(key: str, table: dict[str, float]) -> list[Rule]:
    """The rules of a table of weights or scores by name; any may be 0, none negative."""
    return [
        (0 <= weight < math.inf, f"{key}.{name}={weight} must be a number of at least 0")
        for name, weight in table.items()
    ]


def check(settings: Settings, prefix: str = "") -> None:
    """Hold every field of a tree of settings against its limits, and each group of settings against its rules.

    Args:
        settings: the tree, or one group of it.
        prefix: what stands before its keys in messages, for example ``mixing.``.

    Raises:
        UserError: naming the key, its value and what it takes.
    """
    for key, value, limits in entries(settings, prefix):
        if isinstance(value, Settings):
            check(value, f"{key}.")
        elif value is not None:
            _check_value(key, value, limits)
    for holds, message in settings.rules():
        if not holds:
            raise UserError(prefix + message)


def entries(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """The key, value and limits of each field of one group, and of each entry where the field is a table by name."""
    for spec in fields(settings):
        key, value = prefix + spec.name, getattr(settings, spec.name)
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", entry, spec.metadata) for name, entry in value.items())
        else:
            yield key, value, spec.metadata


def _check_value(key: str, value: Any, limits: Mapping[str, Any]) -> None:
    if value in limits.get("gone", ()):
        raise UserError(f"{key}={value!r} no longer exists; write {limits['gone'][value]} instead")
    if "choices" in limits and value not in limits["choices"]:
        raise UserError(not_one_of(key, value, limits["choices"]))
    if "low" in limits and not limits["low"] <= value <= limits["high"]:  # also refuses nan
        raise UserError(f"{key}={value} lies outside of {limits['low']} … {limits['high']}")


def choices(group: type[Settings], name: str) -> tuple[str, ...]:
    """What a `choice` of a group of settings takes."""
    return next(spec.metadata["choices"] for spec in fields(group) if spec.name == name)


def as_dict(settings: Any) -> dict[str, Any]:
    """The settings as plain dictionaries, lists and numbers."""
    return dataclasses.asdict(settings)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, by dotted key: ``{"train": {"steps": 3}}`` becomes ``{"train.steps": 3}``."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result
