"""Detections as pictures and files, read back by readers that know nothing of the writers."""

from __future__ import annotations

import csv
import os

import cv2
import numpy as np
import pytest
import torch
from conftest import files_of_at_most, write_image, write_video
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from lossmix_det.config import load_config
from lossmix_det.data.catalog import load
from lossmix_det.data.inputs import Frame, Input, find_inputs
from lossmix_det.evaluation.pictures import COLOURS, draw_picture, enlargement, lay_out, places
from lossmix_det.evaluation.prediction_files import SINKS, predict_all, write_all
from lossmix_det.files import draft_of
from lossmix_det.structures import Instances

CLASSES = ["cat", "dog"]


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(["a.png", "sub/a.png", "sub/b.jpg"]):
        write_image(tmp_path / "shots" / name, 60 + seed, 40, seed=seed)
    return tmp_path / "shots"


def found_on(frame: Frame) -> Instances:
    """None on the first image, else two boxes that depend on it."""
    if frame.name == "a.png":
        return Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    shift = float(frame.pixels.shape[1] - 60)
    boxes = torch.tensor([[1.25, 2, 30, 20], [5, 6.5, 50 + shift, 38]])
    return Instances(boxes, torch.tensor([1, 0]), torch.tensor([0.875, 0.5]))


def write(folder, output, *kinds):
    sinks = [SINKS[kind](output, CLASSES) for kind in kinds]
    return write_all(((frame, found_on(frame)) for frame in find_inputs([folder]).read()), sinks, lambda count: None)


def test_coco_is_read_by_cocos_own_tools(folder, tmp_path):
    assert write(folder, tmp_path / "out", "coco") == (3, 4)
    coco = COCO(str(tmp_path / "out" / "predictions.json"))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["a.png", "sub/a.png", "sub/b.jpg"]
    assert [(image["width"], image["height"]) for image in coco.imgs.values()] == [(60, 40), (61, 40), (62, 40)]
    (one, two) = coco.imgToAnns[3]
    assert one["bbox"] == [1.25, 2.0, 28.75, 18.0]
    assert [one["score"], coco.cats[one["category_id"]]["name"]] == [0.875, "dog"]
    assert two["bbox"] == [5.0, 6.5, 47.0, 31.5]
    assert coco.imgToAnns[1] == []


def test_yolo_is_read_back_as_the_same_boxes(folder, tmp_path):
    write(folder, tmp_path / "out", "yolo")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images").symlink_to(folder)
    (tmp_path / "set" / "labels").symlink_to(tmp_path / "out" / "labels")
    words = [f"datasets.mine.root={tmp_path / 'set'}", "datasets.mine.format=yolo", "datasets.mine.images=images"]
    found = load("mine", load_config(None, [*words, "data.remember=false"]))
    assert found.classes == CLASSES
    by_name = {record.path.name: record for record in found.records if "sub" in str(record.path)}
    assert by_name["b.jpg"].boxes.tolist() == pytest.approx(np.array([[1.25, 2, 30, 20], [5, 6.5, 52, 38]]), abs=1e-4)
    assert by_name["b.jpg"].classes.tolist() == [1, 0]


def test_csv_has_a_line_for_each_box(folder, tmp_path):
    write(folder, tmp_path / "out", "csv")
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert rows[0] == {
        **{"file": "sub/a.png", "class": "dog", "score": "0.875"},
        **{"x1": "1.25", "y1": "2.0", "x2": "30.0", "y2": "20.0"},
    }


def test_pictures_are_of_the_image_with_boxes_in_the_colours_of_their_classes(folder, tmp_path):
    write(folder, tmp_path / "out", "drawn")
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert files == ["drawn/a.jpg", "drawn/sub/a.jpg", "drawn/sub/b.jpg"]
    factor = enlargement(40, 62)
    with Image.open(tmp_path / "out" / "drawn" / "sub" / "b.jpg") as picture:
        assert picture.size == (62 * factor, 40 * factor)
        edge = picture.getpixel((40 * factor, round(6.5 * factor) + 1))  # of the cat's upper edge
    red, green, blue = (int(COLOURS[0][at : at + 2], 16) for at in (1, 3, 5))
    assert np.abs(np.subtract(edge, (red, green, blue))).max() < 60


def test_a_picture_that_jpeg_cannot_hold_is_drawn_smaller(tmp_path):
    write_image(tmp_path / "shots" / "a.png", 66_000, 20)
    write(tmp_path / "shots", tmp_path / "out", "drawn")
    with Image.open(tmp_path / "out" / "drawn" / "a.jpg") as picture:
        assert picture.size[0] == 65_500


def test_a_video_becomes_a_video_of_as_many_frames(tmp_path):
    (tmp_path / "shots").mkdir()
    for name in ("clip.avi", "other.avi"):
        write_video(tmp_path / "shots" / name, count=5)
    assert write(tmp_path / "shots", tmp_path / "out", "drawn", "yolo") == (10, 20)
    for name in ("clip", "other"):
        capture = cv2.VideoCapture(str(tmp_path / "out" / "drawn" / f"{name}.mp4"))
        assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 5
        assert capture.get(cv2.CAP_PROP_FPS) == 10
        assert (tmp_path / "out" / "labels" / f"{name}.avi" / "000005.txt").is_file()
    assert not list((tmp_path / "out").rglob(".*"))


