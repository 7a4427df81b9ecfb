"""Small detectors of every engine, and the engine's own losses and detections of unequal images, to hold ours against.

Sampling is made deterministic on both sides; the stock model is given the same weights and pads to the same canvas.
"""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from lossmix_det.config import ModelConfig
from lossmix_det.engines import build_detector
from lossmix_det.engines.torchvision.networks import ZOO
from lossmix_det.structures import ImageBatch, Instances

CANVAS, CLASSES = 128, 4
TORCHVISION = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
RETINANET = ("classification", "bbox_regression")
FCOS = (*RETINANET, "bbox_ctrness")
DETECTRON2 = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")
ALL = "['res2','res3','res4','res5']"
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
    "timm": SMALL
    | {
        "MODEL.BACKBONE.NAME": "build_timm_fpn_backbone",
        "MODEL.TIMM.NAME": "test_efficientnet",
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.ANCHOR_GENERATOR.SIZES": "[[16],[32],[64],[128],[256]]",
        "MODEL.RPN.IN_FEATURES": "['p2','p3','p4','p5','p6']",
        "MODEL.ROI_HEADS.IN_FEATURES": "['p2','p3','p4','p5']",
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


def options(name: str, **more: object) -> list[str]:
    """A small Detectron2 model, as `model.detectron2_options`."""
    return [str(word) for pair in (MODELS[name] | more).items() for word in pair]


class FirstOfEach(BalancedPositiveNegativeSampler):
    """Takes the first candidates instead of random ones."""

    def __call__(self, labels):
        results = [first_of_each(label, self.batch_size_per_image, self.positive_fraction) for label in labels]
        return [masks[0] for masks in results], [masks[1] for masks in results]


def first_of_each(label, count, fraction, background=0):
    """Masks of the first positives and negatives; -1 is neither."""
    positive = (label != -1) & (label != background)
    positives = min(int(positive.sum()), int(count * fraction))
    masks = []
    for candidates, wanted in ((positive, positives), (label == background, count - positives)):
        mask = torch.zeros_like(candidates)
        mask[torch.where(candidates)[0][:wanted]] = True
        masks.append(mask)
    return masks


class Torchvision:
    """Settings of `ModelConfig`, and what plain torchvision makes of a batch."""

    names = TORCHVISION

    def __init__(self, architecture: str, **settings: object) -> None:
        self.settings = {"architecture": architecture, **settings}

    def prepare(self, detector) -> None:
        for part in (detector.model.rpn, detector.model.roi_heads):
            stock = part.fg_bg_sampler
            part.fg_bg_sampler = FirstOfEach(stock.batch_size_per_image, stock.positive_fraction)
        with torch.no_grad():  # from random weights every proposal would be one box; spread them
            detector.model.rpn.head.bbox_pred.weight.mul_(3)

    def pad(self, detector) -> None:
        detector.model.transform.size_divisible = CANVAS

    def losses(self, detector, batch: ImageBatch, truths) -> dict[str, torch.Tensor]:
        targets = [{"boxes": item.boxes, "labels": item.classes + 1} for item in truths]
        return detector.model(pictures(batch), targets)

    def detections(self, detector, batch: ImageBatch) -> list[Instances]:
        resize, threshold = detector.model.transform.resize, detector.model.roi_heads.score_thresh
        detector.model.transform.resize = lambda image, target: (image, target)
        found = detector.model(pictures(batch))
        detector.model.transform.resize, detector.model.roi_heads.score_thresh = resize, threshold
        return [Instances(each["boxes"], each["labels"] - 1, each["scores"]) for each in found]

    def ask_for(self, detector, roi_samples: int) -> int:
        sampler = detector.model.roi_heads.fg_bg_sampler
        before, sampler.batch_size_per_image = sampler.batch_size_per_image, roi_samples
        return before

    def show_all(self, detector) -> None:
        detector.model.roi_heads.score_thresh = 0.0


class OneStage:
    """The same for torchvision's RetinaNet and FCOS, which sample nothing."""

    def __init__(self, detector: str, architecture: str, names: tuple[str, ...], **settings: object) -> None:
        norm = "frozen" if architecture in ZOO else "auto"  # so that images do not depend on one another
        self.settings = {"detector": detector, "architecture": architecture, "norm": norm, **settings}
        self.names = names

    def prepare(self, detector) -> None:
        """From random weights all anchors score alike and all boxes are one; spread them."""
        heads = detector.model.head
        with torch.no_grad():
            for part in (heads.classification_head, heads.regression_head):
                for layer in part.modules():
                    if isinstance(layer, torch.nn.Conv2d):
                        layer.weight.mul_(4)
            heads.regression_head.bbox_reg.bias.fill_(0.2)

    def pad(self, detector) -> None:
        detector.model.transform.size_divisible = CANVAS

    def losses(self, detector, batch: ImageBatch, truths) -> dict[str, torch.Tensor]:
        targets = [{"boxes": item.boxes, "labels": item.classes + 1} for item in truths]
        return detector.model(pictures(batch), targets)

    def detections(self, detector, batch: ImageBatch) -> list[Instances]:
        """Without those of label 0, which torchvision counts as a class of these networks and nothing teaches."""
        resize = detector.model.transform.resize
        detector.model.transform.resize = lambda image, target: (image, target)
        results = detector.model(pictures(batch))
        detector.model.transform.resize = resize
        return [
            Instances(result["boxes"], result["labels"] - 1, result["scores"])[result["labels"] > 0]
            for result in results
        ]

    def show_all(self, detector) -> None:
        detector.model.score_thresh = 0.0


class Detectron2:
    """The same for Detectron2."""

    names = DETECTRON2

    def __init__(self, name: str, **more: object) -> None:
        more = {"MODEL.RPN.LOSS_WEIGHT": 1.0} | more
        self.settings = {"engine": "detectron2", "detectron2_options": options(name, **more)}

    def prepare(self, detector) -> None:
        for stage in (detector.rpn, detector.roi):
            stage.sampler = FirstOfEach(stage.sampler.batch_size_per_image, stage.sampler.positive_fraction)
        with torch.no_grad():
            detector.model.proposal_generator.rpn_head.anchor_deltas.weight.mul_(3)

    def pad(self, detector) -> None:
        """Square, as Detectron2 pads for ViT backbones, so that one image has the canvas of three."""
        backbone = type(detector.model.backbone)
        square = property(lambda self: {"square_size": CANVAS, "size_divisiblity": CANVAS})
        detector.model.backbone.__class__ = type(
            backbone.__name__, (backbone,), {"padding_constraints": square, "size_divisibility": CANVAS}
        )

    def losses(self, detector, batch: ImageBatch, truths) -> dict[str, torch.Tensor]:
        from detectron2.modeling.proposal_generator import rpn
        from detectron2.modeling.roi_heads import roi_heads
        from detectron2.utils.events import EventStorage

        deterministic = isinstance(detector.rpn.sampler, FirstOfEach)
        with pytest.MonkeyPatch.context() as patch, EventStorage():
            if deterministic:
                for module in (rpn, roi_heads):
                    patch.setattr(module, "subsample_labels", _subsample)
            return detector.model(detectron2_inputs(detector, batch, truths))

    def detections(self, detector, batch: ImageBatch) -> list[Instances]:
        found = [each["instances"] for each in detector.model(detectron2_inputs(detector, batch))]
        return [Instances(each.pred_boxes.tensor, each.pred_classes, each.scores) for each in found]

    def ask_for(self, detector, roi_samples: int) -> int:
        before = detector.roi.sampler.batch_size_per_image
        detector.roi.sampler.batch_size_per_image = roi_samples
        detector.model.roi_heads.batch_size_per_image = roi_samples
        return before

    def show_all(self, detector) -> None:
        detector.model.roi_heads.box_predictor.test_score_thresh = 0.0


def detectron2_inputs(detector, batch: ImageBatch, truths=None) -> list[dict]:
    """What Detectron2's mapper would give of a batch."""
    from detectron2.structures import Boxes
    from detectron2.structures import Instances as D2Instances

    found = []
    for index, picture in enumerate(pictures(batch)):
        image = picture.flip(0) if detector.model.input_format == "BGR" else picture
        found.append({"image": image * 255, "height": image.shape[1], "width": image.shape[2]})
        if truths is not None:
            truth = truths[index]
            found[-1]["instances"] = D2Instances(
                tuple(image.shape[1:]), gt_boxes=Boxes(truth.boxes), gt_classes=truth.classes
            )
    return found


def _subsample(labels, num_samples, positive_fraction, bg_label):
    positive, negative = first_of_each(labels, num_samples, positive_fraction, bg_label)
    return torch.where(positive)[0], torch.where(negative)[0]


ENGINES = {
    "slim": Torchvision("slim"),
    "resnet18_fpn": Torchvision("resnet18_fpn"),
    "detectron2_fpn": Detectron2("fpn"),
    "detectron2_c4": Detectron2("c4_two_fc"),
    # timm's families: convolutions that pad by the size of the image with BatchNorm, which is frozen so that images do
    # not depend on one another; ConvNeXt; a pyramid of attention (PVT); one that gives its channels last.
    "timm_lite0": Torchvision("timm/tf_efficientnet_lite0", norm="frozen", fpn_channels=32, roi_samples=64),
    "timm_convnext": Torchvision("timm/test_convnext", fpn_channels=32, roi_samples=64),
    "timm_pvt": Torchvision("timm/pvt_v2_b0", fpn_channels=32, roi_samples=64),
    "timm_mambaout": Torchvision("timm/test_mambaout", fpn_channels=32, roi_samples=64),
    "detectron2_timm_lite0": Detectron2("timm", **{"MODEL.TIMM.NAME": "tf_efficientnet_lite0"}),
    "detectron2_timm_convnext": Detectron2("timm", **{"MODEL.TIMM.NAME": "test_convnext"}),
    "detectron2_timm_pvt": Detectron2("timm", **{"MODEL.TIMM.NAME": "pvt_v2_b0"}),
}
ONE_STAGE = {
    "retinanet_slim": OneStage("retinanet", "slim", RETINANET),
    "retinanet_resnet18_fpn": OneStage("retinanet", "resnet18_fpn", RETINANET),
    "retinanet_resnet50_fpn_v2": OneStage("retinanet", "retinanet_resnet50_fpn_v2", RETINANET),
    "fcos_slim": OneStage("fcos", "slim", FCOS),
    "fcos_resnet18_fpn": OneStage("fcos", "resnet18_fpn", FCOS),
    "fcos_resnet50_fpn": OneStage("fcos", "fcos_resnet50_fpn", FCOS),
    "retinanet_timm": OneStage("retinanet", "timm/test_efficientnet", RETINANET, norm="frozen", fpn_channels=32),
    "fcos_timm": OneStage("fcos", "timm/test_convnext", FCOS, fpn_channels=32),
}


def make(name: str = "slim", *, deterministic: bool = True, **settings):
    """A detector in training mode, with ``stock`` to hold it against; of equal weights for equal arguments."""
    if name.startswith("detectron2"):
        pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    stock = {**ENGINES, **ONE_STAGE}.get(name) or Torchvision(name)
    torch.manual_seed(0)
    detector = build_detector(ModelConfig(**{**stock.settings, **settings}), CLASSES).train()
    detector.stock = stock
    if deterministic:
        stock.prepare(detector)
    stock.pad(detector)
    return detector


def pictures(batch: ImageBatch) -> list[torch.Tensor]:
    return [
        pixels[:, :height, :width] for pixels, (height, width) in zip(batch.to_float().pixels, batch.sizes, strict=True)
    ]


def stock_losses(detector, batch: ImageBatch, truths) -> dict[str, torch.Tensor]:
    """The engine's own forward pass on a list of unequal images, under our names of the losses."""
    found = detector.stock.losses(detector, batch, truths)
    return {ours: found[theirs] for ours, theirs in zip(detector.loss_names, detector.stock.names, strict=True)}
