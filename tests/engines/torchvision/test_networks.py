"""Architectures, weights from files, and exports that plain torchvision loads."""

import json
import logging

import pytest
import torch
import torchvision
from runs import trainer
from torch import nn
from torch.testing import assert_close
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn, fasterrcnn_resnet50_fpn
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from lossmix_det.config import ModelConfig, load_config
from lossmix_det.engines import build_detector
from lossmix_det.engines.backbones import BACKBONES
from lossmix_det.engines.export import export_model
from lossmix_det.engines.norms import freeze_norms
from lossmix_det.engines.torchvision.faster_rcnn import build_faster_rcnn as build_model
from lossmix_det.engines.torchvision.networks import ZOO
from lossmix_det.engines.weights import read_weights
from lossmix_det.errors import UserError
from lossmix_det.structures import ImageBatch, Instances, Supervision


@pytest.mark.parametrize("architecture", [*BACKBONES, *(name for name, kind in ZOO.items() if kind is FasterRCNN)])
def test_every_architecture_learns_and_detects(architecture):
    detector = build_detector(ModelConfig(architecture=architecture, roi_samples=16), 3).train()
    batch = ImageBatch(torch.rand(2, 3, 64, 64), ((64, 64), (50, 40)))
    truth = Instances(torch.tensor([[5.0, 5, 30, 30]]), torch.tensor([2]))
    losses = detector.losses(detector.encode(batch), Supervision.full([truth, truth]))
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    learning = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in learning)
    assert len(detector.detect(batch)) == 2


def kinds(model: nn.Module) -> set[type]:
    return {
        type(part) for part in model.modules() if isinstance(part, nn.BatchNorm2d | FrozenBatchNorm2d | nn.GroupNorm)
    }


@pytest.mark.parametrize(
    ("architecture", "norm", "expected"),
    [
        ("slim", "auto", {nn.GroupNorm}),
        ("resnet18_fpn", "auto", {nn.GroupNorm}),
        ("resnet18_fpn", "frozen", {FrozenBatchNorm2d}),
        ("resnet18_fpn", "batch", {nn.BatchNorm2d}),
        ("fasterrcnn_resnet50_fpn", "auto", {nn.BatchNorm2d}),
        ("fasterrcnn_mobilenet_v3_large_fpn", "frozen", {FrozenBatchNorm2d}),
    ],
)
def test_the_norm_is_the_one_asked_for(architecture, norm, expected):
    assert kinds(build_model(ModelConfig(architecture=architecture, norm=norm), 3)) == expected


