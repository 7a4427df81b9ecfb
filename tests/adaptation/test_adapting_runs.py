"""Runs that adapt: what a teacher starts from and follows, burn-in, schedule, and settings that are refused."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from adapting import ADAPT, ALIGN, COUNT, SURE, adapting, batch
from runs import assert_same_tensors, last_checkpoint, trainer
from torch.nn.utils import parameters_to_vector
from torch.testing import assert_close

from lossmix_det.data.loaders import evaluation_loader
from lossmix_det.engines import build_detector
from lossmix_det.engines.recorded import recorded_of
from lossmix_det.errors import UserError
from lossmix_det.evaluation.detect import detect_all
from lossmix_det.training.runlog import RunLog


def test_burn_in_sees_the_source_alone_and_has_no_teacher(tmp_path):
    it = trainer(tmp_path, *ADAPT, "adaptation.burn_in_steps=2", "mixing.rule=lossmix", "mixing.probability=1.0")
    seen = []
    it.state.detector.model.backbone.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    it.learn(batch())
    assert seen == [2 * COUNT]
    assert it.state.teacher is None
    assert list(it.state.models()) == ["student"]


def test_the_student_learns_and_the_teacher_only_follows(tmp_path):
    it = adapting(tmp_path, *SURE, *ALIGN)
    teacher = {name: value.clone() for name, value in it.state.teacher.module.state_dict().items()}
    student = {name: value.clone() for name, value in it.state.detector.state_dict().items()}
    it.learn(batch())
    assert_same_tensors(teacher, dict(it.state.teacher.module.state_dict()))
    assert all(p.grad is None and not p.requires_grad for p in it.state.teacher.parameters())
    assert any(not torch.equal(student[name], value) for name, value in it.state.detector.state_dict().items())


def test_the_teacher_starts_as_the_student_and_follows_its_closed_form(tmp_path):
    """teacher_n = d^n·s_0 + (1 - d)·Σ d^(n-k)·s_k, where s_0 is the student as burn-in ends."""
    it = trainer(tmp_path, *ADAPT, "adaptation.burn_in_steps=2", "train.steps=5", "ema.decay=0.8")
    name = "model.roi_heads.box_head.fc6.bias"
    history, learn = [], it.learn

    def remember(step):
        result = learn(step)
        history.append(it.state.detector.state_dict()[name].clone())
        return result

    it.learn = remember
    it.train()
    start, *rest = history[1:]
    closed = 0.8**3 * start + sum(0.2 * 0.8 ** (3 - k) * weights for k, weights in enumerate(rest, start=1))
    assert len(rest) == 3
    assert_close(it.state.teacher.module.state_dict()[name], closed)


@pytest.mark.parametrize("start", ["follow", "restart"])
def test_the_average_may_be_kept_since_the_first_step(tmp_path, start):
    it = trainer(tmp_path, *ADAPT, "adaptation.burn_in_steps=2", f"ema.start={start}")
    assert list(it.state.models()) == ["student", "ema"]
    it.learn(batch())
    it.state.teacher.update_parameters(it.state.detector)
    average = {name: value.clone() for name, value in it.state.teacher.module.state_dict().items()}
    it.log = RunLog(tmp_path, 0, 4, it.console, active=True)
    it._hand_over()
    assert_same_tensors(average, dict(it.state.teacher.module.state_dict()))
    same = all(torch.equal(average[name], value) for name, value in it.state.detector.state_dict().items())
    assert same == (start == "restart")
    assert bool(it.state.optimizer.state_dict()["state"]) == (start == "follow")  # momenta are of other weights
    assert list(it.state.models()) == ["student", "teacher"]


@pytest.mark.parametrize("start", ["copy", "follow", "restart"])
def test_the_row_of_burn_in_is_of_what_its_checkpoint_holds(tmp_path, start):
    words = ["adaptation.burn_in_steps=2", "train.steps=3", f"ema.start={start}", "ema.decay=0.9", "data.workers=0"]
    it = trainer(tmp_path / "run", *ADAPT, *words, "model.score_threshold=0.0")
    it.train()
    recorded = recorded_of(str(tmp_path / "run" / "checkpoints" / "burned_in.pt"))
    detector = build_detector(recorded.model, recorded.num_classes, strict=True).eval()
    image_set = it.streams.test_sets[-1]
    found, _ = detect_all(detector, image_set, evaluation_loader(image_set, it.config.data), "cpu")
    written = json.loads((tmp_path / "run" / "burn_in" / f"detections_{image_set.name}.json").read_text())
    assert len(found) > 10
    assert [row["score"] for row in written] == pytest.approx([row["score"] for row in found], abs=1e-5)


def test_no_row_of_a_teacher_before_there_is_one(tmp_path):
    it = trainer(tmp_path, *ADAPT, "adaptation.burn_in_steps=2", "train.eval_every=1")
    it.train()
    with open(tmp_path / "scores.csv") as file:
        rows = list(csv.DictReader(file))
    given = [(int(row["step"]), bool(row.get("teacher/shapes_clipart_test/AP50"))) for row in rows]
    assert given == [(1, False), (2, False), (3, True), (4, True)]
    assert list(json.loads((tmp_path / "results.json").read_text())) == ["burn-in", "student", "teacher"]
    assert (tmp_path / "before_after.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (tmp_path / "export").glob("*.pth")} == {"student.pth", "teacher.pth"}


def test_the_unsupervised_weight_grows_along_its_ramp(tmp_path):
    ramp = ["adaptation.burn_in_steps=2", "adaptation.ramp_steps=4", "adaptation.unsupervised_weight=0.8"]
    it = trainer(tmp_path, *ADAPT, *ramp)
    weights = [it.state.labeller.unsupervised_weight(step) for step in (2, 3, 5, 6, 99)]
    assert weights == pytest.approx([0.2, 0.4, 0.8, 0.8, 0.8])


def test_burn_in_may_come_from_a_checkpoint_or_an_export(tmp_path):
    trainer(tmp_path / "first", "train.steps=2", "ema.decay=0.5").train()
    expected = last_checkpoint(tmp_path / "first")["ema"]
    for path in ("checkpoints/step_0000002.pt", "export/ema.pth"):
        it = trainer(tmp_path / "second", *ADAPT, f"adaptation.burn_in_from={tmp_path / 'first' / path}")
        assert_same_tensors(expected, dict(it.state.detector.exported()))
    with pytest.raises(UserError, match="was trained on the classes circle"):
        trainer(tmp_path / "b", *ADAPT, f"adaptation.burn_in_from={tmp_path / 'first' / path}", "data.classes=[star]")
    words = [f"adaptation.burn_in_from={tmp_path / 'first' / path}", "model.architecture=resnet18_fpn"]
    with pytest.raises(UserError, match="is not of the model that the configuration names"):
        trainer(tmp_path / "c", *ADAPT, *words)
    with pytest.raises(UserError, match="no such checkpoint"):
        trainer(tmp_path / "d", *ADAPT, "adaptation.burn_in_from=nowhere.pt")
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(UserError, match="refused: it is damaged"):
        trainer(tmp_path / "e", *ADAPT, f"adaptation.burn_in_from={tmp_path / 'text.pt'}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["adaptation.burn_in_steps=4"], "leaves nothing of train.steps=4"),
        (["ema.decay=0.0"], "keeps no teacher"),
        (["adaptation.burn_in_steps=1", "adaptation.burn_in_from=x.pt"], "takes the place of burn-in"),
        (
            ["pseudo_labels.threshold=per_class", "pseudo_labels.class_scores={sircle: 0.5}"],
            "names no class 'sircle'.*did you mean 'circle'",
        ),
        (["alignment.parts=[image]", "alignment.level=p9"], "is no feature level; there are 0, 1, 2"),
        (["alignment.parts=[pixel]"], "may name image and instance"),
        (["mixing.lam_range=[0.9,0.1]"], r"must be \[low, high\]"),
        (["data.target_batch_size=3", "train.accumulate=2"], "data.target_batch_size=3 is no multiple"),
        (["pseudo_labels.kind=soft", "mixing.rule=union"], "use lossmix or own"),
        (["data.target=[nowhere]"], "unknown data set 'nowhere'"),
        (["data.target=[]", "adaptation.burn_in_from=x.pt"], "needs data.target"),
        (["train.loss_weights={source/roi_box: 0.0}"], "give source/roi_box and mixed/roi_box a weight above 0 both"),
        (
            ["train.loss_weights={source/roi_box: 0.0, mixed/roi_box: 0.0}"],
            "gives roi_box a weight for the target alone.*give source/roi_box and mixed/roi_box a weight too",
        ),
        (
            ["mixing.views=[weak]", "data.views=[strong]", "mixing.probability=0.5"],
            r"\['weak'\] names no view that the student sees; name one of",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_one_sentence(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, *ADAPT, *words)


def test_the_schedule_starts_anew_at_the_restart(tmp_path):
    words = ["optimizer.lr=0.01", "optimizer.restart_lr=0.004", "adaptation.burn_in_steps=5", "train.steps=10"]
    it = trainer(tmp_path, *words, "optimizer.warmup_steps=1", "optimizer.schedule=cosine")
    rates = []
    for _ in range(10):
        rates.append(it.state.optimizer.param_groups[0]["lr"])
        it.state.optimizer.step()
        it.state.schedule.step()
    assert rates[1] == pytest.approx(0.01)
    assert rates[6] == pytest.approx(0.004)
    assert rates[4] < rates[3] < rates[2]
    assert rates[9] < rates[8] < rates[7]


def test_bf16_trains_with_everything_on(tmp_path):
    it = trainer(tmp_path, *ADAPT, *ALIGN, "train.precision=bf16", "mixing.rule=lossmix", "adaptation.burn_in_steps=2")
    assert it.train()
    assert it.state.skipped_steps == 0


def test_a_damaged_test_image_does_not_spoil_the_pictures(tmp_path, voc_folder):
    path = voc_folder / "JPEGImages" / "two.png"
    path.write_bytes(path.read_bytes()[:500])
    words = [f"datasets.mine.root={voc_folder}", "data.train=[mine]", "data.test=[mine]", "data.target=[mine]"]
    it = trainer(tmp_path / "run", *ADAPT, *words, "data.on_error=skip", "data.batch_size=1")
    assert it.train()
    assert (tmp_path / "run" / "before_after.png").is_file()


def test_no_test_set_and_one_image_a_step_are_enough(tmp_path):
    it = trainer(tmp_path, *ADAPT, "data.test=[]", "data.batch_size=1", "train.best_metric=AP50", "data.views=[weak]")
    assert it.train()
    assert not it.results["teacher"]


@pytest.mark.parametrize("start", ["copy", "follow", "restart"])
def test_a_teacher_that_has_learned_already_is_not_forgotten_within_a_few_steps(tmp_path, start):
    """Warm-up lets an average of random weights go fast; these come from a run, by whatever name the teacher begins."""
    trainer(tmp_path / "first", "train.steps=2").train()
    source = tmp_path / "first" / "export" / "student.pth"
    words = [f"adaptation.burn_in_from={source}", "adaptation.burn_in_steps=0", f"ema.start={start}", "ema.decay=0.999"]
    it = trainer(tmp_path / "second", *ADAPT, *words, "train.steps=4", "ema.warmup=true")
    before = _flat(it.state.detector)
    it.train()
    taught, followed = ((_flat(model) - before).norm() for model in (it.state.detector, it.state.teacher.module))
    assert followed < 0.02 * taught


def _flat(model):
    return parameters_to_vector(model.parameters()).detach().clone()
