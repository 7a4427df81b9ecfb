import logging
import random

import numpy as np
import pytest
import torch

from lossmix_det.errors import UserError
from lossmix_det.files import read_checkpoint, save_tensors, write_atomically
from lossmix_det.training.checkpoints import Checkpoints, random_state, restore_random_state


def content(step: int) -> dict:
    return {"step": step, "student": {"weight": torch.full((3,), float(step))}}


def names(checkpoints: Checkpoints) -> list[str]:
    return [path.name for path in checkpoints.paths()]


def test_only_the_last_are_kept_and_the_best_beside_them(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    for step in (1, 2, 3, 10):
        checkpoints.save(content(step), *([checkpoints.best] if step == 2 else []))
    assert names(checkpoints) == ["step_0000003.pt", "step_0000010.pt"]
    assert read_checkpoint(checkpoints.best)["step"] == 2
    assert checkpoints.load_latest()["step"] == 10
    assert not list(tmp_path.glob(".*"))


def test_what_is_written_after_falling_back_from_a_later_one_stays(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    (tmp_path / "step_0000020.pt").write_bytes(b"damaged")
    for step in (10, 15):
        assert read_checkpoint(checkpoints.save(content(step)))["step"] == step
    assert names(checkpoints) == ["step_0000015.pt", "step_0000020.pt"]
    assert checkpoints.load_latest()["step"] == 15


def test_one_state_under_several_names_is_written_once(tmp_path, monkeypatch):
    checkpoints, written = Checkpoints(tmp_path, 1), []
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda value, file: written.append(file) or save(value, file))
    path = checkpoints.save(content(1), checkpoints.best, checkpoints.healthy, checkpoints.burned_in)
    assert len(written) == 1
    assert {read_checkpoint(each)["step"] for each in (path, checkpoints.best, checkpoints.healthy)} == {1}
    checkpoints.save(content(2), checkpoints.healthy)
    assert read_checkpoint(checkpoints.best)["step"] == read_checkpoint(checkpoints.burned_in)["step"] == 1
    assert not list(tmp_path.glob(".*"))


def test_a_file_system_without_links_gets_copies(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("links are not supported")

    monkeypatch.setattr("os.link", refuse)
    checkpoints = Checkpoints(tmp_path, 1)
    path = checkpoints.save(content(1), checkpoints.best)
    path.write_bytes(b"")
    assert read_checkpoint(checkpoints.best)["step"] == 1
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_latest_is_passed_over_with_a_word(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    checkpoints = Checkpoints(tmp_path, 3)
    for step in (1, 2):
        checkpoints.save(content(step))
    path = tmp_path / "step_0000002.pt"
    path.write_bytes(path.read_bytes()[:-200])
    assert checkpoints.load_latest()["step"] == 1
    assert "step_0000002.pt: damaged checkpoint" in caplog.text


def test_nothing_readable_is_an_error_and_nothing_at_all_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path, 3)
    assert checkpoints.load_latest() is None
    (tmp_path / "step_0000001.pt").write_bytes(b"")
    with pytest.raises(UserError, match="none of its 1 checkpoints can be read"):
        checkpoints.load_latest()


def test_another_file_is_not_taken_for_a_checkpoint(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="not a checkpoint of lossmix_det"):
        read_checkpoint(tmp_path / "x.pt")
    with pytest.raises(UserError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "y.pt")


@pytest.mark.parametrize("write", [lambda path: write_atomically(path, "new"), lambda path: save_tensors([1], path)])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, write):
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write(path)
    assert path.read_text() == "old"


def test_every_generator_goes_on_where_it_was(tmp_path):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    np.random.randn()  # leaves a cached second normal number behind
    save_tensors(random_state(), tmp_path / "state")
    expected = random.random(), np.random.randn(), np.random.rand(), torch.rand(1)
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    restore_random_state(torch.load(tmp_path / "state", weights_only=True))
    assert (random.random(), np.random.randn(), np.random.rand(), torch.rand(1)) == expected


def test_a_draft_that_cannot_be_finished_is_removed_and_the_old_file_stays(tmp_path):
    write_atomically(tmp_path / "a.txt", "old")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "a.txt", 3)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "folder"]
