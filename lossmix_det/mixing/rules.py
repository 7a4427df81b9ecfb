"""What a mixed image is taught: the rules compared in LossMix (Vu et al., AAAI 2024).

A rule sees the truths of all sources of an image, and how much of each source is seen. K = 2 sources:

    rule               truths of one mixed image                         weights
    lossmix            two: A's and B's, each with its own background    λ and 1 - λ
    lossmix_instance   one: the boxes of both                            λ, 1 - λ by box; background a setting
    union              one: the boxes of both                            1 for every box
    own                one: A's                                          1

`lossmix` is the literal reading of the paper and drives the confidence in an object of A below 1, to λ where both
truths draw the same samples; `lossmix_instance` scales the gradient but leaves confidence at 1 (the reading of
GluonCV's YOLOv3). The paper's rule "Noise" is `own` with λ close to 1.
``weight_sum`` rescales the weights of a mixed image, so that rules can be compared at equal supervision: it is K for
`union` (K truths at full weight), 1 for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from lossmix_det.config import MixingConfig
from lossmix_det.mixing.blend import Mix
from lossmix_det.mixing.blocks import follow, is_in_place
from lossmix_det.mixing.weightings import Weighting, by_share, clipped_to_mask, within
from lossmix_det.structures import ImageBatch, Instances, Size, Supervision
from lossmix_det.visible import Visible


@dataclass(frozen=True)
class Source:
    """What one source of every image has to teach.

    Args:
        supervision: of the source before mixing, its boxes where they are now.
        shares: (B,) how much of the source is seen.
        visible: by image (N,) how much of each box is seen, or None where that is the share.
    """

    supervision: Supervision
    shares: Tensor
    visible: Sequence[Tensor | None]


class Rule(Protocol):
    """Chooses truths; how pixels were mixed is the mixer's affair."""

    teaches_partners: bool
    joins_boxes: bool  # of several sources into one truth

    def __call__(self, sources: list[Source], mixed: Tensor) -> list[Supervision]:
        """The supervisions of a mixed batch, given the (B,) bool of images that are mixed."""


def supervise(
    pool: Supervision | Sequence[Instances],
    mix: Mix,
    images: ImageBatch,
    rule: Rule,
    weighting: Weighting = by_share,
    least_visible: float = 0.0,
) -> list[Supervision]:
    """The supervisions of a mixed batch; an unmixed image is taught its own truth with its own weight under every rule.

    An image of weight 0 has no truth to teach (an unlabelled one, or one without pseudo-labels): then the mixed image
    is taught those of the others alone, with the share that the rule gives them.

    Args:
        pool: of each image before mixing; bare truths have weight 1.
        mix: that the images were mixed with.
        images: after mixing.
        rule: of `RULES`.
        weighting: of `WEIGHTINGS`.
        least_visible: of boxes under masks, those of which a smaller share is seen are dropped, and the others clipped
            to what is seen of them; 0: all stay as they are, as far as they lie on the image. Torn into blocks, a box
            goes to the smallest box around those of its pieces that are seen, which must fill as large a share of that
            box too.

    Raises:
        ValueError: the mix names an image that the pool does not have.
    """
    if not isinstance(pool, Supervision):
        pool = Supervision.full(pool)
    if len(mix) and int(mix.sources.max()) >= len(pool):
        raise ValueError(f"the mix names image {int(mix.sources.max())} of {len(pool)} truths")
    sources = []
    for k in range(mix.sources.shape[1]):
        supervision, on_image = _moved(pool.take(mix.sources[:, k].tolist()), mix, k, images)
        visible = [
            seen if seen is None or share is None else seen * share
            for seen, share in zip(weighting(mix, k, supervision.truths, images), on_image, strict=True)
        ]
        supervision, visible = _seen(Known(supervision, visible, on_image), mix, k, images, least_visible)
        sources.append(Source(supervision, mix.shares[:, k], visible))
    taught = rule(sources, mix.mixed)
    if mix.factors is None:
        return taught
    return [supervision.scaled(torch.where(mix.mixed, mix.factors, 1.0)) for supervision in taught]


