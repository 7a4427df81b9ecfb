"""How soon a run reaches a score, worked by hand; and the suite, in small."""

from __future__ import annotations

import pytest
from runs import ROOT, TINY

from benchmarks import time_to_quality
from benchmarks.suites import main
from benchmarks.time_to_quality import Curve, curve_of, time_to


@pytest.mark.parametrize(
    ("score", "seconds"),
    [
        (40.0, 0.0),  # it is there already
        (45.0, 5.0),  # half of the way to the first evaluation
        (50.0, 10.0),
        (55.0, 26.0),  # 7.5 of 12.5 points after the dip
        (61.0, None),
    ],
)
def test_the_time_to_a_score_lies_on_straight_lines_between_evaluations(score, seconds):
    curve = Curve([0.0, 10.0, 20.0, 30.0], [0.0] * 4, [40.0, 50.0, 47.5, 60.0])
    assert time_to(curve, score) == (pytest.approx(seconds) if seconds is not None else None)


def test_a_curve_begins_at_the_hand_over_and_counts_only_what_training_took(tmp_path):
    (tmp_path / "speed.csv").write_text(
        "step,seconds_per_step,images_per_s\n2,9,9\n4,9,9\n6,0.5,8\n8,0.25,16\n9,1,4\n"  # burn-in: 4 steps
    )
    (tmp_path / "scores.csv").write_text("step,student/x/AP50,teacher/x/AP50\n2,1,\n4,30,\n8,40,45\n9,41,46\n")
    curve = curve_of(tmp_path, 4)
    assert curve.seconds == [0.0, 1.5, 2.5]  # 2·0.5, then 2·0.25, then 1
    assert curve.images == [0.0, 16.0, 20.0]
    assert curve.scores == [30.0, 45.0, 46.0]


@pytest.mark.slow
def test_all_methods_start_from_one_burn_in_and_only_one_takes_other_passes(tmp_path, monkeypatch):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    monkeypatch.chdir(ROOT)
    seen = []
    passes = time_to_quality.Passes.adaptive_teacher_loss
    monkeypatch.setattr(
        time_to_quality.Passes,
        "adaptive_teacher_loss",
        lambda self, batch: seen.append(self.state.step) or passes(self, batch),
    )
    words = [*TINY, "adaptation.burn_in_steps=2", "train.steps=4", "train.eval_every=1", "train.log_every=1"]
    words += ["pseudo_labels.score=0.05", "data.workers=0", "shapes.test_images=4"]
    output = tmp_path / "page.md"
    suite = ["--suite", "time_to_quality", "--seeds", "3", "--runs", str(tmp_path), "--output", str(output)]
    assert main([*suite, *words]) == 0
    assert seen == [2, 3]
    runs = tmp_path / "time_to_quality"
    names = ("adaptive_teacher", "adaptive_teacher_lossmix", "adaptive_teacher_structure")
    first = [curve_of(runs / f"{name}_seed3", 2) for name in names]
    assert len({curve.scores[0] for curve in first}) == 1
    assert all(len(curve.scores) == 3 for curve in first)
    text = output.read_text()
    assert "--suite time_to_quality --seeds 3" in text
    assert text.count("reach it)") + text.count("never") == 3
    assert output.with_suffix(".png").is_file()
    assert main([*suite, *words]) == 0  # what has run is not run again
    assert seen == [2, 3]


def test_a_run_that_is_told_to_stop_ends_the_suite(tmp_path, monkeypatch, capsys):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(time_to_quality, "launch", lambda config: None)
    monkeypatch.setattr(time_to_quality.Trainer, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(time_to_quality.Trainer, "train", lambda self: False)
    words = ["--suite", "time_to_quality", "--runs", str(tmp_path), "--output", str(tmp_path / "page.md")]
    assert main(words) == 2
    assert "adaptive_teacher_seed1 was told to stop; the same command goes on from there" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "time_to_quality").iterdir()] == ["adaptive_teacher_seed1"]
