"""The backbone learns at a rate of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from runs import trainer
from stock import make
from test_additions import CellDetector

from lossmix_det.config import OptimizerConfig
from lossmix_det.engines.torchvision import DETECTORS
from lossmix_det.errors import UserError
from lossmix_det.training.optimization import build_optimizer, build_schedule, load_momenta, momenta_of, rate_of


def rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    return {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}


@pytest.mark.parametrize("name", ["slim", "retinanet_slim", "detectron2_fpn", "detectron2_c4"])
def test_the_body_has_its_factor_and_the_pyramid_the_whole_rate(name):
    detector = make(name)
    config = OptimizerConfig(lr=0.01, backbone_lr_factor=0.1)
    found = rates(build_optimizer(detector, config, detector.body()))
    body = {id(value) for value in detector.body().parameters()}
    assert len(body) > 10
    for key, value in detector.named_parameters():
        if value.requires_grad:
            assert found[id(value)] == pytest.approx(0.001 if id(value) in body else 0.01), key
    pyramid = [value for key, value in detector.named_parameters() if "fpn" in key]
    assert not any(id(value) in body for value in pyramid)


@pytest.mark.parametrize("schedule", ["cosine", "multistep", "constant"])
def test_both_rates_follow_the_schedule_in_proportion(schedule):
    """Through warm-up, the schedule, and a restart after burn-in at another rate."""
    detector = make()
    settings = {"lr": 0.01, "schedule": schedule, "warmup_steps": 3, "restart_lr": 0.002}
    alone = build_optimizer(detector, OptimizerConfig(**settings))
    config = OptimizerConfig(**settings, backbone_lr_factor=0.25)
    both = build_optimizer(detector, config, detector.body())
    plans = [build_schedule(alone, OptimizerConfig(**settings), 20, 10), build_schedule(both, config, 20, 10)]
    body = {id(value) for value in detector.body().parameters()}
    for _ in range(20):
        whole, mixed = rates(alone), rates(both)
        for key, rate in whole.items():
            assert mixed[key] == pytest.approx(rate * (0.25 if key in body else 1.0))
        assert rate_of(both) == pytest.approx(rate_of(alone))
        for optimizer, plan in zip((alone, both), plans, strict=True):
            optimizer.step()
            plan.step()


@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("schedule", ["cosine", "multistep", "constant"])
def test_without_burn_in_the_restarts_rate_is_that_of_the_whole_run(schedule, warmup):
    """As where adaptation begins from a detector that was trained before."""
    detector, taken = make(), []
    for rate in ({"lr": 0.01, "restart_lr": 0.002}, {"lr": 0.002}):
        config = OptimizerConfig(schedule=schedule, warmup_steps=warmup, backbone_lr_factor=0.25, **rate)
        optimizer = build_optimizer(detector, config, detector.body())
        plan = build_schedule(optimizer, config, 20, 0)
        taken.append([])
        for _ in range(20):
            taken[-1].append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            plan.step()
    for restarted, whole in zip(*taken, strict=True):
        assert restarted == pytest.approx(whole)


@pytest.mark.parametrize("name", ["slim", "detectron2_fpn"])
def test_momenta_stay_with_their_parameters_when_the_factor_changes(name):
    detector = make(name)
    config = OptimizerConfig(name="sgd", momentum=0.5, weight_decay=0.0)
    optimizer = build_optimizer(detector, config)
    for place, parameter in enumerate(detector.parameters()):
        parameter.grad = torch.full_like(parameter, float(place))  # that of the parameter alone
    optimizer.step()
    momenta = momenta_of(optimizer, detector)
    other = build_optimizer(detector, replace(config, backbone_lr_factor=0.1), detector.body())
    assert len(other.param_groups) > len(optimizer.param_groups)
    load_momenta(other, detector, momenta)
    places = {id(parameter): place for place, parameter in enumerate(detector.parameters())}
    for group in other.param_groups:
        for parameter in group["params"]:
            assert (other.state[parameter]["momentum_buffer"] == places[id(parameter)]).all()


def test_a_detector_without_a_backbone_of_its_own_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(DETECTORS, "cells", CellDetector)
    message = "optimizer.backbone_lr_factor=0.1 needs a detector with a backbone of its own; Conv2d is none, so use 1"
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, "model.detector=cells", "optimizer.backbone_lr_factor=0.1")


def test_a_slower_body_moves_less(tmp_path):
    moved, fast = [], ("optimizer.name=sgd", "optimizer.lr=0.1", "optimizer.warmup_steps=0")
    for factor in (1.0, 0.01):
        it = trainer(tmp_path / str(factor), "train.steps=1", *fast, f"optimizer.backbone_lr_factor={factor}")
        before = {name: value.clone() for name, value in it.state.detector.named_parameters()}
        it.state.optimizer.zero_grad()
        views = next(iter(it.streams.batches(0, lambda: False, it.state.unreadable)))[0]
        it.learn(views)
        after = dict(it.state.detector.named_parameters())
        name, head = "model.backbone.body.layer1.0.conv1.weight", "model.roi_heads.box_head.fc6.weight"
        moved.append([(after[key] - before[key]).abs().sum().item() for key in (name, head)])
    assert moved[1][0] == pytest.approx(0.01 * moved[0][0], rel=1e-2)
    assert moved[1][1] == pytest.approx(moved[0][1], rel=1e-4)
