"""What the compared steps are made of; how long they take is for the benchmark to say."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest
import torch
from test_protocols import SMALLER

from benchmarks import speed, steps, suites
from benchmarks.suites import build_parser, main
from lossmix_det.commands.options import parse
from lossmix_det.errors import UserError

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

pytestmark = pytest.mark.slow


def setup(sizes="equal", *overrides):
    return steps.Setup("small", sizes, 64, overrides)


def options(tmp_path, *words):
    return parse(build_parser(), ["--suite", "speed", "--output", str(tmp_path / "x.md"), *words])


@pytest.fixture
def small(monkeypatch, tmp_path):
    path, _ = steps.NETWORKS["R50-FPN"]
    words = [*SMALLER["r50_fpn"], "MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"]
    for module in (speed, steps, suites):
        monkeypatch.setattr(module, "NETWORKS", {"small": (path, words)})
    sizes = {"voc": [[375, 500], [333, 500], [500, 375]], "paintings": [[700, 500], [500, 500], [400, 650]]}
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    monkeypatch.setenv("LOSSMIX_SHARED_DATA", str(tmp_path))
    monkeypatch.setattr(speed, "_peak_of_process", lambda *_: 1.5)


def test_images_that_pass_through_the_networks(small, tmp_path):
    """3B + B in our step and in the floor's; 5B + B, in four and one passes, in Adaptive Teacher's."""
    bench = steps.Bench(setup(), str(tmp_path))
    seen = {"student": [], "teacher": []}
    for name, detector in (("student", bench.student), ("teacher", bench.teacher)):
        detector.model.backbone.register_forward_hook(lambda _m, given, _o, n=name: seen[n].append(len(given[0])))
    expected = {"floor": ([6], [2]), "ours": ([6], [2]), "adaptive_teacher": ([4, 2, 2, 2], [2])}
    for step, (student, teacher) in expected.items():
        seen["student"].clear(), seen["teacher"].clear()
        bench.seconds(steps.STEPS[step])
        assert (seen["student"], seen["teacher"]) == (student, teacher), step
        assert all(parameter.grad is None for parameter in bench.student.parameters())
    assert not bench.teacher.model.training


def test_only_our_step_has_our_memory_layout(small, tmp_path):
    bench = steps.Bench(setup("equal", "optimizer.momentum=0.9"), str(tmp_path))
    weight = bench.student.model.backbone.fpn_output2.weight
    for step, last in (("ours", True), ("floor", False), ("adaptive_teacher", False), ("ours", True)):
        bench.seconds(steps.STEPS[step])
        momentum = bench.state.optimizer.state[weight]["momentum_buffer"]
        for tensor in (weight, momentum):
            assert tensor.is_contiguous(memory_format=torch.channels_last) == last
            assert tensor.is_contiguous() != last


def test_images_are_alike_in_size_and_losses_finite(small, tmp_path):
    bench = steps.Bench(setup("equal", "mixing.probability=0.0", "pseudo_labels.box_score=0.0"), str(tmp_path))
    batch = bench.batches[0]
    assert {view.sizes for views in (batch.source, batch.target) for view in (views.weak, views.strong)} == {
        ((64, 128), (64, 128))
    }
    for truth in (*batch.source.truths, *batch.target.truths):
        assert (truth.boxes[:, 2:] <= torch.tensor([128.0, 64.0]) + 1e-4).all()
    bench.student.train()
    assert torch.isfinite(bench.passes.floor_loss(batch))
    assert torch.isfinite(bench.passes.adaptive_teacher_loss(batch))


def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it():
    held = bytearray(700 << 20)  # touched, so that this process has held it
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    assert speed._peak() > 0.68
    code = "from benchmarks.speed import _peak; print(_peak())"
    bare = "import numpy; from benchmarks.speed import _peak; a = numpy.ones(200 << 17); print(_peak())"
    small, large = (
        float(subprocess.run([sys.executable, "-c", each], capture_output=True, text=True, check=True).stdout)
        for each in (code, bare)
    )
    assert 0.15 < large - small < 0.25


def test_the_page_has_a_row_per_network_and_its_command(small, tmp_path):
    words = ["--suite", "speed", "--short-side", "64", "--pairs", "2", "--output", str(tmp_path / "x.md")]
    assert main(words) == 0
    text = (tmp_path / "x.md").read_text()
    assert f"python tools/benchmark.py {' '.join(words)}\n" in text
    assert "all of 64×128 pixels" in text
    assert "the short side 64 pixels, the long one at most 143" in text
    rows = [line for line in text.splitlines() if line.startswith("| small")]
    assert [row.split(" | ")[0] for row in rows] == ["| small, equal", "| small, real"]
    assert rows[0].split(" | ")[-2] == "1.00"  # images that are all alike have no padding
    for row in rows:
        assert row.endswith("| 1.50 / 1.50 / 1.50 GiB |")
        assert row.count("(") == 2


def test_only_the_chosen_networks_and_sizes_are_measured_and_the_command_says_so(small, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(speed, "measure", lambda *given: seen.append(given) or RESULT)
    monkeypatch.setattr(speed, "NETWORKS", {"small": (), "large": ()})
    chosen = options(tmp_path, "--pairs", "3", "ema.decay=0.5")
    chosen.networks, chosen.sizes, chosen.short_side = ["large"], ["real"], 600
    speed.measure_speed(chosen, tmp_path / "unused.md")
    assert seen == [(steps.Setup("large", "real", 600, ("ema.decay=0.5",)), 3, True)]
    command = next(line for line in chosen.output.read_text().splitlines() if "tools/benchmark.py" in line)
    words = shlex.split(command.partition("tools/benchmark.py")[2])
    monkeypatch.setattr(suites, "NETWORKS", speed.NETWORKS)
    assert vars(parse(build_parser(), words)) == vars(chosen)


RESULT = speed.Measured({name: [1.0, 2.0] for name in steps.STEPS}, dict.fromkeys(steps.STEPS, 1.5), 1.0)


@pytest.mark.parametrize(("short_side", "longest"), [(600, 1333), (300, 667), (800, 1778)])
def test_sizes_are_those_that_papers_train_at(short_side, longest):
    assert steps.longest_of(short_side) == longest
    assert steps.frame_of(short_side) == (short_side, 2 * short_side)
    assert steps.resized((375, 500), short_side) == (short_side, round(short_side * 4 / 3))
    height, width = steps.resized((2000, 500), short_side)
    assert height == longest
    assert abs(width - longest / 4) <= 1


def test_images_too_small_for_a_network_are_refused(small, tmp_path):
    with pytest.raises(UserError, match="--short-side 8: networks need images of at least 32 pixels"):
        speed.measure_speed(options(tmp_path, "--short-side", "8"), tmp_path / "x.md")


def test_the_pixels_of_a_row_are_those_that_pass_through_the_backbone(small, tmp_path):
    bench = steps.Bench(setup("real", "mixing.probability=0.0"), str(tmp_path / "run"))
    found = steps.pixels_per_pixel(bench)
    computed: list[int] = []
    bench.student.model.backbone.register_forward_hook(
        lambda _module, given, _output: computed.append(given[0][:, 0].numel())
    )
    for batch in bench.batches:
        bench.student.encode(bench.trainer.compose(batch).images)
    sizes = [size for batch in bench.batches for size in (*batch.source.weak.sizes * 2, *batch.target.strong.sizes)]
    assert found == pytest.approx(sum(computed) / sum(height * width for height, width in sizes))
    assert found > 1


def test_real_sizes_are_those_of_the_list_and_meet_in_shape(small, tmp_path):
    bench = steps.Bench(setup("real"), str(tmp_path / "run"))
    shapes = []
    for batch in bench.batches:
        shapes += [[view.sizes for view in (views.weak, views.strong)] for views in (batch.source, batch.target)]
        assert torch.isfinite(bench.passes.floor_loss(batch))
    assert {min(size) for views in shapes for sizes in views for size in sizes} == {64}
    assert {size for views in shapes for sizes in views for size in sizes} >= {(90, 64), (64, 104), (64, 96), (64, 85)}
    assert all(weak == strong for weak, strong in shapes)


def test_without_a_list_of_sizes_it_is_one_sentence(small, tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSMIX_SHARED_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no list of real sizes; set LOSSMIX_SHARED_DATA"):
        speed.measure_speed(options(tmp_path), tmp_path / "x.md")


def test_without_detectron2_it_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "detectron2", None)
    with pytest.raises(UserError, match="--suite speed needs Detectron2, which is not installed"):
        speed.measure_speed(options(tmp_path), tmp_path / "x.md")
