import csv
import json
import math

import numpy as np
import pytest
import torch
from conftest import voc_object, voc_xml, write_image
from rich.console import Console

from lossmix_det.config import load_config
from lossmix_det.data.catalog import load
from lossmix_det.data.loaders import evaluation_loader
from lossmix_det.data.records import ImageRecord, ImageSet, Problems
from lossmix_det.evaluation import detect_all, evaluate, print_tables, write_results
from lossmix_det.evaluation.coco import coco_metrics
from lossmix_det.evaluation.detect import coco_results
from lossmix_det.structures import Instances


@pytest.fixture
def image_set(voc_folder):
    (voc_folder / "Annotations" / "two.xml").write_text(voc_xml(voc_object("cat", 5, 5, 25, 35)))
    config = load_config(None, [f"datasets.mine.root={voc_folder}", "data.classes=[cat,dog,emu]"])
    return load("mine", config)


def perfect(image_set, difficult: bool = True):
    rows = []
    for record in image_set.records:
        for (x1, y1, x2, y2), label, hard in zip(record.boxes.tolist(), record.classes, record.difficult, strict=True):
            if difficult or not hard:
                box = [x1, y1, x2 - x1, y2 - y1]
                category = image_set.category_ids[label]
                rows.append({"image_id": record.image_id, "category_id": category, "bbox": box, "score": 0.9})
    return rows


def test_perfect_detections_score_one_hundred_in_every_metric(image_set):
    metrics = evaluate(image_set, perfect(image_set))
    for key in ("AP", "AP50", "AP75", "VOC_AP50", "VOC07_AP50"):
        assert metrics[key] == pytest.approx(100)
    assert metrics["classes"]["cat"]["AP"] == pytest.approx(100)


def test_a_class_without_boxes_that_count_is_left_out_of_the_mean(image_set):
    """The only dog is difficult, and there is no emu."""
    metrics = evaluate(image_set, perfect(image_set))
    for label in ("dog", "emu"):
        assert all(math.isnan(value) for value in metrics["classes"][label].values())


def test_difficult_boxes_need_not_be_found(image_set):
    assert evaluate(image_set, perfect(image_set, difficult=False))["AP"] == pytest.approx(100)


def test_missing_half_of_a_class_halves_its_scores(image_set):
    half = perfect(image_set)[-1:]
    metrics = evaluate(image_set, half)
    assert metrics["VOC_AP50"] == pytest.approx(50)
    assert metrics["AP50"] == pytest.approx(100 * 51 / 101)  # COCO samples precision at 101 recalls, 51 of them ≤ 0.5
    assert metrics["VOC07_AP50"] == pytest.approx(100 * 6 / 11)


def test_scoring_leaves_the_detections_as_they_are(image_set):
    found = perfect(image_set)
    before = [dict(row) for row in found]
    evaluate(image_set, found)
    assert found == before


def test_no_detections_score_zero(image_set):
    metrics = evaluate(image_set, [])
    assert metrics["AP"] == metrics["VOC_AP50"] == 0


class Fixed(torch.nn.Module):
    """Detects one box, in the pixels of the resized image it is given."""

    def detect(self, images):
        scale = images.sizes[0][0] / 40
        boxes = torch.tensor([[0.0, 0, 30, 20]]) * scale
        return [Instances(boxes, torch.tensor([0]), torch.tensor([0.8])) for _ in range(len(images))]


def test_detections_come_back_in_pixels_of_the_file(image_set):
    config = load_config(None, ["data.augment.test_size=80", "data.workers=0"])
    done = []
    found, unreadable = detect_all(Fixed(), image_set, evaluation_loader(image_set, config.data), "cpu", done.append)
    assert found[0] == {
        "image_id": 1, "file_name": "one.png", "category_id": 1, "bbox": [0, 0, 30, 20], "score": pytest.approx(0.8),
    }  # fmt: skip
    assert sum(done) == 2
    assert unreadable == {}


