"""What the configurations of one comparison share."""

from __future__ import annotations

from typing import Any

import pytest
from runs import ROOT

from benchmarks.suites import ADAPTERS
from lossmix_det.config import as_dict, flat, load_config

# What may differ from adaptive_teacher, by method.
DIFFERENCES = {
    "source_only": {"data.target", "alignment.parts"},
    "oracle": {"data.train", "data.target", "alignment.parts"},
    "mean_teacher": {"alignment.parts"},
    "adaptive_teacher_noise": {"mixing.probability", "mixing.rule", "mixing.lam_range"},
    "adaptive_teacher_union": {"mixing.probability", "mixing.rule"},
    "adaptive_teacher_lossmix": {"mixing.probability"},
    "adaptive_teacher_lossmix_instance": {"mixing.probability", "mixing.rule"},
}


def settings(folder: str, method: str) -> dict[str, Any]:
    found = flat(as_dict(load_config(ROOT / "configs" / folder / f"{method}.yaml")))
    assert found.pop("output_dir") == f"runs/{folder}/{method}"
    return found


@pytest.mark.parametrize("folder", ["shapes_adapt", "blood_adapt"])
def test_methods_differ_from_adaptive_teacher_in_what_makes_them_alone(folder):
    assert {path.stem for path in (ROOT / "configs" / folder).glob("*.yaml")} == set(ADAPTERS)
    base = settings(folder, "adaptive_teacher")
    assert base["mixing.probability"] == 0
    for method, allowed in DIFFERENCES.items():
        own = settings(folder, method)
        changed = {key for key in base.keys() | own.keys() if base.get(key) != own.get(key)}
        assert changed == allowed, method
    assert settings(folder, "adaptive_teacher_lossmix")["mixing.rule"] == "lossmix"
