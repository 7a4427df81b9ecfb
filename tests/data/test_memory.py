"""What was checked is not checked again, until a file changes; every change is noticed."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from conftest import voc_object, voc_xml, write_image

from lossmix_det.config import load_config
from lossmix_det.data import memory, records
from lossmix_det.data.catalog import load, load_target
from lossmix_det.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LOSSMIX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def probed(monkeypatch) -> list[Path]:
    """The images whose headers were read."""
    seen: list[Path] = []
    probe = records.probe
    monkeypatch.setattr(records, "probe", lambda path: seen.append(path) or probe(path))
    return seen


def settle(folder: Path, seconds: float = 100) -> None:
    """Make every file older than what may still be written to."""
    then = time.time() - seconds
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (then, then))


def voc(folder: Path, *words: str):
    return load_config(None, [f"datasets.mine.root={folder}", "data.classes=[cat,dog]", *words])


def same(first, second) -> bool:
    equal = all(
        (getattr(first.records, name) == getattr(second.records, name)).all()
        for name in ("names", "sizes", "boxes", "classes", "difficult", "crowd", "areas", "image_ids", "ends")
    )
    keys = ("name", "classes", "labelled", "category_ids", "fingerprint")
    return equal and all(getattr(first, key) == getattr(second, key) for key in keys)


def test_a_second_start_reads_no_image(voc_folder, probed):
    settle(voc_folder)
    first = load("mine", voc(voc_folder))
    assert len(probed) == 2
    second = load("mine", voc(voc_folder))
    assert len(probed) == 2
    assert same(first, second)
    assert second.problems.notes == first.problems.notes


def test_notes_are_remembered(voc_folder, probed):
    (voc_folder / "Annotations" / "one.xml").write_text(voc_xml(voc_object("cat", 1, 1, 90, 20)))
    settle(voc_folder)
    first, second = (load("mine", voc(voc_folder)) for _ in range(2))
    assert len(probed) == 2
    assert "reaches out of the 60×40 image" in first.problems.notes[0]
    assert second.problems.notes == first.problems.notes


def test_the_setting_switches_it_off(voc_folder, probed, cache):
    settle(voc_folder)
    for _ in range(2):
        load("mine", voc(voc_folder, "data.remember=false"))
    assert len(probed) == 4
    assert not cache.exists()


def add_annotation(folder: Path) -> None:
    write_image(folder / "JPEGImages" / "three.png")
    (folder / "Annotations" / "three.xml").write_text(voc_xml(voc_object("dog", 1, 1, 20, 20)))


def change_box(folder: Path) -> None:
    path = folder / "Annotations" / "one.xml"
    path.write_text(path.read_text().replace("<xmin>", "<xmin> ", 1))


def touch_image(folder: Path) -> None:
    os.utime(folder / "JPEGImages" / "one.png")


def enlarge_image(folder: Path) -> None:
    write_image(folder / "JPEGImages" / "one.png", 60, 40, seed=9)


def remove_annotation(folder: Path) -> None:
    (folder / "Annotations" / "two.xml").unlink()


def replace_unseen(folder: Path) -> None:
    """The same size and time, as after a copy that keeps times."""
    path = folder / "Annotations" / "one.xml"
    before, text = path.stat(), path.read_text()
    path.write_text(text.replace("<xmin>", "<xmin>1", 1).replace("<annotation>\n", "<annotation>", 1))
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = [add_annotation, change_box, touch_image, enlarge_image, remove_annotation, replace_unseen]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(voc_folder, probed, change):
    settle(voc_folder)
    load("mine", voc(voc_folder))
    probed.clear()
    change(voc_folder)
    again = load("mine", voc(voc_folder))
    assert probed
    assert same(again, load("mine", voc(voc_folder, "data.remember=false")))


def test_a_missing_image_is_a_fault_all_the_same(voc_folder):
    settle(voc_folder)
    load("mine", voc(voc_folder))
    (voc_folder / "JPEGImages" / "one.png").unlink()
    with pytest.raises(UserError, match="is missing"):
        load("mine", voc(voc_folder))


def test_what_was_left_out_is_looked_at_again(voc_folder, probed):
    """Because it may be mended in a file that nothing else was read from."""
    (voc_folder / "JPEGImages" / "two.png").rename(voc_folder / "two.png")
    settle(voc_folder)
    assert len(load("mine", voc(voc_folder, "data.on_error=skip"))) == 1
    shutil.move(voc_folder / "two.png", voc_folder / "JPEGImages" / "two.png")
    assert len(load("mine", voc(voc_folder, "data.on_error=skip"))) == 2


def test_other_settings_are_other_data_sets(voc_folder):
    settle(voc_folder)
    assert load("mine", voc(voc_folder)).classes == ["cat", "dog"]
    assert load("mine", voc(voc_folder), ["dog", "cat"]).classes == ["dog", "cat"]
    shifted = load("mine", voc(voc_folder, "datasets.mine.pixel_origin=0")).records.boxes
    assert (shifted[:, 0] == load("mine", voc(voc_folder)).records.boxes[:, 0] + 1).all()
    target = load_target("mine", voc(voc_folder), ["cat", "dog"])
    assert same(target, load_target("mine", voc(voc_folder), ["cat", "dog"]))


def test_a_change_in_a_sub_folder_is_noticed(voc_folder):
    write_image(voc_folder / "JPEGImages" / "sub" / "a.jpg")
    path = voc_folder / "Annotations" / "sub" / "a.xml"
    path.parent.mkdir()
    path.write_text(voc_xml(voc_object("cat", 5, 5, 20, 30)))
    (voc_folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (voc_folder / "ImageSets" / "Main" / "nested.txt").write_text("sub/a\n")
    settle(voc_folder)
    words = ["datasets.mine.split=nested"]
    assert load("mine", voc(voc_folder, *words)).records.boxes.tolist() == [[4, 4, 20, 30]]
    path.write_text(voc_xml(voc_object("cat", 5, 5, 60, 30)))
    assert load("mine", voc(voc_folder, *words)).records.boxes.tolist() == [[4, 4, 60, 30]]


def test_what_is_written_while_it_is_checked_is_not_trusted(voc_folder, monkeypatch):
    """However long the check goes on after that."""
    settle(voc_folder)
    probe, clock = records.probe, time.time

    def probe_and_replace(path):
        found = probe(path)
        write_image(voc_folder / "JPEGImages" / "one.png", 90, 70)
        monkeypatch.setattr(memory.time, "time", lambda: clock() + 60)
        return found

    monkeypatch.setattr(records, "probe", probe_and_replace)
    load("mine", voc(voc_folder))
    monkeypatch.setattr(records, "probe", probe)
    with pytest.raises(UserError, match="says 60×40 pixels, but one.png has 90×70"):
        load("mine", voc(voc_folder))


def test_files_that_were_just_written_are_not_trusted(voc_folder, probed):
    """A second change within the resolution of their time would not be seen."""
    for _ in range(2):
        load("mine", voc(voc_folder))
    assert len(probed) == 4


def test_a_damaged_memory_is_not_used(voc_folder, probed, cache):
    settle(voc_folder)
    first = load("mine", voc(voc_folder))
    (path,) = cache.glob("*.npz")
    path.write_bytes(path.read_bytes()[:200])
    assert same(first, load("mine", voc(voc_folder)))
    assert len(probed) == 4


def test_a_folder_that_cannot_be_written_is_no_fault(voc_folder, monkeypatch, tmp_path):
    settle(voc_folder)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LOSSMIX_CACHE", str(tmp_path / "file" / "cache"))
    assert len(load("mine", voc(voc_folder))) == 2


def test_coco_files_and_bare_folders(tmp_path, probed):
    root = tmp_path / "photos"
    write_image(root / "a.png")
    write_image(root / "sub" / "b.png")
    content = {
        "images": [{"id": 4, "file_name": "a.png", "width": 60, "height": 40}],
        "annotations": [{"id": 1, "image_id": 4, "category_id": 2, "bbox": [1, 2, 10, 12], "iscrowd": 0}],
        "categories": [{"id": 2, "name": "cat"}],
    }
    (root / "a.json").write_text(json.dumps(content))
    settle(root)
    words = ["datasets.c.format=coco", f"datasets.c.root={root}", "datasets.c.annotations=a.json"]
    words += ["datasets.f.format=folder", f"datasets.f.root={root}"]
    config = load_config(None, words)
    first = load("c", config), load_target("f", config, ["cat"])
    count = len(probed)
    second = load("c", config), load_target("f", config, ["cat"])
    assert len(probed) == count == 3
    assert all(map(same, first, second))
    content["annotations"][0]["bbox"][0] = 3
    (root / "a.json").write_text(json.dumps(content))
    write_image(root / "sub" / "c.png")
    assert load("c", config).records.boxes[0, 0] == 3
    assert len(load_target("f", config, ["cat"])) == 3


def test_the_folder_may_be_named(monkeypatch):
    monkeypatch.delenv("LOSSMIX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert memory.memory_folder() == Path("/somewhere/lossmix_det")


def test_a_user_without_a_home_has_a_folder_too(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("LOSSMIX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert memory.memory_folder().name == "lossmix_det"


def test_other_code_reads_again(voc_folder, probed, monkeypatch):
    settle(voc_folder)
    load("mine", voc(voc_folder))
    assert len(memory._reading_code()) == 64
    monkeypatch.setattr(memory, "_reading_code", lambda: "a fault is mended")
    load("mine", voc(voc_folder))
    assert len(probed) == 4
