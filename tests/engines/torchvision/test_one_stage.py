"""RetinaNet and FCOS in runs: rules, adaptation, resuming, weights, exports that plain torchvision loads, refusals."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
import torchvision
from adapting import ADAPT
from runs import assert_same_tensors, last_checkpoint, trainer
from stock import OneStage
from torch import nn
from torch.testing import assert_close
from torchvision.models.detection import fcos_resnet50_fpn, retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead
from torchvision.ops import FrozenBatchNorm2d

from lossmix_det.config import ModelConfig, load_config
from lossmix_det.engines import build_detector
from lossmix_det.engines.export import export_model
from lossmix_det.engines.torchvision.fcos import build_fcos
from lossmix_det.engines.torchvision.retinanet import build_retinanet
from lossmix_det.errors import UserError
from lossmix_det.structures import ImageBatch

pytestmark = pytest.mark.slow

DETECTORS = ["retinanet", "fcos"]
LABELS_ALL = ["model.score_threshold=0.001", "pseudo_labels.score=0.001", "pseudo_labels.box_score=0.001"]


def run_of(folder: Path, detector: str, *overrides: str, resume: bool = False):
    settings = [f"model.detector={detector}", "model.roi_samples=null"]
    return trainer(folder, *settings, *overrides, resume=resume)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


# --------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("rule", ["lossmix", "lossmix_instance", "union", "own"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_every_rule_teaches(tmp_path, detector, rule):
    """Of one batch, mixed alike each time, the loss falls."""
    it = run_of(tmp_path, detector, f"mixing.rule={rule}", "mixing.probability=1.0")
    batch, _ = next(iter(it.streams.batches(0, lambda: False, set())))
    values = [it.learn(batch)["loss"] for _ in range(12)]
    assert all(math.isfinite(value) for value in values)
    assert values[-1] < 0.8 * values[0]


@pytest.mark.parametrize("detector", DETECTORS)
def test_adaptation_runs_from_burn_in_to_its_end(tmp_path, detector):
    """Hard pseudo-labels and image alignment, with the losses of all kinds of images."""
    steps = ["train.steps=7", "adaptation.burn_in_steps=3", "mixing.probability=0.5"]
    it = run_of(tmp_path, detector, *ADAPT, *steps, *LABELS_ALL, "alignment.parts=[image]")
    assert it.train()
    assert it.state.adapting
    rows = rows_of(tmp_path)
    burn_in, adaptation = rows[:3], rows[3:]
    assert not any(row["alignment/image"] for row in burn_in)
    for row in adaptation:
        assert float(row["pseudo/per_image"]) > 0
        assert math.isfinite(float(row["loss"]))
        assert float(row["alignment/image"]) > 0
    for name in it.state.detector.loss_names:
        assert any(float(row[f"{kind}/{name}"] or 0) > 0 for row in adaptation for kind in ("target", "mixed"))
    student, teacher = it.state.detector.state_dict(), it.state.teacher.module.state_dict()
    assert any(not torch.equal(student[name], teacher[name]) for name in student)


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_run_in_two_parts_ends_where_a_whole_one_ends(tmp_path, detector):
    settings = [*ADAPT, *LABELS_ALL, "train.steps=6", "adaptation.burn_in_steps=2", "mixing.probability=1.0"]
    settings.append("alignment.parts=[image]")
    run_of(tmp_path / "whole", detector, *settings).train()
    first = run_of(tmp_path / "parts", detector, *settings)
    learn = first.learn

    def learn_and_stop(batch):
        first.stopping = first.state.step == 3
        return learn(batch)

    first.learn = learn_and_stop
    assert not first.train()
    assert run_of(tmp_path / "parts", detector, *settings, resume=True).train()
    ends = [last_checkpoint(tmp_path / name) for name in ("whole", "parts")]
    for end in ends:
        end.pop("config")
    assert ends[0]["step"] == 6
    assert_same_tensors(*ends)


@pytest.mark.parametrize("left_out", ["class", "box"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_a_loss_that_is_left_out_leaves_its_part_as_it_was(tmp_path, detector, left_out):
    it = run_of(tmp_path, detector, "train.steps=2", f"train.loss_weights={{source/{left_out}: 0}}")
    frozen = {id(p) for part in it.state.detector.taught_only_by([left_out]) for p in part.parameters()}
    before = {name: p.detach().clone() for name, p in it.state.detector.named_parameters()}
    it.train()
    after = dict(it.state.detector.named_parameters())
    alike = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert frozen
    assert {name for name, parameter in after.items() if id(parameter) in frozen} <= alike
    assert len(alike) < len(after) / 2


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["alignment.parts=[instance]"],
            r"alignment.parts=\[instance\] needs a detector that scores proposals, such as model.detector=faster_rcnn; "
            r"(RetinaNet|FCOS) is none, so use alignment.parts=\[image\]",
        ),
        (
            ["pseudo_labels.kind=soft", "mixing.rule=lossmix"],
            "pseudo_labels.kind=soft needs a detector that scores proposals, such as model.detector=faster_rcnn; "
            "(RetinaNet|FCOS) is none, so use pseudo_labels.kind=hard",
        ),
    ],
)
@pytest.mark.parametrize("detector", DETECTORS)
def test_what_needs_proposals_is_refused_at_the_start(tmp_path, detector, settings, message):
    with pytest.raises(UserError, match=message):
        run_of(tmp_path, detector, *ADAPT, "adaptation.burn_in_steps=2", *settings)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.detector=fcos", "model.roi_samples=64"],
            "model.roi_samples=64 has no effect with model.detector=fcos",
        ),
        (["model.detector=retinanet", "model.rpn_samples=9"], "rpn_samples=9 has no effect.*learns from every anchor"),
        (
            ["model.engine=detectron2", "model.detector=fcos"],
            "model.detector=fcos has no effect with model.engine=detectron2; set model.engine=torchvision",
        ),
    ],
)
def test_settings_without_effect_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(None, overrides)


@pytest.mark.parametrize(
    ("build", "architecture", "message"),
    [
        (build_retinanet, "fcos_resnet50_fpn", "is a FCOS, not a RetinaNet; set model.detector to match"),
        (build_fcos, "fasterrcnn_resnet50_fpn", "is a FasterRCNN, not a FCOS; set model.detector to match"),
    ],
)
def test_a_whole_network_of_another_detector_is_refused(build, architecture, message):
    with pytest.raises(UserError, match=message):
        build(ModelConfig(architecture=architecture), 3)


# ------------------------------------------------------------------------------------------------ weights and norms


def kinds(model: nn.Module) -> set[type]:
    norms = nn.BatchNorm2d | FrozenBatchNorm2d | nn.GroupNorm
    return {type(part) for part in model.modules() if isinstance(part, norms)}


@pytest.mark.parametrize(
    ("architecture", "norm", "expected", "name"),
    [
        ("slim", "auto", nn.GroupNorm, "group"),
        ("resnet18_fpn", "frozen", FrozenBatchNorm2d, "frozen"),
        ("resnet18_fpn", "batch", nn.BatchNorm2d, "batch"),
        ("fcos_resnet50_fpn", "auto", nn.BatchNorm2d, "batch"),
        ("fcos_resnet50_fpn", "frozen", FrozenBatchNorm2d, "frozen"),
    ],
)
def test_the_norm_is_the_backbones_whatever_the_heads_have(architecture, norm, expected, name):
    detector = build_detector(ModelConfig(detector="fcos", architecture=architecture, norm=norm), 3)
    assert kinds(detector.model.backbone) == {expected}
    assert kinds(detector.model.head) == {nn.GroupNorm}
    assert detector.norm == name


def test_weights_under_torchvisions_older_names_are_loaded(tmp_path):
    """Heads of RetinaNet: its COCO weights name the layers conv.0, conv.2, …; its network conv.0.0, conv.1.0, …"""
    stock = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    state = {}
    for name, value in stock.state_dict().items():
        head, conv, rest = name.partition("_head.conv.")
        if conv:
            index, _, kind = rest.split(".")
            name = f"{head}{conv}{2 * int(index)}.{kind}"
        state[name] = value
    assert "head.regression_head.conv.6.bias" in state
    torch.save(state, tmp_path / "coco.pth")
    config = ModelConfig(architecture="retinanet_resnet50_fpn", weights=str(tmp_path / "coco.pth"))
    model = build_retinanet(config, 3)
    for name in ("classification_head", "regression_head"):
        ours, theirs = getattr(model.head, name).conv, getattr(stock.head, name).conv
        assert_same_tensors(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert model.head.classification_head.cls_logits.out_channels == 4 * 9
    build_retinanet(config, 90, strict=True)


def test_weights_of_a_classifier_go_into_the_backbone(tmp_path):
    classifier = torchvision.models.resnet18(weights=None)
    torch.save(classifier.state_dict(), tmp_path / "r18.pth")
    model = build_fcos(ModelConfig(architecture="resnet18_fpn", weights=str(tmp_path / "r18.pth")), 3)
    assert torch.equal(model.backbone.body.layer3[0].conv1.weight, classifier.layer3[0].conv1.weight)
    assert kinds(model.backbone) == {FrozenBatchNorm2d}
    assert not model.backbone.body.conv1.weight.requires_grad


@pytest.mark.parametrize("detector", DETECTORS)
def test_checkpoints_and_exports_of_ours_fill_every_part(tmp_path, detector):
    it = run_of(tmp_path, detector, "train.steps=2", "ema.decay=0.5")
    it.train()
    classes = len(it.state.classes)
    export = torch.load(tmp_path / "export" / "ema.pth", weights_only=True)
    for path in (tmp_path / "checkpoints" / "step_0000002.pt", tmp_path / "export" / "ema.pth"):
        config = ModelConfig(detector=detector, norm="group", weights=str(path))
        loaded = build_detector(config, classes, strict=True)
        assert_same_tensors(dict(loaded.exported()), export)


# ---------------------------------------------------------------------------------------------------------- exports


def slim_pyramid() -> BackboneWithFPN:
    body = torchvision.models.resnet18(weights=None, norm_layer=lambda channels: nn.GroupNorm(32, channels))
    return BackboneWithFPN(body, {"layer1": "0", "layer2": "1", "layer3": "2"}, [64, 128, 256], 64)


def plain_retinanet(outputs: int, **settings) -> RetinaNet:
    """The slim model out of torchvision's parts alone."""
    sizes = ((14, 17, 22), (24, 30, 38), (40, 50, 63), (64, 80, 101))
    head = RetinaNetHead(64, 9, outputs, norm_layer=lambda channels: nn.GroupNorm(32, channels))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 4)
    settings |= {"topk_candidates": 200, "anchor_generator": anchors, "head": head}
    return RetinaNet(slim_pyramid(), outputs, **settings)


