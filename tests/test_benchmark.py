"""The suites of tools/benchmark.py on miniature runs."""

import json
import sys

import pytest
from runs import ROOT, TINY

from lossmix_det.cli import run_tool
from lossmix_det.errors import UserError
from lossmix_det.report import benchmark, compare, cost
from lossmix_det.report.compare import Suite, page


def results(folder, name, seed, photo, clipart):
    path = folder / "shapes" / f"{name}_seed{seed}"
    path.mkdir(parents=True)
    scores = {
        "shapes_photo_test": {"AP50": photo, "AP": photo / 2},
        "shapes_clipart_test": {"AP50": clipart, "AP": 1.0},
    }
    (path / "results.json").write_text(json.dumps({"student": scores}))
    run = {
        "config": {"train": {"steps": 5}, "data": {"batch_size": 4}},
        "versions": dict.fromkeys(("torch", "torchvision", "albumentations"), "1.0"),
        "python": "3.11",
        "device": "cpu",
        "git_revision": "abc",
    }
    (path / "run.json").write_text(json.dumps(run))


def options(tmp_path, *words):
    return benchmark._parser().parse_args(["--suite", "mixing", "--runs", str(tmp_path), *words])


def test_the_table_gives_mean_deviation_and_paired_gain(tmp_path):
    """Worked by hand: 70 and 74 are 72 ± 2.8; gains of 2 and 6 are +4 with a standard error of 2."""
    for seed, (base, mixed) in enumerate([(68, 70), (68, 74)], start=1):
        results(tmp_path, "source_only", seed, base, 40)
        results(tmp_path, "lossmix", seed, mixed, 41)
    chosen = options(tmp_path, "--seeds", "1", "2", "--methods", "source_only", "lossmix", "union")
    text = page(benchmark.MIXING, chosen.methods, chosen)
    assert "| lossmix | 72.0 ± 2.8 | 36.0 ± 1.4 | 41.0 ± 0.0 | 1.0 ± 0.0 | 2 of 2 |" in text
    assert "| lossmix | +4.0 ± 2.0 | +1.0 ± 0.0 |" in text
    assert "| union | failed | failed | failed | failed | 0 of 2 |" in text
    command = "python tools/benchmark.py --suite mixing --seeds 1 2 --methods source_only lossmix union --runs "
    assert command + str(tmp_path) in text


def test_a_failed_run_is_shown_and_not_dropped(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    chosen = options(tmp_path / "runs", "--seeds", "4", "--methods", "union", "--output", str(tmp_path / "t.md"))
    chosen.overrides = ["data.train=[nowhere]"]
    compare.compare(benchmark.MIXING, chosen, tmp_path / "unused.md")
    assert "no run has finished" in (tmp_path / "t.md").read_text()
    assert "unknown data set 'nowhere'" in (tmp_path / "runs" / "shapes" / "union_seed4" / "log.txt").read_text()


def test_a_suite_trains_and_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    suite = Suite("small", ROOT / "configs" / "shapes", ("source_only", "union"), "source_only")
    words = ["--seeds", "5", "--output", str(tmp_path / "t.md")]
    chosen = options(tmp_path / "runs", *words)
    chosen.overrides = [*TINY, "train.steps=2"]
    compare.compare(suite, chosen, tmp_path / "unused.md")
    text = (tmp_path / "t.md").read_text()
    assert text.count("| 1 of 1 |") == 2
    monkeypatch.setattr(compare, "_run", lambda *_: pytest.fail("ran again"))
    compare.compare(suite, chosen, tmp_path / "unused.md")
    assert (tmp_path / "t.md").read_text() == text


def test_an_unknown_method_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--suite", "mixing", "--methods", "losmix"])
    assert run_tool(benchmark.main) == 2
    assert "unknown method 'losmix' (did you mean 'lossmix'?)" in capsys.readouterr().err


def test_the_cost_page_names_its_command_and_every_case(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "CASES", (cost.Case("tiny", ("data.batch_size=2",), 0.5),))
    output = tmp_path / "cost.md"
    words = ["--suite", "cost", "--pairs", "5", "--output", str(output), *TINY]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *words])
    assert run_tool(benchmark.main) == 0
    text = output.read_text()
    assert "python tools/benchmark.py --suite cost --pairs 5" in text
    assert "| tiny | " in text
    assert "images/s; the slim model learns from" in text


def test_scores_of_runs_with_other_settings_are_not_reused(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    chosen = options(tmp_path / "runs", "--seeds", "5", "--methods", "union", "--output", str(tmp_path / "t.md"))
    chosen.overrides = [*TINY, "train.steps=1"]
    compare.compare(benchmark.MIXING, chosen, tmp_path / "unused.md")
    chosen.overrides[-1] = "train.steps=2"
    with pytest.raises(UserError, match=r"union_seed5 holds a run with other settings \(train\)"):
        compare.compare(benchmark.MIXING, chosen, tmp_path / "unused.md")
