"""Bare folders of images, as they lie on the disks of people."""

from __future__ import annotations

import os

import pytest
from conftest import write_image
from PIL import Image

from lossmix_det.config import load_config
from lossmix_det.data.catalog import load
from lossmix_det.errors import UserError


def names(root, *overrides):
    found = load("mine", load_config(None, [f"datasets.mine.root={root}", *overrides]), ["cat"])
    return [found.file_name(record.path) for record in found.records], found.problems.left_out


def test_hidden_folders_are_left_out_and_listed(tmp_path):
    for name in ("a.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "sub/.thumbs/a.jpg", "sub/b.jpg"):
        write_image(tmp_path / name)
    found, left_out = names(tmp_path)
    assert found == ["a.jpg", "sub/b.jpg"]
    assert left_out == [f"{tmp_path}/.ipynb_checkpoints: hidden", f"{tmp_path}/sub/.thumbs: hidden"]


def test_links_to_folders_and_files_are_followed_also_out_of_the_root(tmp_path):
    for name in ("root/a.jpg", "store/b.jpg", "store/deep/c.jpg", "single/d.jpg"):
        write_image(tmp_path / name)
    (tmp_path / "root" / "more").symlink_to(tmp_path / "store")
    (tmp_path / "root" / "d.jpg").symlink_to(tmp_path / "single" / "d.jpg")
    assert names(tmp_path / "root")[0] == ["a.jpg", "d.jpg", "more/b.jpg", "more/deep/c.jpg"]


def test_links_that_lead_in_a_circle_or_to_the_same_folder_are_entered_once(tmp_path):
    write_image(tmp_path / "sub" / "a.jpg")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "sub")
    found, left_out = names(tmp_path)
    assert found == ["sub/a.jpg"]
    assert len(left_out) == 2
    assert all("this link leads to a folder that is read anyway" in line for line in left_out)


def test_pipes_and_broken_links_are_never_opened(tmp_path):
    write_image(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").symlink_to(tmp_path / "gone.jpg")
    found, left_out = names(tmp_path)
    assert found == ["a.jpg"]
    assert [line.rpartition("/")[2] for line in left_out] == [
        "b.jpg: no regular file, or a link that leads nowhere",
        "c.jpg: no regular file, or a link that leads nowhere",
    ]


def test_every_suffix_that_can_be_read_is_and_the_others_are_listed(tmp_path):
    kinds = {"a.JPG": "JPEG", "b.jpe": "JPEG", "c.jfif": "JPEG", "d.gif": "GIF", "e.ppm": "PPM", "f.pgm": "PPM"}
    kinds |= {"g.dib": "BMP", "h.tga": "TGA", "i.tif": "TIFF", "j.webp": "WEBP"}
    for name, kind in kinds.items():
        Image.new("L" if name == "f.pgm" else "RGB", (8, 6)).save(tmp_path / name, format=kind)
    for name in ("k.heic", "notes.txt"):
        (tmp_path / name).write_bytes(b"0" * 64)
    found, left_out = names(tmp_path, "datasets.mine.format=folder")
    assert found == sorted(kinds)
    assert left_out == [
        f"{tmp_path}/{name}: not read, because its suffix is not one of an image" for name in ("k.heic", "notes.txt")
    ]


def test_a_name_whose_bytes_are_not_utf8_is_read(tmp_path):
    write_image(tmp_path / "a.jpg")
    os.rename(tmp_path / "a.jpg", os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    found, _ = names(tmp_path)
    assert os.fsencode(found[0]) == b"caf\xe9.jpg"


def test_a_split_is_a_sub_folder(tmp_path):
    for name in ("day/a.jpg", "night/b.jpg"):
        write_image(tmp_path / name)
    assert names(tmp_path, "datasets.mine.split=night")[0] == ["b.jpg"]


def test_a_folder_without_images_says_how_much_was_passed_over(tmp_path):
    for name in ("a.heic", ".b.jpg"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=r"holds no image \(.*\.jpg.*\); 2 other files were passed over"):
        names(tmp_path, "datasets.mine.format=folder")
