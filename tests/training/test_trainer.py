import csv
import json
import math
import subprocess
import sys

import pytest
import torch
from runs import ROOT, assert_same_tensors, last_checkpoint, trainer
from torch.testing import assert_close

from lossmix_det.data.loaders import training_loader
from lossmix_det.data.workers import WorkerLost
from lossmix_det.errors import UserError
from lossmix_det.structures import StepBatch, Supervision
from lossmix_det.training.phases import SourceOnly

pytestmark = pytest.mark.slow


def gradients_of_one_step(folder, monkeypatch, *overrides):
    """The gradient that the optimizer would take, and the weights it is of."""
    it = trainer(folder, "train.steps=1", "optimizer.clip_norm=0", *overrides)
    caught = {}

    def catch():
        caught.update({name: p.grad.clone() for name, p in it.state.detector.named_parameters() if p.grad is not None})
        return 1.0

    monkeypatch.setattr(it, "_descend", catch)
    loader = training_loader(it.streams.train_sets, it.config.data, seed=0)
    views, _ = next(iter(loader))
    it.learn(StepBatch(source=views))
    return caught


@pytest.mark.parametrize(("rule", "probability"), [("lossmix", 0.0), ("lossmix", 1.0), ("lossmix_instance", 1.0)])
def test_accumulation_gives_the_gradient_of_the_large_batch(tmp_path, monkeypatch, rule, probability):
    mixing = [f"mixing.rule={rule}", f"mixing.probability={probability}", "data.views=[weak,strong]"]
    whole = gradients_of_one_step(tmp_path / "a", monkeypatch, *mixing)
    for parts in (2, 4):
        cut = gradients_of_one_step(tmp_path / f"b{parts}", monkeypatch, *mixing, f"train.accumulate={parts}")
        assert whole.keys() == cut.keys()
        assert len(whole) > 50
        for name, gradient in whole.items():
            scale = gradient.abs().max().clamp(min=1e-3)
            assert_close(cut[name] / scale, gradient / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mixer", ["sage", "comixup", "manifold", "classmix"])
def test_micro_batches_of_mixed_images_give_losses_and_gradient_of_the_batch(tmp_path, mixer):
    """A batch is mixed before it is cut, so partners may be in another micro-batch."""
    words = [f"mixing.mixer={mixer}", "mixing.probability=1.0", "mixing.weighting=visibility"]
    words += ["mixing.stages=[1]"] if mixer == "manifold" else []
    words += ["model.normalizer=images", "optimizer.clip_norm=0"]
    losses, gradients = [], []
    for parts in (1, 4):
        it = trainer(tmp_path / str(parts), *words, f"train.accumulate={parts}")
        views, _ = next(iter(training_loader(it.streams.train_sets, it.config.data, seed=0)))
        student_batch = it.compose(StepBatch(source=views))
        assert any((weights < 1).any() for weights in weights_of(student_batch))
        losses.append(it._accumulate(student_batch.split(parts, it.state.detector.multiple)))
        learned = it.state.detector.named_parameters()
        gradients.append({name: p.grad.clone() for name, p in learned if p.grad is not None})
    whole, cut = gradients
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert cut.keys() == whole.keys()
    for name, gradient in whole.items():
        scale = gradient.abs().max().clamp(min=1e-3)
        assert_close(cut[name] / scale, gradient / scale, rtol=1e-5, atol=1e-5)


def test_a_micro_batch_in_which_no_truth_has_a_weight_teaches_nothing(tmp_path):
    """ConfMix gives weight 0 to an image that shows no sure box; two such images may be alone in a micro-batch."""
    it = trainer(tmp_path)
    views, _ = next(iter(training_loader(it.streams.train_sets, it.config.data, seed=0)))
    student_batch = it.compose(StepBatch(source=views))
    for supervisions in ({}, {"source": [Supervision.full(views.truths, 0.0)]}):
        student_batch.supervisions = supervisions
        losses = it._accumulate([student_batch])
        assert losses["loss"] == 0.0
        learned = [each for each in it.state.student.parameters() if each.requires_grad]
        assert all(each.grad is not None and not each.grad.any() for each in learned)


def weights_of(student_batch):
    return [of_kind.class_weights for kind in student_batch.supervisions.values() for of_kind in kind]


def test_a_short_run_lowers_the_loss_and_leaves_everything_behind(tmp_path):
    it = trainer(
        tmp_path,
        "train.steps=30",
        "optimizer.lr=0.01",
        "mixing.probability=0.0",
        "ema.decay=0.9",
        "train.eval_every=15",
    )
    assert it.train()
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss"]) for row in rows]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert json.loads((tmp_path / "metrics.json").read_text())[-1]["step"] == 30
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["seed"] == 0
    assert content["datasets"]["shapes_photo_train"]["fingerprint"]
    assert (
        content["versions"]["torch"] == torch.__version__.split("+")[0]
        or content["versions"]["torch"] == torch.__version__
    )
    assert content["config"]["train"]["steps"] == 30
    for name in (
        "config.yaml",
        "speed.csv",
        "results.csv",
        "export/student.pth",
        "export/ema.pth",
        "checkpoints/best.pt",
    ):
        assert (tmp_path / name).is_file(), name
    assert list((tmp_path / "tensorboard").iterdir())
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept[0] == "best.pt"
    assert kept[-1] == "step_0000030.pt"


def test_the_logged_loss_is_the_weighted_sum_of_its_terms(tmp_path):
    weights = ["train.loss_weights={source/rpn_box: 2.0, source/roi_box: 0.0}"]
    trainer(tmp_path, "train.steps=2", *weights).train()
    with open(tmp_path / "metrics.csv") as file:
        row = next(csv.DictReader(file))
    assert "source/roi_box" not in row
    total = float(row["source/rpn_class"]) + 2 * float(row["source/rpn_box"]) + float(row["source/roi_class"])
    assert float(row["loss"]) == pytest.approx(total, rel=1e-5)


def test_convolutions_are_channels_last_where_it_is_faster_and_exports_as_others_expect(tmp_path):
    batch = ["model.norm=batch"]
    cases = (("slow with GroupNorm", [], False), ("on", ["train.channels_last=true"], True), ("auto", batch, True))
    cases += (("off", [*batch, "train.channels_last=false"], False),)
    for name, words, expected in cases:
        it = trainer(tmp_path / name, "train.steps=1", "ema.decay=0.9", *words)
        seen = []
        it.state.detector.model.backbone.register_forward_hook(lambda _m, _g, out, seen=seen: seen.extend(out.values()))
        it.train()
        layouts = {each.is_contiguous(memory_format=torch.channels_last) for each in seen if each.shape[2] > 1}
        assert layouts == {expected}
        for kind in ("student", "ema"):
            exported = torch.load(tmp_path / name / "export" / f"{kind}.pth", weights_only=True)
            assert all(value.is_contiguous() for value in exported.values())


def test_the_memory_layout_changes_no_gradient(tmp_path, monkeypatch):
    mixing = ["mixing.rule=lossmix", "mixing.probability=1.0"]
    last, first = (
        gradients_of_one_step(tmp_path / value, monkeypatch, *mixing, f"train.channels_last={value}")
        for value in ("true", "false")
    )
    assert last.keys() == first.keys()
    for name, gradient in first.items():
        scale = gradient.abs().max().clamp(min=1e-3)
        assert_close(last[name] / scale, gradient / scale, rtol=0, atol=1e-2)  # a ReLU at its kink may tip over


def poison(it, steps: set[int]) -> None:
    """Make the loss of some steps infinite."""
    forward = it.state.detector.losses

    def losses(encoding, supervision, soft_teacher):
        found = forward(encoding, supervision)
        return {n: v * (math.inf if it.state.step in steps else 1) for n, v in found.items()}

    it.state.detector.losses = losses


def test_a_loss_that_is_not_finite_teaches_nothing_and_is_counted(tmp_path, caplog):
    clean = trainer(tmp_path / "a", "train.steps=1", "mixing.probability=0.0")
    clean.train()
    it = trainer(tmp_path / "b", "train.steps=2", "mixing.probability=0.0", "optimizer.warmup_steps=0")
    before = {name: value.clone() for name, value in it.state.detector.state_dict().items()}
    poison(it, {0, 1})
    it.train()
    assert it.state.skipped_steps == 2
    assert "the loss or its gradient is not finite; the step is skipped" in caplog.text
    assert "2 of 2 steps were skipped" in caplog.text
    assert_same_tensors(before, dict(it.state.detector.state_dict()))


def test_training_stops_with_advice_when_no_loss_is_finite_any_more(tmp_path):
    it = trainer(tmp_path, "train.steps=9", "train.max_bad_steps=3", "train.save_every=1")
    poison(it, {2, 3, 4, 5, 6})
    with pytest.raises(UserError, match="not finite for 3 steps in a row, up to step 5; lower optimizer.lr"):
        it.train()
    assert all(torch.isfinite(value).all() for value in last_checkpoint(tmp_path)["student"].values())


def test_bad_steps_that_are_not_in_a_row_do_not_stop_it(tmp_path):
    it = trainer(tmp_path, "train.steps=6", "train.max_bad_steps=2")
    poison(it, {1, 3, 5})
    assert it.train()
    assert it.state.skipped_steps == 3


def test_mixing_is_off_for_the_last_steps(tmp_path):
    it = trainer(tmp_path, "train.steps=10", "mixing.off_last_steps=4")
    mixed = [it.phases.at(step).recipe.probability for step in range(10)]
    assert mixed == [0.5] * 6 + [0.0] * 4


def test_both_views_of_every_image_are_taught(tmp_path):
    it = trainer(tmp_path, "data.views=[weak,strong]", "mixing.rule=union", "mixing.probability=1.0")
    views, _ = next(iter(training_loader(it.streams.train_sets, it.config.data, seed=0)))
    import numpy as np

    student_batch = SourceOnly(it.config.mixing).compose(StepBatch(views), np.random.default_rng(0))
    assert len(student_batch.images) == 8
    (supervision,) = student_batch.supervisions["source"]
    assert len(supervision) == 8
    # Each view is mixed among its own images, so no box is united with itself.
    assert sum(len(truth) for truth in supervision.truths[:4]) == 2 * sum(len(truth) for truth in views.truths)


def test_an_unknown_best_metric_lists_those_there_are_before_anything_is_trained(tmp_path):
    for metric in ("AP5", "shapes_photo_test/AP50"):
        with pytest.raises(UserError, match="is not among the scores; test sets: shapes_clipart_test; metrics: AP,"):
            trainer(tmp_path, "train.steps=1", f"train.best_metric={metric}")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("{rpn_box: 1.0}", "names no loss 'rpn_box' .did you mean '[a-z]+/rpn_box"),
        (
            "{source/rpn_class: 0.0, source/rpn_box: 0.0, source/roi_class: 0.0, source/roi_box: 0.0}",
            "leaves no loss with a weight",
        ),
    ],
)
def test_loss_weights_that_cannot_be_meant_are_refused(tmp_path, weights, message):
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, f"train.loss_weights={weights}")


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file cannot be written to"):
        trainer(tmp_path / "file", "train.steps=1").train()


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    words = "import sys; from pathlib import Path; from lossmix_det.training.run_lock import run_lock\n"
    words += f"with run_lock(Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another process is training in it"):
        trainer(tmp_path, "train.steps=1").train()
    other.kill()
    other.wait()
    assert trainer(tmp_path, "train.steps=1").train()


