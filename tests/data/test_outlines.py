"""Outlines become masks where a run mixes by them, in every format that has them, and cost nothing elsewhere."""

from __future__ import annotations

import json
import os
import time
from itertools import islice

import numpy as np
import pytest
import torch
from outlined import (
    OUTLINES,
    box_of,
    overlap,
    pixels_of,
    placed,
    run_lengths,
    write_coco,
    write_picture,
    write_voc,
    write_yolo,
)

from lossmix_det.config import AugmentConfig, MixingConfig, load_config
from lossmix_det.data import outlines
from lossmix_det.data.augment import Augment
from lossmix_det.data.catalog import load, load_sets, load_target
from lossmix_det.data.loaders import training_loader
from lossmix_det.data.outlines import mask_of, unpacked
from lossmix_det.data.packed import Records
from lossmix_det.instances import Instances
from lossmix_det.mixing.mixers.classmix import paint

SIZE = (80, 120)
CHEVRON = placed("chevron", 20.3, 11.0, 60.0, 48.6)
INSIDE = pixels_of(CHEVRON, size=SIZE)


def painted(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    canvas = torch.zeros(size)
    truth = Instances(
        torch.as_tensor(boxes).float(), torch.zeros(len(boxes), dtype=torch.int64), masks=torch.as_tensor(masks)
    )
    paint(canvas, truth, size)
    return canvas.bool().numpy()


@pytest.fixture
def picture(tmp_path):
    write_picture(tmp_path / "a.png", 0, (INSIDE, 255))
    return tmp_path


def config_of(root, *words: str):
    return load_config(None, [f"datasets.mine.root={root}", "data.train=[mine]", "data.test=[]", *words])


def coco(root, segmentation: object):
    write_coco(root, {"a.png": [("thing", segmentation, CHEVRON)]}, SIZE)
    return config_of(root, "datasets.mine.annotations=a.json")


def yolo(root, _):
    write_yolo(root, "a.png", CHEVRON, SIZE)
    return config_of(root)


def voc(root, _):
    write_voc(root, "a.png", CHEVRON, SIZE)
    return config_of(root, "datasets.mine.pixel_origin=0")


# ------------------------------------------------------------------------------------------------ from outlines


@pytest.mark.parametrize("name", OUTLINES)
@pytest.mark.parametrize("side", [24.0, 61.5, 240.0])
def test_a_mask_painted_into_its_box_is_the_polygon(name, side):
    polygon, size = placed(name, 7.7, 30.2, side, side * 0.8), (300, 260)
    mask = mask_of([polygon], box_of(polygon), size[::-1])
    assert overlap(painted(mask[None], np.array([box_of(polygon)]), size), pixels_of(polygon, size=size)) >= 0.9


@pytest.mark.parametrize("compressed", [True, False])
def test_run_lengths_are_those_of_pycocotools(compressed):
    pixels = pixels_of(CHEVRON, placed("disc", 90, 50, 20, 25), size=SIZE)
    decoded = outlines.decoded(run_lengths(pixels, compressed=compressed), SIZE[::-1])
    np.testing.assert_array_equal(decoded, pixels)
    corner = np.ones((3, 5), dtype=bool)  # begins inside
    np.testing.assert_array_equal(outlines.decoded(run_lengths(corner, compressed=compressed), (5, 3)), corner)


def test_parts_of_an_object_are_taken_together_and_may_touch():
    parts = [placed("corner", 10, 10, 30, 30), placed("disc", 30, 20, 40, 40)]
    box = box_of(sum(parts, []))
    mask = mask_of(parts, box, SIZE[::-1])
    assert overlap(painted(mask[None], np.array([box]), SIZE), pixels_of(*parts, size=SIZE)) >= 0.9


def test_a_line_thinner_than_a_cell_is_not_lost():
    polygon = [10, 10, 10.4, 10, 70, 70, 69.6, 70]
    assert mask_of([polygon], box_of(polygon), (100, 100)).any(1).all()


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4, 5, "six"]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [[200, 200, 210, 200, 205, 210]],
        {"size": [80, 120], "counts": [9000, 500]},
        {"size": [120, 80], "counts": [9000, 600]},
        {"size": [80, 120], "counts": [[9600]]},
        {"size": [80, 120], "counts": [10, -10, 9600]},
        {"size": [80, 120]},
        "a polygon",
        7,
    ],
)
def test_an_outline_that_is_none_is_noted_and_the_box_stands_for_the_object(picture, segmentation):
    entries = [("thing", segmentation, CHEVRON), ("thing", [CHEVRON], CHEVRON), ("thing", [], CHEVRON)]
    write_coco(picture, {"a.png": entries}, SIZE)
    found = load("mine", config_of(picture, "datasets.mine.annotations=a.json"), masks=True)
    masks = unpacked(found.records[0].masks)
    assert masks[0].all()
    assert masks[2].all()
    assert 0.3 < masks[1].mean() < 0.7
    (note,) = found.problems.notes
    assert note.startswith("mine: 1 outlines cannot be used, and the box stands for the object; the first: ")
    assert note.endswith("a.json: annotations[0]")


