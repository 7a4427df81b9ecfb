"""The suites of tools/benchmark.py on miniature runs."""

import json
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from runs import ROOT, TINY, assert_same_tensors, last_checkpoint

from benchmarks import burn_in, compare, cost, curves, runs, suites
from benchmarks.page import page
from benchmarks.runs import Run, Suite, methods_in
from lossmix_det.config import load_config
from lossmix_det.errors import UserError

pytestmark = pytest.mark.slow


def results(folder, name, seed, photo, clipart):
    path = folder / "shapes" / f"{name}_seed{seed}"
    path.mkdir(parents=True)
    scores = {
        "shapes_photo_test": {"AP50": photo, "AP": photo / 2},
        "shapes_clipart_test": {"AP50": clipart, "AP": 1.0},
    }
    for metrics in scores.values():
        metrics["classes"] = {"star": {"AP50": metrics["AP50"] + 1}, "cross": {"AP50": None}}
    other = {name: {"AP50": 0.0, "AP": 0.0} for name in scores}
    (path / "results.json").write_text(json.dumps({"student": other, "teacher": scores}))
    run = {
        "config": {"train": {"steps": 5, "precision": "32"}, "data": {"batch_size": 4}},
        "versions": dict.fromkeys(("torch", "torchvision", "albumentations"), "1.0"),
        "python": "3.11",
        "device": "cpu",
        "git_revision": "abc",
    }
    (path / "run.json").write_text(json.dumps(run))


def options(tmp_path, *words):
    return suites.build_parser().parse_args(["--suite", "mixing", "--runs", str(tmp_path), *words])


def test_the_table_gives_mean_deviation_and_paired_gain(tmp_path):
    """Worked by hand: 70 and 74 are 72 ± 2.8; gains of 2 and 6 are +4 with a standard error of 2."""
    for seed, (base, mixed) in enumerate([(68, 70), (68, 74)], start=1):
        results(tmp_path, "source_only", seed, base, 40)
        results(tmp_path, "lossmix", seed, mixed, 41)
    chosen = options(tmp_path, "--seeds", "1", "2", "--methods", "source_only", "lossmix", "union")
    text = page(suites.MIXING, planned(suites.MIXING, chosen), compare.command_of(chosen))
    assert "| shapes_clipart_test AP | student: AP50 | teacher: AP50 | runs |" in text
    assert "| lossmix | 72.0 ± 2.8 | 36.0 ± 1.4 | 41.0 ± 0.0 | 1.0 ± 0.0 | 0.0 ± 0.0 | 41.0 ± 0.0 | 2 of 2 |" in text
    assert "| lossmix | +4.0 ± 2.0 | +1.0 ± 0.0 |" in text
    assert "| union | – | – | – | – | – | – | 0 of 2 |" in text
    assert "by class" not in text
    command = (
        ".venv/bin/python tools/benchmark.py --suite mixing --seeds 1 2 --methods source_only lossmix union --runs "
    )
    assert command + str(tmp_path) in text


def test_runs_of_several_machines_are_said_to_be(tmp_path):
    for seed in (1, 2):
        results(tmp_path, "union", seed, 50, 50)
    path = tmp_path / "shapes" / "union_seed2" / "run.json"
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    chosen = options(tmp_path, "--seeds", "1", "2", "--methods", "union")
    text = page(suites.MIXING, planned(suites.MIXING, chosen), "")
    versions = "Python 3.11, torch 1.0, torchvision 1.0, albumentations 1.0"
    assert f"over seeds. {versions}, on cpu (32); {versions}, on cuda (32). Revision abc." in text


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


