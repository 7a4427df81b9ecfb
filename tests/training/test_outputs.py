"""What a finished run prints and reads again, whatever people call their folders and whatever lies in them."""

from __future__ import annotations

import json

import pytest
from adapting import ADAPT
from runs import trainer

from lossmix_det.training.outputs import _read_detections, warn_if_worse
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


def scores(**models: float) -> dict:
    """AP50 on a test set of the source and on one of the target, by model."""
    return {name.replace("_", "-"): {"photos": {"AP50": 1.0}, "art": {"AP50": value}} for name, value in models.items()}


@pytest.mark.parametrize(
    ("rows", "advice"),
    [
        ("step,pseudo/precision,pseudo/recall\n10,0.2,0.9\n20,0.99,0.44\n30,,", "was 99%, recall 44%: lower pseudo_"),
        ("step,pseudo/precision,pseudo/recall\n10,0.4,0.6", "was 40%, recall 60%: raise pseudo_labels.score"),
        ("step,loss\n10,1.0", "raise pseudo_labels.score if they are wrong, lower it if they are few"),
        (None, "raise pseudo_labels.score if they are wrong, lower it if they are few"),
    ],
)
def test_a_run_says_that_adaptation_lowered_the_score_and_what_its_labels_were_like(tmp_path, caplog, rows, advice):
    if rows:
        (tmp_path / "metrics.csv").write_text(rows)
    warn_if_worse(scores(burn_in=84.5, student=90.0, teacher=82.7), tmp_path)
    assert "adaptation lowered AP50 on art from 84.5 to 82.7" in caplog.text
    assert f"{tmp_path / 'checkpoints' / 'burned_in.pt'} is the better detector; " in caplog.text
    assert advice in caplog.text


def test_of_other_test_sets_than_before_it_compares_those_that_both_have(tmp_path, caplog):
    found = scores(burn_in=60.0, teacher=50.0)
    found["teacher"] |= {"new": {"AP50": 1.0}}
    warn_if_worse(found, tmp_path)
    assert "lowered AP50 on art from 60.0 to 50.0" in caplog.text


@pytest.mark.parametrize(
    "found",
    [
        scores(burn_in=60.0, teacher=59.6),
        scores(burn_in=float("nan"), teacher=float("nan")),
        scores(student=1.0),
        {"burn-in": {}},
        {"burn-in": {"art": {"AP50": 60.0}}, "teacher": {"photos": {"AP50": 1.0}}},  # resumed with another data.test
        {"burn-in": {"art": {"AP50": 60.0}}, "teacher": {}},
        {},
    ],
)
def test_a_run_that_did_not_get_worse_says_nothing(tmp_path, caplog, found):
    warn_if_worse(found, tmp_path)
    assert caplog.text == ""