@pytest.mark.parametrize(
    ("tests", "words", "warned"),
    [
        ("[shapes_photo_test,shapes_clipart_test]", ["train.eval_every=1"], True),
        ("[shapes_photo_test,shapes_clipart_test]", [], False),  # only the last step is scored: nothing is chosen
        ("[shapes_clipart_test,shapes_photo_test]", ["train.eval_every=1"], False),
        (
            "[shapes_photo_test,shapes_clipart_test]",
            ["train.eval_every=1", "train.best_metric=shapes_photo_test/AP"],
            False,
        ),
    ],
)
def test_a_best_checkpoint_chosen_by_labels_of_the_target_is_warned_of(tmp_path, caplog, tests, words, warned):
    adapting = ["data.target=[shapes_clipart_train]", "adaptation.burn_in_steps=1", "train.steps=2", "ema.decay=0.9"]
    trainer(tmp_path, *adapting, f"data.test={tests}", *words)
    message = "best.pt is chosen by labels of the target (AP50 in shapes_clipart_test)"
    assert (message in caplog.text) == warned


@pytest.mark.parametrize("stopping", [True, False])
def test_workers_lost_to_the_signal_that_stops_a_run_end_its_stream_only(tmp_path, monkeypatch, stopping):
    def lost(_):
        raise WorkerLost("ended from outside")
        yield

    it = trainer(tmp_path, "train.steps=1")
    monkeypatch.setattr("lossmix_det.training.streams.batches", lost)
    stream = it.streams.batches(0, lambda: stopping, set())
    if stopping:
        assert list(stream) == []
    else:
        with pytest.raises(WorkerLost):
            next(stream)
