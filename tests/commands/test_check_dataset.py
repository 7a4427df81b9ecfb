"""`lossmix check_dataset`: every fault of a data set is named, and nothing ends the reading."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import voc_object, voc_xml, write_image
from PIL import Image

from lossmix_det.commands import main as lossmix
from lossmix_det.commands.check_dataset import _declare
from lossmix_det.config import Config, load_config
from lossmix_det.data.survey import read_annotations, read_pixels
from lossmix_det.data.surveys import alike, compare
from lossmix_det.report.dataset_numbers import numbers_of, report_of
from lossmix_det.report.dataset_page import write_page

SPLITS = {"train": (0, 1, 2), "val": (3, 4)}


def write_voc(root: Path) -> None:
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for split, numbers in SPLITS.items():
        for number in numbers:
            write_image(root / "JPEGImages" / f"{number}.png", 32 + number, 40, seed=number)
            text = voc_xml(voc_object("cat", 2, 3, 20, 30) + voc_object("dog", 5, 6, 31, 39), 32 + number, 40)
            (root / "Annotations" / f"{number}.xml").write_text(text)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(map(str, numbers)))


def write_coco(root: Path) -> None:
    for split, numbers in SPLITS.items():
        content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
        for number in numbers:
            write_image(root / split / f"{number}.png", 32 + number, 40, seed=number)
            content["images"].append({"id": number, "file_name": f"{number}.png", "width": 32 + number, "height": 40})
            for label in (1, 2):
                row = {"id": 2 * number + label, "image_id": number, "category_id": label, "bbox": [2, 3, 18, 27]}
                content["annotations"].append(row)
        (root / split / "x.json").write_text(json.dumps(content))


def write_yolo(root: Path) -> None:
    for split, numbers in SPLITS.items():
        (root / "labels" / split).mkdir(parents=True)
        for number in numbers:
            write_image(root / "images" / split / f"{number}.png", 32 + number, 40, seed=number)
            (root / "labels" / split / f"{number}.txt").write_text("0 0.5 0.5 0.4 0.3\n1 0.4 0.6 0.5 0.5\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")


WRITE = {"voc": write_voc, "coco": write_coco, "yolo": write_yolo}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The folder of a sound data set of each format."""
    folder = tmp_path_factory.mktemp("sound")
    for kind, write in WRITE.items():
        write(folder / kind)
    return folder


def survey(root: Path):
    """The surveys of a folder's parts and what they say together, in this process."""
    config = Config()
    uses = _declare(config, str(root), "", "train")
    surveys = []
    for name, use in uses.items():
        surveys.append(read_annotations(name, use, config, surveys[0].classes if surveys else None))
        read_pixels(surveys[-1], config, 0, lambda count: None)
    return surveys, compare(surveys)


def check(*words) -> int:
    return lossmix(["check_dataset", *map(str, words), "--workers", "0"])


# -------------------------------------------------------------------------------------------------------- corruptions


def cut_image(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content) - 60)])


def flip_pixels(path: Path, rng: random.Random) -> None:
    """Some bytes of the compressed pixels, which their checksum covers."""
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT") + 4
    for _ in range(rng.randrange(1, 5)):
        content[rng.randrange(start + 2, len(content) - 20)] ^= rng.randrange(1, 256)
    path.write_bytes(content)


