"""Networks of timm as backbones: levels, pixels, norms, stages, and what is refused. Held against plain timm."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from runs import ROOT, trainer
from torch import nn
from torch.testing import assert_close

from lossmix_det.config import ModelConfig, load_config
from lossmix_det.engines import build_detector, to_device
from lossmix_det.engines.export import export_model
from lossmix_det.engines.timm_body import RATHER_FROZEN, TimmBody
from lossmix_det.errors import UserError
from lossmix_det.evaluation import Predictor
from lossmix_det.structures import ImageBatch, Instances, Supervision

timm = pytest.importorskip("timm", reason="timm is not installed")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SMALL = {"fpn_channels": 16, "roi_samples": 16}
LEVELS = {"0": 4, "1": 8, "2": 16, "3": 32}


def build(name: str, **settings):
    return build_detector(ModelConfig(architecture=f"timm/{name}", **{**SMALL, **settings}), 3).train()


def images(*sizes: tuple[int, int]) -> ImageBatch:
    canvas = torch.rand(len(sizes), 3, 96, 128, generator=torch.Generator().manual_seed(3))
    batch = ImageBatch(canvas, sizes)
    return ImageBatch(torch.where(batch.valid(), canvas, 0.0), sizes)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_resnet"])
def test_levels_are_timms_own_features_of_pixels_normalised_as_timm_says(name):
    detector = build(name).eval()
    plain = timm.create_model(name, features_only=True).eval()
    plain.load_state_dict(detector.model.backbone.body.net.state_dict())
    about = timm.get_pretrained_cfg(name)
    batch = images((96, 128))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (about.mean, about.std))
    with torch.no_grad():
        expected = plain((batch.pixels - mean) / std)[-4:]
        found = detector.model.backbone.body(detector.normalise(batch).tensors)
    assert [tuple(level.shape[2:]) for level in found.values()] == [(24, 32), (12, 16), (6, 8), (3, 4)]
    for mine, theirs in zip(found.values(), expected, strict=True):
        assert_close(mine, theirs, **CLOSE)


def test_mean_and_deviation_differ_from_network_to_network():
    assert build("tf_efficientnet_lite0").model.transform.image_mean == [0.5, 0.5, 0.5]
    assert build("test_resnet").model.transform.image_mean == list(timm.get_pretrained_cfg("test_resnet").mean)
    assert build("convnext_atto").model.transform.image_std == [0.229, 0.224, 0.225]


def test_channels_that_come_last_are_put_first():
    body = TimmBody("test_mambaout", LEVELS, "x")
    found = body(torch.rand(1, 3, 64, 96))
    assert [tuple(level.shape) for level in found.values()] == [
        (1, channels, 64 // stride, 96 // stride)
        for channels, stride in zip((16, 32, 48, 64), LEVELS.values(), strict=True)
    ]


@pytest.mark.slow
def test_windows_take_images_of_any_size():
    body = TimmBody("swin_tiny_patch4_window7_224", LEVELS, "x").eval()
    with torch.no_grad():
        assert body(torch.rand(1, 3, 96, 160))["3"].shape == (1, 768, 3, 5)


@pytest.mark.slow
def test_what_a_network_keeps_for_evaluation_is_not_that_of_old_weights():
    """TinyViT remembers its attention biases until it is put into training mode, which a teacher never is."""
    body = TimmBody("tiny_vit_5m_224", LEVELS, "x").eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        body(image)
        for name, value in body.named_parameters():
            if "attention_biases" in name:
                value.normal_()
        found = body(image)
        expected = body.train().eval()(image)
    assert_close(found, expected, rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"architecture": "timm/test_vit"},
            "test_vit has no feature pyramid: its features have strides 16, 16, 16, and 4",
        ),
        ({"architecture": "timm/levit_128s"}, "strides 16, 32, 64, and 4, 8, 16, 32 are needed; use a network with"),
        ({"architecture": "timm/convnext_tini"}, r"no network 'convnext_tini'; did you mean convnext_tiny or "),
        ({"architecture": "timm/qqqqqq"}, r"no network 'qqqqqq'; timm.list_models\(\) in Python lists them"),
        ({"architecture": "timm/test_coatnet"}, "test_coatnet: it cannot take images of any size"),
        # Its table of places ends at 224 pixels.
        ({"architecture": "timm/mvitv2_tiny"}, "mvitv2_tiny: it cannot take images of any size"),
        ({"architecture": "timm/test_resnet.none"}, "Invalid pretrained tag"),
        (
            {"architecture": "timm/test_resnet", "norm": "group"},
            "no variant with model.norm=group; use frozen or batch",
        ),
        ({"architecture": "timm/test_convnext", "norm": "frozen"}, "test_convnext has no BatchNorm; leave it at auto"),
        ({"architecture": "timm/ghostnet_050", "drop_path": 0.1}, "timm cannot build it so .*drop_path_rate"),
        ({"architecture": "convnext_tiny"}, "is not one of slim, .*timm/<a name of timm's>"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused_in_one_sentence(settings, message):
    with pytest.raises(UserError, match=message) as error:
        build_detector(ModelConfig(**settings), 3)
    assert "\n" not in str(error.value)


def test_norms_that_timm_cannot_freeze_are_refused_or_learn_where_the_choice_is_ours(caplog):
    with pytest.raises(UserError, match=r"norms that timm cannot freeze \(BatchNorm1d\)"):
        TimmBody("nextvit_small", LEVELS, "x", "frozen")
    with caplog.at_level("INFO"):
        body = TimmBody("nextvit_small", LEVELS, "x", RATHER_FROZEN)
    assert "x has norms that timm cannot freeze (BatchNorm1d), so all of them learn" in caplog.text
    assert sum(isinstance(part, nn.BatchNorm2d) for part in body.modules()) > 10
    assert not any("Frozen" in type(part).__name__ for part in body.modules())


def test_all_five_stages_are_all_that_there_is():
    """darknet17 has features of stride 1, and learns them too."""
    body = TimmBody("darknet17", LEVELS, "x")
    body.freeze_stages(5)
    assert all(value.requires_grad for value in body.parameters())
    body.freeze_stages(4)
    learning = {name.split(".")[0] for name, value in body.net.named_parameters() if value.requires_grad}
    assert learning == {"stages_1", "stages_2", "stages_3", "stages_4"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.drop_path=0.1"], "drop_path=0.1 has no effect with model.architecture=slim; it is for timm"),
        (["model.fpn_channels=32"], "fpn_channels=32 has no effect with model.architecture=slim"),
        (["model.engine=detectron2", "model.drop_path=0.1"], "set MODEL.TIMM.DROP_PATH"),
        (
            ["model.architecture=timm/test_resnet", "model.detector=fcos", "model.fpn_channels=48"],
            "fpn_channels=48 must be a multiple of 32 with model.detector=fcos",
        ),
        (["model.engine=detectron2", "model.architecture=timm/test_resnet"], "build_timm_fpn_backbone and MODEL.TIMM"),
    ],
)
def test_settings_that_would_not_be_read_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        load_config(None, words)


def test_without_timm_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        UserError, match="architecture=timm/convnext_tiny needs timm, .* install it by: pip install timm"
    ):
        build("convnext_tiny")


# ------------------------------------------------------------------------------------------------------- norms


def test_frozen_norms_compute_what_the_norms_did_in_evaluation():
    """With timm's own eps (0.001 for this one) and activation, which torchvision's frozen norm would lose."""
    torch.manual_seed(0)
    learning = TimmBody("tf_efficientnet_lite0", LEVELS, "x", "batch").eval()
    frozen = TimmBody("tf_efficientnet_lite0", LEVELS, "x", "frozen").train()
    state = learning.state_dict()
    generator = torch.Generator().manual_seed(1)
    for name, value in state.items():
        if name.endswith(("running_mean", "bias")):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    learning.load_state_dict(state)
    frozen.load_state_dict(state, strict=False)
    pixels = torch.randn(1, 3, 64, 96, dtype=torch.float64)  # so that rounding hides no difference in eps
    with torch.no_grad():
        for mine, theirs in zip(frozen.double()(pixels).values(), learning.double()(pixels).values(), strict=True):
            assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "norm", "expected"),
    [
        *[("test_efficientnet", "auto", "batch"), ("test_efficientnet", "frozen", "frozen")],
        *[("test_convnext", "auto", "layer"), ("resnet50_gn", "auto", "group")],
    ],
)
def test_a_detector_names_the_norm_that_it_was_built_with(name, norm, expected):
    assert build(name, norm=norm).norm == expected


# ------------------------------------------------------------------------------------------------------ stages


@pytest.mark.parametrize(
    ("name", "learning", "expected"),
    [
        ("test_efficientnet", 0, set()),
        ("tf_efficientnet_lite0", 1, {"blocks.5", "blocks.6"}),
        ("tf_efficientnet_lite0", 3, {"blocks.2", "blocks.3", "blocks.4", "blocks.5", "blocks.6"}),
        ("tf_efficientnet_lite0", 5, {"conv_stem", *(f"blocks.{index}" for index in range(7))}),
        ("test_convnext", 3, {"stages_1", "stages_2", "stages_3"}),
        ("test_convnext", 4, {"stem_0", "stem_1", "stages_0", "stages_1", "stages_2", "stages_3"}),
        ("test_resnet", 4, {"layer1", "layer2", "layer3", "layer4"}),
    ],
)
def test_only_the_last_stages_learn_if_so_wanted(name, learning, expected):
    body = build(name, trainable_layers=learning, norm="auto" if "convnext" in name else "frozen").model.backbone.body
    names = {name for name, value in body.net.named_parameters() if value.requires_grad}
    found = {".".join(name.split(".")[: 2 if name.startswith("blocks") else 1]) for name in names}
    assert found == expected


def test_a_network_of_branches_offers_its_pyramid_alone_for_mixing(tmp_path):
    with pytest.raises(UserError, match=r"mixing.stages='2' is not one of 0, fpn"):
        trainer(
            tmp_path,
            *("model.architecture=timm/hrnet_w18_small", "model.fpn_channels=16", "mixing.mixer=manifold"),
            "mixing.stages=[2]",
        )


# ----------------------------------------------------------------------------------------------------- training


def truths(batch: ImageBatch) -> Supervision:
    truth = Instances(torch.tensor([[5.0, 5, 60, 60]]), torch.tensor([1]))
    return Supervision.full([truth] * len(batch))


def test_drop_path_leaves_out_branches_in_training_alone():
    detector = build("test_convnext", drop_path=0.9)
    inputs = detector.normalise(images((96, 128))).tensors
    body = detector.model.backbone.body
    torch.manual_seed(0)
    first, second = (body.train()(inputs)["3"] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(body.eval()(inputs)["3"], body(inputs)["3"])
    still = build("test_convnext").model.backbone.body
    assert torch.equal(still(inputs)["3"], still(inputs)["3"])


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "hrnet_w18_small"])
@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet", "fcos"])
def test_everything_that_learns_gets_a_gradient(name, detector):
    """DDP waits for each of them."""
    samples = SMALL if detector == "faster_rcnn" else {"fpn_channels": 32, "roi_samples": None}
    model = build(name, detector=detector, **samples)
    batch = images((96, 128), (90, 70))
    sum(model.losses(model.encode(batch), truths(batch)).values()).backward()
    without = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert without == []


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_convnext"])
def test_the_memory_layout_changes_no_loss(name):
    norm = "frozen" if "lite0" in name else "auto"
    detector, batch = build(name, norm=norm), images((96, 128), (90, 70))
    batch = ImageBatch(batch.pixels, batch.sizes, (1, 2))
    losses = []
    for channels_last in (False, True):
        to_device(detector, torch.device("cpu"), channels_last)
        losses.append(detector.losses(detector.encode(batch), truths(batch)))
    for name, value in losses[0].items():
        assert_close(losses[1][name], value, rtol=1e-4, atol=1e-4)


def test_few_canvases_give_the_losses_of_images_that_pass_alone():
    """Sides stay multiples of 32, so that convolutions that pad by the size of the image pad all images alike."""
    detector = build("tf_efficientnet_lite0", norm="frozen").eval()
    wide, tall = (
        ImageBatch(torch.rand(1, 3, 64, 256), ((64, 256),)),
        ImageBatch(torch.rand(1, 3, 256, 64), ((256, 64),)),
    )
    pixels = torch.zeros(2, 3, 256, 256)
    pixels[0, :, :64], pixels[1, :, :, :64] = wide.pixels[0], tall.pixels[0]
    both = ImageBatch(pixels, ((64, 256), (256, 64)))
    encoding = detector.encode(both)
    assert {canvas.inputs.tensors.shape[2:] for canvas in encoding.canvases} == {(64, 256), (256, 64)}
    for canvas, alone in zip(encoding.canvases, (wide, tall), strict=True):
        expected = detector.encode(alone).canvases[0]
        assert_close(canvas.features["0"], expected.features["0"], rtol=1e-4, atol=1e-5)


ADAPTING = [
    *("data.target=[shapes_clipart_train]", "data.views=[weak,strong]", "ema.decay=0.9", "train.steps=4"),
    *("adaptation.burn_in_steps=2", "pseudo_labels.score=0.0", "mixing.probability=1.0", "model.fpn_channels=16"),
]
FCOS = ("model.detector=fcos", "model.roi_samples=null", "model.fpn_channels=32")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["model.architecture=timm/test_efficientnet", "mixing.mixer=sage", "mixing.saliency=gradient"],
        ["model.architecture=timm/test_convnext", "mixing.mixer=manifold", "mixing.stages=['1','3',fpn]"],
        ["model.architecture=timm/test_convnext", "alignment.parts=[image,instance]", "train.precision=bf16"],
        ["model.architecture=timm/test_efficientnet", *FCOS],
    ],
    ids=["gradient saliency", "manifold", "alignment in bf16", "fcos"],
)
def test_a_network_of_timm_is_trained_and_adapted(tmp_path, words):
    it = trainer(tmp_path, *ADAPTING, *words)
    assert it.train()
    assert it.state.skipped_steps == 0


# ------------------------------------------------------------------------------------------------------ exports


def plain(folder, detector: str) -> nn.Module:
    """The code of docs/export.md, as it stands there."""
    page = (ROOT / "docs" / "export.md").read_text()
    section = page[page.index("### `timm/…`") :]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    code = code.replace("export/student", str(folder / "student"))
    if detector != "faster_rcnn":
        kind = {"retinanet": "RetinaNet", "fcos": "FCOS"}[detector]
        code = (
            code.replace("FasterRCNN", kind)
            .replace("LastLevelMaxPool()", P6P7)
            .replace("LastLevelMaxPool", "LastLevelP6P7")
        )
    space: dict[str, object] = {}
    exec(code, space)  # noqa: S102 - of our own page
    return space["model"].eval()


P6P7 = 'LastLevelP6P7(about["fpn_channels"], about["fpn_channels"])'


@pytest.mark.parametrize(
    ("name", "detector", "norm"),
    [
        ("tf_efficientnet_lite0", "faster_rcnn", "frozen"),
        ("test_resnet", "faster_rcnn", "batch"),
        ("test_convnext", "retinanet", "auto"),
        ("test_efficientnet", "fcos", "frozen"),
        ("dla46_c", "faster_rcnn", "frozen"),  # timm numbers its features from 1
        ("resnet50_gn", "faster_rcnn", "auto"),
        ("nf_regnet_b0", "retinanet", "auto"),  # without any norm
    ],
)
def test_an_export_gives_the_same_detections_in_plain_torchvision_and_timm(tmp_path, name, detector, norm):
    torch.manual_seed(0)
    words = [f"model.architecture=timm/{name}", f"model.detector={detector}", f"model.norm={norm}"]
    config = load_config(None, [*words, "model.fpn_channels=32", "model.score_threshold=0.0"])
    ours = build_detector(config.model, 3).eval()
    export_model(ours, config, ["a", "b", "c"], tmp_path / "student.pth")
    about = json.loads((tmp_path / "student.json").read_text())
    assert about["image_mean"] == list(timm.get_pretrained_cfg(name).mean)
    theirs = plain(tmp_path, detector)
    part = getattr(theirs, "roi_heads", theirs)
    part.score_thresh, part.detections_per_img = about["box_score_thresh"], about["box_detections_per_img"]
    image = torch.rand(3, 96, 256)
    with torch.no_grad():
        wanted = theirs([image])[0]
    found = ours.detect(ImageBatch(image[None], ((96, 256),)))[0]
    known = wanted["labels"] > 0
    assert len(found) > 0
    assert_close(found.boxes, wanted["boxes"][known], rtol=1e-4, atol=1e-3)
    assert_close(found.scores, wanted["scores"][known], **CLOSE)
    assert_close(found.classes + 1, wanted["labels"][known])
    again = Predictor.load(tmp_path / "student.pth").detector
    for (key, value), (_, other) in zip(ours.exported().items(), again.exported().items(), strict=True):
        assert torch.equal(value, other), key
    with torch.no_grad():
        for mine, other in zip(*(each.model.backbone(image[None]).values() for each in (ours, again)), strict=True):
            assert_close(mine, other, rtol=1e-3, atol=1e-3)
