"""The plug-in under Detectron2's own models, loaders and trainer."""

from __future__ import annotations

import json
import pickle
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lossmix_det.config import CoMixupConfig, MixingConfig, ModelConfig, PuzzleConfig
from lossmix_det.engines import build_detector
from lossmix_det.errors import UserError
from lossmix_det.structures import ImageBatch, Instances, Supervision, pad_to

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import CfgNode, get_cfg  # noqa: E402
from detectron2.data import build_detection_train_loader  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.structures import Boxes  # noqa: E402
from detectron2.structures import Instances as D2Instances  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402
from test_additions import Halves  # noqa: E402

from lossmix_det import detectron2_plugin as plugin  # noqa: E402
from lossmix_det.mixing import MIXERS, Among, Recipe, blend  # noqa: E402

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "train_detectron2.py"
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
NAMES = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")
ALL = ["res2", "res3", "res4", "res5"]


def configured(heads: str = "StandardROIHeads", **settings):
    """A small Detectron2 configuration whose samplers take every anchor and proposal."""
    cfg = get_cfg()
    plugin.add_lossmix_config(cfg)
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "GN", 0
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NUM_CLASSES = heads, 4
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE, cfg.MODEL.RPN.POSITIVE_FRACTION = 4096, 1.0
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE, cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 4096, 1.0
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN, cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 200, 50
    if heads.endswith("Res5ROIHeads"):
        cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.NORM = 50, 32, "FrozenBN"
        cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8, 8
    else:
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.OUT_FEATURES = "build_resnet_fpn_backbone", ALL
        cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = ALL, 32
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
        cfg.MODEL.RPN.IN_FEATURES, cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"], ["p2", "p3", "p4"]
        cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 1
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 32, 7
    for key, value in settings.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def mixing(cfg, **settings):
    """The same with the three names changed."""
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.PROPOSAL_GENERATOR.NAME = "LossMixRCNN", "LossMixRPN"
    cfg.MODEL.ROI_HEADS.NAME = {
        "StandardROIHeads": "LossMixROIHeads",
        "Res5ROIHeads": "LossMixRes5ROIHeads",
    }.get(cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NAME)
    for key, value in settings.items():
        cfg.LOSSMIX[key] = value
    return cfg


@pytest.fixture(scope="module", params=["StandardROIHeads", "Res5ROIHeads"])
def models(request):
    """Detectron2's model and ours, of the same weights."""
    torch.manual_seed(0)
    cfg = configured(request.param)
    stock, ours = build_model(cfg).train(), build_model(mixing(cfg)).train()
    with torch.no_grad():
        stock.proposal_generator.rpn_head.anchor_deltas.weight.mul_(5)
    ours.load_state_dict(stock.state_dict())
    return stock, ours


TRUTHS = (
    ([[5.0, 6, 40, 50], [50, 10, 90, 60]], [1, 3]),
    ([[20.0, 20, 60, 55]], [0]),
    ([], []),
)
SIZES = ((64, 96), (80, 72), (64, 64))


def instances(truth, size) -> D2Instances:
    boxes = torch.tensor(truth[0]).reshape(-1, 4)
    return D2Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.tensor(truth[1], dtype=torch.int64))


def inputs() -> list[dict]:
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "image": torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8),
            "instances": instances(truth, size),
            "file_name": f"{index}.png",
        }
        for index, (truth, size) in enumerate(zip(TRUTHS, SIZES, strict=True))
    ]


def losses(model, batch) -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    with EventStorage():
        return model(batch)


def test_nothing_mixed_is_the_stock_loss(models):
    stock, ours = models
    ours.recipe.probability = 0.0
    expected, found = losses(stock, inputs()), losses(ours, inputs())
    assert set(found) == set(NAMES)
    for name in NAMES:
        assert expected[name] > 0
        assert_close(found[name], expected[name], **CLOSE)


def counters(model, batch) -> dict[str, float]:
    """What the model tells Detectron2's storage of a step, losses aside."""
    torch.manual_seed(4)
    with EventStorage() as storage:
        model(batch)
    return {name: value for name, (value, _) in storage.latest().items()}


