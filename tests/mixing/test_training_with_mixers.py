"""Every mixer trains: under every rule and weighting, in burn-in and in adaptation, on both engines; and resumes."""

from __future__ import annotations

import pytest
from runs import assert_same_tensors, last_checkpoint, trainer

from lossmix_det.mixing import MIXERS, RULES, WEIGHTINGS
from lossmix_det.mixing.saliency import SALIENCIES

pytestmark = pytest.mark.slow

ADAPTING = [
    *("data.target=[shapes_clipart_train]", "data.views=[weak,strong]", "ema.decay=0.9", "train.steps=4"),
    *("adaptation.burn_in_steps=2", "pseudo_labels.score=0.0", "mixing.probability=1.0", "alignment.parts=[image]"),
]
MASKING = [name for name in MIXERS if name != "mixup"]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mixer", MASKING)
def test_every_mixer_adapts_under_every_rule(tmp_path, mixer, rule, weighting):
    words = [f"mixing.mixer={mixer}", f"mixing.rule={rule}", f"mixing.weighting={weighting}"]
    it = trainer(tmp_path, *ADAPTING, *words, "data.augment.min_sizes=[64,96]")
    assert it.train()
    assert it.state.skipped_steps == 0


@pytest.mark.parametrize("burn_in_rule", ["noise", "lam", "max"])
@pytest.mark.parametrize("saliency", SALIENCIES)
def test_sage_burns_in_under_every_rule_with_every_saliency(tmp_path, saliency, burn_in_rule):
    words = ["mixing.mixer=sage", f"mixing.saliency={saliency}", f"mixing.burn_in_rule={burn_in_rule}"]
    it = trainer(tmp_path, *ADAPTING, *words, "pseudo_labels.kind=soft")
    assert it.train()
    assert it.state.skipped_steps == 0


@pytest.mark.parametrize("mixer", MASKING)
def test_a_run_that_is_resumed_ends_the_same(tmp_path, mixer):
    words = [*ADAPTING, f"mixing.mixer={mixer}", "train.save_every=3"]
    whole = trainer(tmp_path / "whole", *words)
    assert whole.train()
    part = trainer(tmp_path / "part", *words)
    part.streams.batches, batches = lambda *given: _until(part, batches(*given), 3), part.streams.batches
    assert not part.train()
    resumed = trainer(tmp_path / "part", *words, resume=True)
    assert resumed.state.step == 3
    assert resumed.train()
    assert_same_tensors(*(last_checkpoint(tmp_path / name)["student"] for name in ("whole", "part")))


def _until(it, batches, count: int):
    for batch in batches:
        if it.state.step == count - 1:
            it.stop()
        yield batch


@pytest.mark.parametrize("mixer", MASKING)
def test_every_mixer_trains_on_detectron2(tmp_path, mixer):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    words = ["model.engine=detectron2", "model.detectron2_config=configs/detectron2/small_fpn.yaml"]
    it = trainer(tmp_path, *ADAPTING, *words, f"mixing.mixer={mixer}")
    assert it.train()
    assert it.state.skipped_steps == 0