@pytest.mark.parametrize(
    ("architecture", "stages", "learning"),
    [
        ("slim", 0, set()),
        ("slim", 2, {"layer2", "layer3"}),
        ("slim", 4, {"conv1", "bn1", "layer1", "layer2", "layer3"}),
        ("resnet18_fpn", 1, {"layer4"}),
        ("resnet18_fpn", 5, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
        ("fasterrcnn_resnet50_fpn", 3, {"layer2", "layer3", "layer4"}),
        ("fasterrcnn_mobilenet_v3_large_fpn", 1, {"13", "14", "15", "16"}),
        ("fasterrcnn_mobilenet_v3_large_fpn", 6, {str(index) for index in range(17)}),
    ],
)
def test_only_the_last_stages_learn_if_so_wanted(architecture, stages, learning):
    model = build_model(ModelConfig(architecture=architecture, trainable_layers=stages, norm="batch"), 3)
    names = {name.split(".")[0] for name, p in model.backbone.body.named_parameters() if p.requires_grad}
    assert names == learning
    assert all(parameter.requires_grad for parameter in model.backbone.fpn.parameters())


# ---------------------------------------------------------------------------------------------- weights


def test_weights_of_a_classifier_go_into_the_backbone(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    classifier = torchvision.models.resnet18(weights=None)
    torch.save(classifier.state_dict(), tmp_path / "r18.pth")
    model = build_model(ModelConfig(architecture="resnet18_fpn", weights=str(tmp_path / "r18.pth")), 3)
    assert_close(model.backbone.body.layer3[0].conv1.weight, classifier.layer3[0].conv1.weight)
    assert kinds(model) == {FrozenBatchNorm2d}
    assert not model.backbone.body.conv1.weight.requires_grad
    assert "not in the file" in caplog.text
    assert "unused (2): backbone.body.fc.bias, backbone.body.fc.weight" in caplog.text


def test_a_head_of_another_number_of_classes_is_replaced_and_reported(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    stock = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    torch.save(stock.state_dict(), tmp_path / "coco.pth")
    config = ModelConfig(architecture="fasterrcnn_resnet50_fpn", weights=str(tmp_path / "coco.pth"))
    model = build_model(config, 20)
    assert model.roi_heads.box_predictor.cls_score.weight.shape == (21, 1024)
    assert_close(model.roi_heads.box_head.fc6.weight, stock.roi_heads.box_head.fc6.weight)
    assert_close(model.backbone.fpn.inner_blocks[0][0].weight, stock.backbone.fpn.inner_blocks[0][0].weight)
    assert "of another shape, left fresh (4): roi_heads.box_predictor.bbox_pred.bias" in caplog.text


def test_the_class_head_is_kept_where_it_fits(tmp_path):
    stock = fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None, num_classes=4)
    torch.save({"model": stock.state_dict()}, tmp_path / "m.pth")
    config = ModelConfig(architecture="fasterrcnn_mobilenet_v3_large_fpn", weights=str(tmp_path / "m.pth"))
    head = build_model(config, 3).roi_heads.box_predictor.cls_score
    assert_close(head.weight, stock.roi_heads.box_predictor.cls_score.weight)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="tensors fit this architecture; is it of another network"):
        build_model(ModelConfig(weights=str(tmp_path / "x.pth")), 3)


def test_a_name_that_is_neither_file_nor_torchvision_is_refused():
    with pytest.raises(UserError, match="'ResNet50_Weigths.V1' is neither a file nor a torchvision name"):
        read_weights("ResNet50_Weigths.V1")


def test_a_torchvision_name_is_fetched_through_torchvision(monkeypatch):
    state = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: state)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)
    model = build_model(ModelConfig(architecture="resnet18_fpn", weights="ResNet18_Weights.IMAGENET1K_V1"), 3)
    assert_close(model.backbone.body.conv1.weight, state["conv1.weight"])


def test_weights_that_cannot_be_fetched_name_the_address(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"could not be downloaded .*https://download.pytorch.org/models/resnet18"):
        read_weights("ResNet18_Weights.IMAGENET1K_V1")


def test_a_checkpoint_of_ours_gives_its_average(tmp_path):
    trainer(tmp_path, "train.steps=2", "ema.decay=0.5").train()
    path = tmp_path / "checkpoints" / "step_0000002.pt"
    content = torch.load(path, weights_only=True)
    state = read_weights(str(path))
    name = "roi_heads.box_head.fc6.weight"
    assert_close(state[name], content["ema"][name])
    assert not torch.equal(state[name], content["student"][name])


# ---------------------------------------------------------------------------------------------- exports


def plain_slim(about: dict) -> FasterRCNN:
    """The slim model out of torchvision's parts alone, as docs/export.md shows it."""
    body = torchvision.models.resnet18(weights=None, norm_layer=lambda channels: nn.GroupNorm(32, channels))
    layers = {"layer1": "0", "layer2": "1", "layer3": "2"}
    backbone = BackboneWithFPN(body, layers, [64, 128, 256], 64)
    return FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(((14,), (24,), (40,), (64,)), ((0.5, 1.0, 2.0),) * 4),
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_test=150,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], output_size=7, sampling_ratio=1),
        box_head=TwoMLPHead(64 * 49, 256),
        box_predictor=FastRCNNPredictor(256, about["num_classes"]),
        min_size=about["min_size"],
        max_size=about["max_size"],
        box_score_thresh=about["box_score_thresh"],
    )


def plain_resnet18(about: dict) -> FasterRCNN:
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    return FasterRCNN(backbone, about["num_classes"], min_size=about["min_size"], max_size=about["max_size"])


PLAIN = [("slim", "auto", plain_slim), ("resnet18_fpn", "frozen", plain_resnet18)]