def test_burn_in_student_and_teacher_stand_side_by_side_where_they_exist(tmp_path):
    """Source only has no burn-in and no teacher; with one model there are no such columns."""
    for method in ("source_only", "mean_teacher"):
        results(tmp_path, method, 1, 1, 60)
    path = tmp_path / "shapes" / "mean_teacher_seed1" / "results.json"
    models = json.loads(path.read_text())
    models = {"burn-in": {name: {"AP50": 55.0, "AP": 9.0} for name in models["student"]}, **models}
    models["student"]["shapes_clipart_test"]["AP50"] = 58.0
    path.write_text(json.dumps(models))
    alone = tmp_path / "shapes" / "source_only_seed1" / "results.json"
    alone.write_text(json.dumps({"ema": models["teacher"]}))
    names = ("source_only", "mean_teacher")
    suite = Suite("s", "shapes", methods_in(Path("configs/shapes_adapt"), names))
    chosen = options(tmp_path, "--seeds", "1", "--methods", *names)
    lines = page(suite, planned(suite, chosen), "x").splitlines()
    assert "| burn-in: AP50 | student: AP50 | teacher: AP50 | runs |" in lines[8]
    assert "| source_only | 1.0 | 0.5 | 60.0 | 1.0 | – | – | – | 1 of 1 |" in lines
    assert "| mean_teacher | 1.0 | 0.5 | 60.0 | 1.0 | 55.0 | 58.0 | 60.0 | 1 of 1 |" in lines
    assert "burn-in, student, teacher: AP50 on shapes_clipart_test." in lines
    chosen.methods = ["source_only"]
    assert "| source_only | 1.0 | 0.5 | 60.0 | 1.0 | 1 of 1 |" in page(suite, planned(suite, chosen), "x")


def test_one_seed_has_the_interval_of_resampled_images(tmp_path):
    for method, value in (("source_only", 60), ("lossmix", 64)):
        results(tmp_path, method, 1, 50, value)
    chosen = options(tmp_path, "--seeds", "1", "--methods", "source_only", "lossmix")
    steps = np.arange(1001) / 1000
    resamples = {
        ("source_only", "shapes_clipart_test"): 55 + 10 * steps,
        ("lossmix", "shapes_clipart_test"): 58 + 12 * steps,
    }
    text = page(suites.MIXING, planned(suites.MIXING, chosen), "x", resamples=resamples)
    assert "| 60.0 [55.2, 64.8] |" in text
    assert "| lossmix | +0.0 | +4.0 [+3.0, +5.0] |" in text  # 3 to 5, less 2.5 % of each end: 3.05 and 4.95
    assert "95 % of 1,000 resamples of the test images" in text
    assert "resamples" not in page(suites.MIXING, planned(suites.MIXING, chosen), "x")


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
    (folder / "bad.yaml").write_text("train: {stepz: 2}\n")
    assert suites.main(["--suite-dir", str(folder)]) == 2
    assert "stepz" in capsys.readouterr().err


def planned(suite, chosen) -> list[Run]:
    return runs.planned(suite, chosen.runs, chosen.methods, chosen.seeds)


def adapted(folder, method: str, seed: int) -> None:
    """What a finished run of adaptation leaves behind for the curves."""
    path = folder / "shapes" / f"{method}_seed{seed}"
    (path / "scores.csv").write_text("step,student/a/AP50,teacher/a/AP50\n5,10.0,\n10,20.0,30.0\n")
    rows = "".join(f"{step},0.5,0.25\n" for step in range(1, 21))
    (path / "metrics.csv").write_text("step,pseudo/precision,pseudo/recall\n" + rows)
    (path / "detections_shapes_clipart_test.json").write_text(json.dumps([{"score": 0.9}, {"score": 0.05}]))


