"""Every command of docs/own_data.md is run, in the order of the page, on two small folders."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import voc_object, voc_xml
from pages import blocks, read

from lossmix_det.commands import main
from lossmix_det.config import load_config
from lossmix_det.data.shapes import draw_scene
from lossmix_det.files import read_checkpoint

pytestmark = pytest.mark.slow

PAGE = read("docs/own_data.md")
# What makes a run short; behind the settings of the page, so that these count.
SHORT = ["train.steps=3", "adaptation.burn_in_steps=2", "train.eval_every=0", "train.device=cpu", "data.workers=0"]
SHORT += ["data.augment.min_sizes=[96]", "data.augment.test_size=96", "data.batch_size=2", "train.log_every=1"]


def write_folder(folder: Path, domain: str, count: int, labelled: bool) -> None:
    folder.mkdir()
    for index in range(count):
        image, objects = draw_scene(np.random.default_rng([7, index]), domain, 96, 1.0)
        cv2.imwrite(str(folder / f"page_{index:02d}.jpg"), image)
        if labelled:
            boxes = [voc_object(drawn.label, *(value + 1 for value in drawn.box)) for drawn in objects]
            height, width = image.shape[:2]
            (folder / f"page_{index:02d}.xml").write_text(voc_xml("".join(boxes), width, height))


@pytest.fixture
def two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(Path("photos"), "photo", 20, labelled=True)
    write_folder(Path("drawings"), "clipart", 4, labelled=False)
    write_folder(Path("labelled_drawings"), "clipart", 6, labelled=True)
    return tmp_path


def run(line: str) -> None:
    program, command, *words = shlex.split(line)
    assert program == "lossmix"
    if command == "train":
        words += [*SHORT, "train.report=false"] if "runs/try" in line else SHORT
    assert main([command, *words]) == 0, line


def test_the_page_from_two_folders_to_an_exported_detector(two_folders, capsys):
    installing, *commands = blocks(PAGE, "bash")
    assert "pip install" in installing
    lines = [line for block in commands for line in block.splitlines()]
    assert [line.split()[1] for line in lines] == (
        ["init_config", "check_dataset", "train", "train", "report", "predict", "export", "predict", "train"]
        + ["init_config", "evaluate", "evaluate"]
    )
    for line in lines:
        run(line)
        if line.startswith("lossmix init_config"):
            printed = capsys.readouterr().out
            if line.endswith("my.yaml"):
                assert all(note in printed for note in re.findall(r"^note: .*$", PAGE, re.MULTILINE))
            assert "next:\n  " in printed
    for path in ("dataset_check/check.html", "runs/my/report.html", "my.onnx", "my.md", "runs/my/export/teacher.pth"):
        assert Path(path).is_file(), path
    assert read_checkpoint(Path("runs/my/checkpoints/step_0000003.pt"))["step"] == 3
    alone, adapted = (load_config(f"runs/{name}/config.yaml") for name in ("source_only", "my"))
    assert (alone.data.target, alone.mixing.probability) == ([], 0.0)
    assert (alone.train.steps, alone.data.views, alone.ema) == (adapted.train.steps, adapted.data.views, adapted.ema)
    for found in ("found", "found_by_onnx"):
        written = json.loads((Path(found) / "predictions.json").read_text())
        assert len(written["images"]) == 4
    python_of_the_page()


def python_of_the_page() -> None:
    """The detector is loaded, and the image of the page is one of the folder."""
    (code,) = blocks(PAGE, "python")
    names: dict = {}
    exec(code, names)
    assert len(names["found"].boxes) == len(names["found"].scores)


def test_the_configuration_without_a_second_folder(two_folders):
    (line,) = set(re.findall(r"`(lossmix init_config photos --output [^`]*)`", PAGE))
    run(line)
    config = load_config("plain.yaml")
    assert config.data.target == []
    assert (config.mixing.rule, config.mixing.probability) == ("lossmix", 0.5)
