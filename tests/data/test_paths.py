"""Which file a name means, and which names lead nowhere."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from conftest import write_image

from lossmix_det.data.boxes import around, around_rotated
from lossmix_det.data.formats.splits import choose
from lossmix_det.data.paths import ImageFolder, contained, differs_by, is_absolute, listed
from lossmix_det.errors import UserError

ROOT = Path("/data/mine")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a.jpg", "a.jpg"),
        ("b/../a.jpg", "a.jpg"),
        ("./b//a.jpg", "b/a.jpg"),
        ("b\\a.jpg", "b/a.jpg"),
        ("/data/mine/b/a.jpg", "b/a.jpg"),
        ("/data/mine/../mine/a.jpg", "a.jpg"),
        ("..a.jpg", "..a.jpg"),
        ("C:a.jpg", "C:a.jpg"),
    ],
)
def test_names_inside_of_the_root_are_joined_to_it(name, path):
    assert contained(ROOT, name, "x") == ROOT / path


OUTSIDE = [
    "..",
    "../a.jpg",
    "b/../../a.jpg",
    "..\\a.jpg",
    "/etc/passwd",
    "/data/mine2/a.jpg",
    "/data/mine/../x",
    "C:\\a.jpg",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_outside_of_the_root_are_refused(name):
    with pytest.raises(UserError, match="x: path .* leads out of /data/mine; use a path inside that folder"):
        contained(ROOT, name, "x")


@pytest.mark.parametrize(
    ("path", "expected"), [("/a", True), ("\\a", True), ("C:\\a", True), ("C:/a", True), ("a:b", False)]
)
def test_absolute_paths_of_both_systems_are_known(path, expected):
    assert is_absolute(path) is expected


@pytest.mark.parametrize(
    ("first", "second", "how"),
    [
        ("café", "cafe\u0301", "only in how accents are stored (Unicode NFC or NFD)"),
        ("Car", "car", "only by letter case"),
        ("STRASSE", "straße", "only by letter case"),
        ("car ", "car", "only by blanks"),
        ("traffic\u00a0light", "traffic light", "only by blanks"),
        (" Car", "car", "only by letter case and blanks"),
        ("car", "cat", None),
    ],
)
def test_what_hardly_shows_is_named(first, second, how):
    assert differs_by(first, second) == differs_by(second, first) == how


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("1.png", None),
        ("a/1.png", "a/1.png"),
        ("x/a/1.png", "a/1.png"),
        ("2.png", "a/2.png"),
        ("c/2.png", None),
        ("3.png", None),
    ],
)
def test_an_image_is_found_by_the_end_of_its_path_if_it_is_the_only_one(tmp_path, wanted, found):
    for name in ("a/1.png", "b/1.png", "a/2.png"):
        write_image(tmp_path / name)
    assert ImageFolder(tmp_path).find(tmp_path / wanted) == (None if found is None else tmp_path / found)


def test_without_a_folder_nothing_is_looked_for():
    folder = ImageFolder(None)
    assert folder.find(Path("a.png")) is None
    assert folder.hint(Path("a.png")) == ""


def test_a_listing_is_sorted_and_complete(tmp_path):
    for name in ("b/z.png", "b/a.txt", "a.png", "c/.hidden/x.png"):
        write_image(tmp_path / name) if name.endswith("png") else (tmp_path / name).write_text("x")
    listing = listed(tmp_path)
    assert listing.files == ["a.png", "b/a.txt", "b/z.png"]
    assert listing.folders == [tmp_path, tmp_path / "b", tmp_path / "c"]
    assert listing.images() == ["a.png", "b/z.png"]


@pytest.mark.parametrize(
    ("degrees", "box"), [(0, (8, 18, 12, 22)), (90, (8, 18, 12, 22)), (45, (7.171573, 17.171573, 12.828427, 22.828427))]
)
def test_the_box_around_a_rotated_square_is_that_around_its_corners(degrees, box):
    assert around_rotated(10, 20, 4, 4, degrees) == pytest.approx(box)
    assert around_rotated(10, 20, 4, 4, -degrees) == pytest.approx(box)


@pytest.mark.parametrize(
    ("split", "path"), [("train", "train/x.json"), ("val", "valid/x.json"), ("testing", "x_test2017.json")]
)
def test_a_split_is_a_word_of_the_path(split, path):
    assert (
        choose(ROOT, ["train/x.json", "valid/x.json", "x_test2017.json", "strain.json"], split, "annotations") == path
    )


def test_a_link_to_itself_is_left_out(tmp_path):
    write_image(tmp_path / "a.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    found = listed(tmp_path)
    assert found.files == ["a.png"]
    assert found.left_out == [f"{tmp_path / 'loop.png'}: no regular file, or a link that leads nowhere"]


@pytest.mark.parametrize("root", ["mine", "./mine", "../base/mine", "{here}/mine"])
def test_images_in_a_sub_folder_are_found_however_the_root_is_written(tmp_path, monkeypatch, root):
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path / "base")
    image = write_image(Path("mine/images/a.png"))
    root = Path(root.format(here=tmp_path / "base"))
    found = ImageFolder(root).find(root / "a.png")
    assert found is not None
    assert found.samefile(image)


def test_at_the_root_itself_a_folder_of_its_name_is_no_part_of_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_image(Path("images/a.png"))
    assert ImageFolder(Path()).find(Path("a.png")) == Path("images/a.png")


def test_a_hint_names_the_image_of_another_folder(tmp_path):
    write_image(tmp_path / "trainA" / "1.png")
    hint = ImageFolder(tmp_path).hint(tmp_path / "train" / "1.png")
    assert hint == "; an image of that name is trainA/1.png"
    assert differs_by("1.png", "1.png") is None


@pytest.mark.parametrize("points", [[(1, 2), (math.nan, 3), (10, 20)], [(1, 2), (3, math.inf)]])
def test_there_is_no_box_around_points_that_are_not_finite(points):
    with pytest.raises(ValueError, match="has a point that is not finite"):
        around(points)
