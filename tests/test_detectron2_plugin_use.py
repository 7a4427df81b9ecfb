"""What the plug-in mixes, its settings, and Detectron2's loaders and trainer with it."""

from __future__ import annotations

import json
import pickle
import runpy
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import ROOT
from torch.testing import assert_close

from lossmix_det.config import CoMixupConfig, MixingConfig, ModelConfig, PuzzleConfig
from lossmix_det.engines import build_detector
from lossmix_det.errors import UserError
from lossmix_det.mixing import MIXERS, Among, Recipe, blend
from lossmix_det.structures import ImageBatch, Instances, Supervision, pad_to

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from d2_models import NAMES, TRUTHS, configured, flat, inputs, instances, losses, mixing  # noqa: E402
from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import CfgNode, get_cfg  # noqa: E402
from detectron2.data import build_detection_train_loader  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.structures import Boxes  # noqa: E402
from test_additions import Halves  # noqa: E402

from lossmix_det import detectron2_plugin as plugin  # noqa: E402

EXAMPLE = ROOT / "examples" / "train_detectron2.py"


def test_nothing_is_mixed_at_probability_zero():
    plain = inputs()
    found = plugin.mix_inputs(plain, Recipe(MixingConfig(probability=0.0)), np.random.default_rng(3))
    for own, result in zip(plain, found, strict=True):
        assert torch.equal(result["image"], own["image"].float())
        assert torch.equal(result["instances"].gt_boxes.tensor, own["instances"].gt_boxes.tensor)
        assert result["instances"]._truth_weights == [(1.0, 1.0)]


def test_fields_of_ones_own_stay_where_nothing_is_mixed():
    plain = inputs()
    for place, each in enumerate(plain):
        each["instances"].gt_ids = torch.arange(len(each["instances"])) + 10 * place
    recipe, rng = Recipe(MixingConfig(probability=0.5)), np.random.default_rng(2)
    found = plugin.mix_inputs(plain, recipe, rng)
    mixed = [len(each["instances"]._truth_weights) > 1 for each in found]
    assert set(mixed) == {True, False}
    for own, result, is_mixed in zip(plain, found, mixed, strict=True):
        assert result["instances"].has("gt_ids") != is_mixed
        assert is_mixed or torch.equal(result["instances"].gt_ids, own["instances"].gt_ids)


@pytest.mark.parametrize("mixer", ["mixup", "manifold"])
def test_an_input_without_truths_is_named(mixer):
    model = build_model(mixing(configured(), MIXER=mixer, PROBABILITY=1.0)).train()
    batch = inputs()
    del batch[1]["instances"]
    with pytest.raises(UserError, match=r"^1.png: has no instances to learn from; give images with annotations"):
        losses(model, batch)


def test_pixels_truths_and_names_of_a_mixed_batch():
    plain = inputs()
    mixed = plugin.mix_inputs(plain, Recipe(MixingConfig(probability=1.0)), np.random.default_rng(3))
    assert [each["file_name"] for each in mixed] == ["0.png", "1.png", "2.png"]
    for own, result in zip(plain, mixed, strict=True):
        (lam, _), (rest, _) = result["instances"]._truth_weights
        truths = result["instances"]
        first = truths[truths.gt_truth == 0]
        assert torch.equal(first.gt_boxes.tensor, own["instances"].gt_boxes.tensor)
        second = truths[truths.gt_truth == 1].gt_boxes.tensor
        partner = next(
            each for each in plain if each is not own and torch.equal(each["instances"].gt_boxes.tensor, second)
        )
        height, width = (max(own["image"].shape[side], partner["image"].shape[side]) for side in (1, 2))
        assert result["image"].shape == (3, height, width)
        canvas = torch.zeros(2, 3, height, width)
        for place, image in enumerate((own["image"], partner["image"])):
            canvas[place, :, : image.shape[1], : image.shape[2]] = image
        assert_close(result["image"], lam * canvas[0] + rest * canvas[1], rtol=0, atol=1e-3)
    assert all(each["image"].dtype == torch.uint8 for each in plain)