def test_samples_and_accuracies_are_counted_as_stock_does(models):
    stock, ours = models
    ours.recipe.probability = 0.0
    expected, found = counters(stock, inputs()), counters(ours, inputs())
    assert {"rpn/num_pos_anchors", "roi_head/num_fg_samples", "fast_rcnn/cls_accuracy"} < set(expected)
    assert found == pytest.approx(expected)


def test_the_truths_of_a_mixed_image_are_counted_as_images_of_their_own(models):
    stock, ours = models
    mixed = plugin.mix_inputs(inputs(), Recipe(MixingConfig(probability=1.0)), np.random.default_rng(3))[:1]
    own, size = mixed[0]["instances"], tuple(mixed[0]["image"].shape[1:])
    apart = []
    for place in (0, 1):
        chosen = own.gt_truth == place
        truth = D2Instances(size, gt_boxes=own.gt_boxes[chosen], gt_classes=own.gt_classes[chosen])
        apart.append(counters(stock, [{"image": mixed[0]["image"], "instances": truth}]))
    found = counters(ours, mixed)
    assert apart[0]["roi_head/num_fg_samples"] != apart[1]["roi_head/num_fg_samples"]
    for name in ("rpn/num_pos_anchors", "rpn/num_neg_anchors", "roi_head/num_fg_samples", "roi_head/num_bg_samples"):
        assert found[name] == pytest.approx((apart[0][name] + apart[1][name]) / 2), name


@pytest.mark.parametrize("image", [0, 1, 2])
def test_a_mixed_image_is_the_blend_of_two_stock_losses_and_of_their_gradients(models, image):
    """Image 1 takes part with one without a box."""
    stock, ours = models
    mixed = plugin.mix_inputs(inputs(), Recipe(MixingConfig(probability=1.0)), np.random.default_rng(3))[image]
    (lam, _), (rest, _) = mixed["instances"]._truth_weights
    assert 0.05 < lam < 0.95
    assert lam + rest == pytest.approx(1)
    own, size = mixed["instances"], tuple(mixed["image"].shape[1:])
    expected, gradients = dict.fromkeys(NAMES, 0.0), {}
    for place, weight in ((0, lam), (1, rest)):
        chosen = own.gt_truth == place
        truth = D2Instances(size, gt_boxes=own.gt_boxes[chosen], gt_classes=own.gt_classes[chosen])
        stock.zero_grad()
        found = losses(stock, [{"image": mixed["image"], "instances": truth}])
        sum(found.values()).backward()
        expected = {name: expected[name] + weight * found[name] for name in NAMES}
        for name, value in stock.named_parameters():
            if value.grad is not None:
                gradients[name] = gradients.get(name, 0) + weight * value.grad
    ours.zero_grad()
    found = losses(ours, [mixed])
    sum(found.values()).backward()
    for name in NAMES:
        assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    for name, value in ours.named_parameters():
        if value.grad is not None:
            scale = gradients[name].abs().max().clamp(min=1e-3)
            assert_close(value.grad / scale, gradients[name] / scale, rtol=1e-4, atol=1e-4)


def test_nothing_is_mixed_at_probability_zero():
    plain = inputs()
    found = plugin.mix_inputs(plain, Recipe(MixingConfig(probability=0.0)), np.random.default_rng(3))
    for own, result in zip(plain, found, strict=True):
        assert torch.equal(result["image"], own["image"].float())
        assert torch.equal(result["instances"].gt_boxes.tensor, own["instances"].gt_boxes.tensor)
        assert result["instances"]._truth_weights == [(1.0, 1.0)]


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
    settings = MixingConfig(mixer, rule, weighting="visibility", probability=0.8, background_weight=0.6)
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


def flat(cfg) -> list[str]:
    """What the configuration says beyond the defaults, as words."""
    words, default = [], get_cfg()

    def walk(node, other, prefix):
        for key, value in node.items():
            if hasattr(value, "items"):
                walk(value, other[key], f"{prefix}{key}.")
            elif value != other[key]:
                words.extend([prefix + key, repr(value) if not isinstance(value, str) else value or '""'])

    own = cfg.clone()
    del own["LOSSMIX"]
    walk(own, default, "")
    return words


