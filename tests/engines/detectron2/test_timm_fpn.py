"""Networks of timm under Detectron2's pyramid, in our engine and in a plain Detectron2 project; keys of one's own."""

from __future__ import annotations

import json
import re

import pytest
import torch
from runs import trainer
from stock import detectron2_inputs, options
from torch.testing import assert_close

from lossmix_det.config import Config, ModelConfig
from lossmix_det.engines import build_detector
from lossmix_det.engines.export import export_model
from lossmix_det.errors import UserError
from lossmix_det.structures import ImageBatch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")
timm = pytest.importorskip("timm", reason="timm is not installed")

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import get_cfg  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402

from lossmix_det.detectron2_plugin import add_timm_config, set_timm_pixels  # noqa: E402
from lossmix_det.engines.detectron2 import cfg as cfg_module  # noqa: E402


def build(*words: object, weights: str = "", **more: object):
    config = ModelConfig(
        engine="detectron2", detectron2_options=[*options("timm", **more), *map(str, words)], weights=weights
    )
    return build_detector(config, 3)


def plain_cfg(**more: object):
    """Of a project that knows nothing of ours but the two functions."""
    cfg = get_cfg()
    add_timm_config(cfg)
    cfg.merge_from_list(options("timm", **more))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def images() -> ImageBatch:
    return ImageBatch(torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0)), ((96, 128),))


def test_both_engines_give_the_features_of_timm_itself():
    """From pixels in Detectron2's range and torchvision's to the same levels, with the same ImageNet weights."""
    ours = build(**{"MODEL.TIMM.NAME": "tf_efficientnet_lite0"}, weights="lite0").eval()
    theirs = build_detector(
        ModelConfig(architecture="timm/tf_efficientnet_lite0", weights="lite0", fpn_channels=16), 3
    ).eval()
    with torch.no_grad():
        found = ours.model.backbone.bottom_up(ours.normalise(images()).tensor)
        expected = theirs.model.backbone.body(theirs.normalise(images()).tensors)
    for mine, other in zip(found.values(), expected.values(), strict=True):
        assert_close(mine, other, rtol=1e-5, atol=1e-4)
    assert list(found) == ["res2", "res3", "res4", "res5"]


def test_colours_mean_and_deviation_are_those_of_the_network():
    cfg = build(**{"MODEL.TIMM.NAME": "test_resnet"}).cfg
    about = timm.get_pretrained_cfg("test_resnet")
    assert cfg.INPUT.FORMAT == "RGB"
    for found, wanted in ((cfg.MODEL.PIXEL_MEAN, about.mean), (cfg.MODEL.PIXEL_STD, about.std)):
        assert found == pytest.approx([255 * value for value in wanted], abs=1e-3)


