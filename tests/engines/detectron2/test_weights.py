"""Weights and networks of Detectron2: model zoo files, other heads, other networks, VGG16."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import assert_same_tensors
from stock import options
from torch.testing import assert_close
from torchvision.models import vgg16_bn

from lossmix_det.config import ModelConfig
from lossmix_det.engines import build_detector
from lossmix_det.errors import UserError

pytest.importorskip("detectron2", reason="Detectron2 is not installed")


def test_missing_weights_are_named():
    config = ModelConfig(engine="detectron2", detectron2_options=options("fpn"), weights="nowhere.pkl")
    with pytest.raises(UserError, match="model.weights='nowhere.pkl': no such file"):
        build_detector(config, 4)


def test_weights_of_other_classes_load_what_fits_and_are_refused_where_all_must(tmp_path, caplog):
    config = ModelConfig(engine="detectron2", detectron2_options=options("fpn"))
    first = build_detector(config, 4)
    torch.save({"model": first.exported()}, tmp_path / "four.pth")
    again = replace(config, weights=str(tmp_path / "four.pth"))
    with caplog.at_level("INFO"):
        other = build_detector(again, 7)
    assert "parts loaded; the rest is fresh: roi_heads.box_predictor\n" in caplog.text
    assert "begin at random" not in caplog.text
    assert_close(other.model.backbone.state_dict(), first.model.backbone.state_dict(), rtol=0, atol=0)
    with pytest.raises(UserError, match="is not of this model: 2 of"):
        build_detector(again, 7, strict=True)
    build_detector(again, 4, strict=True)


def test_what_of_a_backbone_begins_at_random_is_warned_of(tmp_path, caplog):
    """A deeper network has layers that the file does not know."""
    config = ModelConfig(engine="detectron2", detectron2_options=options("fpn"))
    state = build_detector(config, 4).exported()
    missing = {name for name in state if name.startswith("backbone.bottom_up.res4.")}
    torch.save({"model": {name: value for name, value in state.items() if name not in missing}}, tmp_path / "part.pth")
    build_detector(replace(config, weights=str(tmp_path / "part.pth")), 4)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    learned = [name for name in missing if not name.endswith("num_batches_tracked")]
    assert f"part.pth lacks {len(learned)} tensors of the backbone, which begin at random: backbone.bottom" in warning


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    config = ModelConfig(engine="detectron2", detectron2_options=options("fpn"))
    state = build_detector(config, 4).exported()
    state["roi_heads.box_predictor.cls_score.bias"][0] = float("nan")
    torch.save({"model": state}, tmp_path / "nan.pth")
    with pytest.raises(UserError, match="cls_score.bias holds numbers that are not finite; use an earlier checkpoint"):
        build_detector(replace(config, weights=str(tmp_path / "nan.pth")), 4)


def zoo_names(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The layout of the original ImageNet weights: Caffe2 names, arrays, no heads."""
    found = {}
    for name, value in state.items():
        if not name.startswith("backbone.bottom_up.") or "num_batches" in name:
            continue
        name = name.removeprefix("backbone.bottom_up.")
        name = name.replace("stem.conv1.norm.", "res_conv1_bn_").replace("stem.conv1.weight", "conv1_w")
        name = re.sub(r"res(\d)\.(\d+)\.shortcut\.norm\.", r"res\1_\2_branch1_bn_", name)
        name = re.sub(r"res(\d)\.(\d+)\.shortcut\.weight", r"res\1_\2_branch1_w", name)
        for index, letter in enumerate("abc", 1):
            name = re.sub(rf"res(\d)\.(\d+)\.conv{index}\.norm\.", rf"res\1_\2_branch2{letter}_bn_", name)
            name = re.sub(rf"res(\d)\.(\d+)\.conv{index}\.weight", rf"res\1_\2_branch2{letter}_w", name)
        name = name.replace("bn_weight", "bn_s").replace("bn_bias", "bn_b")
        name = name.replace("bn_running_mean", "bn_rm").replace("bn_running_var", "bn_riv")
        found[name] = value.numpy()
    return found


