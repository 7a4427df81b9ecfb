"""PuzzleMix: its energy by definition, its masks by a search through all, and what it moves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from runs import trainer
from torch.testing import assert_close

from lossmix_det.config import Config, MixingConfig, PairsConfig, PuzzleConfig
from lossmix_det.errors import UserError
from lossmix_det.mixing import Among, Mix, Recipe, blend
from lossmix_det.mixing.blocks import BlockGrid, is_in_place
from lossmix_det.mixing.graph_cuts import grid_edges, levels
from lossmix_det.mixing.mixers.puzzlemix import PuzzleMix, best_order, differences, puzzle_costs
from lossmix_det.structures import ImageBatch, Instances, StepBatch, Views
from lossmix_det.training.phases import BurnIn


def draw(images: ImageBatch, truths, seed: int = 0, **settings) -> Mix:
    config = MixingConfig(mixer="puzzlemix", saliency="boxes", probability=1.0, **settings)
    return Recipe(config).draw(images, Among(len(images)), np.random.default_rng(seed), truths)


def grey(*sizes, canvas=(96, 96), value: float = 0.5) -> ImageBatch:
    batch = ImageBatch(torch.full((len(sizes), 3, *canvas), value), tuple(sizes))
    return ImageBatch(batch.pixels * batch.valid(), batch.sizes)


def truth(*boxes) -> Instances:
    return Instances(torch.tensor(boxes).reshape(-1, 4).float(), torch.arange(len(boxes)))


OVERLAPPING = [truth((20, 20, 70, 70)), truth((36, 36, 86, 86))]


# ------------------------------------------------------------------------------------------------ energy


def test_differences_across_borders_worked_by_hand():
    """One row of 2+1 cells; the border lies after the second. One channel of three differs."""
    images = np.zeros((2, 3, 1, 3))
    images[0, 0, 0], images[1, 0, 0] = [0.1, 0.3, 0.9], [0.2, 0.6, 0.0]
    found = differences(images, BlockGrid((1, 3), 2, 4))
    assert found.shape == (2, 2, 1)
    expected = np.array([[0.6, 0.3], [0.3, 0.6]]) / 3  # |.3 - .9|, |.3 - .0|, |.6 - .9|, |.6 - .0|
    np.testing.assert_allclose(found[:, :, 0], expected)


@pytest.mark.parametrize("grid", [BlockGrid((5, 7), 2, 4), BlockGrid((6, 4), 3, 1), BlockGrid((1, 9), 2, 1)])
def test_differences_equal_a_loop_over_cells(grid):
    images = np.random.default_rng(0).random((2, 3, 8, 10))
    found, block = differences(images, grid), grid.cells(np.arange(math.prod(grid.shape)).reshape(grid.shape))
    for edge, (first, second) in enumerate(zip(*grid_edges(*grid.shape), strict=True)):
        for a, b in itertools.product((0, 1), repeat=2):
            total = [
                np.abs(images[a, :, y, x] - images[b, :, y + down, x + 1 - down]).mean()
                for y, x, down in itertools.product(range(grid.frame[0]), range(grid.frame[1]), (0, 1))
                if y + down < grid.frame[0] and x + 1 - down < grid.frame[1]
                if block[y, x] == first and block[y + down, x + 1 - down] == second
            ]
            assert found[a, b, edge] == pytest.approx(np.mean(total))


def energy(q, salience, unlike, lam: float, config: PuzzleConfig) -> float:
    """By the definition, block by block. Hard masks: the difference of the pixels that meet; soft ones: between."""
    rows, columns = salience.shape[1:]
    total, last, beta = 0.0, config.labels - 1, config.beta / (16 * math.sqrt(rows * columns))
    for block in range(rows * columns):
        own, other = salience.reshape(2, -1)[:, block]
        label = round(q[block] * last)
        chance = math.comb(last, label) * lam ** (last - label) * (1 - lam) ** label
        total += q[block] * own + (1 - q[block]) * other - config.eta / (rows * columns) * math.log(chance + 1e-8)
    for edge, (first, second) in enumerate(zip(*grid_edges(rows, columns), strict=True)):
        (d00, d01), (d10, d11) = unlike[:, :, edge]
        a, b = q[first], q[second]
        meet = (1 - a) * (d00 + d01) / 2 + a * (d10 + d11) / 2 + (1 - b) * (d00 + d10) / 2 + b * (d01 + d11) / 2
        meet += (d01 + d10 - d00 - d11) / 2 * (a - b) ** 2 - (d01 + d10) / 2
        if {a, b} <= {0.0, 1.0}:
            assert meet == pytest.approx(unlike[int(a), int(b), edge])
        total += beta * ((a - b) ** 2 + config.gamma * meet)
    return total


@pytest.mark.parametrize(("shape", "labels"), [((3, 3), 2), ((2, 3), 3), ((1, 4), 4), ((1, 1), 3)])
@pytest.mark.parametrize("seed", range(6))
def test_no_mask_has_less_energy_than_the_one_that_is_found(seed, shape, labels):
    rng = np.random.default_rng(seed)
    count = math.prod(shape)
    config = PuzzleConfig(beta=float(rng.choice([0.5, 1.2, 30.0])), gamma=float(rng.choice([0.5, 1.0])), labels=labels)
    salience, unlike = (
        rng.dirichlet(np.ones(count), 2).reshape(2, *shape),
        rng.random((2, 2, len(grid_edges(*shape)[0]))),
    )
    lam = float(rng.beta(1, 1))
    costs, weights = puzzle_costs(salience, unlike, lam, config)
    found = levels(costs, *grid_edges(*shape), weights) / (labels - 1)
    every = itertools.product(np.arange(labels) / (labels - 1), repeat=count)
    least = min(energy(q, salience, unlike, lam, config) for q in every)
    assert energy(found, salience, unlike, lam, config) == pytest.approx(least, abs=1e-6)


def test_smoothness_equals_the_published_scale_on_square_grids():
    """β / (16·4) on 4×4 blocks, where pixels are alike; halved labels: a quarter for each step."""
    salience, unlike = np.full((2, 4, 4), 1 / 16), np.zeros((2, 2, 24))
    assert_close(puzzle_costs(salience, unlike, 0.5, PuzzleConfig())[1], np.full(24, 1.2 / 64 / 4))


# ------------------------------------------------------------------------------------------------- masks


def test_each_image_shows_what_is_salient_in_it():
    """Their objects lie in other halves: without the other terms the mask shows both, and the rest by halves or so."""
    images = grey((96, 96), (96, 96))
    truths = [truth((4, 30, 30, 60)), truth((60, 30, 92, 60))]
    for seed in range(5):
        mix = draw(images, truths, seed, puzzle=PuzzleConfig(beta=0.0, eta=0.0, transport=False))
        assert (mix.masks[0, 0, 10:13, 3:6] == 1).all()
        assert (mix.masks[0, 1, 10:13, 17:21] == 1).all()
        assert (mix.masks[1, 1, 10:13, 3:6] == 1).all()


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_a_share_of_all_or_nothing_is_kept(lam):
    images = grey((96, 96), (96, 96))
    truths = [truth((4, 30, 30, 60)), truth((60, 30, 92, 60))]
    mix = draw(images, truths, lam_range=[lam, lam], puzzle=PuzzleConfig(eta=10.0))
    assert_close(mix.lam, torch.full((2,), lam))


def noise(seed: int, **settings) -> torch.Tensor:
    """(2, h, w) masks of the images themselves, whose salience is noise, so that blocks differ."""
    pixels = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    config = MixingConfig(
        mixer="puzzlemix", probability=1.0, lam_range=[0.5, 0.5], puzzle=PuzzleConfig(beta=0.0, **settings)
    )
    recipe = Recipe(config)
    return recipe.draw(ImageBatch(pixels, ((128, 128),) * 2), Among(2), np.random.default_rng(seed)).masks[:, 0]


def test_a_block_shows_none_half_or_all_of_the_image():
    values = set.union(*(set(noise(seed).unique().tolist()) for seed in range(20)))
    assert values == {0.0, 0.5, 1.0}
    values = set.union(*(set(noise(seed, labels=5, eta=0.02).unique().tolist()) for seed in range(20)))
    assert values == {0.0, 0.25, 0.5, 0.75, 1.0}


def test_grids_have_two_to_sixteen_blocks_along_a_side():
    """Of 32 cells."""
    sides = []
    for mask in (mask for seed in range(40) for mask in noise(seed, eta=0.0)):
        steps = (mask.diff(dim=1) != 0).any(0).nonzero().flatten() + 1
        sides.append(math.gcd(32, *steps.tolist()))
    counts = np.bincount(sides, minlength=33)
    assert set(np.flatnonzero(counts)) <= {2, 4, 8, 16, 32}  # all of a mask may be alike
    assert counts[[2, 4, 8]].min() > 8  # a quarter of 80 each, or nearly so


def test_only_the_area_that_both_images_cover_is_mixed():
    images = grey((32, 640), (640, 32), canvas=(640, 640))
    mix = draw(
        images, [truth((0, 0, 640, 32)), truth((0, 0, 32, 640))], lam_range=[0.0, 0.2], puzzle=PuzzleConfig(t_eps=0)
    )
    assert (mix.masks[:, 0, 8:] == 1).all()
    assert (mix.masks[:, 0, :, 8:] == 1).all()
    assert mix.masks[:, 1, :8, :8].sum() > 0
    assert (mix.blocks.view(2, 2, -1)[..., -1] == 160 * 160 - 1).all()
    assert blend(images, mix).sizes == images.sizes


# --------------------------------------------------------------------------------------------- transport


@pytest.mark.parametrize("shape", [(2, 2), (2, 3), (1, 4), (1, 1)])
@pytest.mark.parametrize("seed", range(4))
def test_no_permutation_is_cheaper_than_the_one_that_is_found(seed, shape):
    rng = np.random.default_rng(seed)
    salience, shown, count = rng.random(shape) ** 3, rng.random(shape) < 0.5, math.prod(shape)
    t_eps = float(rng.choice([0.01, 0.3]))
    places = [divmod(block, shape[1]) for block in range(count)]
    longest = max(max(shape) - 1, 1)

    def cost(order) -> float:
        """``order`` by place."""
        total = 0.0
        for place, block in enumerate(order):
            (y, x), (row, column) = places[place], places[block]
            total += t_eps * ((y - row) ** 2 + (x - column) ** 2) / longest**2 - salience[row, column] * shown[y, x]
        return total

    found = best_order(salience, shown, BlockGrid(shape, 1, 4), t_eps)
    assert sorted(found) == list(range(count))
    assert cost(found) == pytest.approx(min(cost(order) for order in itertools.permutations(range(count))))


def test_a_move_worked_by_hand():
    """Two blocks; the salient one is hidden. Both move as far as the side is long: at 0.2 it pays, at 0.3 not."""
    salience, shown = np.array([[0.7, 0.2]]), np.array([[False, True]])
    assert best_order(salience, shown, BlockGrid((1, 2), 1, 4), 0.2).tolist() == [1, 0]
    assert best_order(salience, shown, BlockGrid((1, 2), 1, 4), 0.3).tolist() == [0, 1]


def test_blocks_that_are_cut_off_stay():
    salience, shown = np.array([[0.0, 0.1, 0.9]]), np.array([[True, False, False]])
    assert best_order(salience, shown, BlockGrid((2, 5), 2, 4), 0.0).tolist() == [1, 0]


def test_what_is_hidden_moves_to_where_it_is_seen():
    """Objects at nearly the same place of both images: with transport more of their salience is seen than without."""
    images, truths = grey((96, 96), (96, 96)), OVERLAPPING
    gained = []
    for seed in range(10):
        seen = []
        for transport in (False, True):
            settings = PuzzleConfig(transport=transport, t_eps=0.01, labels=2)
            recipe = Recipe(MixingConfig(mixer="puzzlemix", saliency="boxes", probability=1.0, puzzle=settings))
            mix = recipe.draw(images, Among(2), np.random.default_rng(seed), truths)
            salience = recipe.saliency(images, truths)
            salience = torch.nn.functional.interpolate(salience[None], size=mix.masks.shape[2:])[0].flatten(1)
            blocks = torch.arange(salience.shape[1]).view(1, 1, -1).expand(2, 2, -1)
            blocks = blocks if mix.blocks is None else mix.blocks.flatten(2)
            seen.append(sum(float((salience[0][blocks[0, k]] * mix.masks[0, k].flatten()).sum()) for k in (0, 1)))
        assert seen[1] >= seen[0] - 1e-5
        gained.append(seen[1] - seen[0])
    assert max(gained) > 0.01


def test_the_published_settings_are_the_defaults():
    """Block size for transport, as the authors use on ImageNet; there it is on."""
    assert PuzzleConfig() == PuzzleConfig(1.2, 0.5, 0.2, 3, True, 0.8)
    assert PuzzleMix(MixingConfig()).tears_boxes
    assert draw(grey((96, 96), (96, 96)), [truth()] * 2, puzzle=PuzzleConfig(transport=False)).blocks is None


def test_burn_in_leaves_an_image_whole_whose_partner_has_no_truth():
    """Its own truth is taught where it was; the objects are painted, and found there."""
    box = truth((8, 8, 40, 40))
    source = grey((96, 96), (96, 96), value=0.2)
    source.pixels[:, :, 8:40, 8:40] = 1.0
    mixing = MixingConfig(
        mixer="puzzlemix",
        saliency="boxes",
        probability=1.0,
        puzzle=PuzzleConfig(t_eps=0.0),
        pairs=PairsConfig(source_source=0.0),
    )
    config = Config(mixing=mixing)
    batch = StepBatch(Views(source, None, (box, box)), Views(grey((96, 96), (96, 96), value=0.0), None, None))
    for rule in ("noise", "lam", "max"):
        mixing.burn_in_rule = rule
        student = BurnIn(config, mixing).compose(batch, np.random.default_rng(0))
        for pixels in student.images.pixels:
            lit = pixels[0] > 0.2
            lit[8:40, 8:40] = False
            assert not lit.any()
        taught = student.supervisions["mixed"][0].truths
        assert all(torch.equal(each.boxes, box.boxes) for each in taught)


def test_drawn_blocks_do_move():
    """Else the tests of torn mixes would test nothing."""
    images = grey((96, 96), (96, 96))
    mixes = [draw(images, OVERLAPPING, seed, puzzle=PuzzleConfig(t_eps=1e-3)) for seed in range(10)]
    assert sum(not is_in_place(mix.blocks[0, 0]) for mix in mixes) >= 3


@pytest.mark.slow
def test_soft_pseudo_labels_cannot_follow_blocks(tmp_path):
    words = ["data.target=[shapes_clipart_train]", "data.views=[weak,strong]", "ema.decay=0.9", "train.steps=4"]
    words += ["adaptation.burn_in_steps=2", "mixing.mixer=puzzlemix", "pseudo_labels.kind=soft"]
    message = "pseudo_labels.kind=soft has no boxes that could follow the blocks of mixing.mixer=puzzlemix; set mixing"
    with pytest.raises(UserError, match=message):
        trainer(tmp_path / "refused", *words)
    trainer(tmp_path / "taken", *words, "mixing.puzzle.transport=false")