@dataclass(frozen=True)
class Known:
    """The truths of one source of every image, where its pixels have moved to.

    Args:
        supervision: these.
        visible: by image (N,) how much of each box is seen, or None where that is the share of the source.
        on_image: by image (N,) how much of each box lies on the image, or None where all of them do.
    """

    supervision: Supervision
    visible: list[Tensor | None]
    on_image: list[Tensor | None]


def _moved(supervision: Supervision, mix: Mix, k: int, images: ImageBatch) -> tuple[Supervision, list[Tensor | None]]:
    """The truths of the k-th sources, along with their pixels; by image how much of each box lies on it."""
    if mix.offsets is None or not mix.offsets[:, k].any():
        return supervision, [None] * len(mix)
    moves = list(zip(supervision.truths, mix.offsets[:, k].tolist(), images.sizes, strict=True))
    moved = replace(supervision, truths=tuple(truth.moved(offset, size) for truth, offset, size in moves))
    return moved, [within(*move) for move in moves]


def _seen(known: Known, mix: Mix, k: int, images: ImageBatch, least: float) -> tuple[Supervision, list[Tensor | None]]:
    """The truths of the k-th sources as far as their masks let them be seen, and how much is seen of each box."""
    truths, visible = list(known.supervision.truths), list(known.visible)
    for index in mix.mixed.nonzero().flatten().tolist() if mix.masks is not None else ():
        mask, blocks = mix.masks[index, k], None if mix.blocks is None else mix.blocks[index, k]
        weighed = visible[index] is not None
        if blocks is not None and not is_in_place(blocks):
            truths[index], seen = follow(truths[index], mask, blocks, images.canvas, least)
            visible[index] = seen if weighed else None
        else:
            truth, kept = truths[index], torch.ones(len(truths[index]), dtype=torch.bool)
            if least:
                truth, kept = clipped_to_mask(truth, mask, images.canvas, least, known.on_image[index])
            # A coarse outline may reach beyond the edge, and what masks hide may have made the image smaller.
            truths[index], on_image = _on_image(truth, images.sizes[index])
            visible[index] = visible[index][kept][on_image] if weighed else None
        if truths[index].teacher_image is not None:
            truths[index] = replace(truths[index], visible=Visible(mask, images.canvas, least))
    return replace(known.supervision, truths=tuple(truths)), visible


def _on_image(truth: Instances, size: Size) -> tuple[Instances, Tensor]:
    """Boxes cut off at the edge of the image, without those beyond it; and (N,) bool: which of all they are."""
    boxes = torch.minimum(truth.boxes, truth.boxes.new_tensor([*size[::-1]] * 2))
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return (truth if kept.all() and torch.equal(boxes, truth.boxes) else truth.clipped(boxes)[kept]), kept


class LossMix:
    """{(A, λ), (B, 1 - λ)}: the loss is λ·L(x~, A) + (1 - λ)·L(x~, B); for K sources, Σ_k share_k·L(x~, k)."""

    teaches_partners = True
    joins_boxes = False

    def __init__(self, config: MixingConfig) -> None:
        self.weight_sum = 1.0 if config.weight_sum is None else config.weight_sum

    def __call__(self, sources: list[Source], mixed: Tensor) -> list[Supervision]:
        total = torch.where(mixed, self.weight_sum, 1.0)
        return [_by_visibility(source).scaled(total * source.shares) for source in sources]


class LossMixInstance:
    """One assignment over the boxes of all sources, each positive weighted as its box."""

    teaches_partners = True
    joins_boxes = True

    def __init__(self, config: MixingConfig) -> None:
        self.weight_sum = 1.0 if config.weight_sum is None else config.weight_sum
        self.background_weight = config.background_weight

    def __call__(self, sources: list[Source], mixed: Tensor) -> list[Supervision]:
        weighted = [(_by_visibility(source), self.weight_sum * source.shares, source.shares) for source in sources]
        return [_joined(weighted, mixed, self.background_weight)]