def test_weights_of_the_model_zoo_load_by_their_old_names_with_a_report(tmp_path, caplog):
    words = options("fpn", **{"MODEL.RESNETS.NORM": "FrozenBN"})
    config = ModelConfig(engine="detectron2", detectron2_options=words)
    torch.manual_seed(3)
    first = build_detector(config, 4)
    arrays = zoo_names(first.exported())
    assert {"conv1_w", "res_conv1_bn_s", "res2_0_branch2a_w"} <= set(arrays)
    arrays["fc1000_w"] = np.zeros((2, 2), np.float32)
    with open(tmp_path / "R-18.pkl", "wb") as file:
        pickle.dump(arrays, file)
    torch.manual_seed(4)
    with caplog.at_level("INFO"):
        other = build_detector(replace(config, weights=str(tmp_path / "R-18.pkl")), 4)
    with pytest.raises(UserError, match="is not of this model: .* name a trained checkpoint"):
        build_detector(replace(config, weights=str(tmp_path / "R-18.pkl")), 4, strict=True)
    named = replace(config, detectron2_options=[*words, "MODEL.WEIGHTS", str(tmp_path / "R-18.pkl")])
    assert_same_tensors(
        build_detector(named, 4).model.backbone.bottom_up.state_dict(), other.model.backbone.bottom_up.state_dict()
    )
    backbone = {name: value for name, value in first.exported().items() if name.startswith("backbone.bottom_up.")}
    assert len(backbone) > 50
    for name, value in backbone.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert_close(other.exported()[name], value, rtol=0, atol=0, msg=name)
    assert "begin at random" not in caplog.text
    total = len(first.exported())
    assert f"model.weights: {len(backbone)} of {total} parts loaded; the rest is fresh: backbone.fpn" in caplog.text
    assert "proposal_generator.rpn_head, roi_heads.box_head, roi_heads.box_predictor\n" in caplog.text
    assert "model.weights: of no use here: fc1000.weight" in caplog.text  # the classifier of ImageNet


def test_a_zoo_file_of_a_smaller_network_leaves_a_warning(tmp_path, caplog):
    words = options("fpn", **{"MODEL.RESNETS.NORM": "FrozenBN"})
    config = ModelConfig(engine="detectron2", detectron2_options=words)
    arrays = zoo_names(build_detector(config, 4).exported())
    kept = {name: value for name, value in arrays.items() if not name.startswith("res5_1")}
    with open(tmp_path / "R-16.pkl", "wb") as file:
        pickle.dump(kept, file)
    build_detector(replace(config, weights=str(tmp_path / "R-16.pkl")), 4)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    missing = [
        name for name in arrays.keys() - kept.keys() if not name.endswith(("_rm", "_riv"))
    ]  # those have defaults
    assert f"R-16.pkl lacks {len(missing)} tensors of the backbone, which begin at random: backbone.bottom" in warning


def test_weights_of_another_network_are_refused(tmp_path):
    state = build_detector(ModelConfig(), 4).exported()
    torch.save(state, tmp_path / "slim.pth")
    config = ModelConfig(engine="detectron2", detectron2_options=options("c4_res5"), weights=str(tmp_path / "slim.pth"))
    with pytest.raises(UserError, match="is not of this model"):
        build_detector(config, 4)


def test_a_damaged_zoo_file_is_named(tmp_path):
    (tmp_path / "bad.pkl").write_bytes(b"\x80nonsense")
    config = ModelConfig(engine="detectron2", detectron2_options=options("fpn"), weights=str(tmp_path / "bad.pkl"))
    with pytest.raises(UserError, match=r"model.weights=.*bad.pkl cannot be read"):
        build_detector(config, 4)


VGG = Path(__file__).resolve().parents[3] / "configs" / "detectron2" / "vgg16.yaml"


@pytest.mark.slow
def test_vgg16_is_torchvisions_and_loads_its_weights(tmp_path, caplog):
    """The same features at every stage, from a file with torchvision's own names."""
    torch.manual_seed(2)
    reference = vgg16_bn(weights=None).eval()
    torch.save(reference.state_dict(), tmp_path / "vgg16_bn.pth")
    words = ["MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.BACKBONE.FREEZE_AT", "2"]
    config = ModelConfig(
        engine="detectron2",
        detectron2_config=str(VGG),
        detectron2_options=words,
        weights=str(tmp_path / "vgg16_bn.pth"),
    )
    with caplog.at_level("INFO"):
        detector = build_detector(config, 3)
    features = sum(name.startswith("features.") for name in reference.state_dict())
    assert f"model.weights: {features} of {len(detector.exported())} parts loaded" in caplog.text
    assert detector.levels() == {"vgg4": 512}
    pixels = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        found = detector.model.eval().backbone(pixels)
        expected = pixels
        for index, layer in enumerate(reference.features):
            expected = layer(expected)
            if index in (6, 43):
                assert_close(found["vgg0" if index == 6 else "vgg4"], expected, rtol=0, atol=0)
    assert found["vgg4"].shape == (1, 512, 2, 3)
    frozen = [name for name, p in detector.model.backbone.named_parameters() if not p.requires_grad]
    assert {name.split(".")[1] for name in frozen} == {"0", "1", "3", "4", "7", "8", "10", "11"}


@pytest.mark.parametrize("path", sorted(VGG.parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_network_in_the_repository_is_one_that_the_engine_takes(path):
    config = ModelConfig(
        engine="detectron2", detectron2_config=str(path), detectron2_options=["MODEL.ROI_BOX_HEAD.FC_DIM", "16"]
    )
    detector = build_detector(config, 20)
    assert detector.last_layers()[2].out_features == 21
