"""Two folders, two commands, no code: a configuration for data of any format trains as it is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, voc_object, voc_xml, write_image
from runs import env

from lossmix_det.commands import main as lossmix
from lossmix_det.config import load_config
from lossmix_det.data.catalog import load, load_sets
from lossmix_det.data.parts import Place
from lossmix_det.errors import UserError
from lossmix_det.training import first_config

FEW = ["train.steps=2", "data.workers=0", "train.eval_every=0", "train.device=cpu", "data.batch_size=2"]
FEW += ["data.augment.min_sizes=[64]", "data.augment.test_size=64", "data.augment.max_size=96"]
ADAPT_FEW = [*FEW, "train.steps=4", "adaptation.burn_in_steps=2"]
CLASSES = ("cat", "dog")


def write_voc(root: Path, splits: dict[str, int], classes=CLASSES, first: int = 1) -> Path:
    """Images with a box of each class; ``first``: what its files call the first pixel."""
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    number = 0
    for split, count in splits.items():
        names = [f"{number + index}" for index in range(count)]
        number += count
        for name in names:
            write_image(root / "JPEGImages" / f"{name}.png", 64, 64, seed=int(name))
            boxes = [
                voc_object(label, 12 * at + first, 5 + first, 12 * at + 30, 40) for at, label in enumerate(classes)
            ]
            (root / "Annotations" / f"{name}.xml").write_text(voc_xml("".join(boxes), 64, 64))
        if split:
            (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
    if set(splits) == {""}:
        (root / "ImageSets" / "Main").rmdir()
        (root / "ImageSets").rmdir()
    return root


def write_roboflow(root: Path, splits: dict[str, int]) -> Path:
    """COCO as Roboflow exports it: a folder for each split with its file, and the project as category 0."""
    for split, count in splits.items():
        images, annotations = [], []
        for number in range(count):
            write_image(root / split / f"{split}_{number}.jpg", 64, 64, seed=number)
            images.append({"id": number, "file_name": f"{split}_{number}.jpg", "width": 64, "height": 64})
            for label in (1, 2):
                box = [4 * label, 5, 30, 35]
                row = {"id": len(annotations), "image_id": number, "category_id": label, "bbox": box, "area": 1050}
                annotations.append(row | {"iscrowd": 0})
        categories = [{"id": 0, "name": "animals", "supercategory": "none"}]
        categories += [{"id": at, "name": name, "supercategory": "animals"} for at, name in enumerate(CLASSES, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def converted(kind: str, root: Path, splits: dict[str, int]) -> Path:
    """By our own command."""
    source = write_voc(root.with_name(f"{root.name}_voc"), splits)
    assert lossmix(["convert", str(source), str(root), "--to", kind, "--splits", *splits]) == 0
    return root


def write_hugging_face(root: Path, splits: dict[str, int]) -> Path:
    for split, count in splits.items():
        rows = []
        for number in range(count):
            write_image(root / split / f"{number}.png", 64, 64, seed=number)
            objects = {"bbox": [[4, 5, 30, 35], [20, 10, 30, 30]], "categories": ["cat", "dog"]}
            rows.append(json.dumps({"file_name": f"{number}.png", "objects": objects}))
        (root / split / "metadata.jsonl").write_text("\n".join(rows))
    return root


FORMATS = {
    "voc": write_voc,
    "coco": lambda root, splits: converted("coco", root, splits),
    "yolo": lambda root, splits: converted("yolo", root, splits),
    "roboflow": write_roboflow,
    "huggingface": write_hugging_face,
}


def init(*words) -> int:
    return lossmix(["init_config", *map(str, words)])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_trains_from_its_folder_alone(here, kind):
    FORMATS[kind](here / "data", {"train": 4, "valid": 2})
    assert init("data", "--output", "my.yaml") == 0
    assert lossmix(["train", "--config-file", "my.yaml", *FEW]) == 0
    scores = json.loads((here / "runs" / "my" / "results.json").read_text())["student"]
    assert list(scores) == ["source_val"]
    assert list(scores["source_val"]["classes"]) == list(CLASSES)


@pytest.mark.slow
def test_a_plain_folder_is_adapted_to_and_predicted_on(here, capsys):
    FORMATS["yolo"](here / "data", {"train": 4, "valid": 2})
    for seed in range(3):
        write_image(here / "drawings" / "sub" / f"{seed}.jpg", 80, 60, seed=seed)
    assert init("data", "drawings", "--output", "my.yaml") == 0
    printed = capsys.readouterr().out
    assert "the target has no labels, so only the source is scored" in printed
    assert printed.splitlines()[-1].endswith("predict runs/my drawings")
    assert lossmix(["train", "--config-file", "my.yaml", *ADAPT_FEW]) == 0
    assert (here / "runs" / "my" / "export" / "teacher.pth").is_file()
    assert lossmix(["predict", "runs/my", "drawings", "--score", "0"]) == 0
    assert len(list((here / "predictions" / "drawn" / "sub").glob("*.jpg"))) == 3


def test_without_splits_a_part_is_held_out(here, capsys):
    write_voc(here / "data", {"": 10})
    assert init("data", "--output", "my.yaml") == 0
    assert "no validation part, so 10% of its images are held out" in capsys.readouterr().out
    (train,), (test,) = load_sets(load_config("my.yaml"))
    assert (len(train), len(test)) == (9, 1)
    assert not {record.path for record in train.records} & {record.path for record in test.records}


def test_classes_are_those_that_source_and_target_share(here, capsys):
    write_voc(here / "data", {"train": 3, "val": 2}, classes=("cat", "dog", "horse"))
    write_voc(here / "target", {"train": 3, "test": 2}, classes=("dog", "cat", "Horse"))
    assert init("data", "target", "--output", "my.yaml") == 0
    printed = capsys.readouterr().out
    assert "left out: 'horse', 'Horse' (did you mean 'horse'?)" in printed
    config = load_config("my.yaml")
    assert config.data.classes == ["cat", "dog"]
    assert config.datasets["source_train"].ignore_classes == ["horse"]
    assert config.datasets["target_test"].ignore_classes == ["Horse"]
    assert config.data.test == ["source_val", "target_test"]
    assert config.train.best_metric == "source_val/AP50"
    for name in config.datasets:
        assert load(name, config, config.data.classes).problems.skipped == []


def test_files_that_count_pixels_from_0_are_told(here):
    write_voc(here / "one", {"train": 3, "val": 2})
    write_voc(here / "zero", {"train": 3, "val": 2}, first=0)
    for name, origin in (("one", 1), ("zero", 0)):
        assert init(name, "--output", f"{name}.yaml") == 0
        assert load_config(f"{name}.yaml").datasets["source_train"].pixel_origin == origin


def test_parts_of_one_data_set_count_pixels_alike(here, capsys):
    """No box of the second part lies at the edge, as happens where there are few."""
    write_voc(here / "data", {"train": 3, "val": 2}, first=0)
    for name in (here / "data" / "ImageSets" / "Main" / "val.txt").read_text().split():
        path = here / "data" / "Annotations" / f"{name}.xml"
        path.write_text(re.sub(r"<([xy]min)>0<", r"<\1>3<", path.read_text()))
    assert init("data", "--output", "my.yaml") == 0
    assert {entry.pixel_origin for entry in load_config("my.yaml").datasets.values()} == {0}
    assert "data: pixels are counted from 0, because some boxes begin there" in capsys.readouterr().out


def test_faulty_boxes_are_left_out_and_said(here, capsys):
    write_voc(here / "data", {"train": 3, "val": 2})
    assert init("data", "--output", "sound.yaml") == 0
    assert load_config("sound.yaml").data.on_error == "raise"
    xml = here / "data" / "Annotations" / "0.xml"
    xml.write_text(xml.read_text().replace("<xmax>30<", "<xmax>1<"))
    assert init("data", "--output", "my.yaml") == 0
    assert "some images or boxes of the source cannot be used" in capsys.readouterr().out
    assert "# 3 images, 5 boxes, 1 faults\n" in (here / "my.yaml").read_text()
    assert load_config("my.yaml").data.on_error == "skip"


def test_nothing_is_written_over(here, capsys):
    write_voc(here / "data", {"train": 3, "val": 2})
    assert init("data") == 0
    before = (here / "my.yaml").read_text()
    assert init("data") == 2
    assert "my.yaml exists already; name another file by --output" in capsys.readouterr().err
    assert (here / "my.yaml").read_text() == before


def test_the_usual_place_is_the_folder_configs(here):
    write_voc(here / "data", {"train": 3, "val": 2})
    (here / "configs").mkdir()
    assert init("data") == 0
    assert load_config("configs/my.yaml").output_dir == "runs/my"


def test_splits_with_names_of_their_own_are_named_behind_a_colon(here, capsys):
    write_voc(here / "data", {"bright": 4, "dark": 3, "dark_test": 2})
    assert init("data", "--output", "my.yaml") == 2
    assert "its splits are bright, dark, dark_test; name one behind a colon: " in capsys.readouterr().err
    words = ["data:bright", "data:dark", "--target-test", "data:dark_test"]
    assert init(*words, "--output", "my.yaml") == 0
    config = load_config("my.yaml")
    lengths = {name: len(load(name, config, config.data.classes)) for name in config.datasets}
    assert lengths == {"source_train": 3, "source_val": 1, "target_train": 3, "target_test": 2}
    assert capsys.readouterr().out.splitlines()[-1].endswith("predict runs/my data")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent"], "absent: no such folder"),
        (["empty"], "its format cannot be told"),
        (["pictures"], "read as folder, and holds no box to learn from"),
        (["data", "other"], "source and target have no class in common: cat, dog there, car here"),
        (["data", "--target-test", "data"], "--target-test needs TARGET"),
        (["data", "data"], "source and target are the same images, so there is nothing to adapt to"),
        (["whole", "whole/../whole"], "source and target are the same images, so there is nothing to adapt to"),
        (["pictures/a.png"], "pictures/a.png: is a file; give its folder"),
        (["data", "absent"], "absent: no such folder"),
        (["data", "empty"], "its format cannot be told"),
        (["data", "pictures/a.png"], "pictures/a.png: is a file; give its folder"),
    ],
)
def test_what_cannot_be_trained_on_gets_a_sentence(here, capsys, words, said):
    write_voc(here / "data", {"train": 3, "val": 2})
    write_voc(here / "other", {"train": 3, "val": 2}, classes=("car",))
    write_voc(here / "whole", {"": 4})
    write_image(here / "pictures" / "a.png")
    (here / "empty").mkdir()
    assert init(*words, "--output", "my.yaml") == 2
    assert said in capsys.readouterr().err
    assert not (here / "my.yaml").exists()


def test_a_folder_whose_name_has_a_colon_is_no_split(here):
    (here / "a:b").mkdir()
    assert Place.parse("a:b") == Place(here / "a:b")
    assert Place.parse("a:b:train") == Place(here / "a:b", "train")
    with pytest.raises(UserError, match="c:b: no such folder"):
        Place.parse("c:b")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["script", "program"])
def test_the_printed_commands_are_called_as_this_one_was(here, how):
    """Both are understood by the shell, and by the programs that they name."""
    write_voc(here / "da ta", {"train": 3, "val": 2})
    program = here / "bin" / "lossmix"
    program.parent.mkdir()
    code = f"#!{sys.executable}\nimport sys\nfrom lossmix_det.commands import main\nsys.exit(main())\n"
    program.write_text(code)
    program.chmod(0o755)
    script = [sys.executable, str(ROOT / "tools" / "init_config.py")]
    first = script if how == "script" else [str(program), "init_config"]
    done = subprocess.run([*first, "da ta"], capture_output=True, text=True, check=True, env=env())
    commands = done.stdout.splitlines()[-2:]
    for line in commands:
        ran = subprocess.run(f"{line} --help", shell=True, capture_output=True, text=True, check=False, env=env())
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.startswith("usage: ")
    assert commands[0].endswith(" --config-file my.yaml")
    assert commands[1].endswith(" runs/my 'da ta'")
    assert commands[0].strip().startswith((sys.executable, "python") if how == "script" else str(program))


PAIRS = {
    "blood": ("bccd", "blood_b", None),
    "runway": ("fod_bright_dark:bright_train", "fod_bright_dark:dark_train", "fod_bright_dark:dark_test"),
}


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_real_folders_train_from_two_commands(shared_data, here, pair):
    """A few steps of each phase, with everything else as it was written."""
    source, target, test = (part and str(shared_data / part) for part in PAIRS[pair])
    scored = "target_test" if pair == "blood" else "source_val"  # which are the fewer images
    more = ["--target-test", test] if test else []
    assert init(source, target, *more, "--output", "my.yaml") == 0
    words = [*ADAPT_FEW, f"data.test=[{scored}]", "train.best_metric=AP50"]
    assert lossmix(["train", "--config-file", "my.yaml", *words]) == 0
    scores = json.loads((here / "runs" / "my" / "results.json").read_text())["teacher"][scored]
    assert set(scores["classes"]) >= ({"RBC", "WBC"} if pair == "blood" else {"Bolt", "Wrench"})


def as_roboflow(root: Path, output: Path) -> Path:
    """COCO of `convert` as Roboflow exports it: the file of each split beside its images, and no ``val``."""
    for file in (root / "annotations").glob("*.json"):
        folder = output / {"val": "valid"}.get(file.stem, file.stem)
        folder.mkdir(parents=True)
        content = json.loads(file.read_text())
        for image in content["images"]:
            path = (root / image["file_name"]).resolve()
            image["file_name"] = path.name
            (folder / path.name).symlink_to(path)
        content["categories"].insert(0, {"id": 0, "name": "cells", "supercategory": "none"})
        (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return output


@pytest.mark.slow
def test_copies_of_real_folders_in_other_formats_are_declared_alike(shared_data, here):
    """As many images, and as many boxes of each class."""
    words = ["--splits", "train", "val", "test", "data.on_error=skip"]
    for kind in ("yolo", "coco"):
        assert lossmix(["convert", str(shared_data / "bccd"), kind, "--to", kind, *words]) == 0
    found = {}
    for source in (shared_data / "bccd", Path("yolo"), as_roboflow(Path("coco"), Path("roboflow"))):
        assert init(source, shared_data / "blood_b", "--output", f"{source.name}.yaml") == 0
        config = load_config(f"{source.name}.yaml")
        sets = {name: load(name, config, config.data.classes) for name in config.datasets}
        counts = {name: Counter(each.records.classes.tolist()) for name, each in sets.items()}
        found[source.name] = config.data.classes, {name: (len(each), counts[name]) for name, each in sets.items()}
    assert found["yolo"] == found["roboflow"] == found["bccd"]
    assert found["bccd"][1]["source_train"] == (205, {0: 2381, 1: 214})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("installed", [True, False])
def test_it_starts_from_imagenet_weights_where_they_are_installed(monkeypatch, device, installed):
    monkeypatch.setattr(first_config, "find_spec", lambda name: installed or None)
    model = first_config._model_settings(device)
    assert (model.get("weights") == "lite0") is installed
    assert model["architecture"].startswith("timm/") is installed
    words = [f"model.{key}={value}" for key, value in model.items()]
    assert load_config(None, words).model.architecture == model["architecture"]


@pytest.mark.parametrize("installed", [True, False])
def test_random_weights_are_said_with_what_to_install(here, capsys, monkeypatch, installed):
    monkeypatch.setattr(first_config, "find_spec", lambda name: installed or None)
    write_voc(here / "photos", {"train": 4, "val": 2})
    assert init("photos", "--output", "mine.yaml") == 0
    assert ("it begins with random weights" in capsys.readouterr().out) is not installed
