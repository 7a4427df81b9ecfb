"""Files, folders, patterns and videos become images, one after the other."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from conftest import write_image, write_video
from hypothesis import given
from hypothesis import strategies as st

from lossmix_det.data import inputs
from lossmix_det.data.inputs import find_inputs
from lossmix_det.errors import UserError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "shots"
    for seed, name in enumerate(["a.png", "a.jpg", "one/a.png", "one/two/b.png", "two/b.png"]):
        write_image(root / name, 40 + seed, 30, seed=seed)
    write_video(root / "one" / "clip.avi")
    (root / "notes.txt").write_text("no image")
    return root


def names(found):
    return [each.name for each in found.found]


def test_folders_are_read_with_sub_folders_and_names_keep_them(folder):
    found = find_inputs([folder])
    assert names(found) == ["a.jpg", "a.png", "one/a.png", "one/clip.avi", "one/two/b.png", "two/b.png"]
    assert [each.stem for each in found.found] == ["a.jpg", "a.png", "one/a", "one/clip", "one/two/b", "two/b"]
    assert (found.passed_over, found.problems, found.frames) == (1, [], 5 + 6)


def test_patterns_and_files_are_named_from_the_folder_that_holds_them_all(folder):
    found = find_inputs([f"{folder}/**/b.png", folder / "a.png", folder / "one" / "two"])
    assert names(found) == ["one/two/b.png", "two/b.png", "a.png"]  # each once


def test_two_folders_with_the_same_names_stay_apart(folder):
    assert names(find_inputs([folder / "one" / "two", folder / "two"])) == ["one/two/b.png", "two/b.png"]


@given(st.sets(st.tuples(st.sampled_from("ab"), st.sampled_from(["", ".jpg", ".png", ".png.jpg", ".JPG"])), min_size=1))
def test_no_two_stems_are_the_same(pairs):
    files = sorted("".join(pair) for pair in pairs)
    stems = inputs._stems(files)
    assert len(set(stems)) == len(files)
    assert all(file.startswith(stem) for stem, file in zip(stems, files, strict=True))


def test_frames_of_a_video_come_in_order_and_upright_colours(folder):
    frames = list(find_inputs([folder / "one" / "clip.avi"]).read())
    assert [frame.name for frame in frames] == [f"clip.avi/{number:06d}" for number in range(1, 7)]
    np.testing.assert_allclose([frame.pixels.mean() for frame in frames], np.arange(1, 7) * 20, atol=3)


def test_frames_never_have_the_name_of_an_image_beside_their_video(tmp_path):
    """Frames that somebody has extracted often lie in a folder called like the video."""
    write_video(tmp_path / "clip.avi", count=2)
    write_image(tmp_path / "clip" / "000001.png")
    frames = list(find_inputs([tmp_path]).read())
    assert len({frame.stem for frame in frames}) == len({frame.name for frame in frames}) == 3


def test_broken_files_are_listed_and_the_rest_is_read(folder, tmp_path):
    shutil.copy(folder / "notes.txt", folder / "broken.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:500])
    (folder / "empty.mp4").touch()
    content = (folder / "one" / "clip.avi").read_bytes()
    (folder / "half.avi").write_bytes(content[: len(content) // 2])
    found = find_inputs([folder, tmp_path / "absent.jpg"])
    frames = list(found.read())
    assert {frame.source.name for frame in frames} >= {"a.jpg", "a.png", "one/a.png", "one/clip.avi", "one/two/b.png"}
    assert len({frame.name for frame in frames}) == len(frames)
    said = "\n".join(found.problems)
    for name, reason in (
        ("broken.png: cannot be read", "no image of a kind that Pillow reads"),
        ("cut.png: cannot be read", ""),
        ("empty.mp4: cannot be read", "no video that OpenCV can decode"),
        ("half.avi: cannot be read", ""),
        ("absent.jpg: no such file or folder", ""),
    ):
        assert name in said
        assert reason in said
    assert len(found.problems) == 5


def test_nothing_to_detect_on_is_said(tmp_path):
    with pytest.raises(UserError, match=r"no image and no video: .*x\.jpg: no such file or folder"):
        find_inputs([tmp_path / "x.jpg"])
    with pytest.raises(UserError, match="no image and no video$"):
        find_inputs([tmp_path])


def test_images_are_not_read_before_they_are_asked_for(folder, monkeypatch):
    read = []
    monkeypatch.setattr(inputs, "read", lambda path, *_, **__: read.append(path.name) or np.zeros((4, 4, 3), np.uint8))
    stream = find_inputs([folder]).read()
    next(stream)
    next(stream)
    assert read == ["a.jpg", "a.png"]
