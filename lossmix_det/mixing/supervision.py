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

from lossmix_det.config import MixingConfig
from lossmix_det.mixing.mixup import Mix
from lossmix_det.structures import Instances, Supervision


def supervise(truths: Sequence[Instances], mix: Mix, config: MixingConfig) -> list[Supervision]:
    """The supervisions of a mixed batch; an unmixed image is taught its own truth with weight 1 under every rule.

    Args:
        truths: of each image before mixing.
        mix: partners and λ that the images were mixed with.
        config: ``rule`` and its settings.

    Raises:
        ValueError: counts disagree.
    """
    if len(truths) != len(mix.lam):
        raise ValueError(f"{len(truths)} truths for {len(mix.lam)} mixed images")
    return RULES[config.rule](truths, mix, config)


def _none(truths: Sequence[Instances], mix: Mix, config: MixingConfig) -> list[Supervision]:
    return [Supervision.full(truths)]


def _lossmix(truths: Sequence[Instances], mix: Mix, config: MixingConfig) -> list[Supervision]:
    """{(A, λ), (B, 1 - λ)}: the loss is λ·L(x~, A) + (1 - λ)·L(x~, B)."""
    total = torch.where(mix.mixed, _weight_sum(config, 1.0), 1.0)
    own, other = total * mix.lam, total * (1 - mix.lam)
    return [
        Supervision(tuple(truths), own, own),
        Supervision(_partners(truths, mix), other, other),
    ]


def _lossmix_instance(truths: Sequence[Instances], mix: Mix, config: MixingConfig) -> list[Supervision]:
    """One assignment over the boxes of both, each positive weighted as its box."""
    total = _weight_sum(config, 1.0)

    def of(own: Instances, other: Instances, lam: float) -> Instances:
        return Instances.union(own, other, total * lam, total * (1 - lam)) if lam < 1 else own

    triples = zip(truths, _partners(truths, mix), mix.lam.tolist(), strict=True)
    weights = torch.ones(len(truths))
    return [Supervision(tuple(of(*triple) for triple in triples), weights, weights, config.background_weight)]


def _union(truths: Sequence[Instances], mix: Mix, config: MixingConfig) -> list[Supervision]:
    triples = zip(truths, _partners(truths, mix), mix.mixed.tolist(), strict=True)
    joined = tuple(Instances.union(own, other) if mixed else own for own, other, mixed in triples)
    weights = torch.where(mix.mixed, _weight_sum(config, 2.0) / 2, 1.0)
    return [Supervision(joined, weights, weights)]


def _noise(truths: Sequence[Instances], mix: Mix, config: MixingConfig) -> list[Supervision]:
    weights = torch.where(mix.mixed, _weight_sum(config, 1.0), 1.0)
    return [Supervision(tuple(truths), weights, weights)]


def _weight_sum(config: MixingConfig, default: float) -> float:
    return default if config.weight_sum is None else config.weight_sum


def _partners(truths: Sequence[Instances], mix: Mix) -> tuple[Instances, ...]:
    return tuple(truths[other] for other in mix.partner.tolist())


Rule = Callable[[Sequence[Instances], Mix, MixingConfig], list[Supervision]]
RULES: dict[str, Rule] = {
    "none": _none,
    "lossmix": _lossmix,
    "lossmix_instance": _lossmix_instance,
    "union": _union,
    "noise": _noise,
}
