"""torchvision's Faster R-CNN behind the contract; network, matching, box coding and inference are its own modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign

from lossmix_det.config import ModelConfig
from lossmix_det.engines.backbones import Backbone
from lossmix_det.engines.canvases import LAYOUTS
from lossmix_det.engines.normalizers import NORMALIZERS
from lossmix_det.engines.norms import norm_of
from lossmix_det.engines.torchvision.networks import TorchvisionDetector, anchors_of, build_network
from lossmix_det.engines.two_stage.detector import TwoStageDetector
from lossmix_det.engines.two_stage.encoding import AnchorGrid, EncodedCanvas, Scores, TwoStageEncoding
from lossmix_det.engines.two_stage.first_stage import FirstStage
from lossmix_det.engines.two_stage.sampling import RankedSampler
from lossmix_det.engines.two_stage.second_stage import SecondStage
from lossmix_det.engines.two_stage.stage import BACKGROUND, Stage
from lossmix_det.structures import Instances

BETA = 1 / 9  # torchvision's smooth-L1 threshold, in both stages


def build_faster_rcnn(config: ModelConfig, num_classes: int, strict: bool = False) -> FasterRCNN:
    """A plain torchvision Faster R-CNN, its weights loaded.

    Args:
        config: the ``model`` branch.
        num_classes: K, without background.
        strict: refuse weights that leave any part fresh.

    Raises:
        UserError: the combination is impossible, or the weights cannot be found or read.
    """
    outputs = num_classes + 1
    settings = {
        "box_score_thresh": config.score_threshold,
        "box_nms_thresh": config.nms_threshold,
        "box_detections_per_img": config.detections_per_image,
        "_skip_resize": True,  # images arrive in the size wanted
    }
    if config.rpn_samples:
        settings["rpn_batch_size_per_image"] = config.rpn_samples
    if config.roi_samples:
        settings["box_batch_size_per_image"] = config.roi_samples

    def assemble(backbone: Backbone, settings: dict[str, object]) -> FasterRCNN:
        more = _small_heads(backbone, outputs) if backbone.small else {"num_classes": outputs}
        return FasterRCNN(backbone.pyramid, **(more | settings))

    return build_network(config, FasterRCNN, settings, assemble, outputs=outputs, one_stage=False, strict=strict)


def _small_heads(backbone: Backbone, outputs: int) -> dict[str, object]:
    """Fewer anchors, proposals and hidden features, for images of about 100 pixels."""
    channels, sizes = backbone.pyramid.out_channels, tuple((size,) for size in backbone.sizes)
    return {
        "num_classes": None,
        "rpn_anchor_generator": AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        "rpn_pre_nms_top_n_train": 500,
        "rpn_pre_nms_top_n_test": 300,
        "rpn_post_nms_top_n_train": 300,
        "rpn_post_nms_top_n_test": 150,
        "box_roi_pool": MultiScaleRoIAlign(["0", "1", "2"], output_size=7, sampling_ratio=1),
        "box_head": TwoMLPHead(channels * 49, backbone.hidden),
        "box_predictor": FastRCNNPredictor(backbone.hidden, outputs),
        "box_batch_size_per_image": 64,
    }


class _TorchvisionStage(Stage):
    """Matching, sampling and coding, which both stages of torchvision do alike."""

    part: RegionProposalNetwork | RoIHeads

    @property
    def sampler(self) -> RankedSampler:
        """The network's own, so that whoever replaces it there replaces it here."""
        return self.part.fg_bg_sampler

    def match(self, boxes: Tensor, truth: Tensor) -> Tensor:
        """As `Stage.match`, by torchvision's matcher."""
        if not len(truth):
            return torch.full((len(boxes),), BACKGROUND, dtype=torch.int64, device=boxes.device)
        return self.part.proposal_matcher(self.part.box_similarity(truth, boxes))

    def offsets(self, truth: Tensor, boxes: Tensor) -> Tensor:
        """As `Stage.offsets`, by torchvision's box coder."""
        return self.part.box_coder.encode([truth], [boxes])[0]

    def moved(self, boxes: Tensor, offsets: Tensor) -> Tensor:
        """As `Stage.moved`, by torchvision's box coder."""
        return self.part.box_coder.decode_single(offsets, boxes)

    def box_loss(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        """As `Stage.box_loss`: smooth L1 with torchvision's threshold."""
        return F.smooth_l1_loss(predicted, wanted, beta=BETA, reduction="none").sum(dim=1)

    def _take(self, part: RegionProposalNetwork | RoIHeads) -> None:
        """Read from a part of the network, whose sampler is made to choose by rank."""
        self.part, stock = part, part.fg_bg_sampler
        part.fg_bg_sampler = RankedSampler(stock.batch_size_per_image, stock.positive_fraction)


class TorchvisionRPN(_TorchvisionStage, FirstStage):
    """torchvision's region proposal network as a stage."""

    def __init__(self, rpn: RegionProposalNetwork, normalizer: str) -> None:
        super().__init__(NORMALIZERS[normalizer])
        self._take(rpn)


class TorchvisionRoI(_TorchvisionStage, SecondStage):
    """torchvision's RoI heads as a stage."""

    def __init__(self, heads: RoIHeads, normalizer: str) -> None:
        super().__init__(NORMALIZERS[normalizer], background=0)
        self._take(heads)
        self.shares_scores = not any(isinstance(part, nn.BatchNorm2d) for part in heads.box_head.modules())

    def pool(self, canvas: EncodedCanvas, boxes: list[Tensor]) -> Tensor:
        """As `SecondStage.pool`, by torchvision's pooling."""
        return self.part.box_roi_pool(canvas.features, boxes, canvas.inputs.image_sizes)

    def judge(self, pooled: Tensor) -> Scores:
        """As `SecondStage.judge`, by torchvision's head and predictor."""
        features = self.part.box_head(pooled)
        logits, deltas = self.part.box_predictor(features)
        return Scores(features, logits, deltas.reshape(len(deltas), deltas.shape[1] // 4, 4))


class TorchvisionFasterRCNN(TwoStageDetector, TorchvisionDetector):
    """Any torchvision Faster R-CNN as a `Detector`; ``model`` is the plain torchvision module."""

    def __init__(self, config: ModelConfig, num_classes: int, strict: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.model: FasterRCNN = build_faster_rcnn(config, num_classes, strict)
        self.norm = norm_of(self.model)
        heads = self.model.roi_heads
        self.rpn = TorchvisionRPN(self.model.rpn, config.normalizer)
        self.roi = TorchvisionRoI(heads, config.normalizer)
        self.roi_width = heads.box_predictor.cls_score.in_features
        self.layout = LAYOUTS[config.canvases]

    def encode_levels(self, features: dict[str, Tensor], inputs: ImageList) -> EncodedCanvas:
        """As `TwoStageDetector.encode_levels`."""
        rpn, levels = self.model.rpn, list(features.values())
        objectness, deltas = rpn.head(levels)
        anchors = anchors_of(rpn.anchor_generator, inputs, levels)
        grid = AnchorGrid(
            tuple((level.shape[2], level.shape[3], level.shape[1]) for level in objectness),
            tuple(inputs.tensors.shape[2:]),
        )
        per_level = [rows * columns * count for rows, columns, count in grid.levels]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        count = len(inputs.image_sizes)
        objectness, deltas = objectness.reshape(count, -1), deltas.reshape(count, -1, 4)
        with torch.no_grad(), torch.autocast(objectness.device.type, enabled=False):
            boxes = rpn.box_coder.decode(deltas.detach().float().reshape(-1, 4), anchors).reshape(count, -1, 4)
            proposals, _ = rpn.filter_proposals(boxes, objectness.float(), inputs.image_sizes, per_level)
        return EncodedCanvas(features, inputs, grid.canvas, anchors, objectness, deltas, proposals, grid)

    def detections(self, encoding: TwoStageEncoding) -> list[Instances]:
        """torchvision's inference on the proposals of an encoding."""
        scores = self.roi.score(encoding, encoding.proposals)
        logits, deltas = scores.logits.float(), scores.deltas.float().flatten(1)
        with torch.autocast(logits.device.type, enabled=False):  # boxes in float32, as for proposals
            results = self.model.roi_heads.postprocess_detections(
                logits, deltas, encoding.proposals, list(encoding.images.sizes)
            )
        return [Instances(boxes, labels - 1, values) for boxes, values, labels in zip(*results, strict=True)]

    def levels(self) -> dict[str, int]:
        """Channels of the levels that proposals are pooled from; pyramids have one more, for the first stage alone."""
        return dict.fromkeys(self.model.roi_heads.box_roi_pool.featmap_names, self.model.backbone.out_channels)

    def heads(self) -> tuple[nn.Module, nn.Module]:
        """As `TwoStageDetector.heads`."""
        return self.model.rpn.head, self.model.roi_heads.box_head

    def last_layers(self) -> list[nn.Module]:
        """The layer that each loss alone teaches, in the order of ``loss_names``."""
        rpn, predictor = self.model.rpn.head, self.model.roi_heads.box_predictor
        return [rpn.cls_logits, rpn.bbox_pred, predictor.cls_score, predictor.bbox_pred]

    def levels_of(self, inputs: ImageList) -> dict[str, Tensor]:
        """As `CanvasDetector.levels_of`."""
        features = super().levels_of(inputs)
        pool = self.model.roi_heads.box_roi_pool
        if pool.scales is None:
            # On its first use the pooling takes the strides from the ratio of features to the largest image, for good.
            # Where that image is much smaller than the canvas the ratio is wrong; so let it see the canvas.
            canvas = [tuple(inputs.tensors.shape[2:])] * len(inputs.image_sizes)
            pool(features, [inputs.tensors.new_zeros((0, 4))] * len(canvas), canvas)
        return features
