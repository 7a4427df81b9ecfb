"""examples/quickstart.ipynb: every cell runs, in order, and the pictures that it shows are there."""

from __future__ import annotations

import ast
import json
import re

import pytest
from PIL import Image
from runs import ROOT

PATH = ROOT / "examples" / "quickstart.ipynb"
NOTEBOOK = json.loads(PATH.read_text())
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def run(cell: str, names: dict) -> object:
    """Run a cell; returns what a notebook would show below it: the value of its last line."""
    tree = ast.parse(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_it_is_kept_small_and_without_outputs():
    assert PATH.stat().st_size < 100_000
    assert NOTEBOOK["nbformat"] == 4
    for cell in NOTEBOOK["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])


def test_its_first_cell_installs_what_is_missing_and_nothing_else(monkeypatch, tmp_path):
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subprocess.run", lambda words, check: asked.append(words))
    assert "lossmix_det.__version__" in CELLS[0]
    run(CELLS[0], {})
    assert asked == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run(CELLS[0], {})
    assert asked[0][1:] == ["-m", "pip", "install", "-q", "lossmix-det"]
    (tmp_path / "setup.py").write_text("")
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    run(CELLS[0], {})
    assert asked[1][-1] == ".."


@pytest.mark.slow
def test_every_cell_runs_and_shows_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOSSMIX_NOTEBOOK_STEPS", "4")
    names: dict = {"__name__": "__main__"}
    shown = [run(cell, names) for cell in CELLS]
    pictures = [value for value in shown if isinstance(value, Image.Image)]
    assert len(pictures) == 5
    assert all(min(picture.size) > 100 for picture in pictures)
    assert names["status"] == 0
    assert names["config"].train.steps == 4
    rows = re.findall(r"^(\S+) +shapes_clipart_test +AP50 +[\d.]+ +AP +[\d.]+$", capsys.readouterr().out, re.MULTILINE)
    assert rows == ["burn-in", "student", "teacher"]
    assert (tmp_path / "runs/notebook/report.html").is_file()
