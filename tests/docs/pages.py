"""The pages that people read, cut into what can be checked: fenced blocks, code in the text, command lines, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from runs import ROOT

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "datasets" / "README.md", *(ROOT / "docs").rglob("*.md")]
)
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
CALL = re.compile(r"(?:\S*/)?(?:lossmix +(?P<command>[a-z]\w+)|python3? +tools/(?P<tool>\w+)\.py)(?P<words>.*)")


class Call(NamedTuple):
    """A command line: of ``lossmix``, or of a script in tools/."""

    command: str | None
    tool: str | None
    words: list[str]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, *languages: str) -> list[str]:
    """The contents of the fenced blocks in these languages."""
    return [content for language, content in FENCE.findall(text) if language in languages]


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", text)


def spans(text: str) -> list[str]:
    """Code within the text."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(text))


def calls(lines: list[str]) -> Iterator[Call]:
    """The commands of ours in command lines."""
    for line in lines:
        for part in line.split("&&"):
            found = CALL.search(part)
            if found:
                yield Call(found["command"], found["tool"], shlex.split(found["words"], comments=True))


def slug(heading: str) -> str:
    """The anchor that code hosts and the site give a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.replace("`", ""))
    return re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")


def anchors(path: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ +(.*)$", prose(path.read_text()), re.MULTILINE)}
