"""What a step is made of: which images, mixed with whom, taught which truths.

A *slot* is one image of the student's batch, before and after it was mixed. The slots of a view are the source's images
and, in adaptation, the target's strong views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lossmix_det.config import Config, MixingConfig
from lossmix_det.engines import Detector, FeatureMix, MixesFeatures, require
from lossmix_det.errors import UserError, not_one_of
from lossmix_det.mixing import BURN_IN_RULES, PIXELS, RULES, AcrossDomains, Among, Mix, Recipe, supervise
from lossmix_det.structures import MAP_CELL, Domains, ImageBatch, Instances, StepBatch, Supervision, Views
from lossmix_det.training.student_batch import StudentBatch, join_images, mixed_images

VIEWS = ("strong", "weak")  # the order of the student's images
TARGET_VIEWS = {"strong"}  # of the target, only these are ever taught

# Teaches images as they are, with a share of the step, and gives (P, H, W) ≥ 0: how much their loss changes with each
# of their pixels.
CleanPass = Callable[[StudentBatch, float], Tensor]
# Told of every view that is mixed: the mix, and what its images are taught.
Watch = Callable[[Mix, list[Supervision]], None]


def _unwatched(mix: Mix, taught: list[Supervision]) -> None:
    """Nobody looks; a function, so that phases can be pickled."""


class Phase(Protocol):
    """A stage of training."""

    recipe: Recipe
    watch: Watch

    def compose(
        self,
        batch: StepBatch,
        rng: np.random.Generator,
        pseudo_labels: Supervision | None = None,
        clean_pass: CleanPass | None = None,
    ) -> StudentBatch:
        """What the student learns from a batch, which stays as it is.

        Args:
            batch: source images with their truths, and target images where there are any.
            rng: draws partners and shares.
            pseudo_labels: of the target's images; absent: nothing is known about them.
            clean_pass: for saliency that needs the student.
        """


class SourceOnly:
    """Labelled images alone, mixed with one another.

    Args:
        config: the ``mixing`` branch.
    """

    def __init__(self, config: MixingConfig) -> None:
        self.recipe, self.views, self.watch = Recipe(config), config.views, _unwatched

    def compose(
        self,
        batch: StepBatch,
        rng: np.random.Generator,
        pseudo_labels: Supervision | None = None,
        clean_pass: CleanPass | None = None,
    ) -> StudentBatch:
        """Mix each view among its own images and join the views into one batch."""
        recipe, truths = self.recipe.drawn(rng), batch.source.truths or ()
        views = [(name, getattr(batch.source, name)) for name in VIEWS if getattr(batch.source, name) is not None]
        share = 1 / max(sum(name in self.views for name, _ in views), 1)
        images, supervisions, mixed = [], [], []
        for name, view in views:
            pool, mix = view.to_float(), recipe.unmixed(len(view))
            if name in self.views:
                clean = StudentBatch(pool, {"source": [Supervision.full(truths)]})
                gradient = clean_pass and partial(clean_pass, clean, share)
                mix = recipe.draw(pool, Among(len(pool), pool.sizes), rng, truths, gradient)
            images.append(mixed_images(pool, mix))
            mixed.append(mix.mixed)
            supervisions.append(recipe.supervise(truths, mix, images[-1][0]))
            if name in self.views:
                self.watch(mix, supervisions[-1])
        joined = [Supervision.cat(of_views) for of_views in zip(*supervisions, strict=True)]
        inputs, features = join_images(images)
        batch = StudentBatch(inputs, {"source": joined}, [len(view) for _, view in views], features=features)
        batch.mixed = torch.cat(mixed)
        return batch


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

    def unmixed(self) -> StudentBatch:
        """All images as they are, by what is known of them: the source's truths, and the target's pseudo-labels."""
        is_target, count = self.is_target, len(self.images)
        kinds = {"source": (~is_target, self.sources), "target": (is_target, count - self.sources)}
        supervisions = {
            kind: [self.supervision.scaled(chosen.float(), mean_over=max(of_kind, 1))]
            for kind, (chosen, of_kind) in kinds.items()
        }
        return StudentBatch(self.images, {kind: one for kind, one in supervisions.items() if one[0].active})


@dataclass(frozen=True)
class MixedView:
    """The slots of one view after mixing.

    Args:
        images: what enters the network, and how it is to mix features.
        supervisions: of the slots, one for each truth.
        is_target: (S,) bool, which slots are the target's.
        mixed: (S,) bool.
        target_shares: (S,) how much of the target domain is seen in each.
        target_maps: (S, h, w) the same in each cell of `MAP_CELL` pixels, where there are masks.
    """

    images: tuple[ImageBatch, FeatureMix | None]
    supervisions: list[Supervision]
    is_target: Tensor
    mixed: Tensor
    target_shares: Tensor
    target_maps: Tensor | None


class BurnIn:
    """Labelled images, mixed with one another and with target images, whose truth nobody knows yet.

    Args:
        config: of the run.
        mixing: its ``mixing`` branch, as this phase mixes.
    """

    teaches_target = False

    def __init__(self, config: Config, mixing: MixingConfig) -> None:
        self.recipe, self.views, self.pairs, self.watch = Recipe(mixing), mixing.views, mixing.pairs, _unwatched
        self.across_rule = BURN_IN_RULES[mixing.burn_in_rule](mixing, self.recipe.rule)
        self.across_truths = RULES[self.across_rule.truths](replace(mixing, weight_sum=None))
        self.supervised_weight = config.adaptation.supervised_weight

    def compose(
        self,
        batch: StepBatch,
        rng: np.random.Generator,
        pseudo_labels: Supervision | None = None,
        clean_pass: CleanPass | None = None,
    ) -> StudentBatch:
        """The source's views, and the target's strong view where it is taught; each mixed within its view."""
        recipe = self.recipe.drawn(rng)
        if pseudo_labels is None:
            pseudo_labels = Supervision.full([Instances.empty()] * len(batch.target.weak or ()), 0.0)
        truths = Supervision.full(batch.source.truths or (), self.supervised_weight)
        names = [name for name in VIEWS if self._has_slots(name, batch.source)]
        if clean_pass is not None:  # every view that is mixed has one, of an equal share
            clean_pass = partial(clean_pass, share=1 / max(len({*names} & {*self.views}), 1))
        pools = [(name, self._pool(name, batch, truths, pseudo_labels)) for name in names]
        return _join([self._mix(recipe, name, pool, rng, clean_pass) for name, pool in pools])

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

    def _mix(
        self, recipe: Recipe, name: str, pool: Pool, rng: np.random.Generator, clean_pass: CleanPass | None
    ) -> MixedView:
        """Mix the slots of one view with images of that view."""
        mix = recipe.unmixed(pool.slots)
        if name in self.views:
            targets = len(pool.images) - pool.sources
            both, sizes = self._target_slots(name), pool.images.sizes
            pairing = AcrossDomains(pool.sources, targets, self.pairs, both=both, sizes=sizes)
            gradient = clean_pass and partial(clean_pass, pool.unmixed())
            mix = recipe.draw(pool.images, pairing, rng, pool.supervision.truths, gradient)
        mix, across = self._with_unknown(mix, pool)
        images = mixed_images(pool.images, mix)
        supervisions = recipe.supervise(pool.supervision, mix.where(~across), images[0])
        if not self.teaches_target:
            unknown = replace(mix.where(across), factors=None)
            visible = recipe.weighting, recipe.least_visible
            known = supervise(pool.supervision, unknown, images[0], self.across_truths, *visible)
            supervisions = _either(supervisions, known, across)
        if name in self.views:
            self.watch(mix, supervisions)
        from_target = pool.is_target[mix.sources].float()
        maps = None if mix.masks is None else _cells(mix.masks, from_target, images[0])
        target_shares = (mix.shares * from_target).sum(1).clamp(max=1.0)  # rounded, a sum of several may be more
        return MixedView(images, supervisions, pool.is_target[: pool.slots], mix.mixed, target_shares, maps)

    def _with_unknown(self, mix: Mix, pool: Pool) -> tuple[Mix, Tensor]:
        """The mix to apply, and (S,) bool: which images have a partner that nothing is known of."""
        partners = (mix.shares[:, 1:] > 0) & pool.is_target[mix.sources[:, 1:]]
        across = mix.mixed & partners.any(1)
        return self.across_rule(mix.whole(across), across, pool.images), across


class Adaptation(BurnIn):
    """Labelled images, and target images with the teacher's pseudo-labels, mixed within and across the domains."""

    teaches_target = True

    def _with_unknown(self, mix: Mix, pool: Pool) -> tuple[Mix, Tensor]:
        """Nothing is unknown any more."""
        return mix, torch.zeros(len(mix), dtype=torch.bool)