@pytest.mark.parametrize("error", [OSError("of somebody else"), KeyboardInterrupt()])
def test_what_is_interrupted_leaves_no_half_a_file(folder, tmp_path, error):
    def detections():
        frames = find_inputs([folder]).read()
        yield next(frames), found_on(next(frames))
        raise error

    sinks = [SINKS[kind](tmp_path / "out", CLASSES) for kind in SINKS]
    with pytest.raises(type(error)) as caught:
        write_all(detections(), sinks, lambda count: None)
    assert caught.value is error
    left = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(left) == ["a.jpg", "a.txt", "classes.txt"]


@pytest.mark.parametrize(
    ("kind", "name"), [("drawn", "clip.mp4"), ("coco", "predictions.json"), ("csv", "predictions")]
)
def test_a_full_disk_ends_in_a_sentence_and_leaves_no_half_a_file(tmp_path, kind, name):
    write_image(tmp_path / "shots" / "a.png")
    write_video(tmp_path / "shots" / "clip.avi", count=5)
    frames = 80 * list(find_inputs([tmp_path / "shots" / "clip.avi"]).read())
    sink = SINKS[kind](tmp_path / "out", CLASSES)
    with files_of_at_most(8192), pytest.raises(OSError, match=f"{name}.* cannot be written"):
        write_all(((frame, found_on(frame)) for frame in frames), [sink], lambda count: None)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_an_image_called_classes_leaves_the_names_of_classes_alone(tmp_path):
    write_image(tmp_path / "shots" / "classes.png", 60, 40)
    write(tmp_path / "shots", tmp_path / "out", "yolo")
    assert (tmp_path / "out" / "labels" / "classes.txt").read_text() == "cat\ndog\n"
    assert len((tmp_path / "out" / "labels" / "classes.png.txt").read_text().splitlines()) == 2


def test_names_of_255_bytes_are_written(tmp_path):
    """They are cut, while they are written, inside of a character."""
    name = "a" + "é" * 125
    try:
        write_image(tmp_path / "shots" / f"{name}.png", 60, 40)
    except OSError:
        pytest.skip("this file system takes no such name")
    write(tmp_path / "shots", tmp_path / "out", "drawn", "yolo")
    assert (tmp_path / "out" / "labels" / f"{name}.txt").is_file()
    assert not list((tmp_path / "out").rglob(".*"))
    draft = draft_of(tmp_path / f"{name}.png").name
    assert len(draft.encode()) < 220


def test_a_video_whose_name_is_no_text_is_a_problem_and_not_the_end(tmp_path):
    folder = tmp_path / "shots"
    write_image(folder / "a.png")
    write_video(folder / "clip.avi", count=2)
    try:
        os.rename(folder / "clip.avi", os.fsencode(folder) + b"/bad\xff.avi")
    except OSError:
        pytest.skip("this file system takes no such name")
    inputs = find_inputs([folder])
    assert [each.name for each in inputs.found] == ["a.png"]
    (problem,) = inputs.problems
    assert "cannot be read (OpenCV cannot open a video whose name is not UTF-8; rename it)" in problem


def test_no_more_frames_are_held_than_a_batch():
    taken, source = [], Input("x.png", "x.png", "x")

    class Fake:
        def predict(self, images):
            assert len(images) <= 3
            return [Instances.empty()] * len(images)

    def frames():
        for number in range(10):
            taken.append(number)
            yield Frame(source, np.zeros((4, 4, 3), np.uint8))

    for number, _ in enumerate(predict_all(Fake(), frames(), 3)):
        assert len(taken) <= number + 3


# ----------------------------------------------------------------------------------------------------------- labels

SIDE = st.floats(0, 100)
BOX = st.tuples(SIDE, SIDE, SIDE, SIDE).map(lambda box: (*map(min, box[:2], box[2:]), *map(max, box[:2], box[2:])))
EXTENT = st.tuples(st.floats(1, 60), st.floats(1, 20))


def overlap(one, other):
    """Whether two areas have one in common, beyond rounding."""
    return min(min(one[at + 2], other[at + 2]) - max(one[at], other[at]) for at in (0, 1)) > 1e-9


@given(st.lists(st.tuples(BOX, EXTENT), max_size=12))
def test_no_label_lies_on_another_and_all_inside_of_the_image(pairs):
    """One is left out only where each of its places is taken."""
    boxes, extents = [box for box, _ in pairs], [extent for _, extent in pairs]
    areas = lay_out(boxes, extents, (100, 100))
    for index, area in enumerate(areas):
        before = [other for other in areas[:index] if other is not None]
        if area is None:
            for place in places(boxes[index], extents[index], (100, 100)):
                assert any(map(overlap, [place] * len(before), before))
        else:
            assert min(area) >= 0
            assert max(area[2:]) <= 100 + 1e-9
            assert not any(map(overlap, [area] * len(before), before))


def test_the_image_itself_is_not_drawn_on():
    pixels = np.full((700, 900, 3), 90, dtype=np.uint8)
    before = pixels.copy()
    boxes, classes = torch.tensor([[10.0, 20, 300, 400]]), torch.tensor([1])
    picture = draw_picture(pixels, Instances(boxes, classes, torch.tensor([0.7])), ["a", "名前"])
    np.testing.assert_array_equal(pixels, before)
    assert picture.shape == pixels.shape
    changed = np.abs(picture.astype(int) - 90).max(axis=2) > 0
    assert changed[20:400, 9:302].any()
    assert not changed[410:, :].any()
