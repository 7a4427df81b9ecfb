"""The adaptation step, against a reference made of stock torchvision calls, and its identities."""

from __future__ import annotations

import copy
import csv
import json
from dataclasses import replace

import pytest
import torch
from adapting import ADAPT, ALIGN, AS_PUBLISHED, COUNT, HEIGHT, WIDTH, adapting, batch, views
from runs import assert_same_tensors, last_checkpoint, trainer
from torch.nn import functional as F
from torch.testing import assert_close

from lossmix_det.errors import UserError
from lossmix_det.structures import ImageBatch, Instances, StepBatch
from lossmix_det.training.runlog import RunLog

STOCK = dict(
    zip(
        ("rpn_class", "rpn_box", "roi_class", "roi_box"),
        ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"),
        strict=True,
    )
)


def stock_losses(model, images: ImageBatch, truths) -> dict[str, torch.Tensor]:
    targets = [{"boxes": truth.boxes, "labels": truth.classes + 1} for truth in truths]
    return model(list(images.to_float().pixels), targets)


def stock_pseudo_labels(model, images: ImageBatch, threshold: float) -> list[Instances]:
    model.transform.min_size, model.transform.max_size = (HEIGHT,), WIDTH  # stock resizes when it detects
    model.eval()
    with torch.no_grad():
        found = model(list(images.to_float().pixels))
    model.train()
    kept = [each["scores"] >= threshold for each in found]
    return [Instances(each["boxes"][k], each["labels"][k] - 1) for each, k in zip(found, kept, strict=True)]


def test_the_step_equals_adaptive_teachers_made_of_stock_calls(tmp_path):
    """Strong and weak source supervised; strong target by pseudo-labels without regression; D on both domains."""
    it = adapting(tmp_path, *AS_PUBLISHED)
    it.state.detector.train()
    step = batch()
    student_batch = it.compose(step)
    student_batch.images = replace(student_batch.images, keys=None)  # stock sampling, from the global generator
    torch.manual_seed(5)
    found = it.state.student_step(student_batch)

    model = it.state.detector.model
    for part in (model.rpn, model.roi_heads):
        part.fg_bg_sampler.keys = None
    labels = stock_pseudo_labels(copy.deepcopy(model), step.target.weak, 0.5)
    assert sum(map(len, labels)) >= 2
    torch.manual_seed(5)
    both = ImageBatch.cat([step.source.strong, step.source.weak])
    source = stock_losses(model, both, step.source.truths * 2)
    target = stock_losses(model, step.target.strong, labels)
    for name, stock in STOCK.items():
        assert_close(found[f"source/{name}"], source[stock], rtol=1e-5, atol=1e-5)
        expected = torch.zeros(()) if name.endswith("box") else target[stock]
        assert_close(found[f"target/{name}"], expected, rtol=1e-5, atol=1e-5)

    level = it.state.alignment.level
    logits = [
        it.state.alignment.discriminators["image"](model.backbone(normalised(model, images))[level])
        for images in (both, step.target.strong)
    ]
    reference = F.binary_cross_entropy_with_logits(logits[0], torch.zeros_like(logits[0]))
    reference += F.binary_cross_entropy_with_logits(logits[1], torch.ones_like(logits[1]))
    assert_close(found["alignment/image"], reference, rtol=1e-5, atol=1e-5)


def normalised(model, images: ImageBatch) -> torch.Tensor:
    transform = model.transform
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (transform.image_mean, transform.image_std))
    return (images.to_float().pixels - mean) / std


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_one_student_and_one_teacher_forward_a_step(tmp_path, kind):
    it = adapting(tmp_path, *ALIGN, "mixing.rule=lossmix", "mixing.probability=0.7", f"pseudo_labels.kind={kind}")
    calls = {"student": [], "teacher": []}
    for name, model in (("student", it.state.detector), ("teacher", it.state.teacher.module)):
        model.model.backbone.register_forward_hook(lambda _m, inputs, _o, seen=calls[name]: seen.append(len(inputs[0])))
    it.learn(batch())
    assert calls == {"student": [3 * COUNT], "teacher": [COUNT]}


def test_burn_in_sees_the_source_alone_and_has_no_teacher(tmp_path):
    it = trainer(tmp_path, *ADAPT, "adaptation.burn_in_steps=2", "mixing.rule=lossmix", "mixing.probability=1.0")
    seen = []
    it.state.detector.model.backbone.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    it.learn(batch())
    assert seen == [2 * COUNT]
    assert it.state.teacher is None
    assert list(it.state.models()) == ["student"]


def gradients(it, step: StepBatch) -> dict[str, torch.Tensor]:
    it.state.detector.train()
    student_batch = it.compose(step)
    total = it.state.student_step.total(it.state.student_step(student_batch))
    it.state.student_step.zero_grad()
    total.backward()
    return {"total": total.detach()} | {
        n: p.grad for n, p in it.state.student_step.named_parameters() if p.grad is not None
    }