def _either(first: Sequence[Supervision], second: Sequence[Supervision], chosen: Tensor) -> list[Supervision]:
    """Of the images chosen by a (S,) bool the supervisions of the second list, of all others those of the first.

    The two lists stay apart where their weights of the background differ.
    """
    if first[0].background_weight != second[0].background_weight:
        return [*(one.scaled((~chosen).float()) for one in first), *(one.scaled(chosen.float()) for one in second)]
    nothing = first[0].scaled(0.0)
    result = []
    for one, other in zip_longest(first, second, fillvalue=nothing):
        triples = zip(one.truths, other.truths, chosen.tolist(), strict=True)
        truths = (new if is_chosen else old for old, new, is_chosen in triples)
        weights = {
            name: torch.where(chosen, getattr(other, name), getattr(one, name))
            for name in ("class_weights", "box_weights")
        }
        result.append(replace(one, truths=tuple(truths), **weights))
    return result


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
    images, features = join_images([view.images for view in views])
    domains = Domains(target_shares, *weights, _join_maps(views, images))
    blocks = [int(count) for view in views for count in ((~view.is_target).sum(), view.is_target.sum()) if count]
    batch = StudentBatch(images, supervisions, blocks, domains, features=features)
    batch.mixed = mixed
    return batch


def _cells(masks: Tensor, from_target: Tensor, images: ImageBatch) -> Tensor:
    """(S, h, w) share of the target in each cell, as far as it lies on the image.

    Args:
        masks: (S, K, …) of each source.
        from_target: (S, K) whether a source is of the target.
        images: after mixing.
    """
    cells = [-(-side // MAP_CELL) for side in images.canvas]
    shown = (masks * from_target[:, :, None, None]).sum(1, keepdim=True).clamp(max=1.0)
    inside = F.adaptive_avg_pool2d(images.valid().to(shown), shown.shape[2:])
    shown, inside = (F.adaptive_avg_pool2d(values, cells)[:, 0] for values in (shown * inside, inside))
    return (shown / inside.clamp(min=1e-6)).clamp(max=1.0)


def _join_maps(views: Sequence[MixedView], images: ImageBatch) -> Tensor | None:
    """Maps of all views over the joint canvas; where a view has none, the share everywhere."""
    if all(view.target_maps is None for view in views):
        return None
    rows, columns = (-(-side // MAP_CELL) for side in images.canvas)
    maps = []
    for view in views:
        known = view.target_maps
        if known is None:
            known = view.target_shares[:, None, None].expand(-1, rows, columns)
        maps.append(F.pad(known, (0, columns - known.shape[2], 0, rows - known.shape[1])))
    return torch.cat(maps)


def _per_domain(*groups: Tensor) -> Tensor:
    """(S,) weights that add up to 1 over each of the groups, 0 outside of them."""
    return sum(group.float() / max(int(group.sum()), 1) for group in groups)


def check_stages(recipe: Recipe, detector: Detector) -> None:
    """Refuse to mix features where the detector has none.

    Raises:
        UserError: ``mixing.stages`` names a stage that it lacks.
    """
    if not recipe.stages:
        return
    require(detector, MixesFeatures, "mixing.mixer=manifold", "mixing.mixer=mixup")
    known = [PIXELS, *detector.stages()]
    for stage in recipe.stages:
        if stage not in known:
            raise UserError(not_one_of("mixing.stages", stage, known))


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
        # By whether burn-in is over, and whether images are still mixed.
        self._phases: dict[tuple[bool, bool], Phase] = {
            (over, mixes): self._phase(config, over, branch if mixes else clean)
            for over, branch in ((False, mixing.in_burn_in), (True, mixing))
            for mixes in (False, True)
        }

    def check(self, detector: Detector) -> None:
        """Refuse to mix features where the detector has none.

        Raises:
            UserError: ``mixing.stages`` names a stage that it lacks.
        """
        check_stages(self.at(self.burn_in_steps).recipe, detector)

    def _phase(self, config: Config, over: bool, mixing: MixingConfig) -> Phase:
        if not config.data.target:
            return SourceOnly(mixing)
        return (Adaptation if over else BurnIn)(config, mixing)

    def at(self, step: int) -> Phase:
        """The phase that a step belongs to."""
        return self._phases[step >= self.burn_in_steps, step < self.mixed_steps]
