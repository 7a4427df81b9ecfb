"""Damaged and hostile files of every format end in a data set or in one sentence, never in a traceback or a hang.

LOSSMIX_FUZZ_CASES=20000 runs more cases; the first 500 are always the same.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import voc_object, voc_xml, write_image
from PIL import Image

from lossmix_det.config import Config, DatasetConfig
from lossmix_det.data.catalog import load, load_target
from lossmix_det.data.images import probe, read
from lossmix_det.data.loaders import Draw, TrainingImages
from lossmix_det.errors import UserError

CASES = int(os.environ.get("LOSSMIX_FUZZ_CASES", "500"))
CPU_SECONDS = 20  # of the processor, not of a clock; a case takes milliseconds
MEGABYTES = 1500  # that all cases together may add; Pillow itself takes hundreds for an image just below its limit

TOKENS = [
    *("nan", "inf", "-inf", "1e308", "1e-9", "-1", "0", "0.5", "99999999999999999999", "1" * 400, "9" * 5000, "", " "),
    *(
        "null",
        "true",
        "[]",
        "{}",
        '""',
        "../../../etc/passwd",
        "/dev/zero",
        "C:\\x.png",
        "a" * 5000,
        "\\ud800",
        "é",
        "猫",
    ),
    *(
        "\0",
        "\x0b",
        "\u2028",
        "<",
        "&",
        "]]>",
        '"',
        "'",
        "%s",
        "{0}",
        "${a}",
        "!!python/object:os.system",
        "*a",
        "&a",
        "- ",
    ),
]
VALUES = [
    *(None, True, False, 0, -1, 1.5, float("nan"), float("inf"), -float("inf"), 10**30, 10**400, 1e308, 1e-9, "", " "),
    *("1", "x", "\0", "\ud800", "../x.png", "/etc/passwd", "a" * 5000, [], [[]], {}, [1], [1, 2, 3, 4], [None] * 4),
    *({"a": 1}, [1e308] * 4, ["1", "2", "3", "4"], [0, 0, 1e-9, 5], [-5, -5, 1e9, 1e9], [[1, 2, 3, 4, 5, 6]]),
]
BOMBS = {
    "xml": [
        '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>',
        '<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>',
        "<annotation>" + "<object>" * 20000,
        "<a>" * 20000 + "</a>" * 20000,
        '<?xml version="1.0" encoding="utf-7"?><annotation/>',
        '<?xml version="1.0" encoding="rot13"?><annotation/>',
    ],
    "json": ["[" * 100000, '{"a":' * 100000, '{"images": ' + "[" * 50000 + "]" * 50000 + "}", "1" * 5000, "NaN", '"x"'],
    "jsonl": ["[" * 100000, '{"file_name": "a.png", "objects": ' + "[" * 50000, "1" * 5000 + "\n" * 5000],
    "txt": ["0 " * 100000, "0 0.5 0.5 0.5 0.5\n" * 3000, "\n" * 100000],
    "yaml": ["[" * 3000, "a: " * 3000, "names: " + "{" * 3000, "? " * 2000, "a: &a [1]\nnames: [*a]"],
}


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, doubled, inserted; numbers and words in place of others."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        content = rng.choice(DAMAGES)(content, rng)
    return content


def flip(content: bytes, rng: random.Random) -> bytes:
    copy = bytearray(content)
    for _ in range(rng.randrange(1, 8) if copy else 0):
        copy[rng.randrange(len(copy))] = rng.randrange(256)
    return bytes(copy)


def cut(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start + rng.choice((1, 5, 10**9)) :]


def double(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start : start + rng.randrange(40)] * rng.choice((2, 50)) + content[start:]


def insert(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + rng.choice((rng.randbytes(9), rng.choice(TOKENS).encode())) + content[start:]


def exchange(content: bytes, rng: random.Random) -> bytes:
    words = list(re.finditer(rb"[\w.]+", content))
    if not words:
        return content
    word = rng.choice(words)
    return content[: word.start()] + rng.choice(TOKENS).encode() + content[word.end() :]


DAMAGES = [flip, cut, double, insert, exchange, exchange, exchange]


def rearranged(tree: object, rng: random.Random) -> object:
    """A tree of JSON with some entry replaced, removed or repeated."""
    if isinstance(tree, list) and tree and rng.random() < 0.9:
        index = rng.randrange(len(tree))
        change = rng.choice((rearranged(tree[index], rng), rearranged(tree[index], rng), tree[index]))
        return [*tree[:index], change, *tree[index + rng.choice((0, 1)) :]]
    if isinstance(tree, dict) and tree and rng.random() < 0.9:
        key = rng.choice(list(tree))
        if rng.random() < 0.1:
            return {other: value for other, value in tree.items() if other != key}
        return tree | {key: rearranged(tree[key], rng)}
    return rng.choice(VALUES)


# ------------------------------------------------------------------------------------------------------- data sets

COCO = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": 60, "height": 40} for n in (1, 2)],
    "categories": [{"id": 1, "name": "cat", "supercategory": "animal"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 5, 20, 30], "area": 321.5, "iscrowd": 0, "ignore": 0},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [], "segmentation": [[1, 1, 9, 9, 1, 9]], "attributes": {}},
    ],
}
ROWS = [
    {"file_name": "1.png", "objects": {"bbox": [[1, 2, 10, 20]], "categories": ["cat"]}},
    {"file_name": "2.png", "objects": [{"bbox": [1, 2, 10, 20], "category": 1}]},
]
XML = '<?xml version="1.0" encoding="utf-8"?>' + voc_xml(
    "<filename>1.png</filename>" + voc_object("cat", 1, 1, 30, 20) + voc_object("dog", 5, 5, 9, 9, 1)
    + "<object><name>cat</name><polygon><x1>1</x1><y1>2</y1><x2>20</x2><y2>30</y2></polygon></object>"
    + "<object><name>cat</name><robndbox><cx>20</cx><cy>20</cy><w>5</w><h>9</h><angle>1</angle></robndbox></object>"
)  # fmt: skip
YAML = "path: .\ntrain: images\nval: [images, train.txt]\nnames: {0: cat, 1: dog}\n"
# The files of each kind; the first ones are damaged.
SETS = {
    "xml": {
        "Annotations/1.xml": XML,
        "Annotations/2.xml": XML.replace("1.png", "2.png"),
        "ImageSets/Main/train.txt": "1\n2\n",
    },
    "list": {
        "ImageSets/Main/train.txt": "1 1\n2.png -1\nJPEGImages/1\n",
        "Annotations/1.xml": XML,
        "Annotations/2.xml": XML,
    },
    "json": {"instances.json": json.dumps(COCO)},
    "jsonl": {"metadata.jsonl": "\n".join(map(json.dumps, ROWS))},
    "txt": {
        "labels/1.txt": "0 0.5 0.5 0.5 0.25\n1 0.1 0.2 0.5 0.9 0.3 0.5\n",
        "labels/2.txt": "0 1 1 1 1\n",
        "data.yaml": YAML,
    },
    "yaml": {"data.yaml": YAML, "labels/1.txt": "0 0.5 0.5 0.5 0.25\n", "train.txt": "images/2.png\n"},
}
FOLDERS = {"xml": "JPEGImages", "list": "JPEGImages", "json": "", "jsonl": "", "txt": "images", "yaml": "images"}
FORMATS = {"xml": "voc", "list": "voc", "json": "coco", "jsonl": "huggingface", "txt": "yolo", "yaml": "yolo"}


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    """One data set of each kind, whose first file every case writes anew."""
    found = {}
    for kind, files in SETS.items():
        root = tmp_path_factory.mktemp(kind)
        for number in (1, 2):
            write_image(root / FOLDERS[kind] / f"{number}.png", seed=number)
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        found[kind] = root
    return found


def content_of(kind: str, rng: random.Random) -> bytes:
    text = next(iter(SETS[kind].values()))
    if kind in BOMBS and rng.random() < 0.03:
        return rng.choice(BOMBS[kind]).encode()
    if kind in ("json", "jsonl") and rng.random() < 0.7:
        trees = [rearranged(tree, rng) for tree in ([COCO] if kind == "json" else ROWS)]
        return "\n".join(map(json.dumps, trees)).encode()
    return damaged(text.encode(), rng)


def read_all(kind: str, root: Path, rng: random.Random) -> None:
    """Everything that a run does with a data set before it learns."""
    split = rng.choice(("train", "")) if FORMATS[kind] in ("voc", "yolo") else ""
    annotations = {"json": "instances.json", "txt": "data.yaml", "yaml": "data.yaml"}.get(kind, "")
    entry = DatasetConfig(
        format=rng.choice(("auto", FORMATS[kind])), root=str(root), split=split, annotations=annotations
    )
    entry.exif = rng.choice(("apply", "ignore"))
    config = Config(datasets={"mine": entry})
    config.data.on_error, config.data.remember = rng.choice(("raise", "skip")), False
    image_set = load("mine", config, rng.choice((None, ["cat", "dog"])))
    images = TrainingImages([image_set], config.data)
    sample = images[Draw(rng.randrange(len(images)), rng.randrange(2**32))]
    boxes = sample.truth.boxes.numpy()
    assert np.isfinite(boxes).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    load_target("mine", config, ["cat", "dog"])


# ----------------------------------------------------------------------------------------------------------- images


def encoded(suffix: str, rng: random.Random) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = rng.randrange(1, 9)
    mode = rng.choice(("RGB", "L", "1") if suffix in ("PNG", "TIFF", "BMP") else ("RGB",))
    pixels = Image.frombytes("RGB", (24, 16), rng.randbytes(24 * 16 * 3)).convert(mode)
    options = {"exif": exif} if suffix in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    pixels.save(file, format=suffix, **options)
    return file.getvalue()


SUFFIXES = {
    "PNG": "png",
    "JPEG": "jpg",
    "WEBP": "webp",
    "TIFF": "tif",
    "GIF": "gif",
    "BMP": "bmp",
    "PPM": "ppm",
    "TGA": "tga",
}


def read_image(folder: Path, rng: random.Random) -> None:
    kind = rng.choice(list(SUFFIXES))
    path = folder / f"image.{SUFFIXES[kind]}"
    path.write_bytes(damaged(encoded(kind, rng), rng))
    exif = rng.choice((True, False))
    try:
        header = probe(path)
        pixels = read(path, rng.choice(("full", "stretch")), exif=exif)
    except OSError:
        return
    assert pixels.dtype == np.uint8
    assert (pixels.shape[1], pixels.shape[0], pixels.shape[2]) == (*header.size(exif), 3)


# ------------------------------------------------------------------------------------------------------------ the test


@contextmanager
def no_hang() -> Iterator[None]:
    """An error after some seconds of work in this process."""

    def stop(*_: object) -> None:
        raise AssertionError(f"a case took more than {CPU_SECONDS} s of the processor")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def run_case(case: int, kinds: dict[str, Callable[[random.Random], None]]) -> str | None:
    """What went wrong, if it is not one sentence for the user."""
    rng = random.Random(case)
    kind = list(kinds)[case % len(kinds)]
    try:
        with no_hang():
            kinds[kind](rng)
    except UserError as error:
        return f"case {case} ({kind}): a sentence of several lines: {error}" if "\n" in str(error) else None
    except Exception as error:
        return f"case {case} ({kind}): {type(error).__name__}: {str(error)[:200]}"
    return None


@pytest.mark.filterwarnings("ignore")
def test_whatever_the_files_hold_there_is_a_data_set_or_one_sentence(roots, tmp_path):
    def read_kind(kind: str) -> Callable[[random.Random], None]:
        def work(rng: random.Random) -> None:
            (roots[kind] / next(iter(SETS[kind]))).write_bytes(content_of(kind, rng))
            read_all(kind, roots[kind], rng)

        return work

    kinds = {kind: read_kind(kind) for kind in SETS} | {"image": lambda rng: read_image(tmp_path, rng)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = [message for case in range(CASES) if (message := run_case(case, kinds))]
    assert not wrong, f"{len(wrong)} of {CASES}:\n" + "\n".join(wrong[:20])
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES
    shutil.rmtree(tmp_path, ignore_errors=True)


def test_the_undamaged_sets_are_read(roots):
    """Else every case would end in a sentence for a reason of its own."""
    for kind, root in roots.items():
        (root / next(iter(SETS[kind]))).write_text(next(iter(SETS[kind].values())))
        entry = DatasetConfig(
            root=str(root), split="train" if FORMATS[kind] in ("voc", "yolo") else "", classes=["cat", "dog"]
        )
        assert len(load("mine", Config(datasets={"mine": entry})).records.boxes) >= 1, kind
