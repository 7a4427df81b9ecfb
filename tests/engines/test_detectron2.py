"""The Detectron2 engine against stock Detectron2 of the same weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from runs import assert_same_tensors, trainer
from torch.testing import assert_close

from lossmix_det.config import Config, ModelConfig
from lossmix_det.engines import LOSSES, build_detector
from lossmix_det.errors import UserError
from lossmix_det.export import export_model
from lossmix_det.structures import ImageBatch, Instances, Supervision

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.structures import Boxes  # noqa: E402
from detectron2.structures import Instances as D2Instances  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402

SMALL = {
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.NORM": "GN",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
}
ALL = "['res2','res3','res4','res5']"
MODELS = {
    "c4_two_fc": SMALL,  # Adaptive Teacher's: two fully connected layers on res4
    "fpn": SMALL
    | {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES": ALL,
        "MODEL.FPN.IN_FEATURES": ALL,
        "MODEL.FPN.OUT_CHANNELS": 64,
        "MODEL.ANCHOR_GENERATOR.SIZES": "[[16],[32],[64],[128],[256]]",
        "MODEL.RPN.IN_FEATURES": "['p2','p3','p4','p5','p6']",
        "MODEL.ROI_HEADS.IN_FEATURES": "['p2','p3','p4','p5']",
        "MODEL.RPN.LOSS_WEIGHT": 0.5,
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    },
    "c4_res5": {
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
        "MODEL.RESNETS.NORM": "BN",
        "INPUT.FORMAT": "RGB",
    },
}
SIZE = (64, 96)
TRUTHS = (
    Instances(torch.tensor([[5.0, 6, 40, 50], [50, 10, 90, 60]]), torch.tensor([1, 3])),
    Instances(torch.tensor([[20.0, 20, 60, 55]]), torch.tensor([0])),
)
OTHERS = (Instances.empty(), Instances(torch.tensor([[2.0, 3, 30, 40]]), torch.tensor([2])))
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def options(name: str, **more: object) -> list[str]:
    return [str(word) for pair in (MODELS[name] | more).items() for word in pair]


@pytest.fixture(scope="module", params=[*MODELS])
def detector(request):
    torch.manual_seed(0)
    config = ModelConfig(engine="detectron2", detectron2_options=options(request.param), score_threshold=0.01)
    it = build_detector(config, 4).train()
    with torch.no_grad():
        it.heads()["rpn_box"].weight.mul_(5)
    return it


def images() -> ImageBatch:
    return ImageBatch(torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(3)), (SIZE,) * 2)


def stock_inputs(detector, truths) -> list[dict]:
    inputs = []
    for pixels, truth in zip(images().pixels * 255, truths, strict=True):
        image = pixels.flip(0) if detector.model.input_format == "BGR" else pixels
        instances = D2Instances(SIZE, gt_boxes=Boxes(truth.boxes), gt_classes=truth.classes)
        inputs.append({"image": image, "instances": instances, "height": SIZE[0], "width": SIZE[1]})
    return inputs


def stock_losses(detector, truths) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    with EventStorage():
        found = detector.model(stock_inputs(detector, truths))
    names = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")
    return {ours: found[theirs] for ours, theirs in zip(LOSSES, names, strict=True)}


def losses(detector, *supervisions: Supervision) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    encoding = detector.encode(images())
    found = [detector.losses(encoding, each) for each in supervisions]
    return {name: sum(part[name] for part in found) for name in LOSSES}


@pytest.mark.parametrize("truths", [TRUTHS, OTHERS], ids=["boxes", "an image without"])
def test_weight_one_is_the_stock_loss(detector, truths):
    ours, stock = losses(detector, Supervision.full(truths)), stock_losses(detector, truths)
    for name in LOSSES:
        assert_close(ours[name], stock[name], **CLOSE)
    assert all(value > 0 for value in ours.values())


def test_two_truths_are_the_blend_of_two_stock_losses_and_of_their_gradients(detector):
    """Both sampled from the same state of the generator."""
    parts = {}
    for lam, truths in ((0.3, TRUTHS), (0.7, OTHERS)):
        detector.zero_grad()
        sum(stock_losses(detector, truths).values()).backward()
        for name, value in detector.named_parameters():
            if value.grad is not None:
                parts[name] = parts.get(name, 0) + lam * value.grad
    detector.zero_grad()
    total = sum(sum(losses(detector, Supervision.full(t, w)).values()) for w, t in ((0.3, TRUTHS), (0.7, OTHERS)))
    total.backward()
    found = {name: value.grad for name, value in detector.named_parameters() if value.grad is not None}
    assert found.keys() == parts.keys()
    for name, value in parts.items():
        scale = value.abs().max().clamp(min=1e-3)
        assert_close(found[name] / scale, value / scale, rtol=1e-4, atol=1e-4)


def test_detections_are_stocks(detector):
    detector.model.eval()
    with torch.no_grad():
        stock = [each["instances"] for each in detector.model(stock_inputs(detector, TRUTHS))]
    detector.train()
    found = detector.detect(images())
    assert detector.training
    for ours, theirs in zip(found, stock, strict=True):
        assert len(ours) == len(theirs) > 0
        assert_close(ours.boxes, theirs.pred_boxes.tensor, rtol=0, atol=1e-3)
        assert_close(ours.scores, theirs.scores, **CLOSE)
        assert ours.classes.tolist() == theirs.pred_classes.tolist()


def test_the_same_images_with_keys_get_the_same_samples_in_any_batch(detector):
    if not detector.shares_scores:
        pytest.skip("BatchNorm makes an image depend on its batch")
    batch = ImageBatch(images().pixels, images().sizes, (5, 6))
    whole = detector.losses(detector.encode(batch), Supervision.full(TRUTHS))
    parts = [detector.losses(detector.encode(batch.take([i])), Supervision.full(TRUTHS[i : i + 1])) for i in (0, 1)]
    for name in ("rpn_class", "rpn_box"):
        assert_close(whole[name], sum(part[name] for part in parts) / 2, **CLOSE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL.META_ARCHITECTURE": "RetinaNet"}, "RetinaNet has no losses of two stages"),
        ({"MODEL.ROI_HEADS.NAME": "CascadeROIHeads"}, "CascadeROIHeads is not supported"),
        ({"MODEL.RPN.BBOX_REG_LOSS_TYPE": "giou"}, "only BBOX_REG_LOSS_TYPE: smooth_l1 is supported"),
        ({"MODEL.NO_SUCH_KEY": 1}, "cannot be read"),
    ],
)
def test_what_has_no_weighted_losses_is_refused_in_one_sentence(changes, message):
    base = MODELS["fpn"] | ({"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True})
    if "MODEL.META_ARCHITECTURE" in changes:
        base = base | {"MODEL.RETINANET.IN_FEATURES": "['p2','p3','p4','p5','p6']"}
    words = [str(word) for pair in (base | changes).items() for word in pair]
    with pytest.raises(UserError, match=message):
        build_detector(ModelConfig(engine="detectron2", detectron2_options=words), 4)


def test_missing_weights_are_named():
    config = ModelConfig(engine="detectron2", detectron2_options=options("fpn"), weights="nowhere.pkl")
    with pytest.raises(UserError, match="model.weights='nowhere.pkl': no such file"):
        build_detector(config, 4)


def test_plain_detectron2_loads_an_export_and_detects_the_same(detector, tmp_path):
    config = Config()
    config.model = ModelConfig(engine="detectron2")
    export_model(detector, config, ["a", "b", "c", "d"], tmp_path / "x.pth")
    plain = build_model(detector.cfg).eval()
    DetectionCheckpointer(plain).load(str(tmp_path / "x.pth"))
    with torch.no_grad():
        stock = [each["instances"] for each in plain(stock_inputs(detector, TRUTHS))]
    for ours, theirs in zip(detector.detect(images()), stock, strict=True):
        assert_close(ours.boxes, theirs.pred_boxes.tensor, rtol=0, atol=1e-3)
        assert_close(ours.scores, theirs.scores, **CLOSE)


def test_weights_of_other_classes_load_what_fits_and_are_refused_where_all_must(tmp_path, caplog):
    config = ModelConfig(engine="detectron2", detectron2_options=options("fpn"))
    first = build_detector(config, 4)
    torch.save({"model": first.exported()}, tmp_path / "four.pth")
    again = replace(config, weights=str(tmp_path / "four.pth"))
    with caplog.at_level("INFO"):
        other = build_detector(again, 7)
    assert "parts fit and were loaded, the rest start fresh" in caplog.text
    assert_close(other.model.backbone.state_dict(), first.model.backbone.state_dict(), rtol=0, atol=0)
    with pytest.raises(UserError, match="is not of this model: 2 of"):
        build_detector(again, 7, strict=True)
    build_detector(again, 4, strict=True)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_trainer_burns_in_and_adapts_with_it(tmp_path, kind):
    words = ["model.engine=detectron2", "model.detectron2_options=[" + ",".join(f'"{w}"' for w in options("fpn")) + "]"]
    words += ["data.target=[shapes_clipart_train]", "ema.decay=0.9", "adaptation.burn_in_steps=2", "train.steps=4"]
    words += ["alignment.parts=[image,instance]", "pseudo_labels.score=0.1", f"pseudo_labels.kind={kind}"]
    it = trainer(tmp_path, *words, "mixing.probability=0.6")
    assert it.train()
    assert it.skipped_steps == 0
    assert (tmp_path / "results.json").is_file()
    for weights in ("export/teacher.pth", "checkpoints/step_0000004.pt"):
        again = build_detector(replace(it.config.model, weights=str(tmp_path / weights)), len(it.classes))
        assert_same_tensors(dict(it.teacher.module.exported()), dict(again.exported()))