@pytest.mark.parametrize(
    ("mixer", "rule"),
    [("mixup", "union"), ("mixup", "own"), ("mixup", "lossmix_instance"), ("halves", "lossmix"), ("halves", "union")]
    + [("cutmix", "lossmix"), ("sage", "lossmix_instance"), ("saliencymix", "union")]
    + [("puzzlemix", "lossmix"), ("comixup", "union")],
)
def test_other_rules_and_mixers_are_those_of_the_engine(monkeypatch, mixer, rule):
    """The same mixed images, scored by the engine against the supervisions that the rule gives."""
    monkeypatch.setitem(MIXERS, "halves", Halves)
    torch.manual_seed(0)
    cfg = configured()
    settings = MixingConfig(mixer, rule, weighting="visibility", probability=0.8)
    if rule == "lossmix_instance":
        settings = replace(settings, background_weight=0.6)
    ours = build_model(mixing(cfg)).train()
    words = [str(word) for pair in (("MODEL.WEIGHTS", '""'),) for word in pair]
    detector = build_detector(ModelConfig(engine="detectron2", detectron2_options=words + flat(cfg)), 4).train()
    detector.model.load_state_dict(ours.state_dict())
    plain = inputs()
    found = losses(ours, plugin.mix_inputs(plain, Recipe(settings), np.random.default_rng(3)))
    batch = ImageBatch.cat(
        [ImageBatch(each["image"][None].flip(1) / 255, (each["image"].shape[1:],)) for each in plain]
    )
    batch = ImageBatch(pad_to(batch.pixels, 96, 96), batch.sizes)  # multiples of 32, as those of a run
    truths = [Instances(each["instances"].gt_boxes.tensor, each["instances"].gt_classes) for each in plain]
    recipe = Recipe(settings)
    mix = recipe.draw(batch, Among(3), np.random.default_rng(3))
    mixed = blend(batch, mix)
    encoding = detector.encode(mixed)
    parts = [detector.losses(encoding, each) for each in recipe.supervise(truths, mix, mixed)]
    for name, ours_name in zip(NAMES, ("rpn_class", "rpn_box", "roi_class", "roi_box"), strict=True):
        assert_close(found[name], sum(part[ours_name] for part in parts), rtol=1e-4, atol=1e-5)


def test_the_collate_serves_detectron2s_loader_and_is_picklable(small_shapes):
    plugin.register_datasets(["shapes_photo_train"], small_shapes)
    cfg = configured(DATALOADER__NUM_WORKERS=1, SOLVER__IMS_PER_BATCH=3)
    cfg.DATASETS.TRAIN, cfg.LOSSMIX.PROBABILITY = ("shapes_photo_train",), 1.0
    collate = pickle.loads(pickle.dumps(plugin.MixingCollate(cfg)))
    batch = next(iter(build_detection_train_loader(cfg, collate_fn=collate)))
    assert len(batch) == 3
    assert all(len(each["instances"]._truth_weights) == 2 for each in batch)
    moved = batch[0]["instances"].to("cpu")
    assert isinstance(moved, plugin.MixedInstances)
    assert len(moved) == len(batch[0]["instances"])


def test_what_cannot_be_weighted_is_refused():
    cfg = mixing(configured())
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    with pytest.raises(UserError, match="MODEL.ROI_HEADS.NAME: StandardROIHeads cannot weight its losses"):
        build_model(cfg)
    with pytest.raises(UserError, match="only RPN.BBOX_REG_LOSS_TYPE: smooth_l1 is supported"):
        build_model(mixing(configured(MODEL__RPN__BBOX_REG_LOSS_TYPE="giou")))
    with pytest.raises(UserError, match="only MASK_ON: False"):
        build_model(mixing(configured(MODEL__MASK_ON=True)))
    with pytest.raises(UserError, match=r"LOSSMIX\.ALPHA=0"):
        build_model(mixing(configured(), ALPHA=0.0))
    for value in ([0.8, 0.2], [0.5], 0.5, ["a", "b"]):
        with pytest.raises(UserError, match=r"LOSSMIX\.LAM_RANGE=.* must be \[low, high\]"):
            build_model(mixing(configured(), LAM_RANGE=value))
    with pytest.raises(UserError, match=r"LOSSMIX\.MIXER='mixupp' is not one of .*did you mean 'mixup'"):
        build_model(mixing(configured(), MIXER="mixupp"))
    cfg = configured()
    cfg.LOSSMIX.ALFA = 1.0
    with pytest.raises(UserError, match="LOSSMIX.ALFA is unknown; it takes MIXER, RULE, WEIGHTING, ALPHA"):
        plugin.mixing_of(cfg)
    assert plugin.mixing_of(get_cfg()) == MixingConfig()


