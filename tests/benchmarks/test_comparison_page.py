"""The page of a comparison: its tables worked by hand, and its curves."""

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comparing import adapted, options, planned, results
from matplotlib import pyplot as plt

from benchmarks import compare, curves, suites
from benchmarks.page import page
from benchmarks.runs import Suite, methods_in

pytestmark = pytest.mark.slow


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


VERSIONS = "Python 3.11, torch 1.0, torchvision 1.0, albumentations 1.0"


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ('"device": "cpu"', '"device": "cuda"', f"{VERSIONS}, on cpu (32); {VERSIONS}, on cuda (32). Revision abc."),
        ('"steps": 5', '"steps": 500', "5 steps of 4 source images each or 500 steps of 4 source images each; scores"),
    ],
)
def test_runs_that_differ_in_machine_or_length_are_said_to(tmp_path, first, second, said):
    for seed in (1, 2):
        results(tmp_path, "union", seed, 50, 50)
    path = tmp_path / "shapes" / "union_seed2" / "run.json"
    path.write_text(path.read_text().replace(first, second))
    chosen = options(tmp_path, "--seeds", "1", "2", "--methods", "union")
    assert said in page(suites.MIXING, planned(suites.MIXING, chosen), "")


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


def test_methods_may_have_other_test_sets_and_sets_without_a_score(tmp_path):
    """As where the oracle is not tested on the source, and a class or set has no object."""
    results(tmp_path, "source_only", 1, 60, 40)
    results(tmp_path, "oracle", 1, 70, 90)
    path = tmp_path / "shapes" / "oracle_seed1" / "results.json"
    scores = json.loads(path.read_text())["teacher"]
    del scores["shapes_photo_test"]
    scores["shapes_clipart_test"]["AP"] = None
    path.write_text(json.dumps({"teacher": scores}))
    for rows in (["source_only", "oracle"], ["oracle", "source_only"]):
        runs = planned(suites.MIXING, options(tmp_path, "--seeds", "1", "--methods", *rows))
        text = page(suites.MIXING, runs, "the command")
        (line,) = re.findall(r"^\| oracle \| (.*) \| 1 of 1 \|$", text, re.MULTILINE)
        assert sorted(line.split(" | ")[:4]) == ["90.0", "–", "–", "–"]
        assert re.search(r"^\| oracle \| .*\+50\.0", text, re.MULTILINE)


def test_the_curves_are_drawn_where_methods_part_and_what_is_far_off_is_named():
    _, axis = plt.subplots()
    for name, values in {"a": [0, 50, 60], "b": [0, 52, 64], "oracle": [80, 97, 98]}.items():
        axis.plot([100, 200, 300], values, label=name)
    curves._zoom(axis)
    assert axis.get_xlim()[0] == 150
    assert axis.get_ylim() == (48, 66)
    assert axis.get_xlabel() == "step; oracle ends at 98.0"
    _, spread = plt.subplots()
    curves._line(spread, "a", {("a", 100): [0.0], ("a", 300): [40.0, 50.0, 60.0]}, (0, 0, 0))
    curves._zoom(spread)
    assert spread.get_ylim() == (38, 62)  # 50 ± 10, the deviation of a sample as in the tables
    _, empty = plt.subplots()
    curves._zoom(empty)
    plt.close("all")


def test_curves_are_means_over_seeds_of_the_model_that_is_reported(tmp_path):
    chosen = options(tmp_path, "--seeds", "1", "2", "--methods", "a")
    for seed in (1, 2):
        results(tmp_path, "a", seed, 0, 1)
        adapted(tmp_path, "a", seed)
    both = planned(Suite("s", "shapes", methods_in(Path("configs/shapes"), ("a",))), chosen)
    assert dict(curves._scores(both, "shapes_clipart_test")) == {("a", 5): [10.0, 10.0], ("a", 10): [30.0, 30.0]}
    assert dict(curves._metric(both, "pseudo/recall")) == {("a", 10): [0.25, 0.25], ("a", 20): [0.25, 0.25]}
    assert curves._detection_scores(both[0], "shapes_clipart_test") == [0.9]


def test_methods_that_name_test_sets_in_another_order_are_compared_on_the_same(tmp_path):
    """30 → 40 and 30 → 45 on clipart; the second names it first, and has 60 → 85 on photos."""
    for method, (photo, clipart) in {"a": (0, 40), "b": (85, 45)}.items():
        results(tmp_path, method, 1, photo, clipart)
        folder = tmp_path / "shapes" / f"{method}_seed1"
        models = json.loads((folder / "results.json").read_text())
        before = {"shapes_photo_test": {"AP50": 60.0}, "shapes_clipart_test": {"AP50": 30.0}}
        models = {"burn-in": before, "teacher": models["teacher"]}
        if method == "b":
            models = {model: dict(reversed(sets.items())) for model, sets in models.items()}
        (folder / "results.json").write_text(json.dumps(models))
        sets = list(models["teacher"])
        heads = [f"teacher/{name}/AP50" for name in sets]
        values = [str(models["teacher"][name]["AP50"]) for name in sets]
        (folder / "scores.csv").write_text(f"step,{','.join(heads)}\n9,{','.join(values)}\n")
    suite = Suite("s", "shapes", methods_in(Path("configs/shapes"), ("a", "b")), (), adapts=True)
    both = planned(suite, options(tmp_path, "--seeds", "1", "--methods", "a", "b"))
    text = page(suite, both, "x")
    assert "| a | +10.0 |" in text
    assert "| b | +15.0 |" in text
    assert dict(curves._scores(both, curves._last_test_set(both))) == {("a", 9): [40.0], ("b", 9): [45.0]}


