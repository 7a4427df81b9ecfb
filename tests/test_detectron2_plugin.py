"""The plug-in under Detectron2's own models: its losses are theirs, weighted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lossmix_det.config import MixingConfig
from lossmix_det.mixing import Recipe

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from d2_models import CLOSE, NAMES, configured, inputs, losses, mixing  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.structures import Instances as D2Instances  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402

from lossmix_det import detectron2_plugin as plugin  # noqa: E402


@pytest.fixture(scope="module", params=["StandardROIHeads", "Res5ROIHeads"])
def models(request):
    """Detectron2's model and ours, of the same weights."""
    torch.manual_seed(0)
    cfg = configured(request.param)
    stock, ours = build_model(cfg).train(), build_model(mixing(cfg)).train()
    with torch.no_grad():
        stock.proposal_generator.rpn_head.anchor_deltas.weight.mul_(5)
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def test_nothing_mixed_is_the_stock_loss(models):
    stock, ours = models
    ours.recipe.probability = 0.0
    expected, found = losses(stock, inputs()), losses(ours, inputs())
    assert set(found) == set(NAMES)
    for name in NAMES:
        assert expected[name] > 0
        assert_close(found[name], expected[name], **CLOSE)


def counters(model, batch) -> dict[str, float]:
    """What the model tells Detectron2's storage of a step, losses aside."""
    torch.manual_seed(4)
    with EventStorage() as storage:
        model(batch)
    return {name: value for name, (value, _) in storage.latest().items()}


def test_samples_and_accuracies_are_counted_as_stock_does(models):
    stock, ours = models
    ours.recipe.probability = 0.0
    expected, found = counters(stock, inputs()), counters(ours, inputs())
    assert {"rpn/num_pos_anchors", "roi_head/num_fg_samples", "fast_rcnn/cls_accuracy"} < set(expected)
    assert found == pytest.approx(expected)


def test_the_truths_of_a_mixed_image_are_counted_as_images_of_their_own(models):
    stock, ours = models
    mixed = plugin.mix_inputs(inputs(), Recipe(MixingConfig(probability=1.0)), np.random.default_rng(3))[:1]
    own, size = mixed[0]["instances"], tuple(mixed[0]["image"].shape[1:])
    apart = []
    for place in (0, 1):
        chosen = own.gt_truth == place
        truth = D2Instances(size, gt_boxes=own.gt_boxes[chosen], gt_classes=own.gt_classes[chosen])
        apart.append(counters(stock, [{"image": mixed[0]["image"], "instances": truth}]))
    found = counters(ours, mixed)
    assert apart[0]["roi_head/num_fg_samples"] != apart[1]["roi_head/num_fg_samples"]
    for name in ("rpn/num_pos_anchors", "rpn/num_neg_anchors", "roi_head/num_fg_samples", "roi_head/num_bg_samples"):
        assert found[name] == pytest.approx((apart[0][name] + apart[1][name]) / 2), name


@pytest.mark.parametrize("image", [0, 1, 2])
def test_a_mixed_image_is_the_blend_of_two_stock_losses_and_of_their_gradients(models, image):
    """Image 1 takes part with one without a box."""
    stock, ours = models
    mixed = plugin.mix_inputs(inputs(), Recipe(MixingConfig(probability=1.0)), np.random.default_rng(3))[image]
    (lam, _), (rest, _) = mixed["instances"]._truth_weights
    assert 0.05 < lam < 0.95
    assert lam + rest == pytest.approx(1)
    own, size = mixed["instances"], tuple(mixed["image"].shape[1:])
    expected, gradients = dict.fromkeys(NAMES, 0.0), {}
    for place, weight in ((0, lam), (1, rest)):
        chosen = own.gt_truth == place
        truth = D2Instances(size, gt_boxes=own.gt_boxes[chosen], gt_classes=own.gt_classes[chosen])
        stock.zero_grad()
        found = losses(stock, [{"image": mixed["image"], "instances": truth}])
        sum(found.values()).backward()
        expected = {name: expected[name] + weight * found[name] for name in NAMES}
        for name, value in stock.named_parameters():
            if value.grad is not None:
                gradients[name] = gradients.get(name, 0) + weight * value.grad
    ours.zero_grad()
    found = losses(ours, [mixed])
    sum(found.values()).backward()
    for name in NAMES:
        assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    for name, value in ours.named_parameters():
        if value.grad is not None:
            scale = gradients[name].abs().max().clamp(min=1e-3)
            assert_close(value.grad / scale, gradients[name] / scale, rtol=1e-4, atol=1e-4)


def test_weights_of_plain_instances_are_read(models):
    """A box of weight 0 leaves background and the other boxes."""
    _, ours = models
    ours.recipe.probability = 0.0
    batch = inputs()[:1]
    whole = losses(ours, batch)
    parts = []
    for weights in ([1.0, 0.0], [0.0, 1.0], [0.0, 0.0]):
        batch[0]["instances"].gt_weights = torch.tensor(weights)
        parts.append(losses(ours, batch))
    for name in NAMES:
        assert_close(parts[0][name] + parts[1][name] - parts[2][name], whole[name], **CLOSE)
    assert parts[2]["loss_box_reg"] == 0 < parts[0]["loss_box_reg"]


def test_weights_of_boxes_alone_are_read_too(models):
    _, ours = models
    ours.recipe.probability = 0.0
    batch = inputs()[:1]
    whole = losses(ours, batch)
    batch[0]["instances"].gt_box_weights = torch.zeros(2)
    found = losses(ours, batch)
    assert found["loss_box_reg"] == found["loss_rpn_loc"] == 0 < whole["loss_box_reg"]
    for name in ("loss_cls", "loss_rpn_cls"):
        assert_close(found[name], whole[name], **CLOSE)


def test_the_model_mixes_by_itself_but_not_what_the_loader_has_mixed(models, monkeypatch):
    _, ours = models
    ours.recipe.probability = 1.0
    seen = []
    monkeypatch.setattr(ours, "preprocess_image", lambda batch: seen.append(batch) or stop())
    with pytest.raises(Stop):
        ours(inputs())
    assert all(isinstance(each["instances"], plugin.MixedInstances) for each in seen[0])
    mixed = plugin.MixingCollate(MixingConfig(probability=1.0))(inputs())
    with pytest.raises(Stop):
        ours(mixed)
    assert all(given is taken for given, taken in zip(mixed, seen[1], strict=True))


def test_a_batch_of_one_image_has_no_partner_and_that_is_said_once(models, caplog):
    _, ours = models
    ours.recipe.probability, ours.warned = 1.0, False
    for _ in range(2):
        losses(ours, inputs()[:1])
    assert caplog.text.count("a batch of one image is never mixed; raise SOLVER.IMS_PER_BATCH") == 1


class Stop(Exception):
    pass


def stop():
    raise Stop


def test_inference_is_stocks(models):
    stock, ours = models
    with torch.no_grad():
        expected, found = stock.eval()(inputs()), ours.eval()(inputs())
    stock.train(), ours.train()
    for one, other in zip(expected, found, strict=True):
        assert_close(one["instances"].pred_boxes.tensor, other["instances"].pred_boxes.tensor, **CLOSE)