def test_settings_of_saliency_and_of_single_mixers_are_read():
    cfg = mixing(configured(LOSSMIX__PUZZLE__TRANSPORT=False, LOSSMIX__COMIXUP__PARTNERS=3), SALIENCY="boxes")
    cfg.LOSSMIX.LEAST_VISIBLE = 0.3
    table = {"puzzlemix": 2, "comixup": 1}
    for several in ("{puzzlemix: 2, comixup: 1}", CfgNode(table)):
        cfg.LOSSMIX.MIXER = several
        expected = MixingConfig(table, saliency="boxes", least_visible=0.3, puzzle=PuzzleConfig(transport=False))
        assert plugin.mixing_of(cfg) == replace(expected, comixup=CoMixupConfig(partners=3))
    cfg.LOSSMIX.MIXER = "mixup"
    with pytest.raises(UserError, match=r"LOSSMIX\.SALIENCY=boxes has no effect with LOSSMIX\.MIXER=mixup"):
        plugin.mixing_of(cfg)
    cfg.LOSSMIX.PUZZLE.BETA = -1.0
    with pytest.raises(UserError, match=r"LOSSMIX\.PUZZLE\.BETA=-1\.0 lies outside of 0"):
        plugin.mixing_of(cfg)
    cfg.LOSSMIX.PUZZLE = CfgNode({"BETTA": 1.0})
    with pytest.raises(UserError, match="LOSSMIX.PUZZLE.BETTA is unknown; it takes BETA, GAMMA"):
        plugin.mixing_of(cfg)


@pytest.mark.parametrize("mixer", MIXERS)
def test_images_of_any_size_are_mixed_by_every_mixer(mixer):
    """Detectron2's images are not multiples of 32, and their pixels run to 255."""
    plain = inputs()
    for each, (height, width) in zip(plain, ((61, 95), (97, 63), (33, 70)), strict=True):
        each["image"] = torch.nn.functional.pad(each["image"], (0, 100, 0, 100))[:, :height, :width]
    mixed = plugin.mix_inputs(plain, Recipe(MixingConfig(mixer, probability=1.0)), np.random.default_rng(3))
    for each in mixed:
        assert 0 <= float(each["image"].min()) <= float(each["image"].max()) <= 255.001
        assert (each["instances"].gt_boxes.tensor >= 0).all()


@pytest.mark.slow
def test_the_example_trains_under_detectron2s_trainer(tmp_path, small_shapes, monkeypatch):
    """And what it saves is a model of plain Detectron2."""
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) < 60
    monkeypatch.setattr("lossmix_det.detectron2_plugin.datasets.Config", lambda: small_shapes)
    words = ["SOLVER.MAX_ITER", "3", "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2"]
    runpy.run_path(str(EXAMPLE))["main"](str(tmp_path), [*words, "INPUT.MIN_SIZE_TEST", "64"])
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    logged = {name: value for line in lines for name, value in line.items()}
    assert all(logged[name] > 0 for name in NAMES)
    assert "bbox/AP50" in logged
    cfg = get_cfg()
    plugin.add_lossmix_config(cfg)
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    saved = torch.load(tmp_path / "model_final.pth", weights_only=False)["model"]
    plain = build_model(trained(cfg))
    unmatched = DetectionCheckpointer(plain).load(str(tmp_path / "model_final.pth"))
    assert unmatched is not None
    assert {name: value.shape for name, value in plain.state_dict().items()} == {k: v.shape for k, v in saved.items()}


def trained(cfg):
    """The model of the example."""
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "GN", 0
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 32, 64]]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 6
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 2
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    return cfg


def test_a_supervision_is_rebuilt_from_instances():
    mixed = plugin.MixedInstances(
        (10, 10),
        [(0.3, 0.2), (0.7, 0.0)],
        gt_boxes=Boxes(torch.tensor([[1.0, 1, 5, 5]])),
        gt_classes=torch.tensor([2]),
        gt_truth=torch.tensor([1]),
    )
    first, second = plugin.supervisions_of([mixed, instances(TRUTHS[0], (10, 10))])
    assert isinstance(first, Supervision)
    assert [len(truth) for truth in first.truths] == [0, 2]
    assert [len(truth) for truth in second.truths] == [1, 2]
    assert_close(first.class_weights, torch.tensor([0.3, 1.0]))
    assert_close(second.class_weights, torch.tensor([0.7, 0.0]))
    assert_close(second.box_weights, torch.tensor([0.0, 0.0]))
