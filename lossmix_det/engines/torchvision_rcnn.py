"""torchvision's Faster R-CNN (Ren et al., NeurIPS 2015) with losses weighted per image.

Network, matching, sampling, box coding and inference are torchvision's own modules. What is ours is the last step of
each loss: stock takes a mean over all samples of the batch; here each sample is first multiplied by the weight of its
image (and, where the truth carries weights, of the box that it was matched to), and the same normaliser is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

from lossmix_det.config import ModelConfig
from lossmix_det.engines.base import LOSSES, Detector, Encoding, Marker, Scores
from lossmix_det.engines.sampling import KeyedSampler
from lossmix_det.engines.torchvision_models import build_model, norm_of
from lossmix_det.structures import ImageBatch, Instances, Supervision

BETA = 1 / 9  # torchvision's smooth-L1 threshold, in both stages


@dataclass(frozen=True)
class Samples:
    """The anchors or proposals that one truth is scored on, of all images that it teaches, one after the other.

    Args:
        images: (S,) index of the image of each sample.
        class_weights, box_weights: (S,) weight of each sample.
        normalizers: (S,) what each sample's loss is divided by.
        foreground: (S,) bool.
    """

    images: Tensor
    class_weights: Tensor
    box_weights: Tensor
    normalizers: Tensor
    foreground: Tensor


class ScoredProposals:
    """Head outputs by proposal, filled as truths ask for them.

    Args:
        counts: proposals per image.
        share: false where the head must see each truth's samples as one batch (it normalises over the batch).
    """

    def __init__(self, counts: list[int], share: bool) -> None:
        self.counts, self.share = counts, share
        self.rows: dict[int, Tensor] = {}
        self.size = 0
        self.outputs: list[Scores] = []

    def place(self, image: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the outputs for the boxes of an image, and which of the boxes are yet to be scored, in this order."""
        count = self.counts[image]
        known = self.rows.setdefault(image, index.new_full((count,), -1))
        proposal = index < count
        row = torch.where(proposal, known[index.clamp(max=count - 1)], -1) if count else torch.full_like(index, -1)
        new = row < 0 if self.share else torch.ones_like(proposal)
        added = int(new.sum())
        row[new] = torch.arange(self.size, self.size + added, device=index.device)
        known[index[new & proposal]] = row[new & proposal]
        self.size += added
        return row, new


