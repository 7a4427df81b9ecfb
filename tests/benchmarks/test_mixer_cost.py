"""What is measured of each mixer; how long it takes is for the benchmark to say."""

from __future__ import annotations

import json
import shlex

import pytest
from runs import ROOT

from benchmarks import mixer_cost, suites
from lossmix_det.commands.options import parse
from lossmix_det.config import load_config
from lossmix_det.errors import UserError
from lossmix_det.mixing.mixers import MIXERS

pytestmark = pytest.mark.slow

SMALL = ("model.architecture=slim", "model.roi_samples=16", "train.device=cpu")


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    sizes = {"voc": [[375, 500], [333, 500], [500, 375]], "paintings": [[700, 500], [500, 500], [400, 650]]}
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    monkeypatch.setenv("LOSSMIX_SHARED_DATA", str(tmp_path))
    monkeypatch.setattr(mixer_cost, "OF_A_TEACHER", {"cutmix"})


def test_a_row_for_each_mixer_and_for_each_kind_of_saliency_that_it_may_use():
    rows = mixer_cost.rows_of(("mixup", "sage"), load_config(None, ["mixing.alpha=0.3"]).mixing)
    assert rows.pop("mixup").mixer == "mixup"
    assert {name: row.saliency for name, row in rows.items()}.items() >= {
        ("sage, spectral", "spectral"),
        ("sage, boxes", "boxes"),
    }
    assert {(row.mixer, row.probability, row.alpha) for row in rows.values()} == {("sage", 1.0, 0.3)}


def test_every_row_takes_a_step_of_its_own_mixer_on_the_same_images(small, tmp_path, monkeypatch):
    bench = mixer_cost.Bench(["mixup", "sage"], [*SMALL], str(tmp_path / "run"), 64, adapts=False)
    drawn, learned = [], []
    for name in ("mixup", "sage"):
        draw = MIXERS[name].draw
        monkeypatch.setattr(
            MIXERS[name], "draw", lambda self, pool, *rest, n=name, d=draw: drawn.append(n) or d(self, pool, *rest)
        )
    learn = bench.trainer.learn
    monkeypatch.setattr(bench.trainer, "learn", lambda batch: learned.append(batch) or learn(batch))
    for row in bench.phases:
        mixing, whole = bench.take(row, 1)
        assert 0 < mixing < whole
    assert drawn == ["mixup", *["sage"] * (len(bench.phases) - 2)]  # without mixing nothing is drawn
    assert all(batch is bench.batches[1] for batch in learned)
    assert [len(batch.source.strong) for batch in bench.batches] == [4] * mixer_cost.BATCHES
    assert {min(size) for batch in bench.batches for size in batch.source.strong.sizes} == {64}
    assert bench.phases["no mixing"].at(0).phase.recipe.probability == 0


def test_a_mixer_that_needs_a_teacher_is_measured_in_adaptation(small, tmp_path):
    output = tmp_path / "x.md"
    words = ["--suite", "mixer_cost", "--short-side", "64", "--methods", "mixup", "cutmix", "--pairs", "1"]
    words += ["--output", str(output)]
    assert suites.main([*words, *SMALL]) == 0
    text = output.read_text()
    first, second = text.split("These need a teacher: a step of adaptation")
    (of_first, rows) = (
        [line.split(" | ") for line in part.splitlines() if line.startswith("| ")][1:] for part in (first, second)
    )
    assert [row[0] for row in of_first] == ["| no mixing", "| mixup"]
    assert [row[0] for row in rows] == ["| no mixing", "| mixup", "| cutmix"]
    assert rows[1][-1] == "1.00 (1.00–1.00) |"
    command = next(line for line in text.splitlines() if "tools/benchmark.py" in line)
    again = shlex.split(command.partition("tools/benchmark.py")[2])
    assert parse(suites.build_parser(), again) == parse(suites.build_parser(), [*words, *SMALL])


def test_an_unknown_mixer_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(mixer_cost, "measure", lambda *_: pytest.fail("measured"))
    options = parse(suites.build_parser(), ["--suite", "mixer_cost", "--methods", "sag"])
    with pytest.raises(UserError, match=r"unknown method 'sag' \(did you mean 'sage'\?\)"):
        mixer_cost.measure_mixers(options, tmp_path / "x.md")
