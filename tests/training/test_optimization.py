"""The optimizer, its rates and precisions, and the average of the weights."""

import csv
import math

import pytest
import torch
from adapting import adapting
from runs import trainer
from torch.testing import assert_close

from lossmix_det.errors import UserError

pytestmark = pytest.mark.slow


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


def test_a_teacher_that_is_a_copy_needs_no_warm_up(tmp_path):
    it = adapting(tmp_path, "ema.decay=0.9", "ema.warmup=true")
    name = "model.roi_heads.box_head.fc6.bias"
    start = it.state.detector.state_dict()[name].clone()
    with torch.no_grad():
        dict(it.state.detector.named_parameters())[name].add_(1.0)
    it.state.teacher.update_parameters(it.state.detector)
    assert_close(it.state.teacher.module.state_dict()[name], start + 0.1)


def test_the_average_gets_no_gradient(tmp_path):
    it = trainer(tmp_path, "train.steps=1", "ema.decay=0.9")
    it.train()
    assert all(not p.requires_grad and p.grad is None for p in it.state.teacher.parameters())
    assert any(p.requires_grad for p in it.state.detector.parameters())


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


def test_a_row_has_the_rate_that_its_step_took(tmp_path):
    words = ["optimizer.lr=0.01", "optimizer.warmup_steps=2", "optimizer.warmup_factor=0.1", "data.test=[]"]
    trainer(tmp_path, *words, "optimizer.schedule=constant", "train.steps=4").train()
    with open(tmp_path / "metrics.csv") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert rates == pytest.approx([0.001, 0.0055, 0.01, 0.01])


def test_bf16_trains_with_finite_losses_near_those_of_fp32(tmp_path):
    values = []
    for precision in ("32", "bf16"):
        folder = tmp_path / precision
        trainer(folder, "train.steps=3", f"train.precision={precision}", "mixing.rule=lossmix").train()
        with open(folder / "metrics.csv") as file:
            values.append([float(row["loss"]) for row in csv.DictReader(file)])
    assert values[1] == pytest.approx(values[0], rel=0.15)
    assert values[1] != values[0]


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
