"""The student's part of a step."""

from __future__ import annotations

import pytest
from runs import trainer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("stage", ["rpn", "roi"])
def test_a_stage_of_weight_zero_is_not_computed(tmp_path, monkeypatch, stage):
    it = trainer(tmp_path, f"train.loss_weights={{source/{stage}_class: 0.0, source/{stage}_box: 0.0}}")
    monkeypatch.setattr(getattr(it.state.detector, stage), "losses", None)  # nobody may call it
    batch, _ = next(it.streams.batches(0, lambda: False, set()))
    losses = it.state.student_step(it.compose(batch))
    other = {"rpn": "roi", "roi": "rpn"}[stage]
    assert set(losses) == {f"source/{other}_class", f"source/{other}_box"}
