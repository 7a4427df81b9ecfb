"""docs/report.md: its code runs, and its settings, parts and files exist."""

from __future__ import annotations

import re

from runs import ROOT

from lossmix_det.config import as_dict, flat, load_config
from lossmix_det.training.callbacks import Callback

PAGE = (ROOT / "docs" / "report.md").read_text()


def test_the_callback_of_the_page_is_one(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names: dict = {}
    exec(code, names)

    class State:
        step = 7

    callback = names["MyCallback"]()
    assert isinstance(callback, Callback)
    callback.on_evaluate(State, {"student": {"photos": 1.0}})
    assert capsys.readouterr().out == "7 {'photos': 1.0}\n"


def test_its_settings_exist():
    known = flat(as_dict(load_config(None, [])))
    for name in re.findall(r"`((?:train|data|pseudo_labels)\.\w+)", PAGE):
        assert name in known, name


def test_its_picture_exists():
    for path in re.findall(r"\]\((images/[^)]*)\)", PAGE):
        assert (ROOT / "docs" / path).is_file()
