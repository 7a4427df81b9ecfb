"""The bootstrap's AP50 beside COCO's own, of whole and of resampled data sets."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import ROOT

from benchmarks import bootstrap
from benchmarks.runs import Run
from lossmix_det.evaluation.coco import coco_metrics
from lossmix_det.evaluation.detect import evaluate

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "evaluation"))

from test_coco_ap import random_set  # noqa: E402 - sets of boxes with crowds, difficult ones and equal scores

ALL = 10**4


@pytest.mark.parametrize("seed", range(4))
def test_with_every_image_once_it_is_cocos(seed):
    image_set, rows = random_set(seed)
    found = bootstrap.ap50(bootstrap.match(image_set, rows), np.ones(len(image_set), dtype=int))
    assert found == pytest.approx(coco_metrics(image_set, rows, ALL)["AP50"], abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_an_image_that_counts_twice_is_as_good_as_two(seed):
    image_set, rows = random_set(seed)
    rng = np.random.default_rng(seed)
    rows = [{**row, "score": score} for row, score in zip(rows, rng.permutation(len(rows)) / len(rows), strict=True)]
    counts = rng.multinomial(len(image_set), np.full(len(image_set), 1 / len(image_set)))
    assert {0, 2} <= set(counts.tolist())
    records, copies = [], []
    for record, count in zip(image_set.records, counts, strict=True):
        for _ in range(count):
            number = len(records) + 1
            copies += [{**row, "image_id": number} for row in rows if row["image_id"] == record.image_id]
            records.append(replace(record, image_id=number))
    drawn = replace(image_set, records=records)
    found = bootstrap.ap50(bootstrap.match(image_set, rows), counts)
    assert found == pytest.approx(coco_metrics(drawn, copies, ALL)["AP50"], abs=1e-9)


def test_the_interval_holds_the_middle_of_the_resamples():
    image_set, rows = random_set(0, images=30)
    matches = bootstrap.match(image_set, rows)
    values = bootstrap.resampled(matches, len(image_set))
    low, high = bootstrap.interval(values)
    assert low < bootstrap.ap50(matches, np.ones(30, dtype=int)) < high
    assert np.mean((values >= low) & (values <= high)) == pytest.approx(0.95, abs=0.002)
    np.testing.assert_array_equal(values, bootstrap.resampled(matches, 30))  # every method has the same images drawn


def test_there_is_no_interval_where_the_labels_have_changed(tmp_path, monkeypatch, caplog):
    image_set, rows = random_set(0)
    monkeypatch.setattr(bootstrap, "load_test_sets", lambda config: [image_set])
    (tmp_path / f"detections_{image_set.name}.json").write_text(json.dumps(rows))
    (tmp_path / "results.json").write_text('{"student": {}}')
    run = Run("m", 1, ROOT / "configs/quick.yaml", tmp_path)
    for fingerprint, known in ((image_set.fingerprint, {image_set.name}), ("other", set())):
        about = {"datasets": {image_set.name: {"fingerprint": fingerprint}}}
        (tmp_path / "run.json").write_text(json.dumps(about))
        bootstrap._resamples_in.cache_clear()
        assert bootstrap.resamples_of(run, []).keys() == known
    assert "no intervals, because its test images are not those of the run" in caplog.text


def test_images_that_could_not_be_read_are_drawn_no_more_than_they_are_scored(tmp_path, monkeypatch):
    image_set, rows = random_set(0)
    names = [image_set.file_name(record.path) for record in image_set.records][:5]
    read = image_set.without(names)
    rows = [row for row in rows if row["image_id"] in {image_set.id_of(record.image_id) for record in read.records}]
    monkeypatch.setattr(bootstrap, "load_test_sets", lambda config: [image_set])
    (tmp_path / f"detections_{image_set.name}.json").write_text(json.dumps(rows))
    scores = evaluate(read, rows) | {"unreadable": names}
    (tmp_path / "results.json").write_text(json.dumps({"student": {image_set.name: scores}}))
    bootstrap._resamples_in.cache_clear()
    (values,) = bootstrap.resamples_of(Run("m", 1, ROOT / "configs/quick.yaml", tmp_path), []).values()
    np.testing.assert_array_equal(values, bootstrap.resampled(bootstrap.match(read, rows), len(read)))
    whole = bootstrap.resampled(bootstrap.match(image_set, rows), len(image_set))
    assert whole.mean() < values.mean()


def test_without_detections_and_without_truths():
    image_set, _ = random_set(1)
    once = np.ones(len(image_set), dtype=int)
    assert bootstrap.ap50(bootstrap.match(image_set, []), once) == 0
    assert np.isnan(bootstrap.ap50(bootstrap.match(image_set, []), 0 * once))