def test_adaptation_has_classes_gains_over_both_baselines_and_curves(tmp_path):
    suite = Suite("s", "shapes", methods_in(Path("configs/shapes"), ("a", "b")), ("a", "b"), adapts=True)
    chosen = options(tmp_path, "--seeds", "1", "2", "--methods", "a", "b")
    for seed, (one, two) in enumerate([(10, 20), (12, 26)], start=1):
        for method, value in (("a", one), ("b", two)):
            results(tmp_path, method, seed, 0, value)
            adapted(tmp_path, method, seed)
    compare._write(suite, planned(suite, chosen), chosen, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "| b | 24.0 ± 4.2 | – |" in text  # by class: one more than the mean
    assert "minus that of `a`" in text
    assert "| b | +0.0 ± 0.0 | +12.0 ± 2.0 |" in text
    assert "| a | +0.0 ± 0.0 | -12.0 ± 2.0 |" in text
    assert "![Scores and pseudo-labels over the steps](page.png)" in text
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_the_curves_are_drawn_where_methods_part_and_what_is_far_off_is_named():
    _, axis = plt.subplots()
    for name, values in {"a": [0, 50, 60], "b": [0, 52, 64], "oracle": [80, 97, 98]}.items():
        axis.plot([100, 200, 300], values, label=name)
    curves._zoom(axis)
    assert axis.get_xlim()[0] == 150
    assert axis.get_ylim() == (48, 66)
    assert axis.get_xlabel() == "step; oracle ends at 98.0"
    _, spread = plt.subplots()
    curves._line(spread, "a", {("a", 100): [0.0], ("a", 300): [40.0, 60.0]}, (0, 0, 0))
    curves._zoom(spread)
    assert spread.get_ylim() == (38, 62)
    _, empty = plt.subplots()
    curves._zoom(empty)
    plt.close("all")


def test_curves_are_means_over_seeds_of_the_model_that_is_reported(tmp_path):
    chosen = options(tmp_path, "--seeds", "1", "2", "--methods", "a")
    for seed in (1, 2):
        results(tmp_path, "a", seed, 0, 1)
        adapted(tmp_path, "a", seed)
    both = planned(Suite("s", "shapes", methods_in(Path("configs/shapes"), ("a",))), chosen)
    assert dict(curves._scores(both)) == {("a", 5): [10.0, 10.0], ("a", 10): [30.0, 30.0]}
    assert dict(curves._metric(both, "pseudo/recall")) == {("a", 10): [0.25, 0.25], ("a", 20): [0.25, 0.25]}
    assert curves._detection_scores(both[0]) == [0.9]


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
    assert "no run has finished" in (tmp_path / "t.md").read_text()
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


def test_methods_share_a_burn_in_and_end_as_if_each_had_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    methods = ("adaptive_teacher", "adaptive_teacher_lossmix")
    suite = Suite("small", "shapes_adapt", methods_in(ROOT / "configs" / "shapes_adapt", methods), adapts=True)
    words = [*TINY, "data.target=[shapes_clipart_train]", "adaptation.burn_in_steps=4", "train.steps=6"]
    words += ["train.eval_every=2", "train.save_every=2", "pseudo_labels.score=0.05"]
    for folder, own in (("shared", methods), ("alone", methods[1:])):
        words_of = ["--seeds", "5", "--methods", *own, "--output", str(tmp_path / f"{folder}.md")]
        chosen = options(tmp_path / folder, *words_of)
        chosen.overrides = words
        compare.compare(suite, chosen, tmp_path / "unused.md")
    shared, alone = (
        tmp_path / folder / "shapes_adapt" / "adaptive_teacher_lossmix_seed5" for folder in ("shared", "alone")
    )
    assert "resuming at step 4 of 6" in (shared / "log.txt").read_text()
    assert "resuming" not in (alone / "log.txt").read_text()
    for name in ("metrics.csv", "scores.csv", "results.json", "burn_in/detections_shapes_clipart_test.json"):
        assert (shared / name).read_bytes() == (alone / name).read_bytes(), name
    assert_same_tensors(last_checkpoint(shared)["student"], last_checkpoint(alone)["student"])


@pytest.mark.parametrize(
    ("words", "alike"),
    [
        (["mixing.burn_in_probability=0"], True),
        (["mixing.burn_in_probability=0", "pseudo_labels.score=0.3"], True),
        ([], False),  # burn-in mixes, by another rule
        (["mixing.burn_in_probability=0", "train.seed=2"], False),
        (["mixing.burn_in_probability=0", "adaptation.burn_in_steps=5"], False),
        (["mixing.burn_in_probability=0", "alignment.parts=[image]"], False),
        (["mixing.burn_in_probability=0", "data.target=[]"], False),
    ],
)
def test_a_burn_in_is_shared_only_if_it_is_the_same(words, alike):
    adapts = ["data.target=[shapes_clipart_train]", "ema.decay=0.9"]
    first = load_config(None, [*adapts, "mixing.probability=0.0", "output_dir=a", "mixing.burn_in_probability=0"])
    second = load_config(None, [*adapts, "mixing.rule=lossmix", "output_dir=b", *words])
    lenders = burn_in.lenders_of({Path("a"): first, Path("b"): second})
    assert lenders == ({Path("b"): Path("a")} if alike else {})


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