class Union:
    """The boxes of all sources at full weight, however much of each is seen."""

    teaches_partners = True
    joins_boxes = True

    def __init__(self, config: MixingConfig) -> None:
        self.weight_sum = config.weight_sum

    def __call__(self, sources: list[Source], mixed: Tensor) -> list[Supervision]:
        ones = torch.ones_like(sources[0].shares)
        joined = _joined([(_as_seen(source), ones, source.shares) for source in sources], mixed, 1.0)
        if self.weight_sum is None:
            return [joined]
        truths = sum((source.shares > 0).float() for source in sources)
        return [joined.scaled(torch.where(mixed, self.weight_sum / truths, 1.0))]


class Own:
    """The image's own truth at full weight; the others only disturb ("Noise" in the paper, with λ close to 1)."""

    teaches_partners = False
    joins_boxes = False

    def __init__(self, config: MixingConfig) -> None:
        self.weight_sum = 1.0 if config.weight_sum is None else config.weight_sum

    def __call__(self, sources: list[Source], mixed: Tensor) -> list[Supervision]:
        return [sources[0].supervision.scaled(torch.where(mixed, self.weight_sum, 1.0))]


RULES: dict[str, Callable[[MixingConfig], Rule]] = {
    "lossmix": LossMix,
    "lossmix_instance": LossMixInstance,
    "union": Union,
    "own": Own,
}


def _by_visibility(source: Source) -> Supervision:
    """The source's supervision, its boxes weighted by how much more or less of each is seen than of the whole."""
    if all(visible is None for visible in source.visible):
        return source.supervision
    truths = [
        truth if visible is None or not share else truth.weighted(visible / share, visible / share)
        for truth, visible, share in zip(source.supervision.truths, source.visible, source.shares.tolist(), strict=True)
    ]
    return replace(source.supervision, truths=tuple(truths))


def _as_seen(source: Source) -> Supervision:
    """The source's supervision, its boxes weighted by how much of each is seen."""
    pairs = zip(source.supervision.truths, source.visible, strict=True)
    truths = [truth if visible is None else truth.weighted(visible, visible) for truth, visible in pairs]
    return replace(source.supervision, truths=tuple(truths))


def _joined(sources: list[tuple[Supervision, Tensor, Tensor]], mixed: Tensor, background_weight: float) -> Supervision:
    """One truth of the boxes of all sources, each box weighted by its image's weight times a weight of its source.

    The background is weighted as the image itself is, or as the first partner that has something to teach.

    Args:
        sources: of each its supervision, (B,) weight, and (B,) share that is seen; what is not seen is not taught.
        mixed: (B,) bool.
        background_weight: of background samples of mixed images.
    """
    first = sources[0][0]
    truths, class_weights, box_weights = [], first.class_weights.clone(), first.box_weights.clone()
    for index, is_mixed in enumerate(mixed.tolist()):
        if not is_mixed:
            truths.append(first.truths[index])
            continue
        teaching = [
            (supervision, weight[index])
            for supervision, weight, share in sources
            if share[index] > 0 and supervision.class_weights[index] > 0
        ]
        class_weights[index] = box_weights[index] = teaching[0][0].class_weights[index] if teaching else 0.0
        boxes = [
            supervision.truths[index].weighted(
                float(weight * supervision.class_weights[index] / class_weights[index]),
                float(weight * supervision.box_weights[index] / class_weights[index]),
            )
            for supervision, weight in teaching
        ]
        truths.append(reduce(Instances.union, boxes) if boxes else Instances.empty())
    return Supervision(tuple(truths), class_weights, box_weights, background_weight, first.mean_over)
