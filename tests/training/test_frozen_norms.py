"""A frozen norm stays as it was, through training mode, the average, resuming, several processes and the export."""

from __future__ import annotations

import pytest
import torch
from runs import assert_same_tensors, last_checkpoint, run, trainer

from lossmix_det.files import read_model

timm = pytest.importorskip("timm", reason="timm is not installed")
NORMS = (".bn1.", ".bn2.", ".bn3.")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A classifier whose norms hold statistics that no batch would give."""
    torch.manual_seed(0)
    state = timm.create_model("test_efficientnet").state_dict()
    for name, value in state.items():
        if name.endswith(("running_mean", "running_var")):
            value.add_(torch.rand(value.shape))
    path = tmp_path_factory.mktemp("weights") / "classifier.pth"
    torch.save(state, path)
    return path


def settings(weights, steps: int, *more: str) -> list[str]:
    return [
        *(f"model.weights={weights}", "model.architecture=timm/test_efficientnet", "model.fpn_channels=16"),
        *("model.trainable_layers=5", f"train.steps={steps}", "train.save_every=10", "ema.decay=0.9"),
        *("shapes.test_images=2", *more),
    ]


def norms(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights, biases and statistics of the norms of the body, by timm's names."""
    body = {name.partition("backbone.body.net.")[2]: value for name, value in state.items() if "body.net." in name}
    found = {name: value for name, value in body.items() if any(part in f".{name}" for part in NORMS)}
    return {name: value for name, value in found.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.slow
def test_twenty_steps_change_norms_only_where_they_are_to_learn(tmp_path, weights):
    wanted = read_model(weights)
    runs = {norm: trainer(tmp_path / norm, *settings(weights, 20, f"model.norm={norm}")) for norm in ("auto", "batch")}
    for it in runs.values():
        assert it.train()
    frozen, learned = (it.state.detector.exported() for it in runs.values())
    assert len(norms(frozen)) == len(norms(learned)) > 30
    for name, value in norms(frozen).items():
        assert torch.equal(value, wanted[name]), name
    assert not any(torch.equal(value, wanted[name]) for name, value in norms(learned).items())
    moved = "backbone.body.net.blocks.1.0.conv_exp.weight"
    assert not torch.equal(frozen[moved], wanted[moved.removeprefix("backbone.body.net.")])
    for path in (tmp_path / "auto" / "export").glob("*.pth"):
        for name, value in norms(read_model(path)).items():
            assert torch.equal(value, wanted[name]), (path, name)
    assert_same_tensors(norms(last_checkpoint(tmp_path / "auto")["ema"]), norms(frozen))


@pytest.mark.slow
def test_a_resumed_run_equals_one_without_interruption(tmp_path, weights):
    trainer(tmp_path / "whole", *settings(weights, 4)).train()
    stopped = trainer(tmp_path / "parts", *settings(weights, 4, "train.save_every=2"))
    stopped.save, saved = (lambda **_: (saved(**_), stopped.stop())), stopped.save
    assert not stopped.train()
    assert trainer(tmp_path / "parts", *settings(weights, 4, "train.save_every=2"), resume=True).train()
    whole, parts = (last_checkpoint(tmp_path / folder) for folder in ("whole", "parts"))
    for part in ("student", "ema", "optimizer"):
        assert_same_tensors(parts[part], whole[part], part)


@pytest.mark.slow
def test_two_processes_leave_frozen_norms_and_wait_for_no_gradient(tmp_path, weights):
    done = run(tmp_path / "run", "--num-gpus", "2", *settings(weights, 2), timeout=600)
    assert done.returncode == 0, done.stderr
    wanted = read_model(weights)
    for name, value in norms(last_checkpoint(tmp_path / "run")["student"]).items():
        assert torch.equal(value, wanted[name]), name
