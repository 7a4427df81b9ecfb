"""`lossmix check_dataset`: what it prints and writes, and its exit status."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from checked import WRITE, check, cut_image, spoil_coco, spoil_number, survey
from conftest import voc_object, voc_xml, write_image

from lossmix_det.config import load_config
from lossmix_det.data.catalog import load_sets
from lossmix_det.errors import UserError
from lossmix_det.report.dataset_numbers import report_of
from lossmix_det.report.dataset_page import write_page


class Sources(HTMLParser):
    """Everything that a page would load, and the texts of its pictures."""

    def __init__(self):
        super().__init__()
        self.sources, self.texts, self.scripts = [], [], 0

    def handle_starttag(self, tag, attributes):
        table = dict(attributes)
        self.sources += [table[key] for key in ("src", "href") if key in table]
        self.texts += [table.get("alt")] if tag == "img" else []
        self.scripts += tag == "script"


def test_files_and_status_tell_what_was_found(sound, tmp_path, capsys):
    root, output = tmp_path / "data", tmp_path / "out"
    shutil.copytree(sound / "voc", root)
    assert check(root, "--output", output) == 0
    xml = root / "Annotations" / "3.xml"
    xml.write_text(xml.read_text().replace("<xmax>20<", "<xmax>900<").replace("<xmin>2<", "<xmin>800<"))
    xml = root / "Annotations" / "0.xml"
    xml.write_text(xml.read_text().replace(">cat<", "><i>&amp;<"))
    (root / "JPEGImages" / "4.png").write_bytes((root / "JPEGImages" / "4.png").read_bytes()[:900])
    capsys.readouterr()
    assert check(root, "--output", output) == 1
    printed = capsys.readouterr().out
    report = json.loads((output / "check.json").read_text())
    faults = report["faults"]["val"]
    assert any("3.xml:3: box (799, 2, 900, 30) lies outside of the 35×40 image" in line for line in faults)
    assert any("4.png: image cannot be read" in line for line in faults)
    assert all(f"fault: {line}" in printed for line in faults)
    page = (output / "check.html").read_text()
    parser = Sources()
    parser.feed(page)
    assert parser.sources
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in parser.sources)
    assert all(parser.texts)
    assert parser.scripts == 0
    assert "@import" not in page
    assert not re.search(r"<th[^>]*></th>", page)  # which would have no name for those who cannot see it
    assert "val: 3.png" in page


def test_names_of_classes_are_text_and_not_html(tmp_path):
    root = tmp_path / "data"
    write_image(root / "JPEGImages" / "a.png")
    (root / "Annotations").mkdir()
    (root / "Annotations" / "a.xml").write_text(voc_xml(voc_object("&lt;b&gt;[red]x", 1, 1, 20, 20)))
    surveys, comparison = survey(root)
    page = write_page(report_of(surveys, comparison), surveys, comparison)
    assert "&lt;b&gt;[red]x" in page
    assert "<b>" not in page


def hashes(folder: Path):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("kind", WRITE)
def test_what_is_written_clean_has_no_fault_and_the_original_is_as_it_was(sound, tmp_path, capsys, kind):
    root = tmp_path / "data"
    shutil.copytree(sound / kind, root)
    cut_image(next(root.rglob("0.png")), random.Random(0))
    label = next(root.rglob("x.json" if kind == "coco" else "1.xml" if kind == "voc" else "1.txt"))
    spoil_coco(label, random.Random(3)) if kind == "coco" else spoil_number(label, random.Random(0))
    before = hashes(root)
    assert check(root, "--output", tmp_path / "out", "--write-clean", tmp_path / "clean") == 1
    assert hashes(root) == before
    lines = re.findall(r"^clean: (\w+): (\{.*\})$", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _ in lines] == ["train", "val"]
    config = tmp_path / "clean.yaml"
    sets = "".join(f"  {name}: {entry}\n" for name, entry in lines)
    config.write_text(f"datasets:\n{sets}data: {{train: [train], test: [val], classes: [cat, dog]}}\n")
    load_config(config)
    assert check(config, "--output", tmp_path / "again") == 0
    numbers = json.loads((tmp_path / "again" / "check.json").read_text())["sets"]
    assert numbers["train"]["images"] == 2
    assert numbers["train"]["boxes"] + numbers["val"]["boxes"] in (7, 8)


def test_source_and_target_stand_side_by_side(sound, tmp_path, capsys):
    for seed in range(3):
        write_image(tmp_path / "drawings" / f"{seed}.png", 50, 60, seed=100 + seed)
    assert check(sound / "coco", tmp_path / "drawings", "--output", tmp_path / "out") == 0
    sets = json.loads((tmp_path / "out" / "check.json").read_text())["sets"]
    assert {name: each["use"] for name, each in sets.items()} == {
        "train": "train",
        "target_all": "target",
        "val": "test",
    }
    assert sets["target_all"]["image_size"] == [50, 60]
    assert sets["target_all"]["boxes_per_image"] is None
    assert "target_all (target)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent"], "absent: no such folder"),
        (["one", "two", "three"], "three: give the folder of a source and one of a target"),
        (["x.yaml", "two"], "two: give one configuration, or folders"),
        (["x.yaml"], "x.yaml: no such configuration file"),
        (["absent", "--workers", "-1"], "--workers -1: 0 reads in this process"),
    ],
)
def test_what_cannot_be_read_gets_a_sentence(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert check(*words) == 2
    assert said in capsys.readouterr().err


def test_a_part_that_is_there_and_cannot_be_read_is_not_passed_over(tmp_path, capsys):
    for name in ("train", "val"):
        write_image(tmp_path / "coco" / "images" / f"{name}.png", 32, 40)
        content = {"images": [{"id": 1, "file_name": f"{name}.png"}], "categories": [{"id": 1, "name": "cat"}]}
        content["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 9]}]
        path = tmp_path / "coco" / "annotations" / f"instances_{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content)[: -5 if name == "val" else None])
    assert check(tmp_path / "coco", "--output", tmp_path / "out") == 2
    assert "instances_val.json:1: malformed JSON" in capsys.readouterr().err


def test_a_part_that_a_data_set_names_and_lacks_is_told_once(tmp_path, capsys):
    write_image(tmp_path / "yolo" / "images" / "train" / "a.png", 32, 40)
    (tmp_path / "yolo" / "labels" / "train").mkdir(parents=True)
    (tmp_path / "yolo" / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "yolo" / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    assert check(tmp_path / "yolo", "--output", tmp_path / "out") == 0
    printed = "".join(capsys.readouterr())
    assert printed.count("data.yaml: val: 'images/val' is no folder") == 1
    assert "this split is left out" in printed


def test_nothing_is_written_over(sound, tmp_path, capsys):
    assert check(sound / "voc", "--output", tmp_path / "out", "--write-clean", sound / "voc") == 2
    assert "is not empty; name a new folder by --write-clean" in capsys.readouterr().err


def test_a_fault_of_a_source_that_is_held_out_in_part_counts_once(tmp_path, capsys):
    """Both declarations read all files of labels, and each its images."""
    (tmp_path / "data" / "Annotations").mkdir(parents=True)
    for number in range(8):
        write_image(tmp_path / "data" / "JPEGImages" / f"{number}.png", 32, 40, seed=number)
        text = voc_xml(voc_object("cat", 2, 3, 20, 30), 32, 40)
        (tmp_path / "data" / "Annotations" / f"{number}.xml").write_text(text if number % 2 else text[:60])
    (tmp_path / "data" / "JPEGImages" / "7.png").unlink()
    part = f"{{root: {tmp_path / 'data'}, format: voc, holdout: 0.4"
    text = f"datasets: {{a: {part}}}, b: {part}, held_out: true}}}}\ndata: {{train: [a], test: [b], classes: [cat]}}\n"
    (tmp_path / "two.yaml").write_text(text)
    assert check(tmp_path / "two.yaml", "--output", tmp_path / "out") == 1
    faults = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fault: ")]
    for number in (0, 2, 4, 6, 7):
        assert len([line for line in faults if f"/{number}." in line]) == 1, number
    report = json.loads((tmp_path / "out" / "check.json").read_text())
    assert sum(len(lines) for lines in report["faults"].values()) == len(faults) == 5


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("train: [mine], test: [mine]", "mine is in data.train and in data.test"),
        ("train: [mine], classes: [horse]", "'mine' has none of the classes horse"),
        ("train: [mine], classes: [cat, Dog]", "has no class 'Dog'; 'dog' is there"),
        ("train: [mine], classes: [cat, horse]", "no box in mine is of class 'horse'; leave it out of data.classes"),
    ],
)
def test_what_a_run_would_refuse_is_a_fault(sound, tmp_path, data, said):
    config = tmp_path / "my.yaml"
    root = f"root: {sound / 'voc'}, split: train"
    config.write_text(f"datasets: {{mine: {{{root}}}}}\ndata: {{{data}}}\n")
    assert check(config, "--output", tmp_path / "out") == 1
    faults = json.loads((tmp_path / "out" / "check.json").read_text())["faults"]["mine"]
    assert any(said in line for line in faults), faults


@pytest.mark.parametrize(
    ("declaration", "said"),
    [
        ("format: folder", "'mine' has no labels to train on; take it out of data.train"),
        ("annotations: none.json", "no box in mine is of class 'car'; leave it out of data.classes"),
    ],
)
def test_data_without_any_box_to_learn_from_is_a_fault(tmp_path, declaration, said):
    root = write_image(tmp_path / "data" / "a.png").parent
    images = [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "car"}]}
    (root / "none.json").write_text(json.dumps(content))
    config = tmp_path / "my.yaml"
    config.write_text(
        f"datasets: {{mine: {{root: {root}, {declaration}}}}}\ndata: {{train: [mine], test: [], classes: [car]}}\n"
    )
    with pytest.raises(UserError) as refused:
        load_sets(load_config(config))
    assert said in str(refused.value)
    assert check(config, "--output", tmp_path / "out") == 1
    faults = json.loads((tmp_path / "out" / "check.json").read_text())["faults"]["mine"]
    assert any(said in line for line in faults), faults
