"""What every mixer gives a step, in every phase, under every rule and weighting; nothing is trained here."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lossmix_det.config import Config, MixingConfig
from lossmix_det.mixing import BURN_IN_RULES, MIXERS, RULES, WEIGHTINGS, Mix
from lossmix_det.structures import MAP_CELL, ImageBatch, Instances, StepBatch, Supervision, Views
from lossmix_det.training.phases import Adaptation, BurnIn, SourceOnly

SIDE = 64  # of the canvas
SOURCE, TARGET = ((40, 64), (60, 34), (40, 64)), ((48, 48), (21, 64))
PHASES = ("plain", *BURN_IN_RULES, "adaptation")


def images(sizes, seed: int) -> ImageBatch:
    pixels = torch.rand(len(sizes), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    batch = ImageBatch(pixels, sizes)
    return ImageBatch(pixels * batch.valid(), sizes)


def truths(sizes, scores: bool = False) -> list[Instances]:
    """Two boxes in each image, none in the last."""
    shares = torch.tensor([[0.1, 0.1, 0.6, 0.5], [0.4, 0.4, 1.0, 1.0]])
    boxes = [shares * torch.tensor([width, height] * 2) for height, width in sizes[:-1]]
    known = torch.tensor([0.9, 0.6]) if scores else None
    return [*(Instances(of_image, torch.tensor([0, 2]), known) for of_image in boxes), Instances.empty()]


def composed(name: str, mixing: MixingConfig, seed: int, watch=None):
    """The student's batch of a phase."""
    source = Views(None, images(SOURCE, seed), tuple(truths(SOURCE)))
    target = Views(images(TARGET, seed + 1), images(TARGET, seed + 2), None)
    rng, config = np.random.default_rng(seed), Config(mixing=mixing)
    if name == "plain":
        phase, given = SourceOnly(mixing), (StepBatch(source), rng)
    elif name == "adaptation":
        labels = Supervision.full(truths(TARGET, scores=True))
        phase, given = Adaptation(config, mixing), (StepBatch(source, target), rng, labels)
    else:
        mixing.burn_in_rule = name
        phase, given = BurnIn(config, mixing), (StepBatch(source, target), rng)
    if watch is not None:
        phase.recipe.watch = watch
    return phase.compose(*given)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_phase_teaches_what_is_seen_under_every_rule_and_weighting(mixer, phase):
    for number, (rule, weighting) in enumerate(itertools.product(RULES, WEIGHTINGS)):
        more = {"stages": ["1"]} if mixer == "manifold" else {}
        mixing = MixingConfig(mixer=mixer, rule=rule, weighting=weighting, probability=0.7, **more)
        student = composed(phase, mixing, number)
        count = len(student.sizes)
        taught = torch.zeros(count)
        for supervision in itertools.chain(*student.supervisions.values()):
            taught += supervision.class_weights
            assert ((supervision.class_weights >= 0) & (supervision.class_weights <= 1 + 1e-6)).all()
            for index in supervision.active:
                boxes, weights = supervision.truths[index].boxes, supervision.truths[index].weights
                height, width = student.sizes[index]
                assert (boxes >= 0).all()
                assert (boxes[:, 2:] <= torch.tensor([width, height]) + 1e-3).all()
                assert weights is None or bool((weights.isfinite() & (weights >= 0)).all())
                seen = 1.0 if weights is None else weights * supervision.class_weights[index]
                assert bool(torch.as_tensor(seen <= 1 + 1e-5).all())
        assert (taught <= 1 + 1e-5).all()
        if student.domains is not None:
            known = [student.domains.shares] + ([] if student.domains.maps is None else [student.domains.maps])
            assert all(bool(((values >= 0) & (values <= 1)).all()) for values in known)


