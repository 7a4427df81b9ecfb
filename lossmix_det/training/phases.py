"""What a step is made of: which images, mixed with whom, taught which truths.

A *slot* is one image of the student's batch, before and after it was mixed. The slots of a view are the source's images
and, in adaptation, the target's strong views.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lossmix_det.config import Config, MixingConfig
from lossmix_det.engines import Marker
from lossmix_det.mixing import Mix, as_noise, draw_domain_mix, draw_mix, mixup, supervise
from lossmix_det.structures import Domains, ImageBatch, Instances, StepBatch, Supervision, Views


class Lesson:
    """One step's student images and everything that they are taught, by the name its losses are logged under.

    A plain class: Fabric takes dataclasses among a module's inputs apart, and cannot rebuild frozen ones.

    Args:
        images: all that the student sees.
        supervisions: by name.
        blocks: sizes of the runs of images of one kind, each of which every part of a split lesson gets its share of.
        domains: absent while nothing is aligned.
        marker: scores the student's samples where truths are soft.
    """

    def __init__(
        self,
        images: ImageBatch,
        supervisions: dict[str, list[Supervision]],
        blocks: list[int] | None = None,
        domains: Domains | None = None,
        marker: Marker | None = None,
    ) -> None:
        self.images, self.supervisions, self.blocks = images, supervisions, blocks or [len(images)]
        self.domains, self.marker = domains, marker

    def split(self, count: int) -> list[Lesson]:
        """Cut into parts that are alike in kind, on the same canvas, for gradient accumulation.

        Raises:
            ValueError: a block is no multiple of ``count``.
        """
        if count == 1:
            return [self]
        return [self._take(part, count) for part in range(count)]

    def _take(self, part: int, count: int) -> Lesson:
        indices, start = [], 0
        for block in self.blocks:
            if block % count:
                raise ValueError(f"{block} images cannot be cut into {count} equal parts")
            share = block // count
            indices += range(start + part * share, start + (part + 1) * share)
            start += block
        supervisions = {name: [each.take(indices) for each in parts] for name, parts in self.supervisions.items()}
        blocks = [block // count for block in self.blocks]
        domains = self.domains and self.domains.take(indices)
        return Lesson(self.images.take(indices), supervisions, blocks, domains, self.marker)


class Phase(Protocol):
    """A stage of training; `compose` never changes its batch."""

    def compose(
        self, batch: StepBatch, rng: np.random.Generator, pseudo_labels: Supervision | None = None
    ) -> Lesson: ...


class SourceOnly:
    """Labelled images alone, mixed with one another."""

    def __init__(self, mixing: MixingConfig) -> None:
        self.mixing = mixing

    def compose(self, batch: StepBatch, rng: np.random.Generator, pseudo_labels: Supervision | None = None) -> Lesson:
        """Mix each view among its own images and join the views into one batch."""
        images, supervisions = [], []
        for name in views_of(batch.source):
            view = getattr(batch.source, name)
            mixing = of_view(self.mixing, name)
            mix = draw_mix(len(view), mixing, rng)
            images.append(mixup(view.to_float(), mix))
            supervisions.append(supervise(batch.source.truths or (), mix, self.mixing))
        joined = [Supervision.cat(parts) for parts in zip(*supervisions, strict=True)]
        return Lesson(ImageBatch.cat(images), {"source": joined}, [len(view) for view in images])


class BurnIn:
    """Labelled images, mixed with one another and with target images, whose truth nobody knows yet."""

    teaches_target = False

    def __init__(self, config: Config, clean: bool = False) -> None:
        self.mixing = MixingConfig(rule="none") if clean else self._settings(config.mixing)
        self.supervised_weight = config.adaptation.supervised_weight

    def _settings(self, mixing: MixingConfig) -> MixingConfig:
        share = mixing.burn_in_probability
        return mixing if share is None else replace(mixing, probability=share)

    def compose(self, batch: StepBatch, rng: np.random.Generator, pseudo_labels: Supervision | None = None) -> Lesson:
        """The source's views, and the target's strong view where it is taught; each mixed within its view.

        Args:
            batch: with both views of the target.
            rng: draws partners and λ.
            pseudo_labels: of the target's images; absent: nothing is known about them.
        """
        source, target = batch.source.truths or (), batch.target
        taught = Supervision.full(source, self.supervised_weight)
        if pseudo_labels is None:
            pseudo_labels = Supervision.full([Instances.empty()] * len(target.weak or ()), 0.0)
        names = [name for name in ("strong", "weak") if self._slots(batch.source, name)]
        views = [
            self._mix_view(name, getattr(batch.source, name), getattr(target, name), taught, pseudo_labels, rng)
            for name in names
        ]
        return _join(views)

    def _slots(self, source: Views, name: str) -> bool:
        return getattr(source, name) is not None or (self.teaches_target and name == "strong")

    def _mix_view(
        self,
        name: str,
        source: ImageBatch | None,
        target: ImageBatch,
        taught: Supervision,
        pseudo_labels: Supervision,
        rng: np.random.Generator,
    ) -> MixedView:
        """The slots of one view, whose partners are all images of that view."""
        both = self.teaches_target and name == "strong"
        if source is None:
            source, taught = target.take([]), taught.take([])
        pool = ImageBatch.cat([source.to_float(), target.to_float()])
        known = Supervision.cat([taught, pseudo_labels])
        count = len(pool) if both else len(source)
        mixing = of_view(self.mixing, name)
        mix = draw_domain_mix(len(source), len(target), mixing, rng, both=both)
        mix, weights = self._burn_in_rule(mix, len(source), mixing)
        # Where the partner has nothing to teach in any rule, the rule is that of an unmixed image.
        ruled = mix if weights is None else replace(mix, lam=torch.where(weights.isnan(), mix.lam, 1.0))
        slots = known.take(range(count))
        supervisions = supervise(slots, ruled, self.mixing, known)
        if weights is not None:
            supervisions = [each.scaled(weights.nan_to_num(1.0)) for each in supervisions]
        is_target = torch.arange(len(pool)) >= len(source)
        shares = mix.lam * is_target[:count] + (1 - mix.lam) * is_target[mix.partner]
        images = mixup(pool.take(range(count)), mix, pool)
        return MixedView(images, supervisions, is_target[:count], mix.mixed, shares)

    def _burn_in_rule(self, mix: Mix, sources: int, mixing: MixingConfig) -> tuple[Mix, Tensor | None]:
        """λ of the pairs with a target image, and the weight of their source truth (nan for all other images).

        The paper's rule is unknown. ``noise``: λ near 1, weight 1. ``lam``: λ as drawn, and as the weight. ``max``:
        max(λ, 1 - λ), and as the weight.
        """
        lam, across = mix.lam, mix.mixed & (mix.partner >= sources)
        if mixing.burn_in_rule == "noise":
            moved = lam if mixing.rule == "noise" else as_noise(lam, mixing.noise_share)
            weights = torch.ones_like(lam)
        else:
            moved = lam if mixing.burn_in_rule == "lam" else torch.maximum(lam, 1 - lam)
            weights = moved
        return replace(mix, lam=torch.where(across, moved, lam)), torch.where(across, weights, torch.nan)


class Adaptation(BurnIn):
    """Labelled images, and target images with the teacher's pseudo-labels, mixed within and across the domains."""

    teaches_target = True

    def _settings(self, mixing: MixingConfig) -> MixingConfig:
        return mixing

    def _burn_in_rule(self, mix: Mix, sources: int, mixing: MixingConfig) -> tuple[Mix, Tensor | None]:
        return mix, None


