"""What a mixed image is taught: the rules compared in LossMix (Vu et al., AAAI 2024).

All rules see the same pixels, partners and λ (but `noise`, which moves λ towards 1). They differ in the truths:

    rule               truths of one mixed image                         weights
    lossmix            two: A's and B's, each with its own background    λ and 1 - λ
    lossmix_instance   one: the boxes of both                            λ, 1 - λ by box; background a setting
    union              one: the boxes of both                            1 for every box
    noise              one: A's                                          1

`lossmix` is the literal reading of the paper and drives confidence towards λ; `lossmix_instance` scales the gradient
but leaves confidence at 1 (the reading of GluonCV's YOLOv3). ``weight_sum`` rescales the weights of a mixed image, so
that rules can be compared at equal supervision: it is 2 for `union` (two truths at full weight), 1 for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lossmix_det.config import MixingConfig
from lossmix_det.mixing.mixers.mixup import Mix
from lossmix_det.structures import Instances, Supervision


def supervise(
    taught: Supervision | Sequence[Instances], mix: Mix, config: MixingConfig, pool: Supervision | None = None
) -> list[Supervision]:
    """The supervisions of a mixed batch; an unmixed image is taught its own truth with its own weight under every rule.

    An image of weight 0 has no truth to teach (an unlabelled one, or one without pseudo-labels): then the mixed image
    is taught that of the other alone, with the share that the rule gives it.

    Args:
        taught: of each image before mixing; bare truths have weight 1.
        mix: partners and λ that the images were mixed with.
        config: ``rule`` and its settings.
        pool: of the images that partners are taken from; absent: ``taught``.

    Raises:
        ValueError: counts disagree.
    """
    if not isinstance(taught, Supervision):
        taught = Supervision.full(taught)
    if len(taught) != len(mix.lam):
        raise ValueError(f"{len(taught)} truths for {len(mix.lam)} mixed images")
    partners = (pool or taught).take(mix.partner.tolist())
    return RULES[config.rule](taught, partners, mix, config)


def _none(own: Supervision, partners: Supervision, mix: Mix, config: MixingConfig) -> list[Supervision]:
    return [own]


def _lossmix(own: Supervision, partners: Supervision, mix: Mix, config: MixingConfig) -> list[Supervision]:
    """{(A, λ), (B, 1 - λ)}: the loss is λ·L(x~, A) + (1 - λ)·L(x~, B)."""
    total = torch.where(mix.mixed, _weight_sum(config, 1.0), 1.0)
    return [own.scaled(total * mix.lam), partners.scaled(total * (1 - mix.lam))]


def _lossmix_instance(own: Supervision, partners: Supervision, mix: Mix, config: MixingConfig) -> list[Supervision]:
    """One assignment over the boxes of both, each positive weighted as its box."""
    total = _weight_sum(config, 1.0)
    return [_joined(own, partners, mix, (total * mix.lam, total * (1 - mix.lam)), config.background_weight)]


def _union(own: Supervision, partners: Supervision, mix: Mix, config: MixingConfig) -> list[Supervision]:
    ones = torch.ones_like(mix.lam)
    joined = _joined(own, partners, mix, (ones, ones), 1.0)
    return [joined.scaled(torch.where(mix.mixed, _weight_sum(config, 2.0) / 2, 1.0))]


def _noise(own: Supervision, partners: Supervision, mix: Mix, config: MixingConfig) -> list[Supervision]:
    return [own.scaled(torch.where(mix.mixed, _weight_sum(config, 1.0), 1.0))]


def _joined(
    own: Supervision, partners: Supervision, mix: Mix, shares: tuple[Tensor, Tensor], background_weight: float
) -> Supervision:
    """One truth of the boxes of both images, each box weighted by its image's weight times its share.

    The background is weighted as the image itself is, or as its partner where the image has nothing to teach.
    """
    truths, class_weights, box_weights = [], own.class_weights.clone(), own.box_weights.clone()
    for index in torch.nonzero(mix.mixed).flatten().tolist():
        class_weights[index] = box_weights[index] = own.class_weights[index] or partners.class_weights[index]
    for index, mixed in enumerate(mix.mixed.tolist()):
        if not mixed:
            truths.append(own.truths[index])
            continue
        parts = [
            side.truths[index].weighted(
                float(share[index] * side.class_weights[index] / class_weights[index]),
                float(share[index] * side.box_weights[index] / class_weights[index]),
            )
            for side, share in zip((own, partners), shares, strict=True)
            if side.class_weights[index] > 0
        ]
        truths.append(Instances.union(*parts) if len(parts) == 2 else (parts or [Instances.empty()])[0])
    return Supervision(tuple(truths), class_weights, box_weights, background_weight)


def _weight_sum(config: MixingConfig, default: float) -> float:
    return default if config.weight_sum is None else config.weight_sum


Rule = Callable[[Supervision, Supervision, Mix, MixingConfig], list[Supervision]]
RULES: dict[str, Rule] = {
    "none": _none,
    "lossmix": _lossmix,
    "lossmix_instance": _lossmix_instance,
    "union": _union,
    "noise": _noise,
}
