"""Names are text, never markup: in tables, on the console and in pictures."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from matplotlib import pyplot as plt
from rich.console import Console

from lossmix_det.evaluation import lettering, print_tables
from lossmix_det.evaluation.pictures import Label, Mark, draw_marks
from lossmix_det.evaluation.scores import METRICS

NAMES = [
    "car [small]",
    "car",
    "pill [/2]",
    "[/]",
    "[red]x[/red]",
    ":smile:",
    "$5",
    "a\\b",
    "交通灯",
    "[link=x]y",
    "50 %",
]


def scores(names: list[str]) -> dict:
    classes = {name: dict.fromkeys(("AP", "AP50", "VOC_AP50", "VOC07_AP50"), 1.0) for name in names}
    return {**dict.fromkeys(METRICS, 50.0), "classes": classes}


@pytest.mark.parametrize("terminal", [True, False])
def test_tables_print_every_name_as_it_is(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, color_system=None)
    print_tables({"student": {"set [v2]": scores(NAMES)}}, console)
    printed = console.file.getvalue()
    for name in [*NAMES, "set [v2]"]:
        assert f" {name} " in printed


def drawn(name: str, caplog) -> tuple[str, list[str]]:
    """What a picture says beside a box of a class, and the warnings on the way."""
    mark = Mark((1.0, 9, 20, 20), "#ff0000", 1, 0.5)
    label = Label(["other", name], mark, 11)
    draw_marks(np.zeros((32, 32, 3), np.uint8), [mark], ["other", name], 64)
    figure, axis = plt.subplots()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that is missing is a warning for each time it is drawn
        text, letters = lettering.lettered(name, "class 2")
        axis.text(0.1, 0.1, text, **letters)  # as on charts
        figure.savefig(io.BytesIO())
    plt.close(figure)
    assert f"{' '.join(text.split())} 0.50" == label.text
    return label.text, [record.getMessage() for record in caplog.records]


@pytest.fixture(autouse=True)
def _afresh():
    cached = (lettering.families_with, lettering.lettered_file, lettering._say)
    for one in cached:
        one.cache_clear()
    yield
    for one in cached:
        one.cache_clear()


@pytest.mark.parametrize(
    "name", ["$x^2$", "$5", "50 $ and 60 $", "a_b", "x\\y", "№ 5", "naïve", "[/]", "a\nb", "$\\frac"]
)
def test_a_name_that_a_formula_could_be_made_of_is_drawn_as_text(name, caplog):
    assert drawn(name, caplog) == (f"{' '.join(name.split())} 0.50", [])


def test_a_name_that_no_font_has_is_replaced_by_its_number_and_said_once(monkeypatch, caplog):
    fonts = [font for font in lettering.font_manager.fontManager.ttflist if font.name == lettering.USUAL]
    monkeypatch.setattr(lettering.font_manager.fontManager, "ttflist", fonts)
    text, said = drawn("交通灯", caplog)
    assert text == "class 2 0.50"
    (sentence,) = said
    assert sentence.startswith(
        "no font of this machine has all characters of '交通灯', so pictures say 'class 2'; install"
    )
    assert drawn("交通灯", caplog)[1] == said


def test_a_font_of_squares_counts_as_none(monkeypatch):
    """Matplotlib brings one that has a square for every character; and the digits of scores must be there, too."""
    families = lettering.families_with(frozenset("交通灯"))
    assert families is None or not any(name.startswith(lettering.SQUARES) for name in families)
    every = [Font("Last Resort High-Efficiency", "squares.ttf"), Font("Letters", "letters.ttf")]
    monkeypatch.setattr(lettering.font_manager.fontManager, "ttflist", every)
    has = {"squares.ttf": "交通灯0123456789.", "letters.ttf": "交通灯"}
    monkeypatch.setattr(lettering, "characters_in", lambda path: frozenset(map(ord, has.get(path, "abc"))))
    assert lettering.lettered_file("交通灯", "class 2")[0] == "class 2"
    has["letters.ttf"] += lettering.SCORE
    lettering.lettered_file.cache_clear()
    assert lettering.lettered_file("交通灯", "class 2") == ("交通灯", "letters.ttf")


class Font:
    def __init__(self, name: str, fname: str) -> None:
        self.name, self.fname = name, fname


def test_fonts_are_added_until_all_characters_are_found(monkeypatch):
    fonts = {"a.ttf": "通", "b.ttf": "x", "c.ttf": "交灯", "d.ttf": "交通灯"}
    monkeypatch.setattr(lettering.font_manager.fontManager, "ttflist", [Font(path[0].upper(), path) for path in fonts])
    monkeypatch.setattr(lettering, "characters_in", lambda path: frozenset(map(ord, fonts.get(path, "abc "))))
    assert lettering.lettered("a 交通灯", "class 1") == (
        "a 交通灯",
        {"parse_math": False, "fontfamily": ["DejaVu Sans", "A", "C"]},
    )
    assert lettering.families_with(frozenset("abc")) == ("DejaVu Sans",)
    assert lettering.families_with(frozenset("交é")) is None


def test_a_font_that_cannot_be_read_has_no_characters(tmp_path):
    (tmp_path / "x.ttf").write_bytes(b"no font")
    assert lettering.characters_in(str(tmp_path / "x.ttf")) == frozenset()
