"""The script for a machine with a GPU, tried on the CPU: its table, and that a check that fails ends nothing."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from runs import ROOT

from benchmarks import gpu_check, gpu_checks
from benchmarks.gpu_checks import Scale, checks_of
from lossmix_det.errors import UserError

SCALE = Scale("cpu", 64, 1)


def options(tmp_path, *words):
    words = ["--device", "cpu", "--short-side", "64", "--rounds", "1", "--output", str(tmp_path / "page.md"), *words]
    return gpu_check.build_parser().parse_args(words), words


def program(tmp_path, text):
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_check_that_fails_is_a_row_and_the_next_one_runs(tmp_path, monkeypatch):
    text = 'case "$4" in *32) echo "RuntimeError: no kernel | here" >&2; exit 1;; *) echo "found: step 0.5 s";; esac'
    monkeypatch.setattr(sys, "executable", program(tmp_path, text))
    names = ["torchvision R50-FPN, 32", "torchvision R50-FPN, bf16"]
    assert gpu_check.main(options(tmp_path, "--only", *names)[1]) == 2
    text = (tmp_path / "page.md").read_text()
    assert [line.rpartition(" | ")[0] for line in text.splitlines()[-2:]] == [
        "| torchvision R50-FPN, 32 | fails | RuntimeError: no kernel / here",
        "| torchvision R50-FPN, bf16 | runs | step 0.5 s",
    ]
    assert "--minutes 9 --only 'torchvision R50-FPN, 32' 'torchvision R50-FPN, bf16'\n" in text


def test_what_was_not_reached_stands_in_the_table_from_the_start(tmp_path, monkeypatch):
    """A machine may be taken away at any time."""
    pages = []
    monkeypatch.setattr(gpu_check, "write_atomically", lambda path, text: pages.append(text))
    monkeypatch.setattr(sys, "executable", program(tmp_path, 'echo "found: both ended well"'))
    names = ["torch.compile", "two processes on one device"]
    assert gpu_check.main(options(tmp_path, "--only", *names)[1]) == 0
    kinds = [[line.split(" | ")[1] for line in text.splitlines()[-2:]] for text in pages]
    assert kinds == [["not run", "not run"], ["not run", "runs"], ["runs", "runs"]]


def test_a_run_that_ended_before_it_was_killed_shows_nothing(monkeypatch):
    monkeypatch.setattr(gpu_checks, "TRAIN", ("true",))
    with pytest.raises(UserError, match="had ended"):
        gpu_checks.killed_and_resumed(SCALE)


@pytest.mark.parametrize(
    ("usual", "gap", "fine"), [(0.0, 0.0, True), (0.01, 0.05, True), (0.0, 1e-6, False), (0.01, 0.2, False)]
)
def test_a_resumed_run_that_ends_elsewhere_is_a_failure(usual, gap, fine):
    whole, again, resumed = ({"a": torch.ones(3) + extra, "b": torch.zeros(0)} for extra in (0.0, usual, gap))
    if fine:
        assert "those of two runs that were not killed" in gpu_checks.compared(whole, again, resumed)
    else:
        with pytest.raises(UserError, match="weights differ by"):
            gpu_checks.compared(whole, again, resumed)


def test_no_check_runs_past_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", program(tmp_path, "exec sleep 60"))
    chosen, _ = options(tmp_path)
    row = gpu_check._in_a_process("torch.compile", chosen, 0.2)
    assert (row.result, row.found.endswith("out of time")) == ("not run", True)
    assert gpu_check._in_a_process("torch.compile", chosen, -1.0) == gpu_check.Row("not run", "out of time")


def test_wrong_words_are_one_sentence(tmp_path, monkeypatch, capsys):
    assert gpu_check.main(options(tmp_path, "--only", "torch.compil")[1]) == 2
    assert "there is no check 'torch.compil'; there are killed and resumed, two processes" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--device", "cuda", "--output", str(tmp_path / "page.md")]) == 2
    assert "torch finds no GPU here" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("torchvision R50-FPN, 32", r"step \d+\.\d+ s, \d\.\d\d \(.*\) of plain torchvision"),
        ("channels last, torchvision", r"step \d+\.\d+ of that with the channels first"),
    ],
)
def test_checks_find_what_they_look_for(monkeypatch, name, found):
    monkeypatch.chdir(ROOT)
    small = (*gpu_checks.mixer_cost.SETTINGS, "model.architecture=slim")
    monkeypatch.setattr(gpu_checks.mixer_cost, "SETTINGS", small)
    assert re.fullmatch(found, checks_of(("32",))[name](SCALE))