@pytest.mark.parametrize("rule", BURN_IN_RULES)
@pytest.mark.parametrize("mixer", [name for name in MIXERS if name not in {"mixup", "manifold", "puzzlemix"}])
def test_burn_in_teaches_boxes_that_can_be_seen(mixer, rule):
    """The source is dark and the target bright, so that the pixels tell what is seen of a box in each image."""
    dark, bright, side, taught = 0.2, 0.9, 96, []
    truth = Instances(torch.tensor([[4.0, 4, 36, 36], [50, 50, 90, 90]]), torch.tensor([0, 1]))

    def plain(value: float) -> ImageBatch:
        return ImageBatch(torch.full((2, 3, side, side), value), ((side, side),) * 2)

    for seed in range(12):
        mixing = MixingConfig(mixer=mixer, burn_in_rule=rule, probability=1.0)
        mixing.pairs.source_source = 0.0
        step = StepBatch(Views(None, plain(dark), (truth, truth)), Views(plain(bright), plain(bright), None))
        student = BurnIn(Config(mixing=mixing), mixing).compose(step, np.random.default_rng(seed))
        seen = (bright - student.images.pixels[:, 0]) / (bright - dark)
        for supervision in itertools.chain(*student.supervisions.values()):
            for index in supervision.active:
                for x1, y1, x2, y2 in supervision.truths[index].boxes.round().int().tolist():
                    taught.append(float(seen[index, y1:y2, x1:x2].mean()))
    assert taught
    assert min(taught) >= 0.1 - 0.02  # mixing.least_visible; Co-Mixup shows one source of the two in each cell


@pytest.mark.parametrize("rule", BURN_IN_RULES)
def test_burn_in_teaches_labelled_partners_beside_unlabelled_ones(rule):
    """Four images of a mosaic: those of the source weigh their shares, or nothing beside a truth of full weight."""
    more, mixing = [], MixingConfig(mixer="mosaic", probability=1.0)
    for seed in range(20):
        drawn: list[Mix] = []
        student = composed(rule, mixing, seed, lambda pool, mix, saliency, drawn=drawn: drawn.append(mix))
        (mix,) = drawn
        known = mix.sources < len(SOURCE)
        across = (~known & (mix.shares > 0)).any(1)
        taught = sum(supervision.class_weights for supervision in itertools.chain(*student.supervisions.values()))
        if rule == "noise":
            assert_close(taught[across], torch.ones(int(across.sum())))
        if rule == "lam":
            assert_close(taught[across], (mix.shares * known).sum(1)[across])
        more += (taught[across] > mix.shares[across].amax(1) + 1e-5).tolist()
    assert any(more)


@pytest.mark.parametrize("mixer", [name for name in MIXERS if name not in {"mixup", "manifold"}])
def test_soft_labels_of_the_domain_equal_a_loop_over_pixels(mixer):
    """Each cell of the map is the mean share of the target over its own pixels, as far as they lie on the image."""
    drawn = []
    mixing = MixingConfig(mixer=mixer, probability=0.8)
    student = composed("adaptation", mixing, 3, lambda pool, mix, saliency: drawn.append(mix))
    (mix,) = drawn
    is_target = mix.sources >= len(SOURCE)
    assert is_target[mix.shares > 0].any()
    by, cells = SIDE // mix.masks.shape[2], SIDE // MAP_CELL
    for slot, masks in enumerate(mix.masks.tolist()):
        sums, counts = torch.zeros(2, cells, cells, dtype=torch.float64)
        for y, x in itertools.product(*map(range, student.sizes[slot])):
            sums[y // MAP_CELL, x // MAP_CELL] += sum(
                mask[y // by][x // by] for k, mask in enumerate(masks) if is_target[slot, k]
            )
            counts[y // MAP_CELL, x // MAP_CELL] += 1
        on_image = counts > 0
        found = student.domains.maps[slot].double()
        assert_close(found[on_image], (sums / counts)[on_image], atol=1e-5, rtol=0)
        assert_close(student.domains.shares[slot], (mix.shares[slot] * is_target[slot]).sum())
