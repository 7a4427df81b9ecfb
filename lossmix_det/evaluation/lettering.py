"""Names in pictures: as text and not as formulas, in a font that has their characters."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

log = logging.getLogger(__name__)

USUAL = "DejaVu Sans"  # comes with matplotlib
SCORE = "0123456789."  # characters of a score, which follows the name of a class
SQUARES = (
    "Last Resort",
    "LastResort",
    ".LastResort",
    "Adobe Blank",
)  # fonts with a square, or nothing, for every character


def lettered(name: str, instead: str) -> tuple[str, dict[str, Any]]:
    """What to write for a name, and how: keywords of matplotlib's texts.

    Args:
        name: of a class or a data set, in any script.
        instead: to write where no font of this machine has all characters of the name, which is then said once.
    """
    families = families_with(frozenset(name))
    if families is None:
        _say(name, instead)
        return instead, {"parse_math": False}
    return name, {"parse_math": False, "fontfamily": list(families)}


@lru_cache
def families_with(characters: frozenset[str]) -> tuple[str, ...] | None:
    """The font families that have some characters, the usual one first; None where some are in no font."""
    missing = {ord(character) for character in characters if not character.isspace()}
    families = [USUAL]
    missing -= characters_in(font_manager.findfont(USUAL))
    for font in _fonts() if missing else ():
        found = missing & characters_in(font.fname)
        if found:
            families.append(font.name)
            missing -= found
        if not missing:
            break
    return None if missing else tuple(families)


@lru_cache
def lettered_file(name: str, instead: str) -> tuple[str, str]:
    """What to write for a name, and the one font file that has its characters and digits; as `lettered`, for Pillow."""
    needed = {ord(character) for character in name + SCORE if not character.isspace()}
    usual = font_manager.findfont(USUAL)
    for path in (usual, *(font.fname for font in _fonts())):
        if needed <= characters_in(path):
            return name, path
    _say(name, instead)
    return instead, usual


def _fonts() -> list[Any]:
    """The fonts of this machine that draw characters."""
    return [font for font in font_manager.fontManager.ttflist if not font.name.startswith(SQUARES)]


@lru_cache
def characters_in(path: str) -> frozenset[int]:
    """The characters that a font file has; none where it cannot be read."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # a font of pictures, or one that was removed
        return frozenset()


@lru_cache
def _say(name: str, instead: str) -> None:
    log.warning(
        "no font of this machine has all characters of %r, so pictures say %r; install one, such as Noto Sans",
        name,
        instead,
    )
