"""Small sound data sets, ways to spoil them, and their survey in this process."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from conftest import voc_object, voc_xml, write_image
from PIL import Image

from lossmix_det.commands import main as lossmix
from lossmix_det.commands.check_dataset import _declare
from lossmix_det.config import Config
from lossmix_det.data.survey import read_annotations, read_pixels
from lossmix_det.data.surveys import compare

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
    return lossmix(["check_dataset", "--workers", "0", *map(str, words)])


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
