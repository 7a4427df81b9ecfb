"""Mixers that mask: what they paint, what they weigh, and what they leave alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lossmix_det.config import MixingConfig, PuzzleConfig
from lossmix_det.mixing import MIXERS, Among, Mix, Recipe, blend
from lossmix_det.mixing.mixers.cutmix import box_around
from lossmix_det.mixing.mixers.sage import best_moves, moved, soft_mask
from lossmix_det.mixing.saliency import MOST_CELLS, boxes, cell_of, spectral
from lossmix_det.structures import ImageBatch, Instances

CASES = {name: {"mixer": name} for name in MIXERS if name not in {"mixup", "manifold"}}
CASES["torn"] = {"mixer": "puzzlemix", "saliency": "boxes", "puzzle": PuzzleConfig(t_eps=1e-3)}
MASKING = list(CASES)
SIZES = ((64, 96), (96, 50), (33, 96), (96, 96), (64, 31))


def pool(seed: int = 0, sizes=SIZES, canvas=(96, 96)) -> ImageBatch:
    pixels = torch.rand(len(sizes), 3, *canvas, generator=torch.Generator().manual_seed(seed)) * 0.9 + 0.1
    batch = ImageBatch(pixels, tuple(sizes))
    return ImageBatch(torch.where(batch.valid(), pixels, 0.0), tuple(sizes))


def truths(sizes=SIZES) -> list[Instances]:
    """Two boxes in each image."""
    return [
        Instances(
            torch.tensor([[0.1 * w, 0.1 * h, 0.6 * w, 0.5 * h], [0.4 * w, 0.4 * h, w, h]]).round(), torch.tensor([0, 1])
        )
        for h, w in sizes
    ]


def draw(name: str, seed: int, images: ImageBatch | None = None, **settings) -> Mix:
    images = pool(seed) if images is None else images
    recipe = Recipe(MixingConfig(probability=1.0, **CASES[name], **settings))
    return recipe.draw(images, Among(len(images)), np.random.default_rng(seed), truths(images.sizes))


def seen(mix: Mix, index: int, source: int, size) -> torch.Tensor:
    """(H, W) share of a source in every pixel of an image, by the definition of masks."""
    mask = mix.masks[index, source]
    rows, columns = 96 // mask.shape[0], 96 // mask.shape[1]
    return mask.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[: size[0], : size[1]]


@pytest.mark.parametrize("name", MASKING)
@pytest.mark.parametrize("seed", range(12))
def test_masks_and_shares_are_shares(name, seed):
    mix, images = draw(name, seed), pool(seed)
    mixed = blend(images, mix)
    assert ((mix.masks >= 0) & (mix.masks <= 1)).all()
    assert_close(mix.masks.sum(1), torch.ones_like(mix.masks[:, 0]))
    for index, size in enumerate(images.sizes):
        if mix.lam[index] > 0:
            assert mixed.sizes[index] == size  # the image keeps its size
        for source in range(mix.shares.shape[1]):
            assert_close(mix.shares[index, source], seen(mix, index, source, size).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MASKING)
def test_pixels_of_half_precision_are_mixed(name):
    images = pool()
    images = ImageBatch(images.pixels.bfloat16(), images.sizes)
    mix = draw(name, 0, images)
    assert mix.mixed.any()
    assert blend(images, mix).pixels.isfinite().all()


def shown_at(mix: Mix, index: int, source: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(row, column) of the pixel of a source that each pixel of the canvas shows, by the definition of `Mix`."""
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    if mix.offsets is not None:
        down, right = mix.offsets[index, source].tolist()
        return y - down, x - right
    if mix.blocks is None:
        return y, x
    rows, columns = mix.blocks.shape[2:]
    height, width = 96 // rows, 96 // columns
    cell = mix.blocks[index, source, y // height, x // width]
    return cell // columns * height + y % height, cell % columns * width + x % width


@pytest.mark.parametrize("name", MASKING)
@pytest.mark.parametrize("seed", range(8))
def test_every_pixel_is_the_weighted_sum_of_real_pixels(name, seed):
    """By a loop over sources; where one has no pixel, its weight is zero, so that no padding is ever visible."""
    mix, images = draw(name, seed), pool(seed)
    mixed = blend(images, mix)
    for index, (height, width) in enumerate(mixed.sizes):
        total = torch.zeros(3, height, width)
        for source in range(mix.shares.shape[1]):
            origin = int(mix.sources[index, source])
            (y, x), (rows, columns) = shown_at(mix, index, source), images.sizes[origin]
            real = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
            picture = images.pixels[origin][:, y.clamp(0, 95), x.clamp(0, 95)] * real
            share = seen(mix, index, source, (96, 96))[:height, :width]
            assert not share[~real[:height, :width]].any()
            total += share * picture[:, :height, :width]
        assert_close(mixed.pixels[index, :, :height, :width], total)
        assert not mixed.pixels[index, :, height:].any()
        assert not mixed.pixels[index, :, :, width:].any()


@pytest.mark.parametrize("name", MASKING)
def test_an_image_that_is_not_mixed_is_untouched_bit_for_bit(name):
    images = pool()
    recipe = Recipe(MixingConfig(probability=0.5, **CASES[name]))
    mix = recipe.draw(images, Among(5), np.random.default_rng(7), truths())
    mixed = blend(images, mix)
    supervisions = recipe.supervise(truths(), mix, mixed)
    alone = ~mix.mixed
    assert 0 < int(alone.sum()) < 5
    for index in alone.nonzero().flatten().tolist():
        assert torch.equal(mixed.pixels[index], images.pixels[index])
        assert torch.equal(supervisions[0].truths[index].boxes, truths()[index].boxes)
        assert [float(each.class_weights[index]) for each in supervisions] == [1.0] + [0.0] * recipe.mixer.partners


@pytest.mark.parametrize("name", MASKING)
def test_the_same_seed_gives_the_same_mix_and_another_one_another(name):
    first, again, other = draw(name, 4), draw(name, 4), draw(name, 5, pool(4))
    assert torch.equal(first.masks, again.masks)
    assert not torch.equal(first.masks, other.masks)


@pytest.mark.parametrize("name", MASKING)
@pytest.mark.parametrize("sizes", [((96, 96),), ((1, 96), (96, 1)), ((5, 5), (96, 96)), ((96, 20),) * 3])
def test_extreme_shapes_and_single_images_are_legal(name, sizes):
    images = pool(1, sizes)
    recipe = Recipe(MixingConfig(probability=1.0, **CASES[name]))
    none = [Instances.empty()] * len(sizes)
    mix = recipe.draw(images, Among(len(sizes)), np.random.default_rng(0), none)
    mixed = blend(images, mix)
    assert torch.isfinite(mixed.pixels).all()
    recipe.supervise(none, mix, mixed)
    many = [Instances(torch.tensor([[0.0, 0, 1, 1]]).repeat(1000, 1), torch.zeros(1000).long())] * len(sizes)
    assert len(recipe.supervise(many, mix, mixed)) == 1 + recipe.mixer.partners


# ------------------------------------------------------------------------------------------------ CutMix


def test_a_box_worked_by_hand():
    """λ = 0.75: half of each side of 40×20 cells, centred on (10, 18) and cut off at the right."""
    assert box_around((10.0, 18.0), [40, 20], 0.5) == (0, 13, 20, 20)
    assert box_around((20.0, 10.0), [40, 20], 1.0) == (0, 0, 40, 20)
    assert box_around((20.0, 10.0), [40, 20], 0.0) == (20, 10, 20, 10)


def test_the_share_is_what_the_clipped_box_leaves():
    images = pool(0, ((96, 96),) * 2)
    shares = torch.stack([draw("cutmix", seed, images, lam_range=[0.25, 0.25]).lam for seed in range(300)])
    assert (shares >= 0.25 - 0.04).all()  # the box is never larger than was drawn, but for whole cells
    assert ((shares - 0.25).abs() < 0.04).any()  # and where it is hardly clipped, it is what was drawn
    assert (
        0.5 < float(shares.mean()) < 0.65
    )  # uniform centres: a side of √0.75 keeps 1 - √0.75 / 4 of itself on average


@pytest.mark.parametrize("name", ["spectral", "boxes"])
def test_saliencymix_is_centred_on_the_most_salient_place_of_the_partner(name):
    images, marked = (
        pool(2, ((96, 96),) * 2),
        [Instances.empty(), Instances(torch.tensor([[60.0, 20, 76, 36]]), torch.tensor([0]))],
    )
    pixels = 0.4 + images.pixels / 10
    pixels[1, :, 20:36, 60:76] = 1.0
    recipe = Recipe(MixingConfig(mixer="saliencymix", probability=1.0, saliency=name, lam_range=[0.95, 0.95]))
    mix = recipe.draw(ImageBatch(pixels, images.sizes), Among(2), np.random.default_rng(0), marked)
    rows, columns = mix.masks[0, 1].nonzero().unbind(1)
    middle = (rows.float().mean() + 0.5) * 4, (columns.float().mean() + 0.5) * 4
    assert 16 <= middle[0] <= 40
    assert 56 <= middle[1] <= 80


# -------------------------------------------------------------------------------------------------- SAGE


@pytest.mark.parametrize("seed", range(10))
def test_the_best_move_by_brute_force(seed):
    """Over every move, with loops: Σ M·s + (1 - M)·T(s')."""
    rng = np.random.default_rng(seed)
    shape, frame = rng.integers(2, 6, 2), rng.integers(1, 5, 2)
    other = torch.from_numpy(rng.random(tuple(shape)) ** 4)
    s = torch.from_numpy(rng.random(tuple(frame)) ** 4) * (rng.random() + 0.1)

    def kept(down: int, right: int) -> float:
        total = 0.0
        for y, x in itertools.product(range(frame[0]), range(frame[1])):
            mine, there = float(s[y, x]), (y - down, x - right)
            its = float(other[there]) if 0 <= there[0] < shape[0] and 0 <= there[1] < shape[1] else 0.0
            mask = mine / (mine + its) if its > 0 else 1.0
            total += mask * mine + (1 - mask) * its
        return total

    moves = itertools.product(range(1 - shape[0], frame[0]), range(1 - shape[1], frame[1]))
    best = max(kept(*move) for move in moves)
    whole = torch.zeros_like(other)  # what lies beyond the frame is not the image's
    whole = torch.nn.functional.pad(whole, (0, max(frame[1] - shape[1], 0), 0, max(frame[0] - shape[0], 0)))
    whole[: frame[0], : frame[1]] = s
    ((down, right),) = best_moves(whole[None], other[None], [tuple(frame.tolist())])
    assert kept(down, right) == pytest.approx(best)


def test_pairs_are_searched_each_by_itself():
    maps = torch.rand(5, 7, 9, generator=torch.Generator().manual_seed(0)) ** 4
    frames = [(7, 9), (3, 9), (0, 4), (1, 1), (7, 2)]
    order = [1, 2, 3, 4, 0]
    found = best_moves(maps, maps[order], frames)
    alone = [best_moves(maps[i, None], maps[order[i], None], frames[i : i + 1])[0] for i in range(5)]
    assert found == alone
    assert found[2] == (0, 0)  # no whole cell
    assert best_moves(maps[:0], maps[:0], []) == []


@pytest.mark.parametrize(("a", "stays"), [(0.2, True), (0.45, True), (0.55, False), (0.8, False)])
def test_of_even_saliencies_the_partner_stays_below_a_half_and_leaves_above(a, stays):
    """By hand: the sum is a + f·(1 - a)·(1 - 2a), f the share that both cover, largest at f = 1 or f = 0."""
    even = torch.full((1, 4, 6), 1 / 24, dtype=torch.float64)
    ((down, right),) = best_moves(a * even, (1 - a) * even, [(4, 6)])
    assert (4 - abs(down)) * (6 - abs(right)) == (24 if stays else 1)  # cells in common; one is the least
    for rows, columns in itertools.product(range(4), range(6)):
        f, other = (4 - rows) * (6 - columns) / 24, moved((1 - a) * even[0], rows, columns)
        mask = soft_mask(a * even[0], other)
        total = float((mask * a * even[0] + (1 - mask) * other).sum())
        assert total == pytest.approx(a + f * (1 - a) * (1 - 2 * a))


def test_the_range_of_sage_keeps_the_partner_in_sight():
    """Up to a half, as the authors draw a; over the whole range many partners are moved out of an unmixed image."""
    whole, half = (
        torch.cat([draw("sage", seed, pool(seed, ((96, 96),) * 6), lam_range=high).shares[:, 1] for seed in range(5)])
        for high in ([0.0, 1.0], None)
    )
    assert float((whole < 0.05).float().mean()) > 0.25
    assert float(half.min()) > 0.3


def test_moves_and_masks_worked_by_hand():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert moved(values, 1, 0).tolist() == [[0, 0], [1, 2]]
    assert moved(values, 0, -1).tolist() == [[2, 0], [4, 0]]
    mask = soft_mask(torch.tensor([3.0, 0.0, 2.0, 0.0]), torch.tensor([1.0, 2.0, 0.0, 0.0]))
    assert mask.tolist() == [0.75, 0.0, 1.0, 1.0]


def test_the_partner_is_moved_to_where_it_hides_nothing():
    """Both images have their only object at the same place; the partner's is moved beside it."""
    images = pool(0, ((96, 96),) * 2)
    same = [Instances(torch.tensor([[8.0, 8, 24, 24]]), torch.tensor([0]))] * 2
    recipe = Recipe(MixingConfig(mixer="sage", saliency="boxes", probability=1.0, lam_range=[0.5, 0.5]))
    mix = recipe.draw(images, Among(2), np.random.default_rng(0), same)
    assert (mix.offsets[:, 1].abs().amax(1) > 16).all()
    assert not mix.offsets[:, 0].any()
    found = recipe.supervise(same, mix, blend(images, mix))
    assert [len(item) for item in found[1].truths] == [1, 1]  # and is still seen


# ---------------------------------------------------------------------------------------------- saliency


@pytest.mark.parametrize("saliency", [spectral, boxes])
def test_saliency_sums_to_one_inside_of_each_image_and_is_coarse(saliency):
    for canvas in ((96, 96), (448, 320), (800, 1344), (96, 2656)):
        shares = ((1, 1), (0.5, 0.9), (0.01, 1))
        sizes = tuple((max(int(canvas[0] * a), 1), max(int(canvas[1] * b), 1)) for a, b in shares)
        images = pool(1, sizes, canvas)
        maps = saliency(images, truths(sizes))
        assert max(maps.shape[1:]) <= MOST_CELLS
        cell = cell_of(canvas)
        for index, (height, width) in enumerate(sizes):
            assert not maps[index, height // cell :].any()
            assert not maps[index, :, width // cell :].any()
            assert float(maps[index].sum()) == pytest.approx(float(height >= cell), abs=1e-4)
        assert (maps >= 0).all()


@pytest.mark.parametrize("name", ["saliencymix", "sage", "puzzlemix", "comixup"])
def test_large_images_have_as_coarse_a_grid_and_masks_in_line_with_it(name):
    """64-pixel cells, of which the last reach out of the canvas: masks still cover it, and nothing black is seen."""
    sizes = ((90, 2590), (90, 2656), (90, 2620))
    images = pool(3, sizes, (96, 2656))
    mix = draw(name, 3, images, **({} if name == "comixup" else {"lam_range": [0.2, 0.4]}))
    mixed = blend(images, mix)
    assert mixed.sizes == sizes
    for index, (height, width) in enumerate(sizes):
        assert (mixed.pixels[index, :, :height, :width] > 0.05).all()
        fine = torch.nn.functional.interpolate(mix.masks, size=(96, 2656), mode="nearest")[index, :, :height, :width]
        assert_close(fine.mean((1, 2)), mix.shares[index], rtol=1e-3, atol=1e-4)
    assert (mix.shares[:, 1:].sum(1) > 0).any()


def test_what_is_unlike_the_rest_is_salient():
    """A spot on a regular pattern; where nothing is, all is even."""
    pixels = 0.4 + pool(7, ((96, 96),) * 2).pixels / 10
    pixels[0, :, 40:48, 64:72] = 1.0
    maps = spectral(ImageBatch(pixels, ((96, 96),) * 2), [])
    row, column = divmod(int(maps[0].flatten().argmax()), maps.shape[2])
    assert abs(row * 2 - 43) <= 6
    assert abs(column * 2 - 67) <= 6
    flat = ImageBatch(torch.zeros_like(pixels), ((96, 96),) * 2)
    for even in (boxes(flat, [Instances.empty()] * 2), spectral(flat, [])):
        assert_close(even, torch.full_like(even, 1 / even[0].numel()))


@pytest.mark.parametrize("shift", [0.0, 8.0, 16.0, 25.0])
def test_a_small_box_is_as_salient_wherever_it_lies_between_the_cells(shift):
    """Twelve pixels in cells of 32, beside a large box."""
    images = ImageBatch(torch.zeros(1, 3, 800, 1344), ((800, 1344),))
    large = torch.tensor([[700.0, 200, 1300, 700]])
    small = torch.tensor([[96.0, 96, 108, 108]])
    at_the_corner, moved = (torch.cat([small + by, large]) for by in (26.0, shift))  # of four cells, and elsewhere
    alone, one, other = (
        float(boxes(images, [Instances(found, torch.zeros(len(found), dtype=torch.int64))])[0][1:7, 1:7].sum())
        for found in (large, at_the_corner, moved)
    )
    assert one == pytest.approx(other, rel=1e-3)
    assert one > 1.4 * alone


def test_saliencymix_draws_a_place_where_all_are_alike():
    """A partner without boxes: its corner is no more salient than the rest."""
    images = pool(2, ((96, 96),) * 2)
    recipe = Recipe(MixingConfig(mixer="saliencymix", probability=1.0, saliency="boxes", lam_range=[0.9, 0.9]))
    seen = sum(
        recipe.draw(images, Among(2), np.random.default_rng(seed), [Instances.empty()] * 2).masks[0, 1]
        for seed in range(200)
    )
    assert float(seen.min()) > 0
    assert float(seen[-6:, -6:].mean()) == pytest.approx(float(seen[:6, :6].mean()), rel=0.4)