@pytest.mark.parametrize(("architecture", "norm", "plain"), PLAIN)
def test_an_export_gives_the_same_detections_in_plain_torchvision(tmp_path, architecture, norm, plain):
    torch.manual_seed(0)
    overrides = [f"model.architecture={architecture}", f"model.norm={norm}", "model.score_threshold=0.05"]
    config = load_config(None, overrides)
    detector = build_detector(config.model, 3)
    export_model(detector, config, ["a", "b", "c"], tmp_path / "model.pth")
    about = json.loads((tmp_path / "model.json").read_text())
    assert about["classes"] == ["a", "b", "c"]
    model = plain(about).eval()
    model.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    image = torch.rand(3, 96, 128)
    with torch.no_grad():
        theirs = model([image])[0]
    ours = detector.detect(ImageBatch(image[None], ((96, 128),)))[0]
    assert len(ours) > 0
    assert_close(ours.boxes, theirs["boxes"], rtol=1e-4, atol=1e-3)
    assert_close(ours.scores, theirs["scores"], rtol=1e-5, atol=1e-5)
    assert_close(ours.classes + 1, theirs["labels"])


def test_weights_of_a_mobilenet_classifier_go_into_the_backbone(tmp_path):
    classifier = torchvision.models.mobilenet_v3_large(weights=None)
    torch.save(classifier.state_dict(), tmp_path / "m.pth")
    config = ModelConfig(architecture="fasterrcnn_mobilenet_v3_large_fpn", weights=str(tmp_path / "m.pth"))
    body = build_model(config, 3).backbone.body
    assert_close(body["4"].block[0][0].weight, classifier.features[4].block[0][0].weight)


def test_a_norm_that_an_architecture_does_not_have_is_refused():
    with pytest.raises(UserError, match="has no variant with model.norm=group"):
        build_model(ModelConfig(architecture="fasterrcnn_resnet50_fpn", norm="group"), 3)


def test_frozen_norms_reach_the_box_head():
    model = build_model(ModelConfig(architecture="fasterrcnn_resnet50_fpn_v2", norm="frozen"), 3)
    assert kinds(model) == {FrozenBatchNorm2d}


@pytest.mark.parametrize(("norm", "resolved"), [("auto", "group"), ("batch", "batch"), ("frozen", "frozen")])
def test_an_export_names_the_norm_that_was_built(tmp_path, norm, resolved):
    config = load_config(None, [f"model.norm={norm}"])
    export_model(build_detector(config.model, 3), config, ["a", "b", "c"], tmp_path / "model.pth")
    assert json.loads((tmp_path / "model.json").read_text())["norm"] == resolved


def test_strict_weights_leave_nothing_fresh(tmp_path):
    torch.save(build_model(ModelConfig(), 3).state_dict(), tmp_path / "three.pth")
    config = ModelConfig(weights=str(tmp_path / "three.pth"), norm="group")
    build_model(config, 3, strict=True)
    with pytest.raises(UserError, match="is not of this model: roi_heads.box_predictor"):
        build_model(config, 5, strict=True)


def test_unknown_members_of_a_weights_enum_are_refused():
    with pytest.raises(UserError, match="neither a file nor a torchvision name"):
        read_weights("ResNet50_Weights.IMAGENET1K_V3")


@pytest.mark.parametrize("as_file", [False, True])
def test_coco_weights_of_torchvision_are_used_without_eps_and_so_are_their_exports(as_file, tmp_path, monkeypatch):
    stock = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    freeze_norms(stock)  # torchvision builds them so for weights
    for part in stock.modules():
        if isinstance(part, FrozenBatchNorm2d):
            part.running_var.uniform_(1e-5, 3e-5)  # where eps is felt
            part.weight.fill_(1e-3)
    state = {name: value.clone() for name, value in stock.state_dict().items()}
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: dict(state))
    name = "FasterRCNN_ResNet50_FPN_Weights.COCO_V1"
    if as_file:
        name = str(tmp_path / "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth")
        torch.save(state, name)
    config = load_config(None, ["model.architecture=fasterrcnn_resnet50_fpn", f"model.weights={name}"])
    ours = build_detector(config.model, 90)
    export_model(ours, config, [str(number) for number in range(90)], tmp_path / "model.pth")
    exported = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    exported.load_state_dict(torch.load(tmp_path / "model.pth"))
    pixels = torch.rand(1, 3, 64, 64)
    with_eps = stock.backbone(pixels)["0"]
    overwrite_eps(stock, 0.0)  # what torchvision does where it loads these weights itself
    expected = stock.backbone(pixels)["0"]
    assert (with_eps - expected).abs().max() > 0.01 * expected.abs().max()
    for model in (ours.model, exported):
        assert_close(model.backbone(pixels)["0"], expected, rtol=1e-3, atol=1e-6)
