"""A frozen norm stays as it was, through training mode, the average, resuming, several processes and the export."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch
from runs import assert_same_tensors, last_checkpoint, run, trainer
from stock import options

from lossmix_det.files import read_model

timm = pytest.importorskip("timm", reason="timm is not installed")
NORMS = (".bn1.", ".bn2.", ".bn3.")


BODIES = {"torchvision": "backbone.body.net.", "detectron2": "backbone.bottom_up.net."}


@pytest.fixture(params=list(BODIES))
def engine(request):
    if request.param == "detectron2" and find_spec("detectron2") is None:
        pytest.skip("Detectron2 is not installed")
    return request.param


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


def settings(engine: str, weights, steps: int, *more: str, learns: bool = False) -> list[str]:
    """Of a training with a network of timm, whose norms learn or are frozen as by default."""
    if engine == "torchvision":
        words = ["model.architecture=timm/test_efficientnet", "model.fpn_channels=16", "model.trainable_layers=5"]
        words += ["model.norm=batch"] if learns else []
    else:
        network = {"MODEL.TIMM.NAME": "test_efficientnet", "MODEL.TIMM.NORM": "BN" if learns else "FrozenBN"}
        words = ["model.engine=detectron2", f"model.detectron2_options={json.dumps(options('timm', **network))}"]
    return [
        *(*words, f"model.weights={weights}", f"train.steps={steps}", "train.save_every=10", "ema.decay=0.9"),
        *("shapes.test_images=2", *more),
    ]


def norms(engine: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights, biases and statistics of the norms of the body, by timm's names, without counters."""
    start = BODIES[engine]
    body = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
    found = {name: value for name, value in body.items() if any(part in f".{name}" for part in NORMS)}
    return {name: value for name, value in found.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.slow
def test_twenty_steps_change_norms_only_where_they_are_to_learn(tmp_path, weights, engine):
    wanted = read_model(weights)
    runs = {
        name: trainer(tmp_path / name, *settings(engine, weights, 20, learns=name == "learned"))
        for name in ("frozen", "learned")
    }
    for it in runs.values():
        assert it.train()
    frozen, learned = (it.state.detector.exported() for it in runs.values())
    assert len(norms(engine, frozen)) == len(norms(engine, learned)) > 30
    for name, value in norms(engine, frozen).items():
        assert torch.equal(value, wanted[name]), name
    assert not any(torch.equal(value, wanted[name]) for name, value in norms(engine, learned).items())
    moved = "blocks.1.0.conv_exp.weight"
    assert not torch.equal(frozen[BODIES[engine] + moved], wanted[moved])
    exports = list((tmp_path / "frozen" / "export").glob("*.pth"))
    assert exports
    for path in exports:
        assert_same_tensors(norms(engine, read_model(path)), norms(engine, frozen))
    assert_same_tensors(norms(engine, last_checkpoint(tmp_path / "frozen")["ema"]), norms(engine, frozen))


@pytest.mark.slow
def test_a_resumed_run_equals_one_without_interruption(tmp_path, weights, engine):
    trainer(tmp_path / "whole", *settings(engine, weights, 4)).train()
    stopped = trainer(tmp_path / "parts", *settings(engine, weights, 4, "train.save_every=2"))
    stopped.save, saved = (lambda **_: (saved(**_), stopped.stop())), stopped.save
    assert not stopped.train()
    assert trainer(tmp_path / "parts", *settings(engine, weights, 4, "train.save_every=2"), resume=True).train()
    whole, parts = (last_checkpoint(tmp_path / folder) for folder in ("whole", "parts"))
    for part in ("student", "ema", "optimizer"):
        assert_same_tensors(parts[part], whole[part], part)


@pytest.mark.slow
def test_two_processes_leave_frozen_norms_and_wait_for_no_gradient(tmp_path, weights, engine):
    done = run(tmp_path / "run", "--num-gpus", "2", *settings(engine, weights, 2), timeout=600)
    assert done.returncode == 0, done.stderr
    wanted = read_model(weights)
    found = norms(engine, last_checkpoint(tmp_path / "run")["student"])
    assert len(found) > 30
    for name, value in found.items():
        assert torch.equal(value, wanted[name]), name
