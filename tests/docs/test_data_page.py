"""Every snippet of docs/data.md is run, on data laid out as the page shows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, voc_object, voc_xml, write_image

from lossmix_det.commands import main
from lossmix_det.config import load_config
from lossmix_det.data.catalog import load, load_sets, load_target

PAGE = (ROOT / "docs" / "data.md").read_text()
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
YOLO_YAML = "train: images/train\nval: images/val\nnames: [car, person]\n"


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], flags=re.DOTALL)


def coco(path: Path, prefix: str = "") -> str:
    """Of every image below the folder of the file, or beside its own folder."""
    base = path.parent if path.parent.name != "annotations" else path.parent.parent
    files = sorted(base.rglob("*.jpg"))
    images = [
        {"id": n, "file_name": str(file.relative_to(base)), "width": 60, "height": 40} for n, file in enumerate(files)
    ]
    boxes = [
        {"id": 2 * n + k, "image_id": n, "category_id": k + 1, "bbox": [1 + k, 2, 20, 30]}
        for n in range(len(files))
        for k in (0, 1)
    ]
    names = [{"id": 0, "name": "things", "supercategory": "none"}]
    names += [{"id": n, "name": name, "supercategory": "things"} for n, name in ((1, "car"), (2, "person"))]
    return json.dumps({"images": images, "annotations": boxes, "categories": names})


def rows(path: Path) -> str:
    files = sorted(path.parent.glob("*.jpg"))
    objects = {"bbox": [[1, 2, 20, 30], [5, 5, 9, 9]], "categories": [0, 1]}
    return "\n".join(json.dumps({"file_name": file.name, "objects": objects}) for file in files)


# What a file of the page holds, by its name.
CONTENTS = {
    ".json": coco,
    ".jsonl": rows,
    ".xml": lambda path: voc_xml(voc_object("car", 1, 1, 30, 20) + voc_object("person", 3, 3, 20, 20)),
    ".yaml": lambda path: YOLO_YAML,
    "_train.txt": lambda path: "photo.jpg 1\n",
    ".txt": lambda path: "0 0.5 0.5 0.5 0.5\n1 0.3 0.3 0.2 0.2\n",
}


def lay_out(section: str, root: Path) -> None:
    """Make the files that a section lists, images first; `/data` becomes a folder of the test."""
    paths = [root / line.removeprefix("/data/") for line in "".join(blocks(section, "text")).split()]
    for path in sorted(paths, key=lambda path: path.suffix != ".jpg"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jpg":
            write_image(path)
        else:
            ending = next(ending for ending in CONTENTS if path.name.endswith(ending))
            path.write_text(CONTENTS[ending](path))
    if section == "CVAT":  # the second export is in words
        for name in ("a.jpg", "b.jpg"):
            write_image(root / "cvat_voc" / "JPEGImages" / name)
            xml = root / "cvat_voc" / "Annotations" / f"{Path(name).stem}.xml"
            xml.parent.mkdir(parents=True, exist_ok=True)
            xml.write_text(CONTENTS[".xml"](xml))


# What is declared by hand shows no layout; that it is valid holds for every page (test_pages.py).
SNIPPETS = [
    (section, number) for section in SECTIONS if section != "By hand" for number in range(len(blocks(section, "yaml")))
]


@pytest.mark.parametrize(("section", "number"), SNIPPETS)
def test_every_declaration_reads_the_layout_that_is_shown(tmp_path, section, number):
    lay_out(section, tmp_path)
    text = blocks(section, "yaml")[number]
    assert len(text.splitlines()) == 3
    (tmp_path / "my.yaml").write_text(text.replace("/data/", f"{tmp_path}/"))
    config = load_config(tmp_path / "my.yaml")
    train, test = load_sets(config)
    assert train[0].classes == ["car", "person"]
    assert all(len(image_set.records.boxes) >= 2 for image_set in (*train, *test) if image_set.labelled)
    assert [len(load_target(name, config, train[0].classes)) for name in config.data.target] in ([], [1])


def test_every_tool_has_a_declaration():
    tools = {"LabelImg", "CVAT", "Roboflow", "Label Studio", "VoTT", "makesense.ai", "Ultralytics", "Hugging Face"}
    assert tools <= {section for section, _ in SNIPPETS}


def test_the_other_exports_that_are_named_have_the_same_lines(tmp_path):
    """Roboflow's YOLOv8 and VOC archives, Label Studio's YOLO, LabelImg's YOLO."""
    for split, name in (("train", "a"), ("valid", "b")):
        for kind in ("yolov8", "voc"):
            image = tmp_path / kind / split / ("images" if kind == "yolov8" else "") / f"{name}.jpg"
            write_image(image)
        (tmp_path / "yolov8" / split / "labels").mkdir()
        (tmp_path / "yolov8" / split / "labels" / f"{name}.txt").write_text(CONTENTS[".txt"](tmp_path))
        (tmp_path / "voc" / split / f"{name}.xml").write_text(CONTENTS[".xml"](tmp_path))
    yaml = "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['car', 'person']\n"
    (tmp_path / "yolov8" / "data.yaml").write_text(yaml)
    for kind in ("yolov8", "voc"):
        (tmp_path / "my.yaml").write_text(blocks("Roboflow", "yaml")[0].replace("/data/roboflow", str(tmp_path / kind)))
        train, test = load_sets(load_config(tmp_path / "my.yaml"))
        assert [image_set.records[0].path.stem for image_set in (*train, *test)] == ["a", "b"]
    for folder, images, labels in (("label_studio", "images", "labels"), ("labelimg", "", "")):
        write_image(tmp_path / folder / images / "a.jpg")
        (tmp_path / folder / labels).mkdir(exist_ok=True)
        (tmp_path / folder / labels / "a.txt").write_text(CONTENTS[".txt"](tmp_path))
        (tmp_path / folder / "classes.txt").write_text("car\nperson\n")
        found = load("mine", load_config(None, [f"datasets.mine.root={tmp_path / folder}"]))
        assert found.classes == ["car", "person"]


def test_every_command_runs(tmp_path, capsys):
    lay_out("Converting", tmp_path)
    (commands,) = blocks("Converting", "bash")
    for line in commands.splitlines():
        program, *words = shlex.split(line.replace("/data/", f"{tmp_path}/"))
        assert program == "lossmix"
        assert main(words) == 0, capsys.readouterr().err
        root, new = words[1:3]
        before, after = (
            load("mine", load_config(None, [f"datasets.mine.root={path}", "datasets.mine.split=train"]))
            if "yolo" in Path(root).name
            else load("mine", load_config(None, [f"datasets.mine.root={path}", "datasets.mine.pixel_origin=0"]))
            for path in (root, new)
        )
        assert len(before.records.boxes) == len(after.records.boxes) == 2
