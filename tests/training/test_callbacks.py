"""Code of the user's own is told of steps, scores and checkpoints; what is wrong with it is one sentence."""

import sys

import pytest
from runs import assert_same_tensors, trainer

from lossmix_det.errors import UserError
from lossmix_det.training.callbacks import Callbacks

MODULE = """
from lossmix_det.training.callbacks import Callback

told = []

class Tells(Callback):
    def on_step(self, state, losses):
        told.append(("step", state.step, sorted(losses)))

    def on_evaluate(self, state, results):
        told.append(("scores", state.step, results["student"]["shapes_clipart_test"]["AP50"]))

    def on_save(self, state, path):
        told.append(("saved", state.step, path.name, path.is_file()))

class OnlySteps:
    def on_step(self, state, losses):
        told.append("other")

class Fails:
    def on_step(self, state, losses):
        return losses["none"]

class TakesMore:
    def __init__(self, more):
        pass
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "of_the_user.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "of_the_user"
    sys.modules.pop("of_the_user", None)


@pytest.mark.slow
def test_a_run_tells_its_callbacks_in_their_order(tmp_path, module):
    words = [f"train.callbacks=[{module}.Tells,{module}.OnlySteps]", "train.log_every=2", "ema.decay=0"]
    it = trainer(tmp_path / "run", *words, "train.steps=2", "train.save_every=1")
    assert it.train()
    told = sys.modules[module].told
    known = [
        "grad_norm",
        "loss",
        "lr",
        *(f"source/{part}" for part in ("roi_box", "roi_class", "rpn_box", "rpn_class")),
    ]
    saved = ("saved", 1, "step_0000001.pt", True)
    assert told[:4] == [("step", 1, []), "other", saved, ("step", 2, known)]
    assert told[5] == ("scores", 2, it.results["student"]["shapes_clipart_test"]["AP50"])
    assert told[6:] == [("saved", 2, "step_0000002.pt", True)]


def test_only_the_first_process_builds_and_calls(module):
    callbacks = Callbacks([f"{module}.Tells"], active=False)
    callbacks.on_step(None, {})
    assert module not in sys.modules


@pytest.mark.slow
def test_a_callback_that_fails_ends_the_run_and_names_the_line(tmp_path, module):
    it = trainer(tmp_path / "run", f"train.callbacks=[{module}.Fails]", "train.steps=2")
    line = MODULE[: MODULE.index('losses["none"]')].count("\n") + 1
    message = (
        rf"train.callbacks: {module}.Fails.on_step failed at step 1 \(KeyError: 'none'; .*of_the_user.py, line {line}\)"
    )
    with pytest.raises(UserError, match=message):
        it.train()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("Tells", "'Tells' must be a module and a class in it, such as my_module.MyCallback"),
        ("of_the_user.Nothing", r"of_the_user.Nothing cannot be built \(AttributeError"),
        ("of_the_user.TakesMore", r"of_the_user.TakesMore cannot be built \(TypeError.*must be a class that takes no"),
        ("no_such.Tells", r"no_such.Tells cannot be built \(ModuleNotFoundError.*folder is on PYTHONPATH"),
    ],
)
def test_a_callback_that_cannot_be_built_is_one_sentence(module, path, message):
    with pytest.raises(UserError, match=f"train.callbacks: {message}"):
        Callbacks([path], active=True)


@pytest.mark.slow
def test_code_that_draws_numbers_does_not_change_the_first_weights(tmp_path, monkeypatch):
    (tmp_path / "that_draws.py").write_text("import torch\n\n\nclass Draws:\n    at_once = torch.rand(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    models = [
        trainer(tmp_path / name, *words).state.detector
        for name, words in (("alone", []), ("with", ["train.callbacks=[that_draws.Draws]"]))
    ]
    sys.modules.pop("that_draws")
    assert_same_tensors(*(dict(model.exported()) for model in models))
