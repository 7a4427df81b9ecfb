"""What a finished run prints and reads again, whatever people call their folders and whatever lies in them."""

from __future__ import annotations

import json

import pytest
from adapting import ADAPT
from runs import trainer

from lossmix_det.training.outputs import _read_detections
from lossmix_det.training.provenance import read_run

pytestmark = pytest.mark.slow

ROW = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b'[{"image_id": 1}]', b"3", b"[" * 200_000])
def test_detections_that_somebody_has_damaged_are_passed_over_with_a_word(tmp_path, caplog, content):
    path = tmp_path / "detections_a.json"
    path.write_bytes(content)
    assert _read_detections(path) is None
    assert f"{path} cannot be read (" in caplog.text
    assert "so before_after.png is not drawn" in caplog.text


def test_detections_that_are_whole_are_read(tmp_path):
    path = tmp_path / "detections_a.json"
    path.write_text(json.dumps([ROW]))
    assert _read_detections(path) == [ROW]


def test_a_run_in_a_folder_of_any_name_ends_and_names_it(tmp_path):
    folder = tmp_path / "run [v2] [/y] $x 灯"
    words = [*ADAPT, "adaptation.burn_in_steps=1", "train.steps=2", "train.eval_every=0"]
    it = trainer(folder, *words)
    it.train()
    printed = it.console.file.getvalue()
    assert f"are in {folder}\n" in printed
    assert f"before and after adaptation: {folder / 'before_after.png'}\n" in printed
    (folder / "burn_in" / "detections_shapes_clipart_test.json").write_text("")
    (folder / "before_after.png").unlink()
    (folder / "run.json").write_text('{"config": {}, "resumed": [{"changed": 3}]}')
    again = trainer(folder, *words, resume=True)
    again.train()
    assert not (folder / "before_after.png").exists()
    assert (folder / "run.json.unreadable").is_file()
    assert read_run(folder)["step"] == 2