@dataclass(frozen=True)
class MixedView:
    """The slots of one view after mixing: images, their supervisions, which are the target's, which are mixed, and the
    weight of target pixels in each."""

    images: ImageBatch
    supervisions: list[Supervision]
    is_target: Tensor
    mixed: Tensor
    shares: Tensor


def _join(views: list[MixedView]) -> Lesson:
    """One lesson of several views; losses are named by what the images are: source, target or mixed.

    Each kind of slot is normalised by itself, as if source and target were batches of their own (Adaptive Teacher).
    """
    is_target, mixed = (torch.cat([getattr(view, name) for view in views]) for name in ("is_target", "mixed"))
    targets = int(is_target.sum())
    counts = {False: len(is_target) - targets, True: targets}
    groups = [("source", ~is_target & ~mixed, False), ("target", is_target & ~mixed, True)]
    groups += [("mixed", ~is_target & mixed, False), ("mixed", is_target & mixed, True)]
    supervisions: dict[str, list[Supervision]] = {}
    for parts in zip(*(view.supervisions for view in views), strict=True):
        rule = Supervision.cat(parts)
        for name, chosen, of_target in groups:
            part = rule.scaled(chosen.float(), mean_over=max(counts[of_target], 1))
            if part.active:
                supervisions.setdefault(name, []).append(part)
    shares = torch.cat([view.shares for view in views])
    domains = Domains(shares, _per_domain(is_target, ~is_target), _per_domain(is_target & ~mixed, ~is_target & ~mixed))
    images = ImageBatch.cat([view.images for view in views])
    blocks = [int(part) for view in views for part in ((~view.is_target).sum(), view.is_target.sum()) if part]
    return Lesson(images, supervisions, blocks, domains)


def _per_domain(*chosen: Tensor) -> Tensor:
    """(N,) weights that add up to 1 over each of the groups, 0 outside of them."""
    return sum(group.float() / max(int(group.sum()), 1) for group in chosen)


def of_view(mixing: MixingConfig, name: str) -> MixingConfig:
    return mixing if name in mixing.views else replace(mixing, rule="none")


def views_of(views: Views) -> list[str]:
    """The views that were loaded, strong first."""
    return [name for name in ("strong", "weak") if getattr(views, name) is not None]


def phase_at(config: Config, step: int) -> Phase:
    """The phase that a step belongs to."""
    clean = step >= config.train.steps - config.mixing.off_last_steps
    if not config.data.target:
        return SourceOnly(MixingConfig(rule="none") if clean else config.mixing)
    return (BurnIn if step < config.adaptation.burn_in_steps else Adaptation)(config, clean)