# -------------------------------------------------------------------------------------------- formats, memory


@pytest.mark.parametrize(
    ("declare", "segmentation"),
    [
        (coco, [CHEVRON]),
        (coco, CHEVRON),
        (coco, run_lengths(INSIDE, compressed=True)),
        (coco, run_lengths(INSIDE, compressed=False)),
        (yolo, None),
        (voc, None),
    ],
    ids=["coco polygon", "coco flat polygon", "coco compressed", "coco run lengths", "yolo", "voc"],
)
def test_every_format_gives_the_pixels_of_the_object(picture, declare, segmentation):
    config = declare(picture, segmentation)
    found = load("mine", config, masks=True)
    (record,) = found.records
    assert overlap(painted(unpacked(record.masks), record.boxes, SIZE), INSIDE) >= 0.9
    bare = load("mine", config).records
    assert bare.masks is None
    for name in ("names", "sizes", "boxes", "classes", "difficult", "crowd", "areas", "image_ids", "ends", "exif"):
        np.testing.assert_array_equal(getattr(bare, name), getattr(found.records, name))


def test_a_set_without_outlines_has_no_masks(voc_folder):
    found = load("mine", config_of(voc_folder, "data.classes=[cat,dog]"), masks=True)
    assert found.records.masks is None
    assert found.fingerprint == load("mine", config_of(voc_folder, "data.classes=[cat,dog]")).fingerprint


MIXERS = {
    "mixup": False,
    "classmix": True,
    "{mixup: 1, classmix: 0.5}": True,
    "{mixup: 1, classmix: 0}": False,
}


@pytest.mark.parametrize(("mixer", "reads"), MIXERS.items())
def test_outlines_are_looked_at_only_where_a_run_mixes_by_them(picture, monkeypatch, mixer, reads):
    config = coco(picture, [CHEVRON])
    config = config_of(picture, "datasets.mine.annotations=a.json", f"mixing.mixer={mixer}", "data.test=[mine]")
    if not reads:
        monkeypatch.setattr(outlines, "mask_of", lambda *_, **__: pytest.fail("looked at"))
    ((train,), (test,)) = load_sets(config)
    assert (train.records.masks is not None) == reads
    assert test.records.masks is None
    assert load_target("mine", config, ["thing"]).records.masks is None
    assert (train.fingerprint != test.fingerprint) == reads


def test_without_any_mixed_image_no_outline_is_looked_at():
    assert not MixingConfig(mixer="classmix", probability=0.0).pastes_objects
    assert MixingConfig(mixer="classmix", probability=0.0, burn_in_probability=0.5).pastes_objects


def test_what_is_remembered_with_masks_and_without_are_two(picture, monkeypatch):
    monkeypatch.setenv("LOSSMIX_CACHE", str(picture / "cache"))
    config = coco(picture, [CHEVRON])
    for path in (picture, *picture.iterdir()):
        os.utime(path, (time.time() - 100,) * 2)
    first = load("mine", config, masks=True)
    assert load("mine", config).records.masks is None
    with monkeypatch.context() as patch:
        patch.setattr(outlines, "mask_of", lambda *_, **__: pytest.fail("not remembered"))
        again = load("mine", config, masks=True)
        assert load("mine", config).records.masks is None
    np.testing.assert_array_equal(again.records.masks, first.records.masks)
    assert again.fingerprint == first.fingerprint
    coco(picture, [placed("disc", 20.3, 11.0, 60.0, 48.6)])
    changed = load("mine", config, masks=True)
    assert (changed.records.masks != first.records.masks).any()
    assert changed.fingerprint != first.fingerprint


