"""torchvision's RetinaNet (Lin et al., ICCV 2017) behind the contract."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead, RetinaNetRegressionHead
from torchvision.ops import generalized_box_iou_loss

from lossmix_det.config import ModelConfig
from lossmix_det.engines.backbones import Backbone
from lossmix_det.engines.normalizers import by_images
from lossmix_det.engines.norms import group_norm
from lossmix_det.engines.one_stage.detector import Foreground
from lossmix_det.engines.one_stage.encoding import EncodedCanvas
from lossmix_det.engines.torchvision.networks import build_network
from lossmix_det.engines.torchvision.one_stage import SMALL, Matching, TorchvisionOneStage, settings_of

RATIOS = (0.5, 1.0, 2.0)


def build_retinanet(config: ModelConfig, num_classes: int, strict: bool = False) -> RetinaNet:
    """A plain torchvision RetinaNet, its weights loaded.

    Args:
        config: the ``model`` branch.
        num_classes: K, without background.
        strict: refuse weights that leave any part fresh.

    Raises:
        UserError: the combination is impossible, or the weights cannot be found or read.
    """
    outputs = num_classes + 1

    def assemble(backbone: Backbone, settings: dict[str, object]) -> RetinaNet:
        generator = AnchorGenerator(*anchor_shapes(backbone))
        more: dict[str, object] = {}
        if backbone.small:
            head = RetinaNetHead(backbone.pyramid.out_channels, 3 * len(RATIOS), outputs, norm_layer=group_norm)
            more = {"head": head, **SMALL}
        return RetinaNet(backbone.pyramid, outputs, anchor_generator=generator, **more, **settings)

    settings = settings_of(config)
    return build_network(config, RetinaNet, settings, assemble, outputs=outputs, one_stage=True, strict=strict)


def anchor_shapes(backbone: Backbone) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[float, ...], ...]]:
    """Three scales and three ratios per level, as in the paper."""
    sizes = tuple((size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))) for size in backbone.sizes)
    return sizes, (RATIOS,) * len(sizes)


def l1_loss(head: RetinaNetRegressionHead, predicted: Tensor, foreground: Foreground) -> Tensor:
    """(F,) distance of offsets, summed over the four."""
    wanted = head.box_coder.encode_single(foreground.boxes, foreground.anchors)
    return F.l1_loss(predicted, wanted, reduction="none").sum(1)


def giou_loss(head: RetinaNetRegressionHead, predicted: Tensor, foreground: Foreground) -> Tensor:
    """(F,) generalised IoU loss of the decoded boxes (Rezatofighi et al., CVPR 2019)."""
    return generalized_box_iou_loss(head.box_coder.decode_single(predicted, foreground.anchors), foreground.boxes)


# By the name that torchvision's heads keep; its second version decodes boxes.
BOX_LOSSES: dict[str, Callable[[RetinaNetRegressionHead, Tensor, Foreground], Tensor]] = {
    "l1": l1_loss,
    "giou": giou_loss,
}


class TorchvisionRetinaNet(TorchvisionOneStage):
    """Any torchvision RetinaNet as a `Detector`.

    Stock divides each image's losses by its own foreground, whatever ``model.normalizer`` says.
    """

    loss_names = ("class", "box")
    model: RetinaNet

    def __init__(self, config: ModelConfig, num_classes: int, strict: bool = False) -> None:
        super().__init__(build_retinanet(config, num_classes, strict), num_classes, config)
        self.normalize = by_images

    def match(self, canvas: EncodedCanvas, anchors: list[Tensor], truths: list[Tensor]) -> list[Tensor]:
        """As `OneStageDetector.match`, by torchvision's matcher."""
        targets = [{"boxes": boxes} for boxes in truths]
        return RetinaNet.compute_loss(Matching(self.model), targets, {}, anchors)

    def foreground_losses(self, foreground: Foreground) -> list[Tensor]:
        """The box loss that torchvision's head is set to."""
        head = self.model.head.regression_head
        return [BOX_LOSSES[head._loss_type](head, foreground.outputs["bbox_regression"], foreground)]

    def taught_only_by(self, losses: Collection[str]) -> list[nn.Module]:
        """The head of each loss; they share no layer."""
        heads = self.model.head
        parts = {"class": heads.classification_head, "box": heads.regression_head}
        return [parts[name] for name in losses]
