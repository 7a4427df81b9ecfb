"""Any Detectron2 ``GeneralizedRCNN`` behind the contract.

Network, matching, box coding and inference are its own modules.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from detectron2.modeling import FPN, GeneralizedRCNN
from detectron2.structures import Boxes, ImageList
from detectron2.structures import Instances as D2Instances
from torch import Tensor, nn

from lossmix_det.config import TIMM_PREFIX, ModelConfig
from lossmix_det.engines.canvases import LAYOUTS
from lossmix_det.engines.contract import Export
from lossmix_det.engines.detectron2.cfg import COLOURS, build_rcnn, read_cfg
from lossmix_det.engines.detectron2.mixing_points import mixing_points
from lossmix_det.engines.detectron2.stages import Detectron2RoI, Detectron2RPN, propose
from lossmix_det.engines.detectron2.weights import load_weights
from lossmix_det.engines.feature_mixing import MixingPoints
from lossmix_det.engines.two_stage.detector import TwoStageDetector
from lossmix_det.engines.two_stage.encoding import AnchorGrid, EncodedCanvas, TwoStageEncoding
from lossmix_det.structures import ImageBatch, Instances, Size, pad_to

log = logging.getLogger(__name__)


class Detectron2RCNN(TwoStageDetector):
    """A plain Detectron2 model as a `Detector`; ``model`` is the module itself.

    Args:
        config: ``detectron2_config`` and ``detectron2_options`` say which.
        num_classes: K.
        strict: refuse weights that leave any part fresh.

    Raises:
        UserError: the configuration cannot be read, or is of a kind that has no weighted losses here.
    """

    def __init__(self, config: ModelConfig, num_classes: int, strict: bool = False) -> None:
        super().__init__()
        self.cfg = read_cfg(config, num_classes)
        if strict and "TIMM" in self.cfg.MODEL:
            self.cfg.MODEL.TIMM.WEIGHTS = ""  # every part is loaded below, and their file may be gone
        self.num_classes = num_classes
        self.model: GeneralizedRCNN = build_rcnn(self.cfg)
        timm = self.cfg.MODEL.get("TIMM")
        weights = config.weights or self.cfg.MODEL.WEIGHTS
        if weights:
            load_weights(self.model, weights, strict, f"{TIMM_PREFIX}{timm.NAME}" if timm else "")
        elif timm and not timm.WEIGHTS:
            log.warning(
                "MODEL.TIMM.NAME=%s starts from random weights, of which MODEL.BACKBONE.FREEZE_AT=%d and "
                "MODEL.TIMM.NORM=%s keep some as they are; give MODEL.TIMM.WEIGHTS, or set these to 0 and BN",
                *(timm.NAME, self.cfg.MODEL.BACKBONE.FREEZE_AT, timm.NORM),
            )
        else:
            log.info("neither model.weights nor MODEL.WEIGHTS is set: what the backbone's builder loaded is kept")
        self.norm = timm.NORM if timm else self.cfg.MODEL.RESNETS.NORM
        heads = self.model.roi_heads
        self.rpn = Detectron2RPN(self.model.proposal_generator, config.normalizer)
        self.roi = Detectron2RoI(heads, config.normalizer)
        self.roi_width = heads.box_predictor.cls_score.in_features
        self.layout = LAYOUTS[config.canvases]
        self.multiple = max(self.model.backbone.size_divisibility, 1)  # C4 networks take any size

    def levels_of(self, inputs: ImageList) -> dict[str, Tensor]:
        """As `CanvasDetector.levels_of`."""
        return self.model.backbone(inputs.tensor)

    def resized(self, inputs: ImageList, sizes: Sequence[Size]) -> ImageList:
        """As `CanvasDetector.resized`."""
        return ImageList(inputs.tensor[:1].expand(len(sizes), -1, -1, -1), list(sizes))

    def mixing_points(self) -> MixingPoints:
        """As `CanvasDetector.mixing_points`."""
        return mixing_points(self.model.backbone)

    def encode_levels(self, features: dict[str, Tensor], inputs: ImageList) -> EncodedCanvas:
        """As `TwoStageDetector.encode_levels`."""
        proposed = propose(self.model.proposal_generator, features, inputs.image_sizes)
        proposals = [instances.proposal_boxes.tensor for instances in proposed.proposals]
        grid = AnchorGrid(proposed.levels, tuple(inputs.tensor.shape[2:]))
        outputs = (proposed.anchors, proposed.objectness, proposed.deltas)
        return EncodedCanvas(features, inputs, grid.canvas, *outputs, proposals, grid)

    def detections(self, encoding: TwoStageEncoding) -> list[Instances]:
        """Detectron2's inference on the proposals of an encoding."""
        scores = self.roi.score(encoding, encoding.proposals)
        with torch.autocast(scores.logits.device.type, enabled=False):
            predictions = scores.logits.float(), scores.deltas.float().flatten(1)
            inputs = [
                D2Instances(size, proposal_boxes=Boxes(boxes))
                for size, boxes in zip(encoding.images.sizes, encoding.proposals, strict=True)
            ]
            results, _ = self.model.roi_heads.box_predictor.inference(predictions, inputs)
        results = [result[result.pred_boxes.nonempty()] for result in results]  # as Detectron2's last step does
        return [Instances(result.pred_boxes.tensor, result.pred_classes, result.scores) for result in results]

    def body(self) -> nn.Module:
        """As `HasBody.body`."""
        backbone = self.model.backbone
        return backbone.bottom_up if isinstance(backbone, FPN) else backbone

    def levels(self) -> dict[str, int]:
        """Channels of the levels that proposals are pooled from."""
        shapes = self.model.backbone.output_shape()
        return {name: shapes[name].channels for name in self.model.roi_heads.in_features}

    def heads(self) -> tuple[nn.Module, nn.Module]:
        """As `TwoStageDetector.heads`."""
        return self.model.proposal_generator.rpn_head, self.roi.head

    def last_layers(self) -> list[nn.Module]:
        """The layer that each loss alone teaches, in the order of ``loss_names``."""
        rpn, predictor = self.model.proposal_generator.rpn_head, self.model.roi_heads.box_predictor
        return [rpn.objectness_logits, rpn.anchor_deltas, predictor.cls_score, predictor.bbox_pred]

    def export(self, state: dict[str, Tensor], config: ModelConfig, sizes: dict[str, int]) -> Export:
        """A checkpoint for its checkpointer, and its whole configuration as YAML."""
        about = {"detectron2_config": config.detectron2_config, "detectron2_options": config.detectron2_options}
        cfg = self.cfg.clone()
        cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cuda"
        if "TIMM" in cfg.MODEL:
            cfg.MODEL.TIMM.WEIGHTS = ""  # they are in the checkpoint
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = sizes.values()
        return Export({"model": state}, about | {"num_classes": self.num_classes}, {".yaml": cfg.dump()})

    def normalise(self, images: ImageBatch) -> ImageList:
        """In the model's own colours and range, normalised, the padding zeroed afterwards as stock pads."""
        pixels = COLOURS[self.model.input_format](images.to_float().pixels * 255)
        pixels = (pixels - self.model.pixel_mean) / self.model.pixel_std
        pixels = torch.where(images.valid(), pixels, 0.0)
        multiple = self.model.backbone.size_divisibility
        if multiple > 1:
            height, width = (-(-side // multiple) * multiple for side in pixels.shape[2:])
            pixels = pad_to(pixels, height, width)
        return ImageList(pixels, list(images.sizes))
