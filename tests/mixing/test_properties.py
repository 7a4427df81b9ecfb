"""What holds for every mixer, rule and weighting, whatever the images: looked for by hypothesis."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torchvision.ops import box_iou

from lossmix_det.config import MixingConfig, PairsConfig, PuzzleConfig
from lossmix_det.config.mixing import READS
from lossmix_det.mixing import BURN_IN_RULES, MIXERS, RULES, WEIGHTINGS, AcrossDomains, Mix, Recipe, blend, mixed_sizes
from lossmix_det.structures import ImageBatch, Instances, Supervision, smallest_canvas

SIDES = st.one_of(st.integers(1, 8), st.integers(9, 130))
SIZES = st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=5)


@st.composite
def mixes(draw, mixer=None):
    """A recipe (of this mixer), images of two domains, their truths, and a seed."""
    sizes = tuple(draw(SIZES))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    height, width = smallest_canvas(sizes)
    batch = ImageBatch(
        torch.from_numpy(rng.random((len(sizes), 3, height, width), dtype=np.float32)) * 0.9 + 0.1, sizes
    )
    pool = ImageBatch(torch.where(batch.valid(), batch.pixels, 0.0), sizes)
    truths = [_boxes(size, int(rng.integers(0, 4)), rng) for size in sizes]
    known = torch.from_numpy(rng.integers(0, 2, len(sizes))).float()
    mixer = mixer or draw(st.sampled_from(sorted(MIXERS)))
    some = {
        "saliency": draw(st.sampled_from(["spectral", "boxes"])),
        "puzzle": PuzzleConfig(t_eps=draw(st.sampled_from([1e-3, 0.8]))),
        "stages": ["1"],
    }
    config = MixingConfig(
        mixer=mixer,
        rule=draw(st.sampled_from(sorted(RULES))),
        weighting=draw(st.sampled_from(sorted(WEIGHTINGS))),
        probability=draw(st.sampled_from([0.5, 1.0])),
        **{key: value for key, value in some.items() if key in READS[mixer]},
    )
    return config, pool, Supervision(tuple(truths), known, known), seed


def _boxes(size, count: int, rng) -> Instances:
    height, width = size
    corners = np.sort(rng.random((count, 2, 2)), axis=1) * [width, height]
    boxes = torch.from_numpy(corners.reshape(count, 4)).float()
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 0.01)
    scores = torch.from_numpy(rng.random(count)).float() if count % 2 else None
    return Instances(boxes, torch.from_numpy(rng.integers(0, 3, count)), scores)


def _drawn(config, pool, supervision, seed):
    rng = np.random.default_rng(seed)
    recipe = Recipe(config).drawn(rng)
    sources = (len(pool) + 1) // 2
    pairing = AcrossDomains(sources, len(pool) - sources, PairsConfig(), both=True, sizes=pool.sizes)
    return recipe, recipe.draw(pool, pairing, rng, supervision.truths)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(mixes())
def test_shares_and_masks_are_shares_and_weights_are_weights(given_mix):
    config, pool, supervision, seed = given_mix
    recipe, mix = _drawn(config, pool, supervision, seed)
    assert ((mix.shares >= 0) & (mix.shares <= 1)).all()
    assert_close(mix.shares.sum(1), torch.ones(len(mix)))
    if mix.masks is not None:
        assert ((mix.masks >= 0) & (mix.masks <= 1)).all()
        assert_close(mix.masks.sum(1), torch.ones_like(mix.masks[:, 0]), atol=1e-5, rtol=0)
    images = pool if mix.stage else blend(pool, mix)
    for taught in recipe.supervise(supervision, mix, images):
        for weights in (taught.class_weights, taught.box_weights):
            assert ((weights >= 0) & (weights <= 1 + 1e-6)).all()
        for truth, size in zip(taught.truths, mixed_sizes(pool, mix), strict=True):
            assert (truth.boxes >= 0).all()
            assert (truth.weights is None) or (truth.weights >= 0).all()
            if taught.active and mix.masks is not None:
                assert (truth.boxes[:, 2:] > truth.boxes[:, :2]).all()
            assert min(size) > 0


@settings(max_examples=150, deadline=None, derandomize=True)
@given(mixes())
def test_nothing_beyond_an_image_is_seen_and_what_is_not_mixed_is_untouched(given_mix):
    config, pool, supervision, seed = given_mix
    recipe, mix = _drawn(config, pool, supervision, seed)
    if mix.stage:
        return
    images = blend(pool, mix)
    assert not torch.where(images.valid(), 0.0, images.pixels).any()
    taught = recipe.supervise(supervision, mix, images)
    for index in (~mix.mixed).nonzero().flatten().tolist():
        height, width = pool.sizes[index]
        assert images.sizes[index] == (height, width)
        assert torch.equal(images.pixels[index, :, :height, :width], pool.pixels[index, :, :height, :width])
        assert torch.equal(taught[0].truths[index].boxes, supervision.truths[index].boxes)
        assert taught[0].truths[index].weights is None
        assert float(taught[0].class_weights[index]) == float(supervision.class_weights[index])
        assert not any(float(other.class_weights[index]) for other in taught[1:])


@pytest.mark.parametrize("mixer", sorted(set(MIXERS) - {"manifold"}))
def test_boxes_lie_on_what_is_painted_in_them(mixer):
    """Each box of whole pixels is painted alone, mixed and looked for: the box that is taught surrounds its paint."""
    found_boxes = []

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(mixes(mixer))
    def check(given_mix):
        config, pool, supervision, seed = given_mix
        whole = tuple(_whole(truth, size) for truth, size in zip(supervision.truths, pool.sizes, strict=True))
        config, supervision = replace(config, rule="lossmix"), replace(supervision, truths=whole)
        recipe, mix = _drawn(config, pool, supervision, seed)
        taught = recipe.supervise(supervision, mix, blend(pool, mix))
        for source, index in itertools.product(range(mix.shares.shape[1]), range(len(mix))):
            if mix.shares[index, source] > 0:
                found = taught[source].truths[index]
                origin = whole[int(mix.sources[index, source])]
                found_boxes.append(_lie_on_their_paint(found, origin, pool, mix, index, source))

    check()
    assert sum(found_boxes) > 5


def _whole(truth: Instances, size) -> Instances:
    """The same with boxes of whole pixels, each of a class of its own, and without scores."""
    height, width = size
    corners = torch.cat([truth.boxes[:, :2].floor(), truth.boxes[:, 2:].ceil()], 1)
    corners = torch.minimum(corners, torch.tensor([width, height, width, height]))
    return Instances(corners, torch.arange(len(corners)))


def _lie_on_their_paint(found: Instances, truth: Instances, pool, mix, index: int, source: int) -> int:
    """How many boxes of a source were found around their paint on a mixed image; those hardly seen may be missing."""
    kinds, sizes = mix.shares.shape[1], tuple(pool.sizes[origin] for origin in mix.sources[index].tolist())
    parts = {spec.name: getattr(mix, spec.name) for spec in fields(mix)}
    parts = {name: part[index : index + 1] for name, part in parts.items() if isinstance(part, torch.Tensor)}
    alone, count = Mix(**parts | {"sources": torch.arange(kinds)[None]}), 0
    for label, box in enumerate(truth.boxes.int().tolist()):
        x1, y1, x2, y2 = box
        paint = torch.zeros(kinds, 3, *pool.canvas)
        paint[source, :, y1:y2, x1:x2] = 1.0
        lit = blend(ImageBatch(paint, sizes), alone).pixels[0, 0] > 0
        kept = found.boxes[found.classes == label]
        if not lit.any():
            assert not len(kept)
        elif len(kept):
            rows, columns = lit.any(1).nonzero(), lit.any(0).nonzero()
            expected = torch.tensor([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]]).float()
            assert float(box_iou(kept, expected)) >= 0.95, (index, source, box, kept, expected)
            count += 1
    return count


@settings(max_examples=100, deadline=None, derandomize=True)
@given(mixes(), st.sampled_from(sorted(BURN_IN_RULES)))
def test_burn_in_keeps_shares_and_masks(given_mix, name):
    config, pool, supervision, seed = given_mix
    recipe, mix = _drawn(config, pool, supervision, seed)
    moved = BURN_IN_RULES[name](config, recipe.rule)(mix.whole(mix.mixed), mix.mixed, pool)
    if not mix.stage:
        _nothing_black(pool, moved)
    assert_close(moved.shares.sum(1), torch.ones(len(mix)))
    assert ((moved.shares >= 0) & (moved.shares <= 1 + 1e-6)).all()
    if moved.masks is not None:
        assert ((moved.masks >= -1e-6) & (moved.masks <= 1 + 1e-6)).all()
        assert_close(moved.masks.sum(1), torch.ones_like(moved.masks[:, 0]), atol=1e-5, rtol=0)
    assert torch.equal(moved.lam[~mix.mixed], torch.ones(int((~mix.mixed).sum())))


def _nothing_black(pool, mix) -> None:
    """Images that keep their size and show masked partners show pixels of some image everywhere."""
    images = blend(pool, mix)
    for index in mix.mixed.nonzero().flatten().tolist() if mix.masks is not None else ():
        height, width = pool.sizes[index]
        assert images.sizes[index][0] <= height
        assert images.sizes[index][1] <= width
        assert (images.pixels[index, :, : images.sizes[index][0], : images.sizes[index][1]] > 0.05).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(mixes())
def test_the_same_seed_gives_the_same_mix(given_mix):
    config, pool, supervision, seed = given_mix
    first, again = (_drawn(config, pool, supervision, seed)[1] for _ in range(2))
    for name in ("sources", "shares", "masks", "offsets", "factors"):
        one, other = getattr(first, name), getattr(again, name)
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
