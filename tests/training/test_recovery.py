"""What a run saves, refuses to save and goes back to."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from adapting import ADAPT
from runs import assert_same_tensors, last_checkpoint, trainer

from lossmix_det.errors import UserError
from lossmix_det.files import read_checkpoint, save_tensors
from lossmix_det.training.resume import finite

pytestmark = pytest.mark.slow


def test_what_is_finite():
    assert finite({"a": torch.ones(2), "b": [torch.tensor(3), {"c": None}], "d": ()})
    for value in (math.nan, math.inf):
        assert not finite({"a": [torch.ones(2), torch.tensor([1.0, value])]})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def spoil(it, step: int) -> None:
    """After a step the weights hold NaN, as after an update that overflowed."""
    learn = it.learn

    def spoiled(batch):
        losses = learn(batch)
        if it.state.step + 1 == step:
            next(it.state.detector.parameters()).data.fill_(math.nan)
        return losses

    it.learn = spoiled


def test_weights_that_are_not_finite_are_not_saved_and_lower_rates_resume_before_them(tmp_path):
    words = ["train.steps=6", "train.save_every=2", "train.keep_last=1", "train.max_bad_steps=20"]
    it = trainer(tmp_path, *words)
    spoil(it, 3)
    with pytest.raises(UserError, match=r"step 4: the weights are no longer finite, and are not saved; lower optim"):
        it.train()
    assert names(tmp_path) == ["step_0000002.pt"]
    again = trainer(tmp_path, *words, "optimizer.lr=0.0001", resume=True)
    assert again.train()
    assert last_checkpoint(tmp_path)["step"] == 6
    assert finite(last_checkpoint(tmp_path)["student"])


def test_a_run_told_to_stop_with_such_weights_keeps_the_checkpoint_before(tmp_path, caplog):
    it = trainer(tmp_path, "train.steps=9", "train.save_every=2", "train.max_bad_steps=20")
    spoil(it, 3)
    learn = it.learn
    it.learn = lambda batch: (it.stop() if it.state.step == 2 else None, learn(batch))[1]
    assert not it.train()
    assert "step 3 is not saved: its weights are not finite" in caplog.text
    assert names(tmp_path) == ["step_0000002.pt"]


def test_bad_steps_are_counted_anew_on_resumption(tmp_path):
    """A checkpoint that was written in a streak does not stop the run that was told to lower its rate."""
    words = ["train.steps=6", "train.save_every=1", "train.max_bad_steps=3", "train.keep_last=9"]
    it = trainer(tmp_path, *words)
    losses = it.state.detector.losses
    it.state.detector.losses = lambda *rest: {name: value * math.nan for name, value in losses(*rest).items()}
    with pytest.raises(UserError, match="for 3 steps in a row, up to step 3; lower optimizer.lr"):
        it.train()
    assert last_checkpoint(tmp_path)["bad_steps"] == [2, 2]
    again = trainer(tmp_path, *words, resume=True)
    assert (again.state.bad_steps, again.state.skipped_steps) == (0, 2)
    losses_again = again.state.detector.losses
    again.state.detector.losses = lambda *rest: {
        name: value * (math.nan if again.state.step < 4 else 1) for name, value in losses_again(*rest).items()
    }
    assert again.train()
    assert last_checkpoint(tmp_path)["bad_steps"] == [0, 4]


def test_a_teacher_that_is_not_finite_is_never_healthy_and_the_run_goes_back(tmp_path, caplog):
    """The guard looks at a window of steps, and so sees it later."""
    it = trainer(
        tmp_path,
        *(*ADAPT, "adaptation.burn_in_steps=2", "train.steps=6", "train.save_every=1", "train.eval_every=0"),
        *("train.on_collapse=restore", "adaptation.guard_steps=50"),
    )
    learn = it.learn

    def spoiled(batch):
        if it.state.step == 3 and not it.state.labeller.restores:
            next(it.state.teacher.module.parameters()).data.fill_(math.nan)
        return learn(batch)

    it.learn = spoiled
    assert it.train()
    assert "step 4: the weights are no longer finite" in caplog.text
    assert "restored step 3" in caplog.text
    for name in ("healthy.pt", "step_0000006.pt"):
        assert finite(read_checkpoint(tmp_path / "checkpoints" / name)["ema"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    trainer(folder, "train.steps=3", "train.save_every=1", "data.test=[]").train()
    return folder


def without_optimizer(content):
    del content["optimizer"]


def with_a_list_of_weights(content):
    content["student"] = list(content["student"].values())


def with_another_shape(content):
    name = next(iter(content["student"]))
    content["student"][name] = content["student"][name][:1]


def with_a_tensor_less(content):
    content["student"].popitem()


def with_nan(content):
    next(iter(content["student"].values()))[0] = math.nan


CHANGES = {
    without_optimizer: "optimizer is missing",
    with_a_list_of_weights: "student is a list",
    with_another_shape: "of student is missing or of another shape",
    with_a_tensor_less: "of student is missing or of another shape",
    with_nan: "student holds weights that are not finite",
}


@pytest.mark.parametrize(("change", "reason"), CHANGES.items(), ids=[change.__name__ for change in CHANGES])
def test_a_latest_checkpoint_of_unexpected_content_falls_back_to_the_one_before(
    finished, tmp_path, caplog, change, reason
):
    folder = shutil.copytree(finished, tmp_path / "run")
    path = folder / "checkpoints" / "step_0000003.pt"
    content = read_checkpoint(path)
    change(content)
    save_tensors(content, path)
    it = trainer(folder, "train.steps=3", "data.test=[]", resume=True)
    assert it.state.step == 2
    assert "step_0000003.pt: unexpected content (" in caplog.text
    assert f"{reason}); falling back to the one before" in caplog.text
    before = read_checkpoint(folder / "checkpoints" / "step_0000002.pt")
    assert_same_tensors(before["student"], dict(it.state.detector.exported()))


STRANGE = {
    "random": ({}, "KeyError"),
    "optimizer": ({0: {"step": torch.tensor(3.0)}}, "ValueError: momenta of 0, which does not learn here"),  # by place
}


@pytest.mark.parametrize(("part", "value", "reason"), [(part, *strange) for part, strange in STRANGE.items()])
def test_what_cannot_be_taken_over_says_which_checkpoint_to_delete(finished, tmp_path, part, value, reason):
    folder = shutil.copytree(finished, tmp_path / "run")
    for path in (folder / "checkpoints").iterdir():
        content = read_checkpoint(path)
        content[part] = value
        save_tensors(content, path)
    message = f"the checkpoint of step 3 holds what this version cannot take over ({reason}"
    with pytest.raises(UserError, match=re.escape(message)):
        trainer(folder, "train.steps=3", "data.test=[]", resume=True)


def test_drafts_of_killed_processes_are_cleared_as_a_run_starts(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    draft = folder / "checkpoints" / ".step_0000004.pt.4711"
    draft.write_bytes(b"half")
    it = trainer(folder, "train.steps=3", "data.test=[]", resume=True)
    assert draft.exists()  # until the run has the lock of the folder
    it.train()
    assert not draft.exists()


def test_a_damaged_healthy_checkpoint_gives_way_to_the_end_of_burn_in(tmp_path, caplog):
    words = [*ADAPT, "adaptation.burn_in_steps=2", "train.steps=4", "train.save_every=1", "train.eval_every=0"]
    it = trainer(tmp_path, *words, "train.on_collapse=restore")
    it.train()
    it.checkpoints.healthy.unlink()
    it.checkpoints.healthy.write_bytes(b"PK")
    it.recovery.restore()
    assert "healthy.pt cannot be restored" in caplog.text
    assert it.state.step == 2
