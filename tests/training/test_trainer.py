import csv
import json
import math
import subprocess
import sys

import pytest
import torch
from conftest import voc_object, voc_xml, write_image
from runs import ROOT, assert_same_tensors, last_checkpoint, run, trainer
from torch.testing import assert_close

from lossmix_det.data.loaders import training_loader
from lossmix_det.data.workers import WorkerLost
from lossmix_det.errors import UserError
from lossmix_det.structures import StepBatch
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
    words = [f"mixing.mixer={mixer}", "mixing.probability=1.0", "mixing.weighting=visibility", "mixing.stages=[1]"]
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


def test_the_average_follows_its_closed_form(tmp_path):
    """ema_n = d^n·w_0 + (1 - d)·Σ d^(n-k)·w_k"""
    it = trainer(tmp_path, "train.steps=4", "ema.decay=0.8", "ema.warmup=false")
    name = "model.roi_heads.box_head.fc6.bias"
    expected = it.state.detector.state_dict()[name].clone()
    learn = it.learn
    history = []

    def remember(batch):
        result = learn(batch)
        history.append(it.state.detector.state_dict()[name].clone())
        return result

    it.learn = remember
    it.train()
    closed = 0.8**4 * expected + sum(0.2 * 0.8 ** (4 - k) * weights for k, weights in enumerate(history, start=1))
    assert not torch.allclose(history[-1], expected)
    assert_close(it.state.teacher.module.state_dict()[name], closed)


def test_the_warm_up_of_the_decay_starts_low(tmp_path):
    """The first update keeps (1 + 1) / (10 + 1) of the average."""
    it = trainer(tmp_path, "train.steps=1", "ema.decay=0.9999")
    name = "model.roi_heads.box_head.fc6.bias"
    start = it.state.detector.state_dict()[name].clone()
    it.train()
    assert_close(
        it.state.teacher.module.state_dict()[name], 2 / 11 * start + 9 / 11 * it.state.detector.state_dict()[name]
    )


def test_the_average_gets_no_gradient(tmp_path):
    it = trainer(tmp_path, "train.steps=1", "ema.decay=0.9")
    it.train()
    assert all(not p.requires_grad and p.grad is None for p in it.state.teacher.parameters())
    assert any(p.requires_grad for p in it.state.detector.parameters())


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


@pytest.mark.parametrize("schedule", ["multistep", "cosine", "constant"])
def test_the_learning_rate_follows_its_schedule(tmp_path, schedule):
    overrides = [f"optimizer.schedule={schedule}", "optimizer.lr=0.01", "optimizer.warmup_steps=4", "train.steps=12"]
    it = trainer(tmp_path, *overrides, "optimizer.milestones=[0.5,0.75]", "optimizer.warmup_factor=0.1")
    rates = []
    for _ in range(12):
        rates.append(it.state.optimizer.param_groups[0]["lr"])
        it.state.optimizer.step()
        it.state.schedule.step()
    warm = [0.01 * (0.1 + 0.9 * step / 4) for step in range(4)]
    rest = {
        "constant": [0.01] * 8,
        "multistep": [0.01] * 2 + [0.001] * 3 + [0.0001] * 3,
        "cosine": [0.005 * (1 + math.cos(math.pi * step / 8)) for step in range(8)],
    }[schedule]
    assert rates == pytest.approx(warm + rest)


def test_bf16_trains_with_finite_losses_near_those_of_fp32(tmp_path):
    values = []
    for precision in ("32", "bf16"):
        folder = tmp_path / precision
        trainer(folder, "train.steps=3", f"train.precision={precision}", "mixing.rule=lossmix").train()
        with open(folder / "metrics.csv") as file:
            values.append([float(row["loss"]) for row in csv.DictReader(file)])
    assert values[1] == pytest.approx(values[0], rel=0.15)
    assert values[1] != values[0]


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


def test_a_folder_without_truths_is_detected_on_but_not_scored(tmp_path, voc_folder):
    pictures = [f"datasets.bare.root={voc_folder / 'JPEGImages'}", "datasets.bare.format=folder"]
    it = trainer(tmp_path / "run", "train.steps=1", *pictures, "data.test=[bare]", "model.score_threshold=0.0")
    it.train()
    found = json.loads((tmp_path / "run" / "detections_bare.json").read_text())
    assert {row["file_name"] for row in found} == {"one.png", "two.png"}
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == {"student": {}}


def test_an_unknown_best_metric_lists_those_there_are_before_anything_is_trained(tmp_path):
    for metric in ("AP5", "shapes_photo_test/AP50"):
        with pytest.raises(UserError, match="is not among the scores; test sets: shapes_clipart_test; metrics: AP,"):
            trainer(tmp_path, "train.steps=1", f"train.best_metric={metric}")


