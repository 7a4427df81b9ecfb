import hashlib
import shutil

import numpy as np
import pytest

from lossmix_det.config import ShapesConfig, load_config
from lossmix_det.data import shapes
from lossmix_det.data.catalog import load
from lossmix_det.data.images import read
from lossmix_det.data.shapes import CLASSES, draw_scene, generate

SMALL = ShapesConfig(train_images=12, test_images=6, size=96)


def digests(folder):
    return {path.relative_to(folder): hashlib.md5(path.read_bytes()).hexdigest() for path in folder.rglob("*.*")}


def test_the_same_settings_give_the_same_files(tmp_path):
    first = digests(generate(SMALL, tmp_path / "a"))
    second = digests(generate(SMALL, tmp_path / "b"))
    assert first == second
    assert len(first) == 2 * (2 * 12 + 2 * 6 + 2)


def test_another_seed_gives_other_pictures_in_another_folder(tmp_path):
    first = generate(SMALL, tmp_path)
    second = generate(ShapesConfig(train_images=12, test_images=6, size=96, seed=1), tmp_path)
    assert first != second
    name = "photo/JPEGImages/train_00000.jpg"
    assert (first / name).read_bytes() != (second / name).read_bytes()


def test_what_is_there_is_not_drawn_again(tmp_path, monkeypatch):
    first = generate(SMALL, tmp_path)
    monkeypatch.setattr(shapes, "_write_split", lambda *_: pytest.fail("drawn again"))
    assert generate(SMALL, tmp_path) == first


def test_an_interrupted_drawing_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "_write_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(SMALL, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_that_was_first_wins(tmp_path, monkeypatch):
    done = generate(SMALL, tmp_path / "done")
    target = tmp_path / done.name
    write = shapes._write_split

    def overtaken(*arguments):
        write(*arguments)
        if not target.exists():
            shutil.copytree(done, target)

    monkeypatch.setattr(shapes, "_write_split", overtaken)
    assert generate(SMALL, tmp_path) == target
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_folders_are_read_as_ordinary_voc(datasets_root):
    config = load_config(None, ["shapes.train_images=12", "shapes.test_images=6"])
    for name in shapes.NAMES:
        found = load(name, config)
        assert len(found) == (12 if name.endswith("train") else 6)
        assert found.classes == list(CLASSES)
        assert found.problems.notes == []
        assert found.problems.skipped == []


def test_all_classes_occur_in_both_domains():
    for domain in shapes.DOMAINS:
        scenes = [draw_scene(np.random.default_rng([0, index]), domain, 96, 1.0) for index in range(60)]
        assert {drawn.label for _, objects in scenes for drawn in objects} == set(CLASSES)


def test_boxes_are_tight_around_what_was_drawn():
    """On plain paper without a gap in style, everything that is not paper lies inside a box, and touches its sides."""
    checked = 0
    for index in range(20):
        image, objects = draw_scene(np.random.default_rng([1, index]), "clipart", 128, 1.0)
        paper = np.median(image.reshape(-1, 3), axis=0)
        ink = np.abs(image.astype(float) - paper).sum(axis=2) > 60
        left = ink.copy()
        for x1, y1, x2, y2 in (drawn.box for drawn in objects):
            rows, columns = np.nonzero(ink[max(y1 - 2, 0) : y2 + 3, max(x1 - 2, 0) : x2 + 3])
            assert abs(np.ptp(columns) - (x2 - x1)) <= 4
            assert abs(np.ptp(rows) - (y2 - y1)) <= 4
            left[max(y1 - 2, 0) : y2 + 3, max(x1 - 2, 0) : x2 + 3] = False
            checked += 1
        assert left.mean() < 0.002
    assert checked > 30


def paper_share(domain: str, gap: float) -> float:
    """Share of pictures whose background is one flat colour."""
    flat = 0
    for index in range(40):
        image, _ = draw_scene(np.random.default_rng([2, index]), domain, 64, gap)
        values, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
        flat += counts.max() > 0.3 * image.shape[0] * image.shape[1]
    return flat / 40


def test_the_gap_decides_how_many_pictures_are_drawn():
    assert paper_share("photo", 1.0) == 0
    assert paper_share("clipart", 0.0) == 0
    assert 0.2 < paper_share("clipart", 0.5) < 0.8
    assert paper_share("clipart", 1.0) == 1


def test_images_differ_in_shape(datasets_root):
    found = load("shapes_photo_train", load_config(None, ["shapes.train_images=12", "shapes.test_images=6"]))
    assert {record.size for record in found.records} <= {(96, 96), (96, 128), (128, 96)}
    assert len({record.size for record in found.records}) > 1
    assert read(found.records[0].path).shape[:2] == found.records[0].size


def test_nothing_is_printed_where_nobody_looks(tmp_path, capfd):
    generate(ShapesConfig(train_images=1, test_images=1, size=64, seed=8), tmp_path)
    assert capfd.readouterr() == ("", "")
