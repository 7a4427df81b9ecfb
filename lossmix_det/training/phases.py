"""What a step is made of: which images, mixed with whom, taught which truths.

A *slot* is one image of the student's batch, before and after it was mixed. The slots of a view are the source's images
and, in adaptation, the target's strong views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lossmix_det.config import Config, MixingConfig
from lossmix_det.mixing import BURN_IN_RULES, AcrossDomains, Among, Mix, Recipe, blend
from lossmix_det.structures import Domains, ImageBatch, Instances, StepBatch, Supervision, Views
from lossmix_det.training.student_batch import StudentBatch

VIEWS = ("strong", "weak")  # the order of the student's images
TARGET_VIEWS = {"strong"}  # of the target, only these are ever taught


class Phase(Protocol):
    """A stage of training."""

    recipe: Recipe

    def compose(
        self, batch: StepBatch, rng: np.random.Generator, pseudo_labels: Supervision | None = None
    ) -> StudentBatch:
        """What the student learns from a batch, which stays as it is.

        Args:
            batch: source images with their truths, and target images where there are any.
            rng: draws partners and shares.
            pseudo_labels: of the target's images; absent: nothing is known about them.
        """


class SourceOnly:
    """Labelled images alone, mixed with one another.

    Args:
        config: the ``mixing`` branch.
    """

    def __init__(self, config: MixingConfig) -> None:
        self.recipe, self.views = Recipe(config), config.views

    def compose(
        self, batch: StepBatch, rng: np.random.Generator, pseudo_labels: Supervision | None = None
    ) -> StudentBatch:
        """Mix each view among its own images and join the views into one batch."""
        images, supervisions = [], []
        for name in VIEWS:
            view = getattr(batch.source, name)
            if view is None:
                continue
            pool = view.to_float()
            truths, mix = batch.source.truths or (), self.recipe.unmixed(len(pool))
            if name in self.views:
                mix = self.recipe.draw(pool, Among(len(pool), pool.sizes), rng, truths)
            images.append(blend(pool, mix))
            supervisions.append(self.recipe.supervise(truths, mix, images[-1]))
        joined = [Supervision.cat(of_views) for of_views in zip(*supervisions, strict=True)]
        return StudentBatch(ImageBatch.cat(images), {"source": joined}, [len(view) for view in images])


@dataclass(frozen=True)
class Pool:
    """All images of one view, the source's first, and what is known of them.

    Args:
        images: float pixels.
        supervision: of each; weight 0 where nothing is known.
        sources: how many of them are the source's.
        slots: how many of them, from the first, become student images.
    """

    images: ImageBatch
    supervision: Supervision
    sources: int
    slots: int

    @property
    def is_target(self) -> Tensor:
        """(P,) bool."""
        return torch.arange(len(self.images)) >= self.sources


@dataclass(frozen=True)
class MixedView:
    """The slots of one view after mixing.

    Args:
        images: mixed.
        supervisions: of them, one for each truth.
        is_target: (S,) bool, which slots are the target's.
        mixed: (S,) bool.
        target_shares: (S,) how much of the target domain is seen in each.
    """

    images: ImageBatch
    supervisions: list[Supervision]
    is_target: Tensor
    mixed: Tensor
    target_shares: Tensor


class BurnIn:
    """Labelled images, mixed with one another and with target images, whose truth nobody knows yet.

    Args:
        config: of the run.
        mixing: its ``mixing`` branch, as this phase mixes.
    """

    teaches_target = False

    def __init__(self, config: Config, mixing: MixingConfig) -> None:
        self.recipe, self.views, self.pairs = Recipe(mixing), mixing.views, mixing.pairs
        self.across_rule = BURN_IN_RULES[mixing.burn_in_rule](mixing, self.recipe.rule)
        self.supervised_weight = config.adaptation.supervised_weight

    def compose(
        self, batch: StepBatch, rng: np.random.Generator, pseudo_labels: Supervision | None = None
    ) -> StudentBatch:
        """The source's views, and the target's strong view where it is taught; each mixed within its view."""
        if pseudo_labels is None:
            pseudo_labels = Supervision.full([Instances.empty()] * len(batch.target.weak or ()), 0.0)
        truths = Supervision.full(batch.source.truths or (), self.supervised_weight)
        views = [
            self._mix(name, self._pool(name, batch, truths, pseudo_labels), rng)
            for name in VIEWS
            if self._has_slots(name, batch.source)
        ]
        return _join(views)

    def _has_slots(self, name: str, source: Views) -> bool:
        return getattr(source, name) is not None or self._target_slots(name)

    def _target_slots(self, name: str) -> bool:
        """Whether the target's images of a view are student images."""
        return self.teaches_target and name in TARGET_VIEWS

    def _pool(self, name: str, batch: StepBatch, truths: Supervision, pseudo_labels: Supervision) -> Pool:
        source, target = getattr(batch.source, name), getattr(batch.target, name)
        if source is None:
            source, truths = target.take([]), truths.take([])
        images = ImageBatch.cat([source.to_float(), target.to_float()])
        supervision = Supervision.cat([truths, pseudo_labels])
        slots = len(images) if self._target_slots(name) else len(source)
        return Pool(images, supervision, len(source), slots)

    def _mix(self, name: str, pool: Pool, rng: np.random.Generator) -> MixedView:
        """Mix the slots of one view with images of that view."""
        mix = self.recipe.unmixed(pool.slots)
        if name in self.views:
            targets = len(pool.images) - pool.sources
            both, sizes = self._target_slots(name), pool.images.sizes
            pairing = AcrossDomains(pool.sources, targets, self.pairs, both=both, sizes=sizes)
            mix = self.recipe.draw(pool.images, pairing, rng, pool.supervision.truths)
        mix, weights = self._weigh_unknown(mix, pool)
        images = blend(pool.images, mix)
        # Where the partner has nothing to teach in any rule, the rule is that of an unmixed image.
        supervisions = self.recipe.supervise(pool.supervision, mix.where(weights.isnan()), images)
        supervisions = [supervision.scaled(weights.nan_to_num(1.0)) for supervision in supervisions]
        target_shares = (mix.shares * pool.is_target[mix.sources]).sum(1)
        return MixedView(images, supervisions, pool.is_target[: pool.slots], mix.mixed, target_shares)

    def _weigh_unknown(self, mix: Mix, pool: Pool) -> tuple[Mix, Tensor]:
        """The mix to apply, and (S,) the weight of the truth of images that have a target partner, nan for others."""
        partners = (mix.shares[:, 1:] > 0) & pool.is_target[mix.sources[:, 1:]]
        across = mix.mixed & partners.any(1)
        return self.across_rule(mix.whole(across), across)  # their truth is taught as that of an unmixed image