def replace_by_text(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.choice((b"", b"hello", b"<html>404</html>", rng.randbytes(300))))


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def replace_by_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def link_to_nowhere(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


def crop(path: Path, rng: random.Random) -> None:
    """Another size than its annotation says."""
    with Image.open(path) as image:
        image.crop((0, 0, image.width - 3, image.height - 9)).save(path)


IMAGE_FAULTS = [cut_image, flip_pixels, replace_by_text, remove, replace_by_folder, link_to_nowhere, crop]
SPOILT = {  # what a number is replaced by, which no box survives
    "voc": (r"<xmax>\d+<", ("<xmax>nan<", "<xmax>1<", "<xmax>-7<", "<xmax>word<", "<xmax><")),
    "yolo": (r"0\.4 0\.3$", ("nan 0.3", "-0.4 0.3", "word", "0.4", "0.4 0", "400 300")),
}


def spoil_number(path: Path, rng: random.Random) -> None:
    pattern, values = SPOILT["voc" if path.suffix == ".xml" else "yolo"]
    path.write_text(re.sub(pattern, rng.choice(values), path.read_text(), count=1, flags=re.MULTILINE))


def unknown_class(path: Path, rng: random.Random) -> None:
    text = path.read_text()
    path.write_text(text.replace(">cat<", "><", 1) if path.suffix == ".xml" else text.replace("0 0.5", "9 0.5", 1))


def cut_text(path: Path, rng: random.Random) -> None:
    text = path.read_text()
    path.write_text(text[: rng.randrange(20, len(text) - 30)] if path.suffix == ".xml" else text[:9])


def no_utf8(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"\xff\xfe\xfa" + path.read_bytes())


LABEL_FAULTS = [spoil_number, unknown_class, cut_text, no_utf8]


def spoil_coco(path: Path, rng: random.Random) -> str:
    """Spoil one entry of a COCO file; what the fault must name."""
    content = json.loads(path.read_text())
    index = rng.randrange(len(content["annotations"]))
    key, value = rng.choice(
        [
            *(("bbox", value) for value in ([2, 3, 0, 5], [1, 2, 3], "x", None, [99, 99, 5, 5], [1, 2, "w", 3])),
            *(("category_id", value) for value in (77, None, "cat", [])),
            *(("image_id", value) for value in (77, None, "x")),
        ]
    )
    content["annotations"][index][key] = value
    path.write_text(json.dumps(content))
    return f"annotations[{index}]"


def corrupt(root: Path, kind: str, rng: random.Random) -> list[str]:
    """Spoil one to three files of a data set; what the faults must name of each."""
    images, texts = sorted(root.rglob("*.png")), sorted([*root.rglob("*.xml"), *root.rglob("labels/*/*.txt")])
    wanted = []
    for path in rng.sample([*images, *texts], rng.randrange(1, 4)):
        twin = {image.stem for image in images if image.stem == path.stem}
        if any(name.split(".")[0] in twin for name in wanted):  # one fault may hide another of the same image
            continue
        faults = [fault for fault in IMAGE_FAULTS if fault is not crop or kind != "yolo"]
        rng.choice(faults if path in images else LABEL_FAULTS)(path, rng)
        wanted.append(path.name)
    if kind == "coco" and rng.random() < 0.3:
        (path,) = rng.sample(sorted(root.rglob("*.json")), 1)
        numbers = [json.loads(path.read_text())["images"][at]["file_name"] for at in range(2)]
        if not set(numbers) & set(wanted) and not wanted:
            wanted.append(spoil_coco(path, rng))
    return wanted


@pytest.mark.parametrize("part", range(5))
def test_100_random_corruptions_give_no_traceback_and_no_missed_file(sound, tmp_path, part):
    """500 in all, each of one to three files of a small data set."""
    for seed in range(part, 500, 5):
        rng = random.Random(seed)
        kind = rng.choice(list(WRITE))
        root = tmp_path / f"{seed}"
        shutil.copytree(sound / kind, root)
        wanted = corrupt(root, kind, rng)
        surveys, comparison = survey(root)
        said = "\n".join(line for each in surveys for line in each.faults)
        for name in wanted:  # VOC and YOLO go by names without suffix
            named = name in said or (kind != "coco" and f"/{Path(name).stem}." in said)
            assert named, f"seed {seed}: {kind} {name}\n{said}"
        json.dumps(report_of(surveys, comparison))
        shutil.rmtree(root)


def test_a_sound_data_set_has_no_fault(sound):
    for kind in WRITE:
        surveys, comparison = survey(sound / kind)
        assert [line for each in surveys for line in each.faults] == []
        assert comparison.faults() == []
        assert [len(each.records) for each in surveys] == [3, 2]


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_in_any_file_end_in_a_page(sound, tmp_path, seed):
    """Noise anywhere may leave a file as good as it was; but it never ends the reading."""
    rng = random.Random(seed)
    root = tmp_path / "data"
    shutil.copytree(sound / rng.choice(list(WRITE)), root)
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        content = bytearray(path.read_bytes())
        for _ in range(rng.randrange(3)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
    status = check(root, "--output", tmp_path / "out")
    assert status in (0, 1, 2)
    assert (tmp_path / "out" / "check.html").is_file() == (status != 2)


# ------------------------------------------------------------------------------------------------------------ numbers


def test_numbers_are_those_of_the_files(tmp_path):
    """Worked out by hand."""
    root = tmp_path / "data"
    (root / "Annotations").mkdir(parents=True)
    for name, value, objects in (
        ("a", (200, 100, 30), voc_object("cat", 1, 1, 10, 10) + voc_object("dog", 1, 1, 50, 80)),
        ("b", (100, 100, 100), ""),
        ("c", (0, 20, 40), voc_object("cat", 1, 1, 100, 100)),
    ):
        (root / "JPEGImages").mkdir(exist_ok=True)
        Image.fromarray(np.full((120, 160, 3), value, dtype=np.uint8)).save(root / "JPEGImages" / f"{name}.png")
        (root / "Annotations" / f"{name}.xml").write_text(voc_xml(objects, 160, 120))
    (found,), _ = survey(root)
    numbers = numbers_of(found)
    assert numbers["classes"] == {"cat": 2, "dog": 1}
    assert (numbers["images"], numbers["boxes"], numbers["empty"], numbers["boxes_per_image"]) == (3, 3, 1, 1.0)
    assert numbers["image_size"] == [160, 120]
    assert numbers["box_areas"] == [1, 1, 1]
    assert numbers["box_side"][1] == round(np.sqrt(50 * 80), 1)
    assert numbers["colour"] == [100.0, pytest.approx(73.3), pytest.approx(56.7)]
    assert numbers["brightness"] == [pytest.approx((110 + 100 + 20) / 3, abs=0.05), pytest.approx(40.3, abs=0.05)]


def test_images_in_two_parts_are_found_by_their_pixels_and_are_a_fault(sound, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(sound / "voc", root)
    with Image.open(root / "JPEGImages" / "1.png") as image:  # the same pixels in other bytes
        pixels = image.convert("RGB")
    pixels.save(root / "JPEGImages" / "4.png", compress_level=1)
    pixels.save(root / "JPEGImages" / "2.png", compress_level=2)
    for number in (2, 4):
        shutil.copy(root / "Annotations" / "1.xml", root / "Annotations" / f"{number}.xml")
    _, comparison = survey(root)
    (within, between) = sorted(comparison.shared, key=lambda each: each.wrong)
    assert (within.first, within.second, within.count, within.wrong) == ("train", "train", 1, False)
    assert (between.first, between.second, between.count, between.wrong) == ("train", "val", 1, True)
    assert [Path(path).name for path in between.examples[0]] == ["1.png", "4.png"]
    (fault,) = comparison.faults()
    assert "1 images are in both train and val" in fault


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["Car", "car", "bus"], [("Car", "car")]),
        (["tvmonitor", "tv"], [("tv", "tvmonitor")]),
        (["traffic light", "traffic-light"], [("traffic light", "traffic-light")]),
        (["dog", "dogs", "hog"], [("dog", "dogs")]),
        (["motorbike", "motorcycle", "bicycle"], [("motorbike", "motorcycle")]),
        (["platelet", "plateelt"], [("plateelt", "platelet")]),
        (["RBC", "WBC", "class 1", "class 2", "bus", "bush", "car", "cat", "train", "truck"], []),
    ],
)
def test_names_that_may_be_one(names, pairs):
    assert alike(names) == pairs


def test_boxes_that_repeat_an_earlier_one_are_noted(sound, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(sound / "voc", root)
    objects = voc_object("cat", 2, 3, 20, 30) * 2 + voc_object("dog", 2, 3, 20, 30)
    (root / "Annotations" / "0.xml").write_text(voc_xml(objects, 32, 40))
    surveys, _ = survey(root)
    assert any(
        line.startswith("train: 1 boxes are the same as an earlier one of their image") for line in surveys[0].notes
    )
    assert any(
        line.startswith("train: 1 boxes are the same as an earlier one of another class") for line in surveys[0].notes
    )


# -------------------------------------------------------------------------------------------------------- the command


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
    ],
)
def test_what_cannot_be_read_gets_a_sentence(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert check(*words) == 2
    assert said in capsys.readouterr().err


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
