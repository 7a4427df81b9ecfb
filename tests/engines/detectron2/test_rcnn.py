"""The Detectron2 engine against stock Detectron2 of the same weights."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from adapting import ADAPT, AS_PUBLISHED, batch
from runs import assert_same_tensors, trainer
from stock import MODELS, detectron2_inputs, options
from torch import nn
from torch.testing import assert_close

from lossmix_det.config import Config, ModelConfig, OptimizerConfig, load_config
from lossmix_det.engines import build_detector
from lossmix_det.engines.export import export_model
from lossmix_det.errors import UserError
from lossmix_det.structures import ImageBatch, Instances, Supervision
from lossmix_det.training.optimization import build_optimizer

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import get_cfg  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.solver import build_optimizer as build_stock_optimizer  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402

from lossmix_det.engines.detectron2.rcnn import read_cfg  # noqa: E402
from lossmix_det.engines.detectron2.timm_fpn import add_timm_config  # noqa: E402

SIZE = (64, 96)
TRUTHS = (
    Instances(torch.tensor([[5.0, 6, 40, 50], [50, 10, 90, 60]]), torch.tensor([1, 3])),
    Instances(torch.tensor([[20.0, 20, 60, 55]]), torch.tensor([0])),
)
OTHERS = (Instances.empty(), Instances(torch.tensor([[2.0, 3, 30, 40]]), torch.tensor([2])))
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", params=[*MODELS])
def detector(request):
    torch.manual_seed(0)
    config = ModelConfig(engine="detectron2", detectron2_options=options(request.param), score_threshold=0.01)
    it = build_detector(config, 4).train()
    with torch.no_grad():
        for _ in range(30 if it.norm == "BN" else 0):  # its statistics are of these images
            it.losses(it.encode(images()), Supervision.full(TRUTHS))
    with torch.no_grad():
        it.last_layers()[1].weight.mul_(5)
    return it


def images() -> ImageBatch:
    return ImageBatch(torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(3)), (SIZE,) * 2)


def stock_losses(detector, truths) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    with EventStorage():
        found = detector.model(detectron2_inputs(detector, images(), truths))
    names = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")
    return {ours: found[theirs] for ours, theirs in zip(detector.loss_names, names, strict=True)}


def losses(detector, *supervisions: Supervision) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    encoding = detector.encode(images())
    found = [detector.losses(encoding, each) for each in supervisions]
    return {name: sum(part[name] for part in found) for name in detector.loss_names}


@pytest.mark.parametrize("truths", [TRUTHS, OTHERS], ids=["boxes", "an image without"])
def test_weight_one_is_the_stock_loss(detector, truths):
    ours, stock = losses(detector, Supervision.full(truths)), stock_losses(detector, truths)
    for name in detector.loss_names:
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
        stock = [each["instances"] for each in detector.model(detectron2_inputs(detector, images()))]
    detector.train()
    found = detector.detect(images())
    assert detector.training
    for ours, theirs in zip(found, stock, strict=True):
        assert len(ours) == len(theirs) > 0
        assert_close(ours.boxes, theirs.pred_boxes.tensor, rtol=0, atol=1e-3)
        assert_close(ours.scores, theirs.scores, **CLOSE)
        assert ours.classes.tolist() == theirs.pred_classes.tolist()


def test_boxes_are_not_rounded_to_the_precision_of_the_features(detector):
    """In bf16 the boxes of a wide image would move by up to 4 pixels, and other pixels would be pooled."""
    boxes = [torch.tensor([[70.3, 10.2, 90.6, 40.7]]), torch.tensor([[61.1, 3.3, 81.7, 33.9]])]
    with torch.no_grad():
        (canvas,) = detector.encode(images()).canvases
        coarse, exact = (
            {name: value.bfloat16().to(dtype) for name, value in canvas.features.items()}
            for dtype in (torch.bfloat16, torch.float32)
        )
        pooled = [detector.roi.pool(replace(canvas, features=features), boxes) for features in (coarse, exact)]
    assert torch.equal(*pooled)


def test_the_same_images_with_keys_get_the_same_samples_in_any_batch(detector):
    if not detector.roi.shares_scores:
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
        ({"MODEL.RPN.BBOX_REG_LOSS_TYPE": "giou"}, "only RPN.BBOX_REG_LOSS_TYPE: smooth_l1 is supported"),
        ({"MODEL.NO_SUCH_KEY": 1}, "cannot be read"),
        ({"MODEL.BACKBONE.NAME": "build_of_another_project"}, "cannot build it .* in data.imports"),
        ({"MODEL.RESNETS.RES2_OUT_CHANNELS": 256}, "cannot build it"),  # ResNet-18 has 64
        ({"INPUT.FORMAT": "L", "MODEL.PIXEL_MEAN": "[1.0]", "MODEL.PIXEL_STD": "[1.0]"}, "INPUT.FORMAT: L"),
        ({"MODEL.PIXEL_MEAN": "[1.0]", "MODEL.PIXEL_STD": "[1.0]"}, "must have three numbers each"),
        ({"MODEL.META_ARCHITECTURE": "PanopticFPN"}, "PanopticFPN has a segmentation head"),
    ],
)
def test_what_has_no_weighted_losses_is_refused_in_one_sentence(changes, message):
    base = MODELS["fpn"] | ({"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True})
    if "MODEL.META_ARCHITECTURE" in changes:
        base = base | {"MODEL.RETINANET.IN_FEATURES": "['p2','p3','p4','p5','p6']"}
    words = [str(word) for pair in (base | changes).items() for word in pair]
    with pytest.raises(UserError, match=message):
        build_detector(ModelConfig(engine="detectron2", detectron2_options=words), 4)


def test_a_configuration_file_runs_no_code(tmp_path):
    (tmp_path / "bad.yaml").write_text(f'a: !!python/object/apply:os.system ["touch {tmp_path}/ran"]\n')
    with pytest.raises(UserError, match="cannot be read .ConstructorError"):
        build_detector(ModelConfig(engine="detectron2", detectron2_config=str(tmp_path / "bad.yaml")), 4)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["MODEL: [", "- a\n- b\n", "", "MODEL: 3\n", "\tMODEL:\n"])
def test_a_configuration_file_that_is_none_is_refused_in_one_sentence(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=r"model.detectron2_config='.*bad.yaml' .* cannot be read"):
        build_detector(ModelConfig(engine="detectron2", detectron2_config=str(tmp_path / "bad.yaml")), 4)


@pytest.mark.parametrize(
    ("setting", "key"),
    [("norm=batch", "RESNETS.NORM"), ("trainable_layers=2", "BACKBONE.FREEZE_AT")],
)
def test_settings_that_only_torchvisions_models_take_are_refused(setting, key):
    with pytest.raises(UserError, match=rf"model.{setting} has no effect .* set MODEL\..*{key}"):
        load_config(None, ["model.engine=detectron2", f"model.{setting}"])


def test_the_number_of_samples_is_ours_if_it_is_set():
    for given, expected in ((None, (256, 512)), (8, (8, 8))):
        config = ModelConfig(engine="detectron2", rpn_samples=given, roi_samples=given)
        model = read_cfg(config, 4).MODEL
        found = model.RPN.BATCH_SIZE_PER_IMAGE, model.ROI_HEADS.BATCH_SIZE_PER_IMAGE
        assert found == expected


def test_a_step_whose_loss_is_not_finite_is_skipped(tmp_path):
    """Detectron2 itself would end the run when it looks for proposals."""
    words = "[" + ",".join(f'"{word}"' for word in options("fpn")) + "]"
    it = trainer(tmp_path, *ADAPT, "model.engine=detectron2", f"model.detectron2_options={words}", *AS_PUBLISHED)
    it.state.begin_adaptation(it.fabric)
    bias = it.state.detector.model.proposal_generator.rpn_head.objectness_logits.bias
    with torch.no_grad():
        bias.fill_(float("nan"))
    before = {name: value.clone() for name, value in it.state.detector.exported().items()}
    it.learn(batch())
    assert (it.state.bad_steps, it.state.skipped_steps) == (1, 1)
    assert_same_tensors(
        {k: v.nan_to_num() for k, v in it.state.detector.exported().items()},
        {k: v.nan_to_num() for k, v in before.items()},
    )


def test_biases_are_decayed_where_detectron2_decays_them(detector):
    cfg = detector.cfg.clone()
    cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM = 0.1, 0.0
    groups = build_stock_optimizer(cfg, detector.model).param_groups
    expected = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    ours = build_optimizer(detector.model, OptimizerConfig(name="sgd", weight_decay=0.1, decay_biases=True))
    assert {id(p): group["weight_decay"] for group in ours.param_groups for p in group["params"]} == expected
    norms = [
        part for part in detector.model.modules() if isinstance(part, (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d))
    ]
    learns = any(
        weight.requires_grad for part in norms for weight in part.parameters()
    )  # all of EfficientNet's are frozen
    assert set(expected.values()) == ({0.0, 0.1} if learns else {0.1})


def test_plain_detectron2_loads_an_export_and_detects_the_same(detector, tmp_path):
    config = Config()
    config.model = ModelConfig(engine="detectron2")
    export_model(detector, config, ["a", "b", "c", "d"], tmp_path / "x.pth")
    cfg = get_cfg()
    if "TIMM" in detector.cfg.MODEL:
        add_timm_config(cfg)  # as docs/export.md says
    cfg.merge_from_file(str(tmp_path / "x.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    plain = build_model(cfg).eval()
    DetectionCheckpointer(plain).load(str(tmp_path / "x.pth"))
    with torch.no_grad():
        stock = [each["instances"] for each in plain(detectron2_inputs(detector, images()))]
    for ours, theirs in zip(detector.detect(images()), stock, strict=True):
        assert_close(ours.boxes, theirs.pred_boxes.tensor, rtol=0, atol=1e-3)
        assert_close(ours.scores, theirs.scores, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "precision", "accumulate"),
    [("hard", "bf16", 2), ("soft", "32", 1)],
    ids=["hard, bf16, accumulated", "soft"],
)
def test_the_trainer_burns_in_and_adapts_with_it(tmp_path, kind, precision, accumulate):
    words = ["model.engine=detectron2", "model.detectron2_options=[" + ",".join(f'"{w}"' for w in options("fpn")) + "]"]
    words += ["data.target=[shapes_clipart_train]", "ema.decay=0.9", "adaptation.burn_in_steps=2", "train.steps=4"]
    words += ["alignment.parts=[image,instance]", "pseudo_labels.score=0.1", f"pseudo_labels.kind={kind}"]
    words += [f"train.precision={precision}", f"train.accumulate={accumulate}"]
    it = trainer(tmp_path, *words, "mixing.probability=0.6")
    assert it.train()
    assert it.state.skipped_steps == 0
    assert (tmp_path / "results.json").is_file()
    for weights in ("export/teacher.pth", "checkpoints/step_0000004.pt"):
        again = build_detector(replace(it.config.model, weights=str(tmp_path / weights)), len(it.state.classes))
        assert_same_tensors(dict(it.state.teacher.module.exported()), dict(again.exported()))


def test_the_step_equals_adaptive_teachers_made_of_detectron2_calls(tmp_path):
    """Strong and weak source supervised; strong target by pseudo-labels without regression; D on both domains."""
    words = "[" + ",".join(f'"{word}"' for word in options("fpn")) + "]"
    it = trainer(tmp_path, *ADAPT, "model.engine=detectron2", f"model.detectron2_options={words}", *AS_PUBLISHED)
    model = it.state.detector.model
    torch.manual_seed(1)
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.3)
    torch.nn.init.normal_(model.proposal_generator.rpn_head.anchor_deltas.weight, std=0.05)
    it.state.begin_adaptation(it.fabric)
    it.state.detector.train()
    step = batch()
    student_batch = it.compose(step)
    student_batch.images = replace(student_batch.images, keys=None)  # stock sampling, from the global generator
    torch.manual_seed(5)
    found = it.state.student_step(student_batch)

    teacher = copy.deepcopy(model).eval()
    with torch.no_grad():
        detected = teacher.inference(detectron2_inputs(it.state.detector, step.target.weak), do_postprocess=False)
    sure = [each[each.scores >= 0.5] for each in detected]
    pseudo_labels = [Instances(each.pred_boxes.tensor, each.pred_classes) for each in sure]
    assert sum(map(len, pseudo_labels)) >= 2
    both = ImageBatch.cat([step.source.strong, step.source.weak])
    torch.manual_seed(5)
    with EventStorage():
        source = model(detectron2_inputs(it.state.detector, both, step.source.truths * 2))
        target = model(detectron2_inputs(it.state.detector, step.target.strong, pseudo_labels))
    for name, stock in zip(
        it.state.detector.loss_names, ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"), strict=True
    ):
        assert_close(found[f"source/{name}"], source[stock], **CLOSE)
        expected = torch.zeros(()) if name.endswith("box") else target[stock]
        assert_close(found[f"target/{name}"], expected, **CLOSE)

    logits = [
        it.state.alignment.discriminators["image"](
            model.backbone(model.preprocess_image(detectron2_inputs(it.state.detector, images)).tensor)[
                it.state.alignment.level
            ]
        )
        for images in (both, step.target.strong)
    ]
    reference = torch.nn.functional.binary_cross_entropy_with_logits(logits[0], torch.zeros_like(logits[0]))
    reference += torch.nn.functional.binary_cross_entropy_with_logits(logits[1], torch.ones_like(logits[1]))
    assert_close(found["alignment/image"], reference, **CLOSE)
