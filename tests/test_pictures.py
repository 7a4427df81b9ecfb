import sys

import numpy as np
from matplotlib import pyplot as plt
from PIL import Image
from runs import TINY

from lossmix_det.cli import run_tool
from lossmix_det.report import pictures


def draw(monkeypatch, path, *words: str) -> int:
    overrides = [word for word in TINY if not word.startswith("data.batch_size")]
    monkeypatch.setattr(sys, "argv", ["visualize_mixing.py", "--output", str(path), *words, *overrides])
    return run_tool(pictures.main)


def test_every_rule_is_drawn_with_its_truths_and_weights(tmp_path, monkeypatch):
    """The titles and the boxes of the figure are those of the lesson; the file is a picture with something on it."""
    drawn = {}
    close = plt.close

    def keep(figure):
        for axis in figure.axes:
            drawn.setdefault(axis.get_ylabel() or "more", []).append((axis.get_title(), len(axis.patches)))
        close(figure)

    monkeypatch.setattr(plt, "close", keep)
    path = tmp_path / "mixing.png"
    assert draw(monkeypatch, path, "--images", "3", "--rules", "lossmix", "union") == 0
    ((lossmix, boxes),), ((union, joined),) = drawn["lossmix"], drawn["union"]
    first, second = (float(part) for part in lossmix.removeprefix("weights ").split(", "))
    assert abs(first + second - 1) < 0.011
    assert union == "weights 1.00"
    assert boxes == joined > 1
    assert np.asarray(Image.open(path)).std() > 20


def test_a_mistake_is_one_sentence(tmp_path, monkeypatch, capsys):
    assert draw(monkeypatch, tmp_path / "x.png", "data.train=[nowhere]") == 2
    assert "unknown data set 'nowhere'" in capsys.readouterr().err
