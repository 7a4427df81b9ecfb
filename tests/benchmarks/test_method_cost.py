"""What is measured of each method; how long it takes is for the benchmark to say."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path

import pytest
import torch
from runs import ROOT

from benchmarks import method_cost, suites
from benchmarks.method_cost import MethodBench
from lossmix_det.commands.options import parse

pytestmark = pytest.mark.slow

SMALL = (
    *("model.architecture=slim", "model.roi_samples=16", "train.device=cpu", "data.workers=0", "data.batch_size=2"),
    *("shapes.train_images=8", "shapes.test_images=2", "shapes.size=64", "data.augment.min_sizes=[64]"),
)
METHODS = {method.name: method for method in suites.SHAPES.methods}


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def weights(model) -> list[torch.Tensor]:
    return [value.clone() for value in model.parameters()]


def test_each_method_takes_its_own_steps_on_the_same_photos_and_learns_nothing(tmp_path):
    benches = {name: MethodBench(METHODS[name], [*SMALL], tmp_path) for name in ("source_only", "mean_teacher")}
    first, second = (benches[name].batches for name in ("source_only", "mean_teacher"))
    for photos, adapting in zip(first, second, strict=True):
        assert photos.target is None
        assert adapting.target is not None
        assert torch.equal(photos.source.strong.pixels, adapting.source.strong.pixels)
    updates = int(benches["mean_teacher"].trainer.state.teacher.n_averaged)
    before = {name: weights(bench.trainer.state.detector) for name, bench in benches.items()}
    assert all(bench.take(number) > 0 for bench in benches.values() for number in range(2))
    for name, bench in benches.items():
        assert all(map(torch.equal, before[name], weights(bench.trainer.state.detector)))
    states = {name: bench.trainer.state for name, bench in benches.items()}
    assert not states["source_only"].adapting
    assert states["mean_teacher"].adapting
    assert int(states["mean_teacher"].teacher.n_averaged) == updates + 2


def test_the_page_names_its_command_and_counts_from_the_last_baseline(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setitem(
        suites.SUITES, "people_art_cost", (partial(method_cost.measure_methods, suites.SHAPES), Path("unused.md"))
    )
    monkeypatch.setattr(method_cost, "MethodBench", lambda method, words, _: seen.setdefault(method.name, words))
    seconds = {"source_only": [1.0, 1.2], "adaptive_teacher": [2.0, 2.0]}
    monkeypatch.setattr(method_cost, "measure", lambda benches, rounds: seconds if rounds == 2 else {})
    output = tmp_path / "x.md"
    words = ["--suite", "people_art_cost", "--methods", "source_only", "adaptive_teacher", "--pairs", "2"]
    words += ["--output", str(output), *SMALL, "adaptation.burn_in_from=burned_in.pt"]
    assert suites.main(words) == 0
    text = output.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[1:] == [
        "| source_only | 1.10 s | 0.55 (0.51–0.59) |",
        "| adaptive_teacher | 2.00 s | 1.00 (1.00–1.00) |",
    ]
    assert list(seen) == ["source_only", "adaptive_teacher"]
    command = next(line for line in text.splitlines() if "tools/benchmark.py" in line)
    again = shlex.split(command.partition("tools/benchmark.py")[2])
    assert parse(suites.build_parser(), again) == parse(suites.build_parser(), words)


def test_settings_of_adaptation_are_given_to_methods_with_a_target_alone(tmp_path):
    words = [*SMALL, "adaptation.unsupervised_weight=0.25"]
    benches = [MethodBench(METHODS[name], words, tmp_path) for name in ("source_only", "mean_teacher")]
    assert [bench.trainer.config.adaptation.unsupervised_weight for bench in benches] == [1.0, 0.25]
    assert benches[1].trainer.config.adaptation.burn_in_steps == 0
