"""Which classes a file of weights says it is of."""

import json

import pytest
import torch

from lossmix_det.files import classes_of, save_tensors

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