def plain_fcos(outputs: int, **settings) -> FCOS:
    anchors = AnchorGenerator(((4,), (8,), (16,), (32,)), ((1.0,),) * 4)
    return FCOS(slim_pyramid(), outputs, anchor_generator=anchors, topk_candidates=200, **settings)


def zoo(build):
    return lambda outputs, **settings: build(weights=None, weights_backbone=None, num_classes=outputs, **settings)


PLAIN = [
    ("retinanet", "slim", "auto", plain_retinanet),
    ("retinanet", "retinanet_resnet50_fpn", "batch", zoo(retinanet_resnet50_fpn)),
    ("retinanet", "resnet50_fpn", "frozen", zoo(retinanet_resnet50_fpn)),
    ("retinanet", "retinanet_resnet50_fpn_v2", "frozen", zoo(retinanet_resnet50_fpn_v2)),
    ("fcos", "slim", "auto", plain_fcos),
    ("fcos", "fcos_resnet50_fpn", "batch", zoo(fcos_resnet50_fpn)),
    ("fcos", "resnet50_fpn", "frozen", zoo(fcos_resnet50_fpn)),
]


@pytest.mark.parametrize(("detector", "architecture", "norm", "plain"), PLAIN)
def test_an_export_gives_the_same_detections_in_plain_torchvision(tmp_path, detector, architecture, norm, plain):
    """Label k + 1 of its detections is our class k; its label 0 is nothing."""
    torch.manual_seed(0)
    overrides = [f"model.detector={detector}", f"model.architecture={architecture}", f"model.norm={norm}"]
    config = load_config(None, [*overrides, "model.score_threshold=0.001"])
    ours = build_detector(config.model, 3)
    OneStage(detector, architecture, ()).prepare(ours)
    export_model(ours, config, ["a", "b", "c"], tmp_path / "model.pth")
    about = json.loads((tmp_path / "model.json").read_text())
    assert (about["detector"], about["num_classes"], about["norm"]) == (detector, 4, norm.replace("auto", "group"))
    settings = {"score_thresh": "box_score_thresh", "nms_thresh": "box_nms_thresh"}
    settings = {name: about[key] for name, key in settings.items()}
    sizes = {name: about[name] for name in ("min_size", "max_size")}
    model = plain(about["num_classes"], detections_per_img=about["box_detections_per_img"], **settings, **sizes).eval()
    model.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    image = torch.rand(3, 96, 128)
    with torch.no_grad():
        theirs = model([image])[0]
    kept = theirs["labels"] > 0
    found = ours.detect(ImageBatch(image[None], ((96, 128),)))[0]
    assert len(found) > 0
    assert_close(found.boxes, theirs["boxes"][kept], rtol=1e-4, atol=1e-3)
    assert_close(found.scores, theirs["scores"][kept], rtol=1e-5, atol=1e-5)
    assert_close(found.classes + 1, theirs["labels"][kept])