def test_a_model_in_which_nothing_learns_is_refused(tmp_path):
    from lossmix_det.config import OptimizerConfig
    from lossmix_det.training.optimization import build_optimizer

    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UserError, match="no parameter learns"):
        build_optimizer(frozen, OptimizerConfig())


def test_adamw_is_there_and_norms_are_not_decayed(tmp_path):
    it = trainer(tmp_path, "optimizer.name=adamw", "optimizer.weight_decay=0.05")
    decays = {group["weight_decay"]: {p.ndim for p in group["params"]} for group in it.state.optimizer.param_groups}
    assert decays[0.0] == {1}
    assert min(decays[0.05]) == 2


def test_skipping_lists_what_was_skipped(tmp_path, voc_folder):
    path = voc_folder / "JPEGImages" / "two.png"
    path.write_bytes(path.read_bytes()[:500])
    overrides = [
        f"datasets.mine.root={voc_folder}",
        "data.train=[mine]",
        "data.test=[mine]",
        "data.drop_empty=false",
        "data.on_error=skip",
        "train.steps=2",
    ]
    trainer(tmp_path / "run", *overrides).train()
    text = (tmp_path / "run" / "data_problems.txt").read_text()
    assert text.startswith("skipped (1)")
    assert "two.png: image cannot be read" in text
    with pytest.raises(UserError, match=r"two.png: image cannot be read .*data.on_error=skip"):
        trainer(tmp_path / "other", *overrides, "data.on_error=raise").train()


def test_the_command_prints_one_sentence_for_an_unreadable_image(tmp_path, voc_folder):
    path = voc_folder / "JPEGImages" / "one.png"
    path.write_bytes(path.read_bytes()[:500])
    words = [f"datasets.mine.root={voc_folder}", "data.train=[mine]", "data.test=[mine]", "data.workers=1"]
    done = run(tmp_path, *words, "train.steps=2")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "one.png: image cannot be read" in done.stderr


def truncated_jpeg(root) -> None:
    """Readable as far as its header goes."""
    path = write_image(root / "JPEGImages" / "three.jpg", 60, 40, seed=3)
    path.write_bytes(path.read_bytes()[:-900])
    (root / "Annotations" / "three.xml").write_text(voc_xml(voc_object("cat", 5, 5, 30, 30)))


def test_a_damaged_test_image_is_left_out_of_the_scores_or_stops_after_saving(tmp_path, voc_folder):
    truncated_jpeg(voc_folder)
    words = [f"datasets.mine.root={voc_folder}", "data.test=[mine]", "data.classes=[cat,dog]", "train.steps=2"]
    words += [f"datasets.sound.root={voc_folder}", "datasets.sound.split=train", "data.train=[sound]"]
    words += ["model.score_threshold=0.0"]
    trainer(tmp_path / "skip", *words, "data.on_error=skip").train()
    found = json.loads((tmp_path / "skip" / "detections_mine.json").read_text())
    assert {row["file_name"] for row in found} == {"one.png", "two.png"}
    assert "three.jpg: image cannot be read" in (tmp_path / "skip" / "data_problems.txt").read_text()
    with pytest.raises(UserError, match="three.jpg: image cannot be read"):
        trainer(tmp_path / "raise", *words).train()
    assert last_checkpoint(tmp_path / "raise")["step"] == 2


def test_training_images_of_which_none_can_be_read_end_the_run(tmp_path, voc_folder):
    for name in ("one", "two"):
        path = voc_folder / "JPEGImages" / f"{name}.png"
        path.write_bytes(path.read_bytes()[:500])
    words = [f"datasets.mine.root={voc_folder}", "data.train=[mine]", "data.test=[mine]", "data.drop_empty=false"]
    words.append("data.on_error=skip")
    with pytest.raises(UserError, match="no training image can be read"):
        trainer(tmp_path / "run", *words, "train.steps=5").train()


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


def test_a_folder_without_labels_cannot_be_trained_on(tmp_path, voc_folder):
    words = [f"datasets.bare.root={voc_folder / 'JPEGImages'}", "datasets.bare.format=folder", "data.train=[bare]"]
    with pytest.raises(UserError, match="data set 'bare' has no labels to train on"):
        trainer(tmp_path / "run", *words, "data.classes=[cat]")


class FakeScaler:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def get_scale(self) -> float:
        return self.scale


@pytest.mark.parametrize(("scale", "fault"), [(65536.0, False), (1.0, True)])
def test_an_fp16_overflow_is_no_fault_until_the_scale_is_used_up(tmp_path, monkeypatch, scale, fault):
    it = trainer(tmp_path)
    it.state.scaler = FakeScaler(scale)
    monkeypatch.setattr(it.fabric, "clip_gradients", lambda *_, **__: torch.tensor(math.nan))
    monkeypatch.setattr(it.state.optimizer, "step", lambda: None)
    assert math.isinf(it._descend()) == fault


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