def assert_same_gradients(one, other) -> None:
    assert one.keys() == other.keys()
    assert len(one) > 50
    for name, value in one.items():
        scale = value.abs().max().clamp(min=1e-3)
        assert_close(other[name] / scale, value / scale, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


SURE = ["pseudo_labels.score=0.5"]
ACROSS = torch.tensor([True, False, True, False])  # the coordinates that a mirror changes


def test_lam_of_one_is_the_unmixed_step(tmp_path):
    mixed = ["mixing.rule=lossmix", "mixing.probability=1.0", "mixing.lam_range=[1.0,1.0]"]
    one = gradients(adapting(tmp_path / "a", *SURE, *mixed), batch())
    assert_same_gradients(gradients(adapting(tmp_path / "b", *SURE), batch()), one)


def test_pseudo_labels_of_weight_zero_have_no_gradient(tmp_path):
    """Whatever they are: the gradient is that of a step in which the teacher found nothing."""
    off = ["adaptation.unsupervised_weight=0.0", "mixing.rule=lossmix", "mixing.probability=1.0"]
    some = gradients(adapting(tmp_path / "a", *SURE, *off), batch())
    assert_same_gradients(gradients(adapting(tmp_path / "b", "pseudo_labels.min_size=1000", *off), batch()), some)
    on = gradients(adapting(tmp_path / "c", *SURE, *off[1:]), batch())
    assert not torch.allclose(on["total"], some["total"])


def test_boxes_teach_where_the_teacher_finds_them_in_the_mirror_image(tmp_path, monkeypatch):
    """A teacher that sees the same from both sides teaches what it would without a mirror; a blind one, no box."""
    every, it = (
        adapting(tmp_path / name, *SURE, f"pseudo_labels.{key}")
        for name, key in (("a", "box_score=0.0"), ("b", "box_agreement=0.9"))
    )
    target, teacher = batch().target, it.state.teacher.module
    expected, _ = every.state.labeller.label(every.state.teacher.module, target, 0)
    seen = []

    def detect(images: ImageBatch) -> list[Instances]:
        seen.append(images.pixels)
        sides = [(WIDTH - one.boxes)[:, [2, 1, 0, 3]] for one in plain]
        return [replace(one, boxes=torch.where(ACROSS, x, one.boxes)) for one, x in zip(plain, sides, strict=True)]

    with torch.no_grad():
        plain = teacher.eval().detect(target.weak.to_float())
    monkeypatch.setattr(teacher, "detect", detect)
    found, _ = it.state.labeller.label(teacher, target, 0)
    assert torch.equal(seen[0], target.weak.to_float().pixels.flip(-1))
    assert sum(map(len, expected.truths)) >= 2
    assert torch.equal(found.box_weights, expected.box_weights)
    for one, other in zip(found.truths, expected.truths, strict=True):
        assert_close(one.boxes, other.boxes)
        assert torch.equal(one.box_weights, other.box_weights)
    monkeypatch.setattr(teacher, "detect", lambda images: [Instances.empty() for _ in images.sizes])
    found, _ = it.state.labeller.label(teacher, target, 0)
    assert [truth.box_weights.sum() for truth in found.truths] == [0] * COUNT


def test_an_image_without_pseudo_labels_teaches_no_background(tmp_path):
    nothing = ["pseudo_labels.min_size=1000"]
    skipped = adapting(tmp_path / "a", *nothing)
    assert set(skipped.compose(batch()).supervisions) == {"source"}
    taught = adapting(tmp_path / "b", *nothing, "pseudo_labels.empty=background")
    student_batch = taught.compose(batch())
    losses = taught.state.student_step(student_batch)
    assert losses["target/roi_class"] > 0
    assert losses["target/roi_box"] == 0


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


@pytest.mark.parametrize(
    ("rule", "probability"), [("lossmix", 0.0), ("lossmix", 0.6), ("lossmix_instance", 0.6), ("union", 0.6)]
)
def test_accumulation_gives_the_gradient_of_the_large_batch(tmp_path, monkeypatch, rule, probability):
    mixing = [f"mixing.rule={rule}", f"mixing.probability={probability}", "model.normalizer=images"]
    caught = []
    for parts in (1, 2):
        it = adapting(tmp_path / str(parts), *SURE, *ALIGN, *mixing, f"train.accumulate={parts}")

        def catch(it=it):
            caught.append(
                {n: p.grad.clone() for n, p in it.state.student_step.named_parameters() if p.grad is not None}
            )
            return 1.0

        monkeypatch.setattr(it, "_descend", catch)
        it.learn(batch())
    whole, cut = caught
    assert whole.keys() == cut.keys()
    for name, gradient in whole.items():
        scale = gradient.abs().max().clamp(min=1e-3)
        assert_close(cut[name] / scale, gradient / scale, rtol=1e-4, atol=1e-4)


def test_the_unsupervised_weight_grows_along_its_ramp(tmp_path):
    ramp = ["adaptation.burn_in_steps=2", "adaptation.ramp_steps=4", "adaptation.unsupervised_weight=0.8"]
    it = trainer(tmp_path, *ADAPT, *ramp)
    weights = [it.state.labeller.unsupervised_weight(step) for step in (2, 3, 5, 6, 99)]
    assert weights == pytest.approx([0.2, 0.4, 0.8, 0.8, 0.8])


def test_the_targets_labels_are_measured_and_never_taught(tmp_path):
    it, other_run = adapting(tmp_path / "a", *SURE), adapting(tmp_path / "b", *SURE)
    hidden = batch()
    told = StepBatch(hidden.source, replace(hidden.target, truths=views(10).truths))
    one, other = gradients(it, hidden), gradients(other_run, told)
    assert_same_gradients(one, other)
    row = other_run.state.labeller.row()
    assert row["pseudo/per_image/circle"] >= 0
    assert {"pseudo/precision", "pseudo/recall/square"} <= row.keys()
    assert "pseudo/precision" not in it.state.labeller.row()


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
        (["pseudo_labels.class_scores={sircle: 0.5}"], "names no class 'sircle'.*did you mean 'circle'"),
        (["alignment.parts=[image]", "alignment.level=p9"], "is no feature level; there are 0, 1, 2"),
        (["alignment.parts=[pixel]"], "may name image and instance"),
        (["mixing.lam_range=[0.9,0.1]"], r"must be \[low, high\]"),
        (["data.target_batch_size=3", "train.accumulate=2"], "data.target_batch_size=3 is no multiple"),
        (["pseudo_labels.kind=soft", "mixing.rule=union"], "use lossmix or own"),
        (["data.target=[nowhere]"], "unknown data set 'nowhere'"),
        (["data.target=[]", "adaptation.burn_in_from=x.pt"], "needs data.target"),
        (["train.loss_weights={source/roi_box: 0.0}"], "give source/roi_box and mixed/roi_box a weight above 0 both"),
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


def test_pseudo_boxes_are_float32_under_bf16(tmp_path):
    """bfloat16 would count pixels beyond 64 in halves, and beyond 512 in fours."""
    it = adapting(tmp_path, "train.precision=bf16", "pseudo_labels.score=0.3")
    labels, _ = it.state.labeller.label(it.state.teacher.module, batch().target, 0)
    boxes = torch.cat([truth.boxes for truth in labels.truths])
    assert boxes.dtype == torch.float32
    assert len(boxes) > 2
    assert not torch.equal(boxes, boxes.bfloat16().float())


def test_a_kind_of_weight_zero_is_not_computed(tmp_path, monkeypatch):
    it = adapting(tmp_path, "train.loss_weights={target: 0.0}", "mixing.probability=0.0", "pseudo_labels.score=0.0")
    student_batch = it.compose(batch())
    assert student_batch.supervisions["target"]
    scored = []
    losses = it.state.detector.losses
    monkeypatch.setattr(it.state.detector, "losses", lambda *given: scored.append(given[1]) or losses(*given))
    found = it.state.student_step(student_batch)
    assert {name.split("/")[0] for name in found} == {"source"}
    assert scored == student_batch.supervisions["source"]


def test_bf16_trains_with_everything_on(tmp_path):
    it = trainer(tmp_path, *ADAPT, *ALIGN, "train.precision=bf16", "mixing.rule=lossmix", "adaptation.burn_in_steps=2")
    assert it.train()
    assert it.state.skipped_steps == 0


def test_a_step_may_have_fewer_target_images_and_unequal_sizes(tmp_path):
    words = [
        "data.target_batch_size=2",
        "mixing.rule=lossmix",
        "data.augment.min_sizes=[64,96]",
        "model.normalizer=images",
    ]
    it = trainer(tmp_path, *ADAPT, *ALIGN, *words, "adaptation.burn_in_steps=2", "train.accumulate=2")
    assert it.train()
    with open(tmp_path / "metrics.csv") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["pseudo/images_without"]) <= 1
    assert float(last["alignment/image"]) > 0


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


def test_accumulation_leaves_alignment_of_unmixed_images_as_it_is(tmp_path, monkeypatch):
    settings = [*ALIGN, "alignment.mixed=skip", "mixing.rule=lossmix", "mixing.probability=0.5", "train.seed=4"]
    losses = []
    for parts in (1, 2):
        it = adapting(tmp_path / str(parts), *settings, "pseudo_labels.min_size=1000", f"train.accumulate={parts}")
        found = [it.state.student_step(part)["alignment/image"] for part in it.compose(batch()).split(parts)]
        losses.append(sum(found) / parts)
    assert_close(*losses)