def test_pixels_that_a_network_was_not_trained_on_are_refused_with_what_to_set():
    message = r"trained on other pixels .* set INPUT.FORMAT: RGB, MODEL.PIXEL_MEAN: \[127.5, 127.5, 127.5\]"
    with pytest.raises(UserError, match=message):
        build("MODEL.PIXEL_MEAN", [100.0, 100.0, 100.0], **{"MODEL.TIMM.NAME": "tf_efficientnet_lite0"})
    with pytest.raises(UserError, match="call set_timm_pixels"):
        build_model(plain_cfg())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"MODEL.TIMM.NAME": "test_vit"}, "MODEL.TIMM.NAME=test_vit has no feature pyramid"),
        ({"MODEL.TIMM.NAME": "test_resnetx"}, "timm has no network 'test_resnetx'; did you mean test_resnet"),
        ({"MODEL.TIMM.NAME": ""}, "needs add_timm_config.* and MODEL.TIMM.NAME"),
        ({"MODEL.TIMM.NORM": "GN"}, "MODEL.TIMM.NORM='GN' is not one of FrozenBN, BN"),
        ({"MODEL.FPN.IN_FEATURES": "['res1']"}, "MODEL.FPN.IN_FEATURES='res1' is not one of res2"),
        ({"MODEL.FPN.IN_FEATURES": "['res2','res3','res4']"}, r"IN_FEATURES=\[.*\] must end in res5"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused(more, message):
    with pytest.raises(UserError, match=message):
        build(**more)


@pytest.mark.parametrize(
    ("name", "freeze_at", "first"),
    [
        *[("test_resnet", 0, "conv1"), ("test_resnet", 1, "layer1"), ("test_resnet", 2, "layer2")],
        *[("test_convnext", 1, "stem_0"), ("test_convnext", 2, "stages_1")],
    ],
)
def test_stages_are_frozen_as_those_of_a_resnet_are(name, freeze_at, first):
    body = build(**{"MODEL.TIMM.NAME": name, "MODEL.BACKBONE.FREEZE_AT": freeze_at}).body()
    learning = [key.split(".")[0] for key, value in body.net.named_parameters() if value.requires_grad]
    assert learning[0] == first


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_norms_are_frozen_or_learn_as_asked(norm):
    detector = build("MODEL.TIMM.NORM", norm)
    kinds = {type(part).__name__ for part in detector.body().modules()}
    assert ("FrozenBatchNormAct2d" in kinds) == (norm == "FrozenBN")
    assert detector.norm == norm


# ----------------------------------------------------------------------------------------------------- weights


def test_a_file_with_timms_names_leaves_nothing_over_but_the_head(tmp_path, caplog):
    classifier = timm.create_model("test_efficientnet")
    torch.save(classifier.state_dict(), tmp_path / "timm.pth")
    with caplog.at_level("INFO"):
        detector = build(weights=str(tmp_path / "timm.pth"))
    stem = detector.body().net.conv_stem.weight
    assert_close(stem, classifier.conv_stem.weight)
    assert "of no use here: bn2.bias, bn2.running_mean" in caplog.text
    assert "blocks" not in caplog.text
    rest = caplog.text.split("the rest is fresh: ")[1].splitlines()[0]
    assert "bottom_up" not in rest


def test_counters_that_are_left_over_are_not_worth_a_word(tmp_path, caplog):
    """A file of features alone, as a backbone of one's own in Detectron2 would save it."""
    detector = build()
    state = {name.partition("net.")[2]: value for name, value in detector.model.state_dict().items() if "net." in name}
    state["bn1.num_batches_tracked"] = torch.tensor(3)
    torch.save(state, tmp_path / "features.pth")
    with caplog.at_level("INFO"):
        build(weights=str(tmp_path / "features.pth"))
    assert "of no use here" not in caplog.text


def test_a_plain_project_starts_from_weights_that_its_configuration_names(caplog):
    cfg = plain_cfg(**{"MODEL.TIMM.NAME": "tf_efficientnet_lite0", "MODEL.TIMM.WEIGHTS": "lite0"})
    set_timm_pixels(cfg)
    with caplog.at_level("INFO"):
        model = build_model(cfg)
    assert "MODEL.TIMM.WEIGHTS=lite0: all 240 tensors of the backbone loaded" in caplog.text
    expected = build(**{"MODEL.TIMM.NAME": "tf_efficientnet_lite0"}, weights="lite0").body().state_dict()
    for name, value in model.backbone.bottom_up.state_dict().items():
        assert torch.equal(value, expected[name])


def test_weights_without_a_place_are_refused():
    config = ModelConfig(engine="detectron2", detectron2_options=options("fpn"), weights="lite0")
    with pytest.raises(UserError, match="weights=lite0 goes with model.architecture=timm/tf_efficientnet_lite0"):
        build_detector(config, 3)


def test_weights_that_only_a_builder_can_have_loaded_are_said(caplog):
    with caplog.at_level("INFO"):
        build(**{"MODEL.TIMM.NAME": "tf_efficientnet_lite0", "MODEL.TIMM.WEIGHTS": "lite0"})
    assert "neither model.weights nor MODEL.WEIGHTS is set: what the backbone's builder loaded is kept" in caplog.text
    assert "random weights" not in caplog.text


def test_random_weights_of_which_some_would_stay_are_warned_of(caplog):
    build()
    name, freeze_at, norm = (plain_cfg().MODEL[part][key] for part, key in PARTS)
    assert f"{name} starts from random weights, of which MODEL.BACKBONE.FREEZE_AT={freeze_at} and " in caplog.text
    assert f"MODEL.TIMM.NORM={norm} keep some as they are; give MODEL.TIMM.WEIGHTS, or set these to" in caplog.text


PARTS = (("TIMM", "NAME"), ("BACKBONE", "FREEZE_AT"), ("TIMM", "NORM"))


def test_what_has_all_weights_needs_not_those_that_the_backbone_began_with(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "began.pth")
    words = {"MODEL.TIMM.NAME": "test_resnet", "MODEL.TIMM.WEIGHTS": str(tmp_path / "began.pth")}
    detector = build(**words)
    torch.save({"model": detector.model.state_dict()}, tmp_path / "whole.pth")
    (tmp_path / "began.pth").unlink()
    config = ModelConfig(
        engine="detectron2", detectron2_options=options("timm", **words), weights=str(tmp_path / "whole.pth")
    )
    again = build_detector(config, 3, strict=True)
    for name, value in detector.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    with pytest.raises(UserError, match="neither a file nor"):
        build_detector(config, 3)


# ----------------------------------------------------------------------------------------------------- exports


def test_a_plain_project_loads_an_export_and_detects_the_same(tmp_path):
    detector = build().eval()
    detector.model.roi_heads.box_predictor.test_score_thresh = 0.0
    detector.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    config = Config()
    config.model = ModelConfig(engine="detectron2")
    export_model(detector, config, ["a", "b", "c"], tmp_path / "x.pth")
    cfg = get_cfg()
    add_timm_config(cfg)
    cfg.merge_from_file(str(tmp_path / "x.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    plain = build_model(cfg).eval()
    DetectionCheckpointer(plain).load(str(tmp_path / "x.pth"))
    with torch.no_grad():
        stock = plain(detectron2_inputs(detector, images()))[0]["instances"]
    found = detector.detect(images())[0]
    assert len(found) > 0
    assert_close(found.boxes, stock.pred_boxes.tensor, rtol=0, atol=1e-3)
    assert_close(found.scores, stock.scores, rtol=1e-5, atol=1e-5)


def test_exports_of_other_networks_do_not_hear_of_timm(tmp_path):
    config = Config()
    config.model = ModelConfig(engine="detectron2", detectron2_options=options("fpn"))
    export_model(build_detector(config.model, 3), config, ["a", "b", "c"], tmp_path / "x.pth")
    assert "TIMM" not in (tmp_path / "x.yaml").read_text()
    get_cfg().merge_from_file(str(tmp_path / "x.yaml"))


# -------------------------------------------------------------------------------------------- keys of one's own


def test_a_module_adds_keys_to_detectron2s_configuration(tmp_path, monkeypatch):
    def add_mine(cfg):
        cfg.MODEL.MINE = type(cfg)({"DEPTH": 3})

    words = ["MODEL.MINE.DEPTH", 5]
    message = "Non-existent .*key: MODEL.MINE.*data.imports adds keys of your own by NEW_KEYS"
    with pytest.raises(UserError, match=message):
        build(*words)
    (tmp_path / "mine.yaml").write_text("MODEL: {MINE: {DEPTH: 3}}")
    with pytest.raises(UserError, match=message):
        build_detector(ModelConfig(engine="detectron2", detectron2_config=str(tmp_path / "mine.yaml")), 3)
    monkeypatch.setitem(cfg_module.NEW_KEYS, "mine", add_mine)
    assert build(*words).cfg.MODEL.MINE.DEPTH == 5


def test_a_file_with_its_publishers_names_starts_all_of_the_body(tmp_path):
    """Swin's authors put what joins two stages at the end of the first, timm at the start of the second."""
    name = "swin_tiny_patch4_window7_224"
    state = timm.create_model(name).state_dict()
    pattern = re.compile(r"layers\.(\d)\.downsample")
    published = {pattern.sub(lambda of: f"layers.{int(of[1]) - 1}.downsample", key): state[key] for key in state}
    assert published.keys() != state.keys()
    torch.save(published, tmp_path / "swin.pth")
    body = build(**{"MODEL.TIMM.NAME": name}, weights=str(tmp_path / "swin.pth")).model.backbone.bottom_up
    for key, value in body.net.state_dict().items():
        assert torch.equal(value, state[key.replace("layers_", "layers.", 1)]), key


@pytest.mark.slow
def test_a_module_of_ones_own_is_named_in_data_imports(tmp_path, monkeypatch):
    """As docs/backbones.md says it: a training that knows the keys because a module adds them."""
    monkeypatch.setattr(cfg_module, "NEW_KEYS", dict(cfg_module.NEW_KEYS))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "keys_of_mine.py").write_text(
        "from lossmix_det.engines.detectron2 import cfg\n"
        "cfg.NEW_KEYS['mine'] = lambda node: node.MODEL.update({'MINE': type(node)({'DEPTH': 3})})\n"
    )
    words = ["model.engine=detectron2", "train.steps=1", "shapes.test_images=2"]
    words.append(f"model.detectron2_options={json.dumps([*map(str, options('timm')), 'MODEL.MINE.DEPTH', '5'])}")
    with pytest.raises(UserError, match="data.imports adds keys of your own"):
        trainer(tmp_path / "without", *words)
    it = trainer(tmp_path / "run", "data.imports=[keys_of_mine]", *words)
    assert it.train()
    assert it.state.detector.cfg.MODEL.MINE.DEPTH == 5


def test_keys_that_cannot_be_added_are_named(monkeypatch):
    monkeypatch.setitem(cfg_module.NEW_KEYS, "mine", lambda cfg: cfg.NO.SUCH)
    with pytest.raises(UserError, match=r"NEW_KEYS\['mine'\] cannot add its keys \(AttributeError"):
        build()
