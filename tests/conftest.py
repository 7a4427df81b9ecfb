"""What several tests share: small detectors, random truths, and data sets written to disk."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parent))
torch.set_num_threads(1)  # two threads are hardly faster on images this small, and other jobs may share the cores


@pytest.fixture(scope="session")
def datasets_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for generated data, so that `shapes` is drawn once for all tests."""
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(autouse=True)
def _use_datasets_root(datasets_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSMIX_DATASETS", str(datasets_root))
    monkeypatch.setenv("LOSSMIX_CACHE", str(datasets_root / "cache"))
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(os.environ.get("LOSSMIX_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real images are not at {folder} (set LOSSMIX_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """The folder of a sound data set of each format."""
    from checked import WRITE  # which needs what stands below

    folder = tmp_path_factory.mktemp("sound")
    for kind, write in WRITE.items():
        write(folder / kind)
    return folder


def write_image(path: Path, width: int = 60, height: int = 40, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@contextmanager
def files_of_at_most(count):
    """Like a full disk or a quota: a file that grows beyond so many bytes cannot be written."""
    resource = pytest.importorskip("resource", reason="there are no limits to set")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_video(path, count=6, size=(64, 48), codec="MJPG"):
    """Grey frames, each brighter than the one before."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10, size)
    for number in range(count):
        writer.write(np.full((size[1], size[0], 3), 20 * number + 20, dtype=np.uint8))
    writer.release()
    return path


def voc_object(name: str, xmin: object, ymin: object, xmax: object, ymax: object, difficult: int = 0) -> str:
    box = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return f"<object>\n<name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox>\n</object>\n"


def voc_xml(objects: str, width: int = 60, height: int = 40) -> str:
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>\n{size}\n{objects}</annotation>\n"


@pytest.fixture
def voc_folder(tmp_path: Path) -> Path:
    """Two images: `one` with a cat and a difficult dog, `two` without objects."""
    root = tmp_path / "voc"
    for seed, name in enumerate(("one", "two")):
        write_image(root / "JPEGImages" / f"{name}.png", seed=seed)
    (root / "Annotations").mkdir()
    objects = voc_object("cat", 1, 1, 30, 20) + voc_object("dog", 11, 6, 60, 40, difficult=1)
    (root / "Annotations" / "one.xml").write_text(voc_xml(objects))
    (root / "Annotations" / "two.xml").write_text(voc_xml(""))
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("one\ntwo\n")
    return root


@pytest.fixture
def small_shapes():
    """A configuration of a few small images; what is registered with Detectron2 is taken out afterwards."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from lossmix_det.config import load_config

    yield load_config(None, ["shapes.train_images=6", "shapes.test_images=3", "shapes.size=64", "data.workers=0"])
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in [name for name in catalog.list() if name.startswith(("shapes_", "mine_"))]:
            catalog.remove(name)
