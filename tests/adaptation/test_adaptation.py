"""The adaptation step, against a reference made of stock torchvision calls, and its identities."""

from __future__ import annotations

import copy
import csv
from dataclasses import replace

import pytest
import torch
from adapting import ADAPT, ALIGN, AS_PUBLISHED, COUNT, HEIGHT, SURE, WIDTH, adapting, batch, views
from runs import trainer
from torch.nn import functional as F
from torch.testing import assert_close

from lossmix_det.structures import ImageBatch, Instances, StepBatch

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


def test_an_image_without_pseudo_labels_teaches_no_background(tmp_path):
    nothing = ["pseudo_labels.min_size=1000"]
    skipped = adapting(tmp_path / "a", *nothing)
    assert set(skipped.compose(batch()).supervisions) == {"source"}
    taught = adapting(tmp_path / "b", *nothing, "pseudo_labels.empty=background")
    student_batch = taught.compose(batch())
    losses = taught.state.student_step(student_batch)
    assert losses["target/roi_class"] > 0
    assert losses["target/roi_box"] == 0


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


def test_accumulation_leaves_alignment_of_unmixed_images_as_it_is(tmp_path, monkeypatch):
    settings = [*ALIGN, "alignment.mixed=skip", "mixing.rule=lossmix", "mixing.probability=0.5", "train.seed=4"]
    losses = []
    for parts in (1, 2):
        it = adapting(tmp_path / str(parts), *settings, "pseudo_labels.min_size=1000", f"train.accumulate={parts}")
        found = [it.state.student_step(part)["alignment/image"] for part in it.compose(batch()).split(parts)]
        losses.append(sum(found) / parts)
    assert_close(*losses)
