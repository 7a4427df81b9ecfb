"""Nothing is left out in silence, and nothing that is kept breaks the training."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import voc_object, voc_xml, write_image

from lossmix_det.config import load_config
from lossmix_det.data import records
from lossmix_det.data.catalog import load, load_test_sets
from lossmix_det.data.loaders import TrainingImages
from lossmix_det.evaluation import report_problems


def voc(folder, *words):
    return load_config(None, [f"datasets.mine.root={folder}", "data.classes=[cat,dog]", "data.workers=0", *words])


def test_images_without_a_box_to_learn_are_counted_and_listed_once(voc_folder, tmp_path, caplog):
    config = voc(voc_folder)
    image_set = load("mine", config)
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert len(TrainingImages([image_set], config.data)) == 1
    line = f"{voc_folder}/JPEGImages/two.png: not trained on, because it has no box to learn"
    assert image_set.problems.left_out == [line]
    assert caplog.text.count("data set mine: 1 of 2 images have no box to learn, and are left out") == 1
    report_problems([image_set], set(), tmp_path)
    assert f"left out (1)\n{line}\n" in (tmp_path / "data_problems.txt").read_text()


def test_the_report_has_a_section_for_each_kind_and_one_log_line(voc_folder, tmp_path, caplog):
    (voc_folder / "Annotations" / "one.xml").write_text(
        voc_xml(voc_object("cat", 1, 1, 90, 20) + voc_object("cat", 9, 9, 9, 9))
    )
    (voc_folder / "JPEGImages" / ".hidden.png").write_text("")
    image_set = load("mine", voc(voc_folder, "data.on_error=skip"))
    report_problems([image_set, image_set], set(), tmp_path)
    titles = [line for line in (tmp_path / "data_problems.txt").read_text().splitlines() if line.endswith(")")]
    assert [title for title in titles if "(1)" in title] == ["skipped (1)", "left out (1)", "noted (1)"]
    assert (
        "data: 1 faulty images or boxes skipped, 1 files, images or lines left out, 1 notes; listed in" in caplog.text
    )


def test_a_report_may_name_files_of_any_bytes(voc_folder, tmp_path):
    image_set = load("mine", voc(voc_folder))
    image_set.problems.leave_out(["caf\udce9.jpg: hidden"])
    report_problems([image_set], set(), tmp_path)
    assert "caf\\udce9.jpg: hidden" in (tmp_path / "data_problems.txt").read_text()


def test_what_was_left_out_is_remembered(voc_folder, monkeypatch):
    monkeypatch.setattr("lossmix_det.data.memory.SETTLED", -1e9)
    (voc_folder / "JPEGImages" / ".hidden.png").write_text("")
    first = load("mine", voc(voc_folder))
    monkeypatch.setattr(records, "probe", None)  # would fail
    second = load("mine", voc(voc_folder))
    assert second.problems.left_out == first.problems.left_out
    assert second.root == first.root
    assert len(second.problems.left_out) == 1


@pytest.mark.parametrize("size", [(60, 40), (4000, 40)])
def test_every_box_that_is_kept_survives_augmentation(tmp_path, size):
    """Boxes of all widths at all places, some too thin for single precision."""
    write_image(tmp_path / "a.png", *size)
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 0.999, (400, 2)) * size
    extents = 10.0 ** rng.uniform(-9, 1, (400, 2))
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [*corner, *extent]}
            for corner, extent in zip(corners.tolist(), extents.tolist(), strict=True)
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    words = ["datasets.mine.annotations=a.json", "data.classes=[cat]", "data.on_error=skip"]
    config = voc(tmp_path, *words, "data.augment.crop=0.5")
    image_set = load("mine", config)
    kept = image_set.records.boxes
    assert 0 < len(kept) < 400
    assert ((kept[:, 2:] - kept[:, :2]) > 0).all()
    augment = TrainingImages([image_set], config.data).augment
    for seed in range(5):
        views = augment(np.zeros((size[1], size[0], 3), dtype=np.uint8), kept, seed)
        assert (views.boxes[:, 2:] > views.boxes[:, :2]).all()


def test_ignored_exif_reaches_the_pixels_that_are_trained_on(voc_folder):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, :30] = 255
    Image.fromarray(pixels).save(voc_folder / "JPEGImages" / "one.png", exif=exif)
    words = ["data.augment.min_sizes=[40]", "data.augment.flip=0", "datasets.mine.exif=ignore"]
    config = voc(voc_folder, *words)
    images = TrainingImages([load("mine", config)], config.data)
    np.testing.assert_array_equal(images[records_draw()].weak.permute(1, 2, 0).numpy(), pixels)


def records_draw():
    from lossmix_det.data.loaders import Draw

    return Draw(0, 1)


def test_without_a_named_training_set_the_classes_are_those_of_the_test_set(voc_folder):
    config = load_config(None, [f"datasets.mine.root={voc_folder}", "data.test=[mine]"])
    (found,) = load_test_sets(config)
    assert found.classes == ["cat", "dog"]