def test_records_with_masks_are_packed_taken_and_joined(picture):
    write_coco(
        picture,
        {"a.png": [("thing", [CHEVRON], CHEVRON)] * 2, "b.png": [], "c.png": [("thing", [], CHEVRON)]},
        SIZE,
    )
    for name in ("b.png", "c.png"):
        write_picture(picture / name, 0, (INSIDE, 9))
    config = config_of(picture, "datasets.mine.annotations=a.json")
    found, bare = load("mine", config, masks=True).records, load("mine", config).records
    assert [len(record.masks) for record in found] == [2, 0, 1]
    taken = found.take(np.array([2, 0]))
    np.testing.assert_array_equal(taken[1].masks, found[0].masks)
    assert unpacked(taken[0].masks).all()
    joined = Records.cat([bare, found])
    assert unpacked(joined[0].masks).all()
    np.testing.assert_array_equal(joined[3].masks, found[0].masks)
    assert Records.cat([bare, bare]).masks is None
    assert bare.take(np.array([2, 0])).masks is None


# -------------------------------------------------------------------------------------------------- augmentation


def test_masks_follow_flips_and_crops_pixel_by_pixel():
    """A painted object is found again in the view where its mask is painted into its box."""
    config = AugmentConfig(flip=0.5, crop=0.7, min_sizes=[80, 130], erasing=[], min_visibility=0.3)
    augment, clipped, mirrored = Augment(config, ["weak"]), 0, 0
    polygons = [placed("corner", 2.0, 4.5, 50, 60), placed("chevron", 60.5, 20.0, 58, 45)]
    image = np.zeros((*SIZE, 3), dtype=np.uint8)
    image[pixels_of(*polygons, size=SIZE)] = 255
    boxes = np.array([box_of(polygon) for polygon in polygons], dtype=np.float32)
    masks = np.stack([mask_of([polygon], box_of(polygon), SIZE[::-1]) for polygon in polygons])
    for seed in range(60):
        views = augment(image, boxes, seed, masks)
        bare = augment(image, boxes, seed)
        np.testing.assert_array_equal(views.weak, bare.weak)
        np.testing.assert_array_equal(views.boxes, bare.boxes)
        assert bare.masks is None
        if not len(views.kept):
            continue
        size = views.weak.shape[:2]
        seen = painted(views.masks, views.boxes, size)
        white = views.weak[..., 0] > 127
        if len(views.kept) < 2:  # what is left of an object that was dropped is still to be seen
            x1, y1, x2, y2 = views.boxes[0].round().astype(int)
            shown = np.zeros_like(white)
            shown[y1:y2, x1:x2] = white[y1:y2, x1:x2]
            white = shown
        assert overlap(seen, white) >= 0.88
        shares = (views.boxes[:, 2:] - views.boxes[:, :2]) / size[::-1]
        clipped += bool((views.boxes[:, :2] == 0).any() and (shares > 0.3).any())
        mirrored += len(views.kept) == 2 and views.boxes[0, 0] > views.boxes[1, 0]
    assert clipped > 5
    assert mirrored > 5


def test_the_loader_gives_each_box_its_own_mask(picture):
    """The first of two boxes is difficult and not taught; its mask must not become the other's."""
    disc = placed("disc", 3, 3, 40, 40)
    write_coco(picture, {"a.png": [("thing", [disc], disc), ("thing", [CHEVRON], CHEVRON)]}, SIZE)
    path = picture / "a.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["ignore"] = 1
    path.write_text(json.dumps(content))
    words = ["data.augment.min_sizes=[80]", "data.augment.flip=0", "data.batch_size=1", "data.workers=0"]
    words += ["data.keep_difficult=false"]
    config = config_of(picture, "datasets.mine.annotations=a.json", *words)
    views, _ = next(iter(training_loader([load("mine", config, masks=True)], config.data, seed=0)))
    (truth,) = views.truths
    assert truth.masks.dtype == torch.bool
    assert overlap(painted(truth.masks, truth.boxes, SIZE), INSIDE) >= 0.9


@pytest.mark.slow
def test_loading_processes_give_the_same_masks():
    drawn = []
    for workers in (0, 2):
        words = ["shapes.train_images=12", "shapes.test_images=6", "shapes.size=64", "data.augment.min_sizes=[64]"]
        config = load_config(None, [*words, "data.batch_size=4", f"data.workers={workers}", "mixing.mixer=classmix"])
        (train,), _ = load_sets(config)
        batches = islice(iter(training_loader([train], config.data, seed=3)), 3)
        drawn.append([truth for views, _ in batches for truth in views.truths])
    for alone, together in zip(*drawn, strict=True):
        assert torch.equal(alone.masks, together.masks)
        assert torch.equal(alone.boxes, together.boxes)
    assert not all(bool(truth.masks.all()) for truth in drawn[0])