def test_weights_of_plain_instances_are_read(models):
    """A box of weight 0 leaves background and the other boxes."""
    _, ours = models
    ours.recipe.probability = 0.0
    batch = inputs()[:1]
    whole = losses(ours, batch)
    parts = []
    for weights in ([1.0, 0.0], [0.0, 1.0], [0.0, 0.0]):
        batch[0]["instances"].gt_weights = torch.tensor(weights)
        parts.append(losses(ours, batch))
    for name in NAMES:
        assert_close(parts[0][name] + parts[1][name] - parts[2][name], whole[name], **CLOSE)
    assert parts[2]["loss_box_reg"] == 0 < parts[0]["loss_box_reg"]


def test_the_model_mixes_by_itself_but_not_what_the_loader_has_mixed(models, monkeypatch):
    _, ours = models
    ours.recipe.probability = 1.0
    seen = []
    monkeypatch.setattr(ours, "preprocess_image", lambda batch: seen.append(batch) or stop())
    with pytest.raises(Stop):
        ours(inputs())
    assert all(isinstance(each["instances"], plugin.MixedInstances) for each in seen[0])
    mixed = plugin.MixingCollate(MixingConfig(probability=1.0))(inputs())
    with pytest.raises(Stop):
        ours(mixed)
    assert all(given is taken for given, taken in zip(mixed, seen[1], strict=True))


def test_a_batch_of_one_image_has_no_partner_and_that_is_said_once(models, caplog):
    _, ours = models
    ours.recipe.probability, ours.warned = 1.0, False
    for _ in range(2):
        losses(ours, inputs()[:1])
    assert caplog.text.count("a batch of one image is never mixed; raise SOLVER.IMS_PER_BATCH") == 1


class Stop(Exception):
    pass


def stop():
    raise Stop


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


def test_inference_is_stocks(models):
    stock, ours = models
    with torch.no_grad():
        expected, found = stock.eval()(inputs()), ours.eval()(inputs())
    stock.train(), ours.train()
    for one, other in zip(expected, found, strict=True):
        assert_close(one["instances"].pred_boxes.tensor, other["instances"].pred_boxes.tensor, **CLOSE)


def test_what_cannot_be_weighted_is_refused():
    cfg = mixing(configured())
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    with pytest.raises(UserError, match="MODEL.ROI_HEADS.NAME: StandardROIHeads cannot weight its losses"):
        build_model(cfg)
    with pytest.raises(UserError, match="only RPN.BBOX_REG_LOSS_TYPE: smooth_l1 is supported"):
        build_model(mixing(configured(MODEL__RPN__BBOX_REG_LOSS_TYPE="giou")))
    with pytest.raises(UserError, match="only MASK_ON: False"):
        build_model(mixing(configured(MODEL__MASK_ON=True)))
    with pytest.raises(UserError, match=r"LOSSMIX\.alpha=0"):
        build_model(mixing(configured(), ALPHA=0.0))
    with pytest.raises(UserError, match=r"LOSSMIX\.lam_range=\[0\.8, 0\.2\] must be \[low, high\]"):
        build_model(mixing(configured(), LAM_RANGE=[0.8, 0.2]))
    cfg = configured()
    cfg.LOSSMIX.ALFA = 1.0
    with pytest.raises(UserError, match="LOSSMIX.ALFA is unknown; it takes MIXER, RULE, WEIGHTING, ALPHA"):
        plugin.mixing_of(cfg)
    assert plugin.mixing_of(get_cfg()) == MixingConfig()


def test_settings_of_saliency_and_of_single_mixers_are_read():
    cfg = mixing(configured(LOSSMIX__PUZZLE__TRANSPORT=False, LOSSMIX__COMIXUP__PARTNERS=3), SALIENCY="boxes")
    cfg.LOSSMIX.LEAST_VISIBLE = 0.3
    found = plugin.mixing_of(cfg)
    expected = MixingConfig(saliency="boxes", least_visible=0.3, puzzle=PuzzleConfig(transport=False))
    assert found == replace(expected, comixup=CoMixupConfig(partners=3))
    cfg.LOSSMIX.PUZZLE.BETA = -1.0
    with pytest.raises(UserError, match=r"LOSSMIX\.puzzle\.beta=-1\.0 lies outside of 0"):
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
