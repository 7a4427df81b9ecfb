"""The suites of tools/benchmark.py on miniature runs."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from comparing import options, planned, results
from runs import ROOT, TINY

from benchmarks import compare, cost, runs, suites
from benchmarks.page import page
from benchmarks.runs import Suite, methods_in
from lossmix_det.errors import UserError
from lossmix_det.training.run_lock import run_lock

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("suite", [["--suite", "shapes"], ["--suite-dir", "configs/shapes_adapt"]])
def test_the_printed_command_asks_for_what_was_asked(tmp_path, suite):
    words = ["--seeds", "1", "2", "--methods", "so*", "--jobs", "2", "--runs", str(tmp_path), "train.steps=2"]
    chosen = suites.build_parser().parse_args([*suite, *words])
    program, script, *printed = shlex.split(compare.command_of(chosen))
    assert (program, script) == (".venv/bin/python", "tools/benchmark.py")
    assert (ROOT / script).is_file()
    assert suites.build_parser().parse_args(printed) == chosen


def test_a_page_of_an_earlier_version_is_of_the_same_command():
    for page_of in ("python", ".venv/bin/python"):
        text = f"# Results\n\n```\n{page_of} tools/benchmark.py --suite mixing --seeds 1\n```\n"
        assert compare._is_page_of(text, ".venv/bin/python tools/benchmark.py --suite mixing --seeds 1")
        assert not compare._is_page_of(text, ".venv/bin/python tools/benchmark.py --suite mixing --seeds 1 2")


def test_a_page_without_a_run_gives_way_to_another_command(tmp_path):
    chosen = options(tmp_path, "--seeds", "1", "--methods", "union")
    text = page(suites.MIXING, planned(suites.MIXING, chosen), compare.command_of(chosen))
    assert compare._is_page_of(text, ".venv/bin/python tools/benchmark.py --suite mixing --seeds 1 2")
    results(tmp_path, "union", 1, 50, 50)
    text = page(suites.MIXING, planned(suites.MIXING, chosen), compare.command_of(chosen))
    assert not compare._is_page_of(text, ".venv/bin/python tools/benchmark.py --suite mixing --seeds 1 2")


def test_a_folder_of_ones_own_is_a_suite(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "mine"
    folder.mkdir()
    assert suites.main(["--suite-dir", str(folder)]) == 2
    assert "holds no YAML" in capsys.readouterr().err
    assert suites.main(["--suite-dir", str(tmp_path / "nowhere")]) == 2
    assert "is no folder" in capsys.readouterr().err
    (folder / "_shared.yaml").write_text("train: {steps: 2}\n")
    for name in ("zebra", "oracle", "source_only"):
        (folder / f"{name}.yaml").write_text("_BASE_: _shared.yaml\n")
    suite = runs.suite_in(folder)
    assert [method.name for method in suite.methods] == ["source_only", "zebra", "oracle"]
    assert (suite.title, suite.name, suite.baselines, suite.adapts) == (
        "Comparison: mine",
        "mine",
        ("source_only",),
        False,
    )
    assert (
        suites.main(
            [
                "--suite-dir",
                str(folder),
                "--seeds",
                "5",
                "--methods",
                "source_only",
                "--runs",
                str(tmp_path / "runs"),
                *TINY,
            ]
        )
        == 0
    )
    text = (tmp_path / "runs" / "mine.md").read_text()
    assert f"tools/benchmark.py --suite-dir {folder} --seeds 5 --methods source_only --runs" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| source_only | ")]
    assert "[" in row  # one seed: an interval
    assert "1 of 1" in row
    (folder / "._zebra.yaml").write_bytes(b"\0\5\26\7")  # macOS leaves such files on other disks
    assert len(runs.suite_in(folder).methods) == 3
    (folder / "short.yml").write_text("_BASE_: _shared.yaml\n")
    assert suites.main(["--suite-dir", str(folder)]) == 2
    assert "short.yml, which is not read; each method is one file, <name>.yaml" in capsys.readouterr().err
    (folder / "short.yml").unlink()
    (folder / "bad.yaml").write_text("train: {stepz: 2}\n")
    assert suites.main(["--suite-dir", str(folder)]) == 2
    assert "stepz" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "option"), [("train.seed=7", "--seeds"), ("output_dir=runs/mine", "--runs")])
def test_what_each_run_has_of_its_own_is_no_setting_for_all(tmp_path, word, option, capsys):
    assert suites.main(["--suite", "mixing", "--seeds", "1", "2", "--runs", str(tmp_path), word]) == 2
    assert f"{word} would hold for every run, and each has its own; give {option}" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_several_jobs_share_the_machine(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [compare._environment(place, 3)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["4", "6", "4"]
    assert compare._environment(0, 1)["CUDA_VISIBLE_DEVICES"] == "4,6"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert compare._environment(1, 2)["OMP_NUM_THREADS"] == "4"


def test_a_failed_run_is_shown_and_not_dropped(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    chosen = options(tmp_path / "runs", "--seeds", "4", "--methods", "union", "--output", str(tmp_path / "t.md"))
    chosen.overrides = ["data.train=[nowhere]"]
    with pytest.raises(UserError, match=r"1 of 1 runs did not finish; .*t\.md says why"):
        compare.compare(suites.MIXING, chosen, tmp_path / "unused.md")
    text = (tmp_path / "t.md").read_text()
    assert "no run has finished" in text
    assert "* union, seed 4: error: unknown data set 'nowhere'" in text
    (run,) = planned(suites.MIXING, chosen)
    assert run.complaint().startswith("error: unknown data set 'nowhere'")
    results(tmp_path / "runs", "union", 5, 1, 1)
    chosen.seeds = [5, 4]
    text = page(suites.MIXING, planned(suites.MIXING, chosen), compare.command_of(chosen))
    assert "* union, seed 4: error: unknown data set 'nowhere'" in text
    assert "unknown data set 'nowhere'" in (tmp_path / "runs" / "shapes" / "union_seed4" / "log.txt").read_text()


def test_a_suite_trains_and_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    suite = Suite(
        "small", "shapes", methods_in(ROOT / "configs" / "shapes", ("source_only", "union")), ("source_only",)
    )
    words = ["--seeds", "5", "--output", str(tmp_path / "t.md"), "--jobs", "2"]
    chosen = options(tmp_path / "runs", *words)
    chosen.overrides = [*TINY, "train.steps=2"]
    compare.compare(suite, chosen, tmp_path / "unused.md")
    text = (tmp_path / "t.md").read_text()
    assert text.count("| 1 of 1 |") == 2
    monkeypatch.setattr(compare, "_train", lambda *_: pytest.fail("ran again"))
    compare.compare(suite, chosen, tmp_path / "unused.md")
    assert (tmp_path / "t.md").read_text() == text


def test_a_table_of_another_command_and_useless_places_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "_train", lambda *_: pytest.fail("ran"))
    chosen = options(tmp_path / "runs", "--seeds", "1", "1", "--methods", "union", "--output", str(tmp_path / "t.md"))
    (tmp_path / "t.md").write_text("# Results\n\n```\npython tools/benchmark.py --suite mixing --seeds 1 2\n```\n")
    with pytest.raises(UserError, match=r"t\.md holds the table of another command"):
        compare.compare(suites.MIXING, chosen, tmp_path / "unused.md")
    assert "--seeds 1 2" in (tmp_path / "t.md").read_text()
    chosen.output = tmp_path
    with pytest.raises(UserError, match="is a folder; give a file in it"):
        compare.compare(suites.MIXING, chosen, tmp_path / "unused.md")
    chosen.runs = tmp_path / "t.md"
    with pytest.raises(UserError, match=r"--runs .*t\.md is a file; give a folder"):
        compare.compare(suites.MIXING, chosen, tmp_path / "unused.md")


def test_a_seed_named_twice_is_one_run(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(compare, "_train", lambda run, *_: begun.append(run))
    words = ["--seeds", "1", "1", "--methods", "union", "union", "--output", str(tmp_path / "t.md")]
    with pytest.raises(UserError, match="1 of 1 runs did not finish"):
        compare.compare(suites.MIXING, options(tmp_path / "runs", *words), tmp_path / "unused.md")
    assert len(begun) == 1


def test_told_to_stop_it_begins_no_other_run(tmp_path, monkeypatch):
    begun = []

    def train(run, *_):
        begun.append(run)
        if len(begun) == 1:
            raise KeyboardInterrupt
        time.sleep(0.3)

    monkeypatch.setattr(compare, "_train", train)
    chosen = options(tmp_path / "runs", "--seeds", *map(str, range(9)), "--output", str(tmp_path / "t.md"))
    with pytest.raises(KeyboardInterrupt):
        compare.compare(suites.MIXING, chosen, tmp_path / "unused.md")
    assert len(begun) <= 2  # one may begin before it is known


def test_told_to_stop_it_lets_the_runs_save_and_ends_with_them(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "mine" / f"{name}.yaml").write_text("train: {steps: 100000}\n")
    words = [sys.executable, "tools/benchmark.py", "--suite-dir", str(tmp_path / "mine"), "--seeds", "1", "--jobs", "2"]
    words += ["--runs", str(tmp_path / "runs"), *TINY]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    folders = [tmp_path / "runs" / "mine" / f"{name}_seed1" for name in ("a", "b")]
    try:
        while process.poll() is None and not all(_steps_of(folder) for folder in folders):
            time.sleep(0.2)
        process.terminate()
        _, said = process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 2, said
    assert said.rstrip().endswith("error: told to stop; the same command goes on from there")
    for folder in folders:
        with run_lock(folder):  # nobody trains in it any more
            assert list((folder / "checkpoints").glob("step_*.pt"))
    assert not (tmp_path / "runs" / "mine" / "c_seed1").exists()


def _steps_of(folder):
    path = folder / "metrics.csv"
    return len(path.read_text().splitlines()) > 1 if path.is_file() else False


def test_an_unknown_method_is_refused(tmp_path, monkeypatch, capsys):
    assert suites.main(["--suite", "mixing", "--methods", "losmix"]) == 2
    assert "unknown method 'losmix' (did you mean 'lossmix'?)" in capsys.readouterr().err


def test_elsewhere_than_in_the_checkout_it_says_where_to_go(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert suites.main(["--suite", "mixing"]) == 2
    assert "call python tools/benchmark.py from its root" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_cost_page_names_its_command_and_every_case(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "CASES", (cost.Case("tiny", ("data.batch_size=2",), 0.5),))
    output = tmp_path / "cost.md"
    words = ["--suite", "cost", "--pairs", "5", "--output", str(output), *TINY]
    assert suites.main([*words]) == 0
    text = output.read_text()
    assert "python tools/benchmark.py --suite cost --pairs 5" in text
    assert "| tiny | " in text
    assert "images/s; the slim model learns from" in text


def test_scores_of_runs_with_other_settings_are_not_reused(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    chosen = options(tmp_path / "runs", "--seeds", "5", "--methods", "union", "--output", str(tmp_path / "t.md"))
    chosen.overrides = [*TINY, "train.steps=1"]
    compare.compare(suites.MIXING, chosen, tmp_path / "unused.md")
    chosen.overrides[-1] = "train.steps=2"
    with pytest.raises(UserError, match=r"union_seed5 holds a run with other settings \(train\)"):
        compare.compare(suites.MIXING, chosen, tmp_path / "unused.md")
    path = tmp_path / "runs" / "shapes" / "union_seed5" / "run.json"
    about = json.loads(path.read_text())
    about["resumed"] = [{"changed": {"train.steps": [1, 2], "ema.decay": [0.0, 0.5]}}]  # continued by hand
    path.write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"union_seed5 holds a run with other settings \(ema\)"):
        compare.compare(suites.MIXING, chosen, tmp_path / "unused.md")
    chosen.overrides[-1] = "train.steps=3"
    (tmp_path / "runs" / "shapes" / "union_seed5" / "results.json").unlink()  # nor is such a run continued
    with pytest.raises(UserError, match=r"union_seed5 holds a run with other settings \(ema, train\)"):
        compare.compare(suites.MIXING, chosen, tmp_path / "unused.md")
