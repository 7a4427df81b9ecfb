"""A format is added from outside the package: one class, and one entry in the table."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from conftest import write_image
from runs import trainer

from lossmix_det.config import DatasetConfig, load_config
from lossmix_det.data.catalog import load, load_target
from lossmix_det.data.formats import FORMATS
from lossmix_det.data.formats.contract import Format
from lossmix_det.data.records import Problems, RawImage, RawObject
from lossmix_det.errors import UserError


class Csv(Format):
    """One line for each box: file, xmin, ymin, xmax, ymax, class."""

    def read(self, entry: DatasetConfig, problems: Problems) -> tuple[list[RawImage], dict[str, int]]:
        images = {image.path.name: image for image in self.read_images(entry, problems)}
        path = Path(entry.root) / entry.annotations
        with path.open() as file:
            for line, (name, *edges, label) in enumerate(csv.reader(file), start=1):
                where = f"{path}:{line}"
                try:
                    images[name].objects.append(RawObject(where, label, tuple(map(float, edges))))
                except ValueError:
                    problems.fail(f"{where}: {edges} are not four numbers")
        return list(images.values()), {"dog": 5, "cat": 9}

    def read_images(self, entry: DatasetConfig, problems: Problems) -> list[RawImage]:
        return [RawImage(str(path), path, []) for path in sorted(Path(entry.root).glob("*.png"))]


@pytest.fixture
def words(tmp_path, monkeypatch) -> list[str]:
    """Declares two images with three boxes in a format that the package does not have."""
    monkeypatch.setitem(FORMATS, "csv", Csv())
    for seed, name in enumerate(("a.png", "b.png")):
        write_image(tmp_path / name, 64, 64, seed=seed)
    (tmp_path / "boxes.csv").write_text("a.png,1,2,30,40,cat\nb.png,5,5,20,25,dog\na.png,10,0,60,60,dog\n")
    return ["datasets.mine.format=csv", f"datasets.mine.root={tmp_path}", "datasets.mine.annotations=boxes.csv"]


def test_a_format_from_outside_is_read_by_its_name(words):
    mine = load("mine", load_config(None, words))
    assert (mine.classes, mine.category_ids, mine.labelled) == (["dog", "cat"], [5, 9], True)
    assert [record.classes.tolist() for record in mine.records] == [[1, 0], [0]]
    np.testing.assert_array_equal(mine.records[0].boxes, [[1, 2, 30, 40], [10, 0, 60, 60]])


def test_a_format_from_outside_is_trained_on_and_adapted_to(words, tmp_path):
    sets = ["data.train=[mine]", "data.target=[mine]", "data.test=[mine]"]
    steps = ["train.steps=2", "adaptation.burn_in_steps=1", "ema.decay=0.9"]
    run = trainer(tmp_path / "run", *words, *sets, *steps)
    assert run.train()
    assert run.streams.target_labelled
    assert run.state.classes == ["dog", "cat"]


def test_faults_of_a_format_from_outside_are_raised_or_skipped_like_all_others(words, tmp_path):
    with (tmp_path / "boxes.csv").open("a") as file:
        file.write("b.png,5,5,20,x,dog\n")
    with pytest.raises(UserError, match=r"boxes.csv:4: .* are not four numbers; correct it, or set data.on_error=skip"):
        load("mine", load_config(None, words))
    assert len(load("mine", load_config(None, [*words, "data.on_error=skip"])).problems.skipped) == 1
    assert not load_target("mine", load_config(None, words), ["dog", "cat"]).labelled


def test_a_misspelt_format_is_told_the_one_from_outside(words):
    with pytest.raises(
        UserError, match=r"'cvs' is not one of auto, voc, coco, yolo, huggingface, folder, csv \(did you mean 'csv'\?\)"
    ):
        load("mine", load_config(None, [*words, "datasets.mine.format=cvs"]))


def test_a_module_of_the_user_adds_a_format_by_being_imported(words, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "adds_a_format.py").write_text(
        "from lossmix_det.data.formats import FORMATS\nFORMATS['mine'] = FORMATS['csv']\n"
    )
    monkeypatch.setitem(FORMATS, "mine", None)  # taken out again afterwards
    words = [*words, "datasets.mine.format=mine", "data.imports=[adds_a_format]"]
    assert len(load("mine", load_config(None, words))) == 2


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_is_an_object_of_the_contract(name):
    assert isinstance(FORMATS[name], Format)
