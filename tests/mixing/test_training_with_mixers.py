"""Every mixer trains: under every rule and weighting, in burn-in and in adaptation, on both engines; and resumes."""

from __future__ import annotations

import pytest
from runs import assert_same_tensors, last_checkpoint, trainer

from lossmix_det.errors import UserError
from lossmix_det.mixing import MIXERS, RULES, WEIGHTINGS
from lossmix_det.mixing.saliency import SALIENCIES

pytestmark = pytest.mark.slow

ADAPTING = [
    *("data.target=[shapes_clipart_train]", "data.test=[]", "data.views=[weak,strong]", "ema.decay=0.9"),
    "train.steps=4",
    *("adaptation.burn_in_steps=2", "pseudo_labels.score=0.0", "mixing.probability=1.0", "alignment.parts=[image]"),
]
OTHERS = [name for name in MIXERS if name != "mixup"]
# Every mixer under every rule, each rule with either weighting in turn.
COMBINED = [
    (mixer, rule, list(WEIGHTINGS)[(first + second) % 2])
    for first, mixer in enumerate(OTHERS)
    for second, rule in enumerate(RULES)
]


@pytest.mark.parametrize(("mixer", "rule", "weighting"), COMBINED)
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


@pytest.mark.parametrize("stage", ["0", "1", "3", "fpn"])
@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet", "fcos"])
def test_features_of_every_detector_are_mixed_in_parts_too(tmp_path, detector, stage):
    words = ["mixing.mixer=manifold", f"mixing.stages=[{stage}]", f"model.detector={detector}", "train.accumulate=2"]
    it = trainer(tmp_path, *ADAPTING, *words, "model.roi_samples=null", "data.augment.min_sizes=[64,96]")
    assert it.train()
    assert it.state.skipped_steps == 0


def test_a_stage_that_the_backbone_lacks_is_refused_with_those_that_it_has(tmp_path):
    with pytest.raises(UserError, match=r"mixing.stages='4' is not one of 0, 1, 2, 3, fpn"):
        trainer(tmp_path, "mixing.mixer={manifold: 1, mixup: 1}", "mixing.stages=[0,4]")


def test_a_choice_of_mixers_trains_and_resumes(tmp_path):
    _resumes(tmp_path, "mixing.mixer={manifold: 1, mosaic: 1, sage: 1}")


@pytest.mark.parametrize("mixer", OTHERS)
def test_a_run_that_is_resumed_ends_the_same(tmp_path, mixer):
    _resumes(tmp_path, f"mixing.mixer={mixer}")


def test_a_run_with_saliency_by_gradient_that_is_resumed_ends_the_same(tmp_path):
    _resumes(tmp_path, "mixing.mixer=sage", "mixing.saliency=gradient", "mixing.clean_share=0.3")


def _resumes(tmp_path, *settings: str) -> None:
    words = [*ADAPTING, *settings, "train.save_every=3"]
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


@pytest.mark.parametrize("mixer", OTHERS)
def test_every_mixer_trains_on_detectron2(tmp_path, mixer):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    words = ["model.engine=detectron2", "model.detectron2_config=configs/detectron2/small_fpn.yaml"]
    it = trainer(tmp_path, *ADAPTING, *words, f"mixing.mixer={mixer}")
    assert it.train()
    assert it.state.skipped_steps == 0
