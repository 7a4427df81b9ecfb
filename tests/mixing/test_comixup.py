"""Co-Mixup: its energy by definition, its masks by a search through all, and what three sources of an image teach."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lossmix_det.config import CoMixupConfig, MixingConfig
from lossmix_det.mixing import Among, Mix, Recipe, blend
from lossmix_det.mixing.blocks import BlockGrid
from lossmix_det.mixing.joint_masks import Joint, Output
from lossmix_det.mixing.mixers.comixup import CoMixup, block_costs, compatibility
from lossmix_det.structures import ImageBatch, Instances


def problem(seed: int, images: int, kinds: int, shape=(2, 2), **settings) -> tuple[Joint, list[np.ndarray]]:
    """Random saliencies and priors, and labels to start from; every image is an output and has kinds - 1 partners."""
    rng = np.random.default_rng(seed)
    config = CoMixupConfig(**settings)
    salience = rng.dirichlet(np.ones(shape[0] * shape[1]), images)
    outputs = []
    for index in range(images):
        others = rng.permutation([other for other in range(images) if other != index])
        sources = np.array([index, *others[: kinds - 1]])
        prior = -config.eta * np.log(rng.dirichlet(np.full(kinds, config.alpha)))
        outputs.append(Output(sources, shape, -salience[sources].T + prior / salience.shape[1]))
    joint = Joint(outputs, compatibility(salience.reshape(images, *shape), config.omega), config)
    return joint, [each.random_labels(rng.random(len(each.costs))) for each in outputs]


def energy(joint: Joint, labels) -> float:
    """By the definition, with loops."""
    settings, total = joint.settings, 0.0
    images = range(len(joint.compatible))
    for j, (output, of) in enumerate(zip(joint.outputs, labels, strict=True)):
        (rows, columns), count = output.shape, len(of)
        total += sum(output.costs[block, of[block]] for block in range(count))
        for y, x in itertools.product(range(rows), range(columns)):
            for down, right in ((y + 1, x), (y, x + 1)):
                if down < rows and right < columns:
                    total += settings.beta / count * (of[y * columns + x] != of[down * columns + right])
        for k, image in enumerate(output.sources):
            compatible = 0.0
            for other, there in zip(joint.outputs, labels, strict=True):
                if other is not output:
                    shown = [other.sources[label] for label in there]
                    compatible += sum(joint.compatible[image, i] * shown.count(i) / len(shown) for i in images)
            if compatible > settings.thres:
                total += settings.gamma * int((of == k).sum()) * compatible
        assert j < len(labels)
    return total


@pytest.mark.parametrize(("images", "kinds", "shape"), [(2, 2, (2, 2)), (4, 3, (2, 3)), (3, 2, (1, 4)), (1, 1, (2, 2))])
def test_the_energy_is_that_of_its_definition(images, kinds, shape):
    for seed in range(5):
        joint, labels = problem(seed, images, kinds, shape, thres=0.3, omega=0.2)
        assert joint.energy(labels) == pytest.approx(energy(joint, labels))


def test_two_images_of_four_blocks_end_at_the_least_energy():
    """By a search through all 256 labellings."""
    every = [np.array(labels) for labels in itertools.product((0, 1), repeat=4)]
    for seed in range(120):
        joint, start = problem(seed, 2, 2)
        least = min(joint.energy(list(labels)) for labels in itertools.product(every, repeat=2))
        assert joint.energy(joint.improved(start)) == pytest.approx(least, abs=1e-6), seed


def test_without_the_penalty_each_mask_has_the_least_energy_of_its_own():
    """Then outputs do not know of one another; two sources are one exact cut."""
    every = [np.array(labels) for labels in itertools.product((0, 1), repeat=6)]
    for seed in range(5):
        joint, start = problem(seed, 3, 2, (2, 3), gamma=0.0)
        found = joint.improved(start)
        for output, labels in zip(joint.outputs, found, strict=True):
            alone = Joint([output], joint.compatible, joint.settings)
            assert alone.energy([labels]) == pytest.approx(min(alone.energy([one]) for one in every), abs=1e-6)


def two_outputs(**settings) -> tuple[Joint, list[np.ndarray]]:
    """Image 0 is the most salient everywhere. Output 0 shows it alone, output 1 in two of four blocks."""
    costs = np.array([[-0.9, -0.1]] * 4)
    outputs = [Output(np.array([0, 1]), (2, 2), costs), Output(np.array([1, 0]), (2, 2), costs[:, ::-1])]
    joint = Joint(outputs, np.eye(2), CoMixupConfig(beta=0.0, thres=0.83, **settings))
    return joint, [np.array([0, 0, 0, 0]), np.array([0, 1, 1, 0])]


@pytest.mark.parametrize(("gamma", "expected"), [(0.0, 4), (1.0, 3)])
def test_what_others_show_enough_of_is_not_shown_again(gamma, expected):
    """Four blocks of image 0 in one output forbid it in the other; three (0.75 < 0.83) in both are allowed."""
    joint, start = two_outputs(gamma=gamma)
    found = joint.improved(start)
    assert [int((of == label).sum()) for of, label in zip(found, (0, 1), strict=True)] == [expected] * 2


def test_a_cut_of_one_output_counts_what_the_others_show():
    """Output 0 shows image 0 alone, so output 1 is given image 1; without the penalty, image 0."""
    joint, start = two_outputs()
    joint._cut(start, 1)
    assert start[1].tolist() == [0, 0, 0, 0]
    joint, start = two_outputs(gamma=0.0)
    joint._cut(start, 1)
    assert start[1].tolist() == [1, 1, 1, 1]


def test_the_start_is_left_as_it_is():
    joint, start = two_outputs()
    joint.improved(start)
    assert start[1].tolist() == [0, 1, 1, 0]


def test_fewer_rounds_end_no_lower():
    for seed in range(5):
        ends = []
        for rounds in (1, 4):
            joint, start = problem(seed, 4, 3, iterations=rounds)
            ends.append(joint.energy(joint.improved(start)))
        assert ends[1] <= ends[0] + 1e-9


@pytest.mark.parametrize("kinds", [3, 8])
def test_no_joint_mask_is_worse_than_images_that_show_themselves(kinds):
    """There nothing is shown twice, so nothing is penalised."""
    for seed in range(2):
        joint, start = problem(seed, 8, kinds, (3, 3))
        alone = [np.zeros(9, dtype=int) for _ in joint.outputs]
        assert joint.energy(joint.improved(start)) < joint.energy(alone)


def test_compatibility_worked_by_hand():
    """Most salient at (0, 0), (0, 2) and (1, 2): L1 distances 2, 3 and 1, of which the mean over nine is 12 / 9."""
    saliency = np.zeros((3, 2, 3))
    saliency[0, 0, 0] = saliency[1, 0, 2] = saliency[2, 1, 2] = 1.0
    distance = np.array([[0, 2, 3], [2, 0, 1], [3, 1, 0]])
    np.testing.assert_allclose(compatibility(saliency, 0.1), 0.9 * np.eye(3) + 0.1 * distance * 3 / 12)
    np.testing.assert_allclose(compatibility(saliency[:1], 0.1), [[0.9]])


def test_blocks_that_a_source_does_not_cover_are_not_offered():
    """4×4 cells, blocks of 2; the partner has 3×2 cells; a partner that is there twice counts once."""
    saliency = np.ones((2, 4, 4))
    grid = BlockGrid((4, 4), 2, 4)
    costs = block_costs(grid, np.array([0, 1, 1]), saliency, [(4, 4), (3, 2), (3, 2)], (16, 16))
    assert costs.tolist() == [[-4, -4, np.inf], [-4, np.inf, np.inf], [-4, np.inf, np.inf], [-4, np.inf, np.inf]]


def test_random_labels_are_even_among_those_that_are_possible():
    output = Output(np.arange(3), (1, 2), np.array([[0.0, np.inf, 0.0], [0.0, 0.0, 0.0]]))
    places = np.linspace(0, 1, 300, endpoint=False)
    labels = np.array([output.random_labels(np.array([place, place, 0.5])) for place in places])
    assert np.bincount(labels[:, 0]).tolist() == [150, 0, 150]
    assert np.bincount(labels[:, 1]).tolist() == [100, 100, 100]


# ------------------------------------------------------------------------------------------------- masks


def images(*sizes, canvas=(96, 96)) -> ImageBatch:
    pixels = torch.rand(len(sizes), 3, *canvas, generator=torch.Generator().manual_seed(0))
    batch = ImageBatch(pixels, tuple(sizes))
    return ImageBatch(pixels * batch.valid(), tuple(sizes))


def with_objects(count: int) -> ImageBatch:
    """Square images that are even but for one bright square each, in a corner of its own."""
    batch = images(*((96, 96),) * count)
    pixels = torch.full_like(batch.pixels, 0.5)
    for index, (y, x) in enumerate(itertools.islice(itertools.product((4, 60), repeat=2), count)):
        pixels[index, :, y : y + 32, x : x + 32] = 1.0
    return ImageBatch(pixels, batch.sizes)


def draw(batch: ImageBatch, seed: int, truths=(), **settings) -> tuple[Recipe, Mix]:
    config = MixingConfig(
        mixer="comixup",
        saliency="boxes" if truths else "spectral",
        probability=1.0,
        comixup=CoMixupConfig(**settings),
    )
    recipe = Recipe(config)
    return recipe, recipe.draw(batch, Among(len(batch)), np.random.default_rng(seed), truths)


@pytest.mark.parametrize("partners", [1, 2, 3])
def test_an_image_shows_itself_and_its_partners_and_is_taught_all_their_truths(partners):
    batch = images(*((96, 96),) * 5)
    truths = [Instances(torch.tensor([[8.0, 8, 88, 88]]), torch.tensor([index])) for index in range(5)]
    recipe, mix = draw(batch, 3, partners=partners)
    assert mix.shares.shape == (5, 1 + partners)
    assert set(mix.masks.unique().tolist()) == {0.0, 1.0}
    assert_close(mix.masks.mean((2, 3)), mix.shares)
    taught = recipe.supervise(truths, mix, blend(batch, mix))
    assert len(taught) == 1 + partners
    for k, each in enumerate(taught):
        assert_close(each.class_weights, mix.shares[:, k])
        for index, truth in enumerate(each.truths):
            assert truth.classes.tolist() in ([], [int(mix.sources[index, k])])


def test_blocks_are_sixteen_of_a_square_image():
    batch = with_objects(3)
    found = {int(value) for seed in range(10) for value in (draw(batch, seed)[1].shares * 16).flatten()}
    assert found - {0, 4, 8, 12, 16}  # shares that no coarser grid gives
    for seed in range(5):
        _, mix = draw(batch, seed)
        blocks = mix.masks.view(3, 3, 4, 6, 4, 6)
        assert torch.equal(blocks, blocks[:, :, :, :1, :, :1].expand_as(blocks))


def test_a_partner_that_is_drawn_twice_is_shown_once():
    for seed in range(5):
        _, mix = draw(images((96, 96), (96, 96)), seed)
        assert torch.equal(mix.sources[:, 1], mix.sources[:, 2])
        assert not mix.shares[:, 2].any()


def test_an_image_with_one_partner_besides_itself_is_mixed():
    """The pairing gives the image itself where it finds none."""

    class Pairs:
        def draw(self, rng, partners=1):
            return np.array([[1, 0], [0, 1]])

    recipe, mixed = Recipe(MixingConfig(mixer="comixup", probability=1.0)), np.zeros(2, dtype=int)
    for seed in range(10):
        mix = recipe.draw(with_objects(2), Pairs(), np.random.default_rng(seed))
        mixed += mix.mixed.numpy()
        assert not mix.shares[:, 2].any()
    assert (mixed > 5).all()


def test_what_is_salient_is_shown():
    """Three images, whose objects lie in three corners: each output shows those that the others do not."""
    batch = images(*((96, 96),) * 3)
    corners = [(0, 0, 44, 44), (52, 0, 96, 44), (0, 52, 44, 96)]
    truths = [Instances(torch.tensor([corner]).float(), torch.tensor([0])) for corner in corners]
    seen = []
    for seed in range(10):
        _, mix = draw(batch, seed, truths)
        for index, origins in enumerate(mix.sources.tolist()):
            for k, origin in enumerate(origins):
                x1, y1, x2, y2 = (side // 4 for side in corners[origin])
                if k == origins.index(origin):
                    inside = float(mix.masks[index, k, y1:y2, x1:x2].mean())
                    seen.append((inside, float(mix.shares[index, k])))
    inside, share = np.array(seen).T
    assert inside.mean() > share.mean() + 0.2


def test_the_published_settings_are_the_defaults():
    expected = {"alpha": 2.0, "beta": 0.32, "gamma": 1.0, "thres": 0.83, "eta": 0.05, "omega": 0.001, "iterations": 4}
    assert CoMixupConfig(blocks=4, **expected) == CoMixupConfig()
    assert CoMixup(MixingConfig()).partners == 2
