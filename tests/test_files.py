"""Reading weights of any kind, writing that fails, and which classes a file of weights says it is of."""

import argparse
import json
import os
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from conftest import files_of_at_most
from runs import assert_same_tensors

from lossmix_det.engines.weights import read_weights
from lossmix_det.errors import UserError
from lossmix_det.files import Damaged, classes_of, clear_drafts, read_checkpoint, read_model, save_tensors

OURS = {"engine": "torchvision", "classes": ["cat", "dog"]}


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of ours, of the classes a and b."""
    path = tmp_path / "step_1.pt"
    save_tensors({"student": {"w": torch.zeros(1)}, "step": 1, "classes": ["a", "b"]}, path)
    return path


def test_the_json_of_an_export_names_its_classes(tmp_path):
    save_tensors({"w": torch.zeros(1)}, tmp_path / "x.pth")
    assert classes_of(tmp_path / "x.pth") is None
    (tmp_path / "x.json").write_text(json.dumps(OURS))
    assert classes_of(tmp_path / "x.pth") == ["cat", "dog"]


UNRELATED = {
    "malformed": b"{",
    "empty": b"",
    "not text": b"\xff\xfe\x00",
    "a list": b"[1]",
    "of another program": json.dumps({"classes": ["x"]}).encode(),
    "without classes": json.dumps({"engine": "torchvision"}).encode(),
    "classes that are none": json.dumps({**OURS, "classes": "cat"}).encode(),
    "classes by number": json.dumps({**OURS, "classes": [1, 2]}).encode(),
    "deeply nested": b"[" * 200_000,
}


@pytest.mark.parametrize("content", UNRELATED.values(), ids=UNRELATED)
def test_an_unrelated_json_beside_a_checkpoint_is_ignored(checkpoint, content):
    checkpoint.with_suffix(".json").write_bytes(content)
    assert classes_of(checkpoint) == ["a", "b"]


def test_a_folder_in_place_of_the_json_is_ignored(checkpoint):
    checkpoint.with_suffix(".json").mkdir()
    assert classes_of(checkpoint) == ["a", "b"]


def test_weights_that_do_not_exist_have_no_classes(tmp_path):
    assert classes_of(tmp_path / "nowhere.pth") is None


# ------------------------------------------------------------------------------------------------------------ damage


def read_named(path: Path) -> object:
    """As `read_weights`, which takes the name of a file or of weights."""
    return read_weights(str(path))


def whole():
    generator = torch.Generator().manual_seed(0)
    return {"step": 3, "student": {f"part{k}.weight": torch.randn(40, 9, generator=generator) for k in range(4)}}


def flip(content, rng):
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def zero_a_block(content, rng):
    start = rng.randrange(len(content))
    content[start : start + 64] = bytes(len(content[start : start + 64]))


def cut_off(content, rng):
    del content[rng.randrange(len(content)) :]


def repeat_a_block(content, rng):
    start = rng.randrange(len(content) - 256)
    content[start : start + 128] = content[start + 128 : start + 256]


@pytest.mark.parametrize("damage", [flip, zero_a_block, cut_off, repeat_a_block])
@pytest.mark.parametrize("read", [read_checkpoint, read_model])
def test_no_damage_to_a_file_changes_what_is_read_in_silence(tmp_path, damage, read):
    path = tmp_path / "w.pt"
    save_tensors(whole(), path)
    sound, messages = path.read_bytes(), []
    expected = read(path)
    for seed in range(60):
        content = bytearray(sound)
        damage(content, random.Random(seed))
        path.write_bytes(content)
        try:
            found = read(path)
        except UserError as error:
            messages.append(str(error))
        else:  # of bytes that say nothing, such as what aligns the tensors
            assert_same_tensors(expected, found)
    assert len(messages) >= 20
    assert all(str(path) in message and "\n" not in message for message in messages)


def test_a_flipped_bit_in_a_tensor_is_told_as_damage(tmp_path):
    path = tmp_path / "w.pt"
    save_tensors(whole(), path)
    content = bytearray(path.read_bytes())
    place = content.index(whole()["student"]["part2.weight"].numpy().tobytes())
    content[place + 100] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["step"] == 3  # torch itself does not see it
    for read in (read_checkpoint, read_model):
        with pytest.raises(Damaged, match=r"w.pt: damaged checkpoint \(a checksum does not hold\)"):
            read(path)


def test_files_of_torch_before_1_6_have_no_checksums_and_are_read(tmp_path):
    torch.save(whole()["student"], tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same_tensors(read_model(tmp_path / "old.pth"), whole()["student"])


# -------------------------------------------------------------------------------------------- checkpoints of others


class Settings(dict):
    """A dictionary of another class, as Lightning and many scripts keep their settings in."""


class Runs:
    """Whoever unpickles this runs code."""

    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


STATE = {"a.weight": torch.ones(2), "a.bias": torch.zeros(2)}
CONTAINERS = {
    "bare": STATE,
    "ordered": OrderedDict(STATE),
    "model": {"model": STATE, "epoch": 3},
    "reference script": {"model": STATE, "optimizer": {}, "args": argparse.Namespace(lr=0.1, path=Path("x"))},
    "lightning": {"state_dict": STATE, "hyper_parameters": Settings(lr=0.1), "loops": {"fit": None}},
    "model_state_dict": {"model_state_dict": STATE, "loss": 0.1},
    "nested": {"model": {"state_dict": STATE, "step": 1}},
    "compiled in DDP": {"model": {f"module._orig_mod.{name}": value for name, value in STATE.items()}},
    "with code": {"model": STATE, "callback": Runs()},
    "ours, without an average": {"student": STATE, "ema": {}, "step": 3},
}


@pytest.mark.parametrize("content", CONTAINERS.values(), ids=CONTAINERS)
def test_the_state_dict_in_a_container_is_found_and_no_code_is_run(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    assert_same_tensors(dict(read_model(tmp_path / "w.pth")), STATE)


def test_the_average_in_a_checkpoint_of_ours_is_taken_where_there_is_one(tmp_path):
    average = {name: value + 1 for name, value in STATE.items()}
    torch.save({"student": STATE, "ema": average, "step": 3}, tmp_path / "w.pth")
    assert_same_tensors(read_model(tmp_path / "w.pth"), average)


def test_what_cannot_be_read_without_running_code_is_named_with_the_line_that_mends_it(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"model": STATE, "settings": Settings(lr=1), "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(UserError) as error:
        read_model(path)
    assert "argparse.Namespace, test_files.Settings, which could run code" in str(error.value)
    assert f"torch.save(torch.load({str(path)!r}, weights_only=False)['model'], 'weights.pth')" in str(error.value)


NO_STATE_DICT = {
    "a model": torch.nn.Linear(1, 1),
    "nothing": {},
    "a number as model": {"model": 3},
    "an empty model": {"model": {}},
    "a number among tensors": {"a": STATE["a.bias"], "b": 3},
    "numbers by name": {"a": 1},
    "a list": [1, 2],
    "a number": 7,
    "code": {"layer": Runs()},
}


@pytest.mark.parametrize("read", [read_model, read_named])
@pytest.mark.parametrize("content", NO_STATE_DICT.values(), ids=NO_STATE_DICT)
def test_a_file_without_a_state_dict_says_how_to_write_one(tmp_path, read, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"holds no state dict .*torch.save\(model.state_dict\(\)"):
        read(tmp_path / "w.pth")


def test_what_an_old_torch_cannot_list_is_refused_without_names(tmp_path, monkeypatch):
    monkeypatch.delattr("torch.serialization.get_unsafe_globals_in_checkpoint", raising=False)
    torch.save({"model": STATE, "args": argparse.Namespace()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds more than tensors, which could run code"):
        read_model(tmp_path / "w.pth")


NO_WEIGHTS = {
    b"": "holds no weights; it is empty",
    b"version https://git-lfs.github.com/spec/v1\n": "holds no weights; it is a pointer of Git LFS",
    b"<!DOCTYPE html>": "holds no weights; it is a web page",
    b"garbage": "damaged",
    b"\x80\x02}.": "cannot be read|refused|damaged",
}


@pytest.mark.parametrize("read", [read_model, read_checkpoint, read_named])
@pytest.mark.parametrize(("content", "reason"), NO_WEIGHTS.items())
def test_what_was_saved_instead_of_weights_is_named(tmp_path, read, content, reason):
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(UserError, match=reason) as error:
        read(tmp_path / "bad.pth")
    assert "bad.pth" in str(error.value)
    assert "Re-running" not in str(error.value)  # torch's advice, which could run code


# ------------------------------------------------------------------------------------------------- failing resources


@pytest.mark.parametrize("links", [True, False])
def test_a_checkpoint_for_which_there_is_no_room_leaves_the_old_one_and_says_why(tmp_path, monkeypatch, links):
    path, copy = tmp_path / "step_1.pt", tmp_path / "best.pt"
    save_tensors(whole(), path, copy)
    before = path.read_bytes()
    larger = {**whole(), "more": torch.zeros(500_000)}
    if not links:
        monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    with files_of_at_most(1 << 20), pytest.raises(OSError, match=r"step_1.pt cannot be written \(File too large\); wh"):
        save_tensors(larger, path, copy)
    assert path.read_bytes() == copy.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"step_1.pt", "best.pt"}


def test_no_room_for_a_copy_leaves_nothing_half(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.link", full)
    monkeypatch.setattr("shutil.copyfile", lambda source, target: Path(target).write_text("half") and full())
    with pytest.raises(OSError, match=r"a.pt cannot be written \(No space left on device\)"):
        save_tensors(whole(), tmp_path / "a.pt", tmp_path / "best.pt")
    assert not list(tmp_path.iterdir())


def test_what_torch_cannot_write_for_a_reason_of_its_own_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.save", lambda *_: (_ for _ in ()).throw(RuntimeError("unexpected pos")))
    with pytest.raises(OSError, match=r"a.pt cannot be written \(torch could not write it\)"):
        save_tensors(whole(), tmp_path / "a.pt")


def test_drafts_of_killed_writes_are_cleared_and_nothing_else(tmp_path):
    kept = ["step_0000001.pt", ".hidden", ".gitignore", "notes.123", ".note.txt"]
    drafts = [".step_0000002.pt.4711", ".best.pt.1"]
    for name in kept + drafts:
        (tmp_path / name).write_text("x")
    (tmp_path / ".folder.7").mkdir()
    clear_drafts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, ".folder.7"}
    clear_drafts(tmp_path / "nowhere")


def test_a_pipe_is_never_opened(tmp_path):
    """It would wait for its writer for ever."""
    os.mkfifo(tmp_path / "w.pth")
    os.mkfifo(tmp_path / "w.json")
    with pytest.raises(UserError, match="is no regular file"):
        read_model(tmp_path / "w.pth")
    assert classes_of(tmp_path / "w.pth") is None


def test_a_torchscript_archive_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("w/constants.pkl", "")
    with pytest.raises(UserError, match="is a TorchScript archive; save the state dict"):
        read_model(tmp_path / "w.pth")


@pytest.mark.parametrize("keys", [("net",), ("weights",), ("ema", "module"), ("model_ema",)])
def test_further_places_of_a_state_dict(tmp_path, keys):
    content = {"w": torch.ones(1)}
    for key in reversed(keys):
        content = {key: content}
    save_tensors({"model": {"w": torch.zeros(1)}, **content} if "ema" in keys[0] else content, tmp_path / "w.pth")
    assert_same_tensors(read_model(tmp_path / "w.pth"), {"w": torch.ones(1)})