class Adaptation(BurnIn):
    """Labelled images, and target images with the teacher's pseudo-labels, mixed within and across the domains."""

    teaches_target = True

    def _weigh_unknown(self, mix: Mix, pool: Pool) -> tuple[Mix, Tensor]:
        """Nothing is unknown any more."""
        return mix, torch.full((len(mix),), torch.nan)


def _join(views: Sequence[MixedView]) -> StudentBatch:
    """One batch of several views; losses are named by what the images are: source, target or mixed.

    Each kind of slot is normalised by itself, as if source and target were batches of their own (Adaptive Teacher).
    """
    is_target, mixed, target_shares = (
        torch.cat([getattr(view, name) for view in views]) for name in ("is_target", "mixed", "target_shares")
    )
    targets = int(is_target.sum())
    counts = {False: len(is_target) - targets, True: targets}
    groups = [("source", ~is_target & ~mixed, False), ("target", is_target & ~mixed, True)]
    groups += [("mixed", ~is_target & mixed, False), ("mixed", is_target & mixed, True)]
    supervisions: dict[str, list[Supervision]] = {}
    for of_views in zip(*(view.supervisions for view in views), strict=True):
        joined = Supervision.cat(of_views)
        for kind, chosen, of_target in groups:
            supervision = joined.scaled(chosen.float(), mean_over=max(counts[of_target], 1))
            if supervision.active:
                supervisions.setdefault(kind, []).append(supervision)
    weights = _per_domain(is_target, ~is_target), _per_domain(is_target & ~mixed, ~is_target & ~mixed)
    images = ImageBatch.cat([view.images for view in views])
    blocks = [int(count) for view in views for count in ((~view.is_target).sum(), view.is_target.sum()) if count]
    return StudentBatch(images, supervisions, blocks, Domains(target_shares, *weights))


def _per_domain(*groups: Tensor) -> Tensor:
    """(S,) weights that add up to 1 over each of the groups, 0 outside of them."""
    return sum(group.float() / max(int(group.sum()), 1) for group in groups)


class Phases:
    """The phases of a run, made once.

    Args:
        config: of the run.

    Raises:
        UserError: its ``mixing`` branch names what does not exist.
    """

    def __init__(self, config: Config) -> None:
        mixing, adapts = config.mixing, bool(config.data.target)
        clean = replace(mixing, probability=0.0)
        self.burn_in_steps = config.adaptation.burn_in_steps if adapts else 0
        self.mixed_steps = config.train.steps - mixing.off_last_steps
        share = mixing.burn_in_probability
        gentle = mixing if share is None else replace(mixing, probability=share)
        # By whether burn-in is over, and whether images are still mixed.
        self._phases: dict[tuple[bool, bool], Phase] = {
            (over, mixes): self._phase(config, over, branch if mixes else clean)
            for over, branch in ((False, gentle), (True, mixing))
            for mixes in (False, True)
        }

    def _phase(self, config: Config, over: bool, mixing: MixingConfig) -> Phase:
        if not config.data.target:
            return SourceOnly(mixing)
        return (Adaptation if over else BurnIn)(config, mixing)

    def at(self, step: int) -> Phase:
        """The phase that a step belongs to."""
        return self._phases[step >= self.burn_in_steps, step < self.mixed_steps]
