"""Stopping at any moment and going on ends where a run that never stopped ends, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from runs import AsRank, assert_same_tensors, command, env, last_checkpoint, run, trainer

from lossmix_det.errors import UserError
from lossmix_det.report.run_folder import RunFolder
from lossmix_det.training.optimization import momenta_of

pytestmark = pytest.mark.slow

LONG = ["train.steps=9", "train.save_every=2", "train.eval_every=4", "ema.decay=0.9", "mixing.probability=1.0"]
ALIKE = (
    "scores.csv",
    "metrics.csv",
    "metrics.json",
    "results.json",
    "results.csv",
    "detections_shapes_clipart_test.json",
)


def assert_same_end(first: Path, second: Path) -> None:
    a, b = last_checkpoint(first), last_checkpoint(second)
    for part in ("config", "unreadable"):
        a.pop(part), b.pop(part)
    assert a["step"] == 9
    assert_same_tensors(a, b)
    for name in ALIKE:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    for name in ("student", "ema"):
        assert (first / "export" / f"{name}.pth").is_file()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, datasets_root) -> Path:
    """The run that never stops, in a process of its own like the others."""
    os.environ["LOSSMIX_DATASETS"] = str(datasets_root)
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = run(folder, *LONG, "data.workers=1")
    assert done.returncode == 0, done.stderr
    return folder


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


def start(folder: Path) -> subprocess.Popen:
    words = [*command(folder), *LONG, "data.workers=1"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env())


def test_a_run_killed_twice_and_resumed_ends_bit_identical(whole, tmp_path):
    folder = tmp_path / "killed"
    for checkpoint in ("step_0000002.pt", "step_0000006.pt"):
        process = start(folder) if checkpoint.endswith("2.pt") else resumed(folder)
        wait_for(folder / "checkpoints" / checkpoint, process)
        time.sleep(0.15)  # somewhere in the steps that follow
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = run(folder, "--resume", *LONG, "data.workers=1")
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stderr
    assert_same_end(whole, folder)


def resumed(folder: Path) -> subprocess.Popen:
    words = [*command(folder, "--resume"), *LONG, "data.workers=1"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env())


def test_sigterm_saves_and_exits_cleanly_and_the_resumed_run_ends_the_same(whole, tmp_path):
    folder = tmp_path / "terminated"
    process = start(folder)
    wait_for(folder / "checkpoints" / "step_0000002.pt", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "received SIGTERM; saving after this step" in errors
    assert "continue with --resume" in errors
    stopped_at = last_checkpoint(folder)["step"]
    assert 2 <= stopped_at < 9
    assert not (folder / "results.json").exists()
    assert run(folder, "--resume", *LONG, "data.workers=1").returncode == 0
    assert_same_end(whole, folder)


def test_a_truncated_last_checkpoint_falls_back_to_the_one_before_and_says_so(whole, tmp_path):
    folder = tmp_path / "truncated"
    first = run(folder, *LONG, "data.workers=1")
    assert first.returncode == 0
    last = folder / "checkpoints" / "step_0000009.pt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    again = run(folder, "--resume", *LONG, "data.workers=1")
    assert again.returncode == 0, again.stderr
    assert "step_0000009.pt: damaged checkpoint" in again.stderr
    assert "falling back to the one before" in again.stderr
    assert "resuming at step 8 of 9" in again.stderr
    assert_same_end(whole, folder)


def test_a_second_run_into_the_same_folder_is_refused_and_leaves_it_alone(tmp_path):
    trainer(tmp_path, "train.steps=1").train()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = run(tmp_path, "train.steps=1")
    assert done.returncode == 2
    assert "already holds a run; continue it with --resume" in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_resuming_a_finished_run_prints_its_table_again(tmp_path):
    trainer(tmp_path, "train.steps=2").train()
    results = (tmp_path / "results.json").read_bytes()
    again = trainer(tmp_path, "train.steps=2", resume=True)
    assert again.train()
    assert (tmp_path / "results.json").read_bytes() == results


def test_a_run_is_not_cut_short_by_resuming_it(tmp_path):
    trainer(tmp_path, "train.steps=2").train()
    with pytest.raises(UserError, match="has run 2 steps already, more than train.steps=1; raise it"):
        trainer(tmp_path, "train.steps=1", resume=True)


def test_a_run_that_learns_on_no_longer_has_the_results_of_its_end(tmp_path):
    trainer(tmp_path, "train.steps=2").train()
    results = (tmp_path / "results.json").read_bytes()
    again = trainer(tmp_path, "train.steps=6", "train.eval_every=3", "train.report=true", resume=True)
    learn = again.learn
    again.learn = lambda batch: (again.stop() if again.state.step == 3 else None, learn(batch))[1]
    assert not again.train()
    assert (tmp_path / "results.at_2.json").read_bytes() == results  # the step at which it had ended
    assert not (tmp_path / "results.json").exists()
    folder = RunFolder(tmp_path)
    assert (folder.step, folder.steps, folder.setting("train", "eval_every")) == (4, 6, 3)
    assert "steps: 6" in folder.config_path.read_text()
    page = (tmp_path / "report.html").read_text()
    assert "step 3 of 6" in page
    assert "ended after" not in page
    assert folder.detections("shapes_clipart_test") is None  # those that lie there are of the earlier end
    (tmp_path / "config.resumed_at_9 2.yaml").write_text("a copy of somebody's\n")
    assert RunFolder(tmp_path).config_path.name == "config.resumed_at_2.yaml"


def test_resuming_where_nothing_is_starts_from_the_beginning(tmp_path):
    assert trainer(tmp_path / "new", "train.steps=1", resume=True).state.step == 0


def test_the_best_checkpoint_is_remembered_over_resumption(tmp_path):
    first = trainer(tmp_path, "train.steps=2", "train.eval_every=1")
    first.train()
    first.state.best = {"metric": "AP50", "value": 99.0, "step": 1}
    first.save()
    kept = (tmp_path / "checkpoints" / "best.pt").read_bytes()
    again = trainer(tmp_path, "train.steps=3", "train.eval_every=1", resume=True)
    assert again.state.best["value"] == 99.0
    again.train()
    assert again.state.best == {"metric": "AP50", "value": 99.0, "step": 1}
    assert (tmp_path / "checkpoints" / "best.pt").read_bytes() == kept


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_momenta_follow_the_memory_layout_that_a_run_goes_on_with(tmp_path, before, after):
    """A fused step goes through weights and momenta as they lie in memory, whatever their strides say."""
    words = ["train.steps=2", "optimizer.schedule=constant"]
    trainer(tmp_path / "a", *words, f"train.channels_last={before}").train()
    saved = last_checkpoint(tmp_path / "a")
    it = trainer(tmp_path / "a", *words, f"train.channels_last={after}", resume=True)
    assert_same_tensors(saved["optimizer"], momenta_of(it.state.optimizer, it.state.student_step))
    pairs = [
        (weight, it.state.optimizer.state[weight]) for weight in it.state.detector.parameters() if weight.ndim == 4
    ]
    assert pairs
    assert {weight.stride() == own[name].stride() for weight, own in pairs for name in ("exp_avg", "exp_avg_sq")} == {
        True
    }
    rgb = it.state.detector.model.backbone.body.conv1.weight
    assert rgb.is_contiguous(memory_format=torch.channels_last) == after


def test_a_run_goes_on_where_the_weights_that_it_began_with_are_gone(tmp_path, caplog):
    trainer(tmp_path / "before", "train.steps=1", "model.norm=frozen", "data.test=[]").train()
    weights = tmp_path / "before" / "export" / "student.pth"
    words = [f"model.weights={weights}", "data.test=[]", "train.save_every=1"]
    trainer(tmp_path / "whole", *words, "train.steps=2").train()
    trainer(tmp_path / "cut", *words, "train.steps=2").train()
    (tmp_path / "cut" / "checkpoints" / "step_0000002.pt").write_bytes(b"damaged")  # the one before is taken
    weights.unlink()
    it = trainer(tmp_path / "cut", *words, "train.steps=2", resume=True)
    assert "what the run began with cannot be read again; " in caplog.text
    assert it.state.step == 1
    it.train()
    ends = [last_checkpoint(tmp_path / name) for name in ("whole", "cut")]
    for part in ("student", "optimizer"):
        assert_same_tensors(*(end[part] for end in ends))
    with pytest.raises(UserError, match="neither a file nor"):
        trainer(tmp_path / "new", *words)


def test_what_changed_since_is_said(tmp_path, caplog):
    trainer(tmp_path, "train.steps=1").train()
    words = ["optimizer.lr=0.001", "optimizer.decay_biases=true"]
    it = trainer(tmp_path, "train.steps=2", *words, resume=True)
    assert "other settings than before: optimizer.lr, optimizer.decay_biases, train.steps" in caplog.text
    assert_same_tensors(
        last_checkpoint(tmp_path)["optimizer"], momenta_of(it.state.optimizer, it.state.student_step)
    )  # in other groups, but with the same parameters


def test_other_classes_are_refused_on_resumption(tmp_path):
    trainer(tmp_path, "train.steps=1").train()
    with pytest.raises(UserError, match="was trained on the classes circle, square"):
        trainer(tmp_path, "train.steps=2", "data.classes=[circle,star]", resume=True)


def test_a_signal_to_the_whole_group_saves_too(tmp_path):
    """Schedulers signal the loading processes as well."""
    folder = tmp_path / "group"
    words = [*command(folder), *LONG, "data.workers=1"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=env(), start_new_session=True)
    wait_for(folder / "checkpoints" / "step_0000002.pt", process)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "continue with --resume" in errors


@pytest.mark.parametrize("change", ["optimizer.name=sgd", "model.norm=batch", "model.architecture=resnet18_fpn"])
def test_settings_that_the_saved_state_does_not_fit_are_refused(tmp_path, change):
    trainer(tmp_path, "train.steps=1").train()
    with pytest.raises(UserError, match=f"was trained with {change.split('=')[0]}="):
        trainer(tmp_path, "train.steps=2", change, resume=True)


ADAPTING = [
    *("data.target=[shapes_clipart_train]", "data.views=[weak,strong]", "adaptation.burn_in_steps=4"),
    *("train.steps=9", "train.save_every=2", "train.eval_every=4", "ema.decay=0.9", "train.log_every=4"),
    *("mixing.probability=0.6", "alignment.parts=[image,instance]"),
    *("pseudo_labels.threshold=adaptive", "pseudo_labels.floor=0.05", "pseudo_labels.score=0.2"),
    "data.workers=1",
]


def test_killed_in_burn_in_at_the_hand_over_and_in_adaptation_and_resumed_ends_bit_identical(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    done = run(whole, *ADAPTING)
    assert done.returncode == 0, done.stderr
    for number, checkpoint in enumerate(("step_0000002.pt", "step_0000004.pt", "step_0000006.pt")):
        words = [*command(folder, *(["--resume"] if number else [])), *ADAPTING]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env())
        wait_for(folder / "checkpoints" / checkpoint, process)
        time.sleep(0.1 * number)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = run(folder, "--resume", *ADAPTING)
    assert done.returncode == 0, done.stderr
    a, b = last_checkpoint(whole), last_checkpoint(folder)
    for part in ("config", "unreadable"):
        a.pop(part), b.pop(part)
    assert a["adapting"]
    assert a["labeller"]["histogram"].sum() > 0
    assert_same_tensors(a, b)
    for name in ALIKE:
        assert (whole / name).read_bytes() == (folder / name).read_bytes(), name
    assert "burn-in" in (whole / "results.json").read_text()


@pytest.mark.parametrize(
    "variant",
    [
        ["ema.start=restart", "pseudo_labels.kind=soft", "mixing.rule=own"],
        ["ema.start=follow", "optimizer.restart_lr=0.0001", "alignment.mixed=skip"],
    ],
)
def test_other_ways_of_adapting_resume_exactly_too(tmp_path, variant):
    """Stopped before, at and after the hand-over of step 4."""
    words = [*ADAPTING[:-1], *variant, "data.workers=0", "train.eval_every=0"]
    trainer(tmp_path / "whole", *words).train()
    whole = last_checkpoint(tmp_path / "whole")
    for stop in (3, 4, 6):
        folder = tmp_path / f"cut{stop}"
        first = trainer(folder, *words)
        learn = first.learn

        def stop_there(batch, first=first, learn=learn, stop=stop):
            first.stopping = first.state.step + 1 == stop
            return learn(batch)

        first.learn = stop_there
        assert not first.train()
        assert last_checkpoint(folder)["step"] == stop
        assert trainer(folder, *words, resume=True).train()
        cut = last_checkpoint(folder)
        assert cut.pop("config")["output_dir"] == str(folder)
        assert_same_tensors({name: value for name, value in whole.items() if name != "config"}, cut)


def test_what_the_network_draws_is_of_the_seed_the_step_and_the_process(tmp_path):
    """Drop-path: the first process alone saves the state of its generators, and anything may have drawn from them."""
    pytest.importorskip("timm", reason="timm is not installed")
    words = ["model.architecture=timm/test_convnext", "model.drop_path=0.5", "model.fpn_channels=16", "train.steps=2"]
    ends = {}
    for name, rank, drawn in (("one", 0, 0), ("other draws between", 0, 7), ("second process", 1, 0)):
        it = trainer(tmp_path / name, *words, "mixing.probability=0.0")
        it.fabric = AsRank(it.fabric, rank)
        learn = it.learn
        it.learn = lambda batch, learn=learn, drawn=drawn: (torch.rand(drawn), learn(batch))[1]
        it.train()
        ends[name] = last_checkpoint(tmp_path / name)["student"]
    assert_same_tensors(ends["one"], ends["other draws between"])
    assert any(not torch.equal(value, ends["second process"][key]) for key, value in ends["one"].items())


def test_changes_that_the_saved_momenta_do_not_fit_are_refused(tmp_path):
    words = [*ADAPTING, "data.workers=0", "train.eval_every=0", "train.steps=5"]
    trainer(tmp_path, *words).train()
    alone = ["data.target=[]", "alignment.parts=[]"]
    for changes in (["alignment.parts=[image]"], ["train.loss_weights={alignment: 0.0}"], alone):
        with pytest.raises(UserError, match="the set of trainable parameters changed"):
            trainer(tmp_path, *words, *changes, resume=True)
    with pytest.raises(UserError, match="has ended burn-in already, at or before step 5"):
        trainer(tmp_path, *words, "train.steps=9", "adaptation.burn_in_steps=7", resume=True)
