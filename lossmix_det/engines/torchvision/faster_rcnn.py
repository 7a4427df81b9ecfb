"""torchvision's Faster R-CNN behind the contract; network, matching, box coding and inference are its own modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

from lossmix_det.config import ModelConfig
from lossmix_det.engines.contract import LOSSES, Detector, Encoding, Scores
from lossmix_det.engines.torchvision.networks import build_model, norm_of
from lossmix_det.engines.two_stage.losses import BACKGROUND, ScoredProposals, TwoStageLosses
from lossmix_det.engines.two_stage.sampling import KeyedSampler
from lossmix_det.structures import ImageBatch, Instances

BETA = 1 / 9  # torchvision's smooth-L1 threshold, in both stages


class TorchvisionRCNN(TwoStageLosses, Detector):
    """Any torchvision Faster R-CNN as a `Detector`; ``model`` is the plain torchvision module."""

    background = 0

    def __init__(self, config: ModelConfig, num_classes: int, strict: bool = False) -> None:
        super().__init__()
        self.num_classes, self.normalizer = num_classes, config.normalizer
        self.model: FasterRCNN = build_model(config, num_classes, strict)
        self.norm = norm_of(self.model)
        for part in (self.model.rpn, self.model.roi_heads):
            stock = part.fg_bg_sampler
            part.fg_bg_sampler = KeyedSampler(stock.batch_size_per_image, stock.positive_fraction)
        head = self.model.roi_heads.box_head
        self.roi_width = self.model.roi_heads.box_predictor.cls_score.in_features
        self.shares_scores = not any(isinstance(part, nn.BatchNorm2d) for part in head.modules())

    def encode(self, images: ImageBatch) -> Encoding:
        batch = self._normalised(images)
        features = self._features(batch)
        rpn, levels = self.model.rpn, list(features.values())
        objectness, deltas = rpn.head(levels)
        # Boxes are always float32: bfloat16 counts pixels beyond 512 in fours.
        shapes = [torch.zeros((), device=level.device).expand(level.shape) for level in levels]
        anchors = rpn.anchor_generator(batch, shapes)
        per_level = [level.shape[1] * level.shape[2] * level.shape[3] for level in objectness]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        count = len(images)
        objectness, deltas = objectness.reshape(count, -1), deltas.reshape(count, -1, 4)
        with torch.no_grad(), torch.autocast(objectness.device.type, enabled=False):
            boxes = rpn.box_coder.decode(deltas.detach().float().reshape(-1, 4), anchors).reshape(count, -1, 4)
            proposals, _ = rpn.filter_proposals(boxes, objectness.float(), batch.image_sizes, per_level)
        scored = ScoredProposals([len(found) for found in proposals], self.shares_scores)
        return Encoding(features, anchors, objectness, deltas, proposals, batch, images, scored)

    def detections(self, encoding: Encoding) -> list[Instances]:
        scores = self.score(encoding, encoding.proposals)
        logits, deltas = scores.logits.float(), scores.deltas.float().flatten(1)
        with torch.autocast(logits.device.type, enabled=False):  # boxes in float32, as for proposals
            found = self.model.roi_heads.postprocess_detections(
                logits, deltas, encoding.proposals, encoding.images.image_sizes
            )
        return [Instances(boxes, labels - 1, values) for boxes, values, labels in zip(*found, strict=True)]

    def score(self, encoding: Encoding, boxes: list[Tensor]) -> Scores:
        heads = self.model.roi_heads
        pooled = heads.box_roi_pool(encoding.features, boxes, encoding.images.image_sizes)
        features = heads.box_head(pooled)
        logits, deltas = heads.box_predictor(features)
        return Scores(features, logits, deltas.reshape(len(deltas), deltas.shape[1] // 4, 4))

    def match(self, stage: str, boxes: Tensor, truth: Tensor) -> Tensor:
        if not len(truth):
            return torch.full((len(boxes),), BACKGROUND, dtype=torch.int64, device=boxes.device)
        part = self._part(stage)
        return part.proposal_matcher(part.box_similarity(truth, boxes))

    def sampler(self, stage: str) -> KeyedSampler:
        return self._part(stage).fg_bg_sampler

    def offsets(self, stage: str, truth: Tensor, boxes: Tensor) -> Tensor:
        return self._part(stage).box_coder.encode([truth], [boxes])[0]

    def box_loss(self, stage: str, predicted: Tensor, wanted: Tensor) -> Tensor:
        return F.smooth_l1_loss(predicted, wanted, beta=BETA, reduction="none").sum(dim=1)

    def _part(self, stage: str) -> nn.Module:
        return self.model.rpn if stage == "rpn" else self.model.roi_heads

    def levels(self) -> dict[str, int]:
        # Those that proposals are pooled from; pyramids have one more, for the first stage alone.
        return dict.fromkeys(self.model.roi_heads.box_roi_pool.featmap_names, self.model.backbone.out_channels)

    def heads(self) -> dict[str, nn.Module]:
        rpn, predictor = self.model.rpn.head, self.model.roi_heads.box_predictor
        parts = (rpn.cls_logits, rpn.bbox_pred, predictor.cls_score, predictor.bbox_pred)
        return dict(zip(LOSSES, parts, strict=True))

    def _normalised(self, images: ImageBatch) -> ImageList:
        """Normalise, and zero the padding afterwards, as torchvision pads after normalising."""
        transform = self.model.transform
        mean, std = (
            torch.tensor(values, device=images.pixels.device).view(1, 3, 1, 1)
            for values in (transform.image_mean, transform.image_std)
        )
        pixels = torch.where(images.valid(), (images.to_float().pixels - mean) / std, 0.0)
        return ImageList(pixels, list(images.sizes))

    def _features(self, batch: ImageList) -> dict[str, Tensor]:
        """Pyramid levels by name."""
        features = self.model.backbone(batch.tensors)
        pool = self.model.roi_heads.box_roi_pool
        if pool.scales is None:
            # On its first use the pooling takes the strides from the ratio of features to the largest image, for good.
            # Where that image is much smaller than the canvas the ratio is wrong; so let it see the canvas.
            canvas = [tuple(batch.tensors.shape[2:])] * len(batch.image_sizes)
            pool(features, [batch.tensors.new_zeros((0, 4))] * len(canvas), canvas)
        return features