class TorchvisionRCNN(Detector):
    """Any torchvision Faster R-CNN as a `Detector`; ``model`` is the plain torchvision module."""

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

    def losses(self, encoding: Encoding, supervision: Supervision, marker: Marker | None = None) -> dict[str, Tensor]:
        if len(supervision) != len(encoding.batch):
            raise ValueError(f"supervision is of {len(supervision)} images, the encoding of {len(encoding.batch)}")
        active = supervision.active
        if not active:
            return {name: encoding.objectness.new_zeros(()) for name in LOSSES}
        truths = [{"boxes": truth.boxes, "labels": truth.classes + 1} for truth in supervision.truths]
        self._set_keys(encoding.batch.keys, active)
        losses = self._rpn_losses(encoding, supervision, truths, active, marker)
        return losses | self._roi_losses(encoding, supervision, truths, active, marker)

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

    def score_proposals(self, encoding: Encoding, count: int) -> Scores:
        best = [proposals[:count] for proposals in encoding.proposals]
        chosen = {image: (torch.arange(len(boxes), device=boxes.device), boxes) for image, boxes in enumerate(best)}
        return self._scores(encoding, chosen)

    def levels(self) -> dict[str, int]:
        # Those that proposals are pooled from; pyramids have one more, for the first stage alone.
        return dict.fromkeys(self.model.roi_heads.box_roi_pool.featmap_names, self.model.backbone.out_channels)

    def heads(self) -> dict[str, nn.Module]:
        rpn, predictor = self.model.rpn.head, self.model.roi_heads.box_predictor
        parts = (rpn.cls_logits, rpn.bbox_pred, predictor.cls_score, predictor.bbox_pred)
        return dict(zip(LOSSES, parts, strict=True))

    def exported(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def restore(self, state: dict[str, Tensor]) -> None:
        self.model.load_state_dict(state)

    def _normalised(self, images: ImageBatch) -> ImageList:
        """Normalise, and zero the padding afterwards, as torchvision pads after normalising."""
        transform = self.model.transform
        mean, std = (
            torch.tensor(values, device=images.pixels.device).view(1, 3, 1, 1)
            for values in (transform.image_mean, transform.image_std)
        )
        pixels = torch.where(images.valid(), (images.pixels - mean) / std, 0.0)
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

    def _set_keys(self, keys: tuple[int, ...] | None, active: list[int]) -> None:
        chosen = None if keys is None else [keys[image] for image in active]
        self.model.rpn.fg_bg_sampler.keys = self.model.roi_heads.fg_bg_sampler.keys = chosen

    # ------------------------------------------------------------------------------------------- first stage

    def _rpn_losses(
        self,
        encoding: Encoding,
        supervision: Supervision,
        truths: list[dict[str, Tensor]],
        active: list[int],
        marker: Marker | None,
    ) -> dict[str, Tensor]:
        """Objectness and anchor offsets. Equals `RegionProposalNetwork.compute_loss` at weight 1."""
        rpn = self.model.rpn
        matches = [self._match_anchors(encoding.anchors[image], truths[image]["boxes"]) for image in active]
        labels = [torch.where(match >= 0, 1.0, torch.where(match == -1, 0.0, -1.0)) for match in matches]
        positive, negative = rpn.fg_bg_sampler(labels)
        chosen = [torch.where(pos | neg)[0] for pos, neg in zip(positive, negative, strict=True)]
        matched = [match[index] for match, index in zip(matches, chosen, strict=True)]
        foreground = torch.cat([match >= 0 for match in matched])
        samples = self._samples(supervision, active, matched, foreground)
        index = torch.cat(chosen)
        logits = encoding.objectness[samples.images, index].float()
        anchors = [encoding.anchors[image][where] for image, where in zip(active, chosen, strict=True)]
        boxes = [truths[image]["boxes"] for image in active]
        objectness, offsets = foreground.float(), self._offsets(rpn.box_coder, boxes, matched, anchors)
        soft = _soft_samples(supervision, samples)
        if soft is not None and marker is not None:
            mask, teacher_images = soft
            place = teacher_images[mask], index[mask]
            objectness[mask] = (marker.encoding.objectness[place].float() / marker.temperature).sigmoid()
            both = mask & foreground
            taught = marker.encoding.deltas[teacher_images[both], index[both]]
            offsets[mask[foreground]] = taught.to(offsets)
        class_loss = F.binary_cross_entropy_with_logits(logits, objectness, reduction="none")
        predicted = encoding.deltas[samples.images[foreground], index[foreground]]
        return {
            "rpn_class": _weighted_sum(class_loss, samples.class_weights, samples.normalizers),
            "rpn_box": _box_loss(predicted, offsets, samples),
        }

    def _match_anchors(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """(A,) index of the matched box, -1 for background, -2 for neither."""
        if not len(boxes):
            return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
        return self.model.rpn.proposal_matcher(self.model.rpn.box_similarity(boxes, anchors))

    # ------------------------------------------------------------------------------------------ second stage

    def _roi_losses(
        self,
        encoding: Encoding,
        supervision: Supervision,
        truths: list[dict[str, Tensor]],
        active: list[int],
        marker: Marker | None,
    ) -> dict[str, Tensor]:
        """Class and box of sampled proposals. Equals `fastrcnn_loss` at weight 1."""
        heads = self.model.roi_heads
        boxes = [truths[image]["boxes"] for image in active]
        candidates = heads.add_gt_proposals([encoding.proposals[image] for image in active], boxes)
        matched, labels = heads.assign_targets_to_proposals(
            candidates, boxes, [truths[image]["labels"] for image in active]
        )
        chosen = heads.subsample(labels)
        label = torch.cat([found[index] for found, index in zip(labels, chosen, strict=True)])
        matched = [
            torch.where(found[index] > 0, match[index], -1)
            for found, match, index in zip(labels, matched, chosen, strict=True)
        ]
        samples = self._samples(supervision, active, matched, label > 0)
        candidates = [found[index] for found, index in zip(candidates, chosen, strict=True)]
        scores = self._scores(encoding, dict(zip(active, zip(chosen, candidates, strict=True), strict=True)))
        wanted = self._offsets(heads.box_coder, boxes, matched, candidates)
        soft = _soft_samples(supervision, samples)
        if soft is None or marker is None:
            class_loss = F.cross_entropy(scores.logits.float(), label, reduction="none")
        else:
            targets = F.one_hot(label, scores.logits.shape[1]).float()
            samples, label, wanted = self._marked(marker, soft, samples, torch.cat(candidates), label, targets, wanted)
            class_loss = F.cross_entropy(scores.logits.float(), targets, reduction="none")
        predicted = scores.deltas[samples.foreground, label[samples.foreground]]
        return {
            "roi_class": _weighted_sum(class_loss, samples.class_weights, samples.normalizers),
            "roi_box": _box_loss(predicted, wanted, samples),
        }

    def _scores(self, encoding: Encoding, chosen: dict[int, tuple[Tensor, Tensor]]) -> Scores:
        """Head outputs of the chosen boxes, image after image; a proposal is scored once for all truths.

        Args:
            encoding: keeps what was scored.
            chosen: per image the indices of the boxes among its proposals (beyond them: of the truth) and the boxes.
        """
        scored = encoding.scored
        rows, fresh = [], [found.new_zeros((0, 4)) for found in encoding.proposals]
        for image, (index, boxes) in chosen.items():
            row, new = scored.place(image, index)
            rows.append(row)
            fresh[image] = boxes[new]
        scored.outputs.append(self.score(encoding, fresh))
        row = torch.cat(rows)
        return Scores(*(torch.cat(parts)[row] for parts in zip(*scored.outputs, strict=True)))

    @staticmethod
    def _marked(
        marker: Marker,
        soft: tuple[Tensor, Tensor],
        samples: Samples,
        boxes: Tensor,
        label: Tensor,
        targets: Tensor,
        wanted: Tensor,
    ) -> tuple[Samples, Tensor, Tensor]:
        """Let the teacher say what the samples of soft truths are, writing its class probabilities into ``targets``.

        Returns:
            Samples, labels and offsets in which the foreground is where the teacher sees an object.
        """
        mask, teacher_images = soft
        numbers = teacher_images[mask]
        order = numbers.argsort(stable=True)
        counts = numbers.bincount(minlength=len(marker.encoding.batch)).tolist()
        with torch.no_grad():
            scores = marker.detector.score(marker.encoding, list(boxes[mask][order].split(counts)))
        logits, deltas = torch.empty_like(scores.logits), torch.empty_like(scores.deltas)
        logits[order], deltas[order] = scores.logits, scores.deltas
        targets[mask] = (logits.float() / marker.temperature).softmax(dim=1)
        label = label.clone()
        label[mask] = logits.argmax(dim=1)
        offsets = wanted.new_zeros(len(label), 4)
        offsets[samples.foreground] = wanted
        offsets[mask] = deltas[torch.arange(len(numbers), device=label.device), label[mask]].to(offsets)
        return replace(samples, foreground=label > 0), label, offsets[label > 0]

    # ----------------------------------------------------------------------------------------------- weights

    @staticmethod
    def _offsets(coder: BoxCoder, truths: list[Tensor], matched: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """(F, 4) offsets from the foreground anchors or proposals to the boxes that they were matched to."""
        taught = [truth[match[match >= 0]] for truth, match in zip(truths, matched, strict=True)]
        return torch.cat(coder.encode(taught, [box[match >= 0] for box, match in zip(boxes, matched, strict=True)]))

    def _samples(
        self, supervision: Supervision, active: list[int], matched: list[Tensor], foreground: Tensor
    ) -> Samples:
        """Weights and normalisers of sampled anchors or proposals, given the box that each was matched to, or -1."""
        device = foreground.device
        counts = torch.tensor([len(match) for match in matched])
        # Images that teach nothing count as images with as many samples as the others have on average.
        images = supervision.mean_over or len(supervision)
        total = counts.sum() * images / len(active)
        normalizer = total.expand(len(counts)) if self.normalizer == "samples" else counts * images
        truths = [supervision.truths[image] for image in active]
        background = supervision.background_weight
        share, box_share = (
            torch.cat([_instance_weights(w, match, background) for w, match in zip(weights, matched, strict=True)])
            for weights in (
                [truth.weights for truth in truths],
                [truth.weights if truth.box_weights is None else truth.box_weights for truth in truths],
            )
        )

        def per_sample(values: Tensor) -> Tensor:
            return values.repeat_interleave(counts).to(device)

        return Samples(
            images=per_sample(torch.tensor(active)),
            class_weights=per_sample(supervision.class_weights[active]) * share,
            box_weights=per_sample(supervision.box_weights[active]) * box_share,
            normalizers=per_sample(normalizer.float()),
            foreground=foreground,
        )


def _soft_samples(supervision: Supervision, samples: Samples) -> tuple[Tensor, Tensor] | None:
    """(S,) mask of the samples that a teacher scores, and (S,) which of its images; None if there are none."""
    numbers = [-1 if truth.teacher_image is None else truth.teacher_image for truth in supervision.truths]
    if max(numbers) < 0:
        return None
    teacher_images = torch.tensor(numbers, device=samples.images.device)[samples.images]
    return teacher_images >= 0, teacher_images


def _instance_weights(weights: Tensor | None, matched: Tensor, background_weight: float) -> Tensor:
    """(S,) weight of the matched box of each sample; all 1 if the truth carries no weights."""
    if weights is None:
        return torch.ones(len(matched), device=matched.device)
    if not len(weights):
        return torch.full((len(matched),), background_weight, device=matched.device)
    return torch.where(matched >= 0, weights[matched.clamp(min=0)], background_weight)


def _weighted_sum(losses: Tensor, weights: Tensor, normalizers: Tensor) -> Tensor:
    return (losses * weights / normalizers).sum()


def _box_loss(predicted: Tensor, wanted: Tensor, samples: Samples) -> Tensor:
    """Smooth L1 of the foreground samples, divided by the number of all samples, as both stock stages do."""
    loss = F.smooth_l1_loss(predicted.float(), wanted.float(), beta=BETA, reduction="none").sum(dim=1)
    return _weighted_sum(loss, samples.box_weights[samples.foreground], samples.normalizers[samples.foreground])
