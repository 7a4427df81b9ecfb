"""Real images with the faults that users' data has; skipped where they are absent."""

import io
import json
import subprocess

import pytest
from lightning_fabric import Fabric
from rich.console import Console
from runs import ROOT, command, env

from lossmix_det.config import load_config
from lossmix_det.data.catalog import load
from lossmix_det.errors import UserError
from lossmix_det.training.trainer import Trainer

pytestmark = pytest.mark.slow


def declared(name: str, root, **entries: object) -> list[str]:
    return [f"datasets.{name}.root={root}", *(f"datasets.{name}.{key}={value}" for key, value in entries.items())]


def test_boxes_without_area_are_named_with_their_line_or_skipped(shared_data):
    words = declared("bccd", shared_data / "bccd")
    with pytest.raises(
        UserError, match=r"BloodImage_00338.xml:\d+: object \d+ \(RBC\) has a box without area.*xmin 504"
    ):
        load("bccd", load_config(None, words))
    found = load("bccd", load_config(None, [*words, "data.on_error=skip"]))
    assert len(found) == 364
    assert found.classes == ["Platelets", "RBC", "WBC"]
    assert len(found.problems.skipped) == 2
    assert sum(len(record.boxes) for record in found.records) == 4888 - 2


def test_png_files_with_transparency_and_zero_based_floats_are_read(shared_data):
    words = declared("blood", shared_data / "blood_b", pixel_origin=0)
    found = load("blood", load_config(None, words))
    assert len(found) == 100
    assert sum(len(record.boxes) for record in found.records) == 2340
    assert {record.size for record in found.records} == {(256, 256)}


def test_video_frames_with_sixteen_classes_are_read(shared_data):
    words = declared("bright", shared_data / "fod_bright_dark", split="bright_train")
    words += declared("dark", shared_data / "fod_bright_dark", split="dark_test")
    bright = load("bright", load_config(None, words))
    dark = load("dark", load_config(None, words), bright.classes)
    assert len(bright.classes) == 16
    assert dark.problems.skipped == []


def test_a_run_on_blood_smears_by_the_command_and_a_yaml(shared_data, tmp_path):
    """No code edited: two data sets with other classes and another origin of pixels, matched by name."""
    (tmp_path / "my.yaml").write_text(
        f"""
datasets:
  smears: {{format: voc, root: {shared_data / "bccd"}, split: val, ignore_classes: [Platelets]}}
  other_stain: {{format: voc, root: {shared_data / "blood_b"}, split: test, pixel_origin: 0}}
data: {{classes: [RBC, WBC], on_error: skip}}
"""
    )
    sets = ["data.train=[smears]", "data.test=[other_stain]"]
    line = [*command(tmp_path / "run", "--config-file", str(tmp_path / "my.yaml")), *sets, "train.steps=3"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, check=False, env=env())
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "run" / "results.json").read_text())["student"]["other_stain"]
    assert set(scores["classes"]) == {"RBC", "WBC"}
    assert scores["AP50"] is not None
    assert "other_stain" in done.stdout


@pytest.mark.parametrize(
    ("method", "engine"),
    [
        ("adaptive_teacher_lossmix", "torchvision"),
        ("oracle", "torchvision"),
        ("adaptive_teacher_lossmix", "detectron2"),
    ],
)
def test_adaptation_between_microscopes_runs_from_its_configuration(shared_data, tmp_path, monkeypatch, method, engine):
    """A few steps of each phase on real images, with the target's labels only measured against."""
    monkeypatch.setenv("LOSSMIX_SHARED_DATA", str(shared_data))
    words = [f"output_dir={tmp_path}", "train.steps=4", "adaptation.burn_in_steps=2", "train.eval_every=0"]
    words += ["train.log_every=1", "train.device=cpu", "data.workers=0", "pseudo_labels.score=0.1"]
    if engine == "detectron2":
        pytest.importorskip("detectron2", reason="Detectron2 is not installed")
        words += ["model.engine=detectron2", f"model.detectron2_config={ROOT}/configs/detectron2/small_fpn.yaml"]
    config = load_config(ROOT / "configs" / "blood_adapt" / f"{method}.yaml", words)
    fabric = Fabric(accelerator="cpu", devices=1)
    it = Trainer(config, fabric, console=Console(file=io.StringIO()))
    assert it.state.classes == ["RBC", "WBC"]
    assert it.train()
    assert it.state.skipped_steps == 0
    if method != "oracle":
        assert it.streams.target_labelled
        assert "pseudo/recall/RBC" in (tmp_path / "metrics.csv").read_text()
        assert (tmp_path / "before_after.png").is_file()
