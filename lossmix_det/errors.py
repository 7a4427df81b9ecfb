"""The one error that a person is meant to read."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

Value = TypeVar("Value")


class UserError(ValueError):
    """Input that only its owner can mend: one sentence saying what, where and how to mend it.

    The command-line tools print it without a traceback and exit with status 2.
    """


def nearest(word: str, known: list[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known word closest to ``word``, or an empty string."""
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its kind if it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def pick(table: Mapping[str, Value], name: str, key: str) -> Value:
    """The entry of a table that a setting names.

    Args:
        table: by name.
        name: as the user wrote it.
        key: of the setting, for the message.

    Raises:
        UserError: there is no such entry; says which there are.
    """
    if name not in table:
        raise UserError(f"{key}={name!r} is not one of {', '.join(table)}{nearest(str(name), list(table))}")
    return table[name]