def test_results_are_written_as_json_and_csv(image_set, tmp_path):
    results = {"student": {"mine": evaluate(image_set, perfect(image_set))}}
    write_results(results, tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["student"]["mine"]["AP50"] == pytest.approx(100)
    assert content["student"]["mine"]["classes"]["emu"]["AP"] is None
    with open(tmp_path / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["all", "cat", "dog", "emu"]
    assert rows[0]["AP50"] == "100.000"
    results["student"]["mine"]["classes"]["all"] = {"AP50": 10.0}  # a class may be called so
    write_results(results, tmp_path)
    with open(tmp_path / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["AP50"] for row in rows if row["class"] == "all"] == ["100.000", "10.000"]


def test_the_table_names_every_score_even_in_a_narrow_window(image_set, capsys):
    long_name = "a_test_set_with_a_rather_long_name"
    results = {"student": {long_name: evaluate(image_set, perfect(image_set))}}
    print_tables(results, Console(width=40))
    printed = capsys.readouterr().out
    for word in (long_name, "AP50", "AP75", "VOC area", "VOC 11-pt", "medium", "emu", "100.0"):
        assert word in printed


def test_without_scores_no_table_is_printed(capsys):
    print_tables({"student": {}}, Console())
    assert capsys.readouterr().out == ""


def crowded(tmp_path, count):
    """One image with a grid of objects, and a detector that finds all of them."""
    corners = np.array([(20 * (k % 20), 20 * (k // 20)) for k in range(count)], dtype=np.float32)
    boxes, flags = np.concatenate([corners, corners + 12], axis=1), np.zeros(count, dtype=bool)
    record = ImageRecord(
        tmp_path / "a.png", 1, (400, 400), boxes, np.zeros(count, np.int64), flags, flags, np.full(count, 144.0)
    )
    image_set = ImageSet("crowd", ["grain"], [record], True, [1], "", Problems())
    scores = torch.linspace(1, 0.5, count)
    boxes = torch.from_numpy(boxes)
    return image_set, coco_results(image_set, 0, boxes, Instances(boxes, torch.zeros(count, dtype=torch.int64), scores))


@pytest.mark.parametrize(
    ("count", "limit", "counted"), [(90, 100, 100), (150, 300, 300), (300, None, 300), (90, 20, 100)]
)
def test_more_than_100_objects_count_if_the_detector_gives_as_many(tmp_path, count, limit, counted):
    metrics = evaluate(*crowded(tmp_path, count), limit)
    assert metrics["AP50"] == pytest.approx(100)
    assert metrics["classes"]["grain"]["AP"] == pytest.approx(100)
    assert metrics["detections_per_image"] == counted


def test_coco_itself_counts_100_detections(tmp_path):
    assert coco_metrics(*crowded(tmp_path, 150))["AP50"] < 70


@pytest.mark.parametrize(("limit", "said"), [(100, ""), (300, " of up to 300 detections per image (COCO itself: 100)")])
def test_the_table_and_the_results_say_how_many_detections_count(tmp_path, capsys, limit, said):
    results = {"student": {"crowd": evaluate(*crowded(tmp_path, 5), limit)}}
    print_tables(results, Console(width=200))
    assert f"in percent: COCO's{said}, and PASCAL VOC's at IoU 0.5" in capsys.readouterr().out
    write_results(results, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["student"]["crowd"]["detections_per_image"] == limit


def test_detections_name_images_by_their_place_below_the_folder_of_all(tmp_path):
    paths = ["cam1/0001.png", "cam2/0001.png", "cam2/b/0001.png"]
    for seed, path in enumerate(paths):
        write_image(tmp_path / "f" / path, seed=seed)
    words = [f"datasets.f={{format: folder, root: {tmp_path / 'f'}}}", "data.workers=0", "data.classes=[a]"]
    config = load_config(None, words)
    image_set = load("f", config)
    found, _ = detect_all(Fixed(), image_set, evaluation_loader(image_set, config.data), "cpu")
    assert [row["file_name"] for row in found] == paths