def test_a_run_that_went_on_elsewhere_is_said_to_be_of_both(tmp_path):
    results(tmp_path, "union", 1, 50, 50)
    path = tmp_path / "shapes" / "union_seed1" / "run.json"
    about = json.loads(path.read_text())
    start = {key: about[key] for key in ("versions", "python")} | {"device": "cuda:0 (NVIDIA H100)"}
    about["resumed"] = [{**start, "git_revision": "def", "changed": {"train.steps": [5, 50]}}]
    path.write_text(json.dumps(about))
    text = page(suites.MIXING, planned(suites.MIXING, options(tmp_path, "--seeds", "1", "--methods", "union")), "x")
    assert "Seeds 1; 50 steps of 4 source images each" in text
    assert f"{VERSIONS}, on cpu (32); {VERSIONS}, on cuda:0 (NVIDIA H100) (32). Revision abc, def." in text


def test_all_classes_have_a_column_and_names_keep_the_table_whole(tmp_path):
    for method in ("a", "b|c"):
        results(tmp_path, method, 1, 50, 50)
    path = tmp_path / "shapes" / "b|c_seed1" / "results.json"
    path.write_text(path.read_text().replace('"star"', '"star|fish"'))
    suite = Suite("s", "shapes", methods_in(Path("configs/shapes"), ("a", "b|c")), (), adapts=True)
    lines = page(suite, planned(suite, options(tmp_path, "--seeds", "1", "--methods", "a", "b|c")), "x").splitlines()
    assert "| method | star | cross | star\\|fish |" in lines
    assert "| b\\|c | – | – | 51.0 |" in lines
    for line in lines:
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (5, 9), line  # of classes, of the summary


def test_a_baseline_alone_has_a_table_too(tmp_path):
    suite = suites.ABLATION
    chosen = options(tmp_path, "--seeds", "1", "--methods", "default")
    results(tmp_path, "default", 1, 50, 61)
    (tmp_path / "shapes").rename(tmp_path / suite.name)
    text = page(suite, planned(suite, chosen), "x")
    assert "| default | 50.0 | 25.0 | 61.0 | 1.0 |" in text
    assert "Columns of differences" not in text


def test_runs_without_a_score_and_damaged_ones_leave_a_page(tmp_path):
    for seed in (1, 2, 3):
        results(tmp_path, "union", seed, 50, 50)
    folders = [tmp_path / "shapes" / f"union_seed{seed}" for seed in (1, 2, 3)]
    (folders[0] / "results.json").write_text('{"student": {}, "ema": {}}')  # trained without a labelled test set
    (folders[1] / "run.json").write_text("{")
    (folders[2] / "results.json").write_text('{"stud')
    for seeds, count in (("1", "1 of 1"), ("2", "1 of 1"), ("123", "2 of 3")):
        chosen = options(tmp_path, "--seeds", *seeds, "--methods", "union")
        text = page(replace(suites.MIXING, adapts=True), planned(suites.MIXING, chosen), "x")
        assert f"| {count} |" in text
        head, rule = re.search(r"^(\| method .*)\n(\|-.*)$", text, re.MULTILINE).groups()
        assert head.count("|") == rule.count("|")
    chosen = options(tmp_path, "--seeds", "2", "--methods", "union")
    assert "their run.json is gone or damaged" in page(suites.MIXING, planned(suites.MIXING, chosen), "x")


def test_a_set_without_truths_has_no_interval(tmp_path):
    results(tmp_path, "union", 1, 50, 50)
    chosen = options(tmp_path, "--seeds", "1", "--methods", "union")
    resamples = {("union", "shapes_photo_test"): np.full(1000, np.nan)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = page(suites.MIXING, planned(suites.MIXING, chosen), "x", resamples=resamples)
    assert "nan" not in text


def test_what_adaptation_changed_is_told_by_method(tmp_path):
    suite = Suite("s", "shapes", methods_in(Path("configs/shapes"), ("a", "b", "c")), (), adapts=True)
    chosen = options(tmp_path, "--seeds", "1", "2", "--methods", "a", "b", "c")
    for seed, (before, after) in enumerate([(50, 53), (55, 60)], start=1):
        for method in ("a", "b"):
            results(tmp_path, method, seed, 0, after)
        folder = tmp_path / "shapes" / f"a_seed{seed}"
        models = json.loads((folder / "results.json").read_text())
        models = {"burn-in": {name: {"AP50": before, "AP": 9.0} for name in models["student"]}, **models}
        (folder / "results.json").write_text(json.dumps(models))
        rows = [f"{step},," if step < 4 else f"{step},{step / 4},{seed / 10 + step / 100}" for step in range(20)]
        header = "step,pseudo/per_image,pseudo/precision"
        (folder / "metrics.csv").write_text("\n".join([header, *rows]) + "\n")
    lines = page(suite, planned(suite, chosen), "x").splitlines()
    at = lines.index(
        "| method | AP50 | AP | AP75 | pseudo-labels per image | precision in percent | recall in percent |"
    )
    # Steps 4 and 5, then 18 and 19; precision 0.15 more than a hundredth of the step.
    assert lines[at + 2 : at + 4] == ["| a | +4.0 ± 1.0 | -8.0 ± 0.0 | – | 1.12 → 4.62 | 20 → 34 | – |", ""]
    assert "scores on shapes_clipart_test minus those at the end of burn-in" in lines[at - 2]
    chosen.methods = ["b"]
    assert "What adaptation changed" not in page(suite, planned(suite, chosen), "x")


@pytest.mark.parametrize("count", [1, 2, 10, 11, 20, 21, 33])
def test_no_two_methods_have_one_colour(count):
    assert len({tuple(colour) for colour in curves._colours(count)}) == count
