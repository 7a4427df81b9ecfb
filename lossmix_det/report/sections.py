"""The parts of a page, and the page made of them: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined

from lossmix_det.report.plots import Chart
from lossmix_det.report.thumbnails import Thumbnail

LINES = 200  # of a list at most


@dataclass(frozen=True)
class Cell:
    """A number of a table.

    Args:
        text: as it is written.
        share: in [0, 1], drawn as a bar or shade behind it; absent: none.
        bad: marked as a fault.
    """

    text: str
    share: float | None = None
    bad: bool = False


@dataclass(frozen=True)
class Table:
    """A table of numbers.

    Args:
        caption: above it.
        head: of the columns, those of `names` first.
        rows: names, then cells.
        names: how many columns are names.
        shaded: shares are shades of the cell; otherwise bars.
    """

    caption: str
    head: list[str]
    rows: list[tuple[list[str], list[Cell]]]
    names: int = 1
    shaded: bool = False


@dataclass
class Section:
    """A part of the page with a heading; empty parts are left out.

    Args:
        title: its heading.
        text: a sentence below it.
        charts: beside one another.
        tables: (head, rows) of text.
        rows: of pictures, by the words before each row.
        wide: pictures of a row are small and many.
        lists: of lines, by the words before each.
    """

    title: str
    text: str = ""
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    rows: dict[str, list[Thumbnail]] = field(default_factory=dict)
    wide: bool = False
    lists: dict[str, list[str]] = field(default_factory=dict)

    @property
    def anchor(self) -> str:
        """What links to it."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())

    def __bool__(self) -> bool:
        return bool(self.charts or self.rows or any(self.lists.values()) or any(table.rows for table in self.tables))


@dataclass(frozen=True)
class Header:
    """What a page begins with.

    Args:
        title: of the page.
        status: a sentence below it.
        facts: (name, value).
        bad: the status is one of faults; absent: it is neither good nor bad.
    """

    title: str
    status: str
    facts: Iterable[tuple[str, str]] = ()
    bad: bool | None = None


def render(header: Header, sections: Sequence[Section], details: Mapping[str, str] | None = None) -> str:
    """The page as HTML.

    Args:
        header: of the page.
        sections: those that are empty are left out.
        details: long texts at its end, folded, by their titles.
    """
    environment = Environment(
        loader=PackageLoader("lossmix_det.report"),
        autoescape=True,  # names are text, never markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html")
    shown = {name: text for name, text in (details or {}).items() if text}
    return page.render(header=header, sections=[part for part in sections if part], details=shown, limit=LINES)
