"""The one error that a person is meant to read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import TypeVar

Value = TypeVar("Value")


class UserError(ValueError):
    """Input that only its owner can mend: one sentence saying what, where and how to mend it.

    The command-line tools print it without a traceback and exit with status 2.
    """


class NoSuchSplit(UserError):
    """A data set is there, but not the part of it that was named."""


class LostSplit(NoSuchSplit):
    """The data set itself names that part, but its files are not there."""


class Silent(Exception):
    """A process ends because another one failed, which has said why."""


def nearest(word: str, known: list[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known word closest to ``word``, or an empty string."""
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def not_one_of(key: str, value: object, known: Collection[str]) -> str:
    """The sentence for a setting's value that is not known: ``key='x' is not one of a, b (did you mean 'a'?)``."""
    return f"{key}={value!r} is not one of {', '.join(known)}{nearest(str(value), list(known))}"


def pick(table: Mapping[str, Value], name: str, key: str) -> Value:
    """Look up what a setting names.

    Args:
        table: what there is, by name.
        name: the setting's value.
        key: the setting, for the message.

    Raises:
        UserError: the table has no such name; it says which names there are.
    """
    if name not in table:
        raise UserError(not_one_of(key, name, table))
    return table[name]


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its kind if it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
