"""Objects are pasted by their outlines, and what is taught is what is seen of them."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from outlined import OUTLINES, box_of, overlap, pixels_of, placed, write_coco, write_picture
from torch.testing import assert_close

from lossmix_det.config import MixingConfig, load_config
from lossmix_det.data.catalog import load_sets
from lossmix_det.data.loaders import training_loader
from lossmix_det.data.outlines import mask_of
from lossmix_det.mixing import Mix, Recipe, blend
from lossmix_det.mixing.blocks import follow, in_place
from lossmix_det.mixing.mixers.classmix import ClassMix, paint
from lossmix_det.mixing.weightings import by_visibility, clipped_to_mask
from lossmix_det.structures import ImageBatch, Instances, StepBatch, Supervision
from lossmix_det.training.phases import SourceOnly

SIZE = (64, 96)


def outlined(*polygons: list[float], classes: list[int] | None = None, size: tuple[int, int] = SIZE) -> Instances:
    """Objects whose masks are those of polygons."""
    boxes = [box_of(polygon) for polygon in polygons]
    masks = [mask_of([polygon], box, size[::-1]) for polygon, box in zip(polygons, boxes, strict=True)]
    labels = torch.tensor(classes or [0] * len(boxes))
    return Instances(torch.tensor(boxes).float(), labels, masks=torch.from_numpy(np.stack(masks)))


def bare(truth: Instances) -> Instances:
    return Instances(truth.boxes, truth.classes)


def images(count: int, size: tuple[int, int] = SIZE) -> ImageBatch:
    values = torch.arange(1.0, count + 1).view(-1, 1, 1, 1)
    return ImageBatch(values.expand(-1, 3, *size).contiguous() / 10, (size,) * count)


def pasted(truths: list[Instances], pool: ImageBatch, seed: int = 0) -> Mix:
    return ClassMix(MixingConfig()).draw_objects(pool, np.array([[1]]), truths, np.random.default_rng(seed))


# ------------------------------------------------------------------------------------------------------ instances


def test_masks_go_where_their_boxes_go():
    truth = outlined(placed("corner", 4, 4, 40, 40), placed("chevron", 30, 20, 60, 40))
    kept = truth[torch.tensor([False, True])]
    assert torch.equal(kept.masks[0], truth.masks[1])
    assert torch.equal(truth.to("cpu").masks, truth.masks)
    assert torch.equal(truth.weighted(0.5, 0.5).masks, truth.masks)
    both = Instances.union(truth, kept)
    assert torch.equal(both.masks, truth.masks[[0, 1, 1]])
    assert Instances.union(truth, bare(kept)).masks is None
    with pytest.raises(ValueError, match=r"masks must be bool of shape \(2, S, S\), got torch.uint8"):
        Instances(truth.boxes, truth.classes, masks=truth.masks.byte())


@pytest.mark.parametrize("offset", [(0, 0), (-14, 0), (9, -20), (20, 31), (0, 500)])
def test_a_mask_that_is_moved_out_of_the_image_in_part_is_that_of_what_is_left(offset):
    polygon = placed("corner", 20, 10, 50, 44)
    moved = outlined(polygon).moved(offset, SIZE)
    seen, expected = torch.zeros(SIZE), np.zeros(SIZE, dtype=bool)
    paint(seen, moved, SIZE)
    inside = np.argwhere(pixels_of(polygon, size=SIZE)) + offset
    inside = inside[((inside >= 0) & (inside < SIZE)).all(1)]
    expected[tuple(inside.T)] = True
    assert len(moved) == bool(len(inside))
    if len(inside):
        assert overlap(seen.bool().numpy(), expected) >= 0.9


def test_a_truth_that_is_torn_into_blocks_has_no_masks():
    truth = outlined(placed("corner", 4, 4, 40, 40))
    torn, _ = follow(truth, torch.ones(8, 12), in_place((8, 12)), SIZE, 0.1)
    assert torn.masks is None


# -------------------------------------------------------------------------------------------------------- pasting


@pytest.mark.parametrize("name", OUTLINES)
@pytest.mark.parametrize("size", [(24, 24), (24, 40), (60, 33), (58, 90)])
@pytest.mark.parametrize("corner", [(1.3, 2.4), (3.77, 1.15), (2.65, 3.93), (5.0, 0.0)])
def test_the_pixels_that_are_pasted_are_those_of_the_polygon(name, size, corner):
    polygon = placed(name, *corner, size[1], size[0])
    truths = [Instances.empty(), outlined(polygon)]
    mix = pasted(truths, images(2))
    mixed = blend(images(2), mix).pixels[0, 0]
    assert overlap((mixed > 0.15).numpy(), pixels_of(polygon, size=SIZE)) >= 0.9
    assert_close(mix.shares[0, 1], (mixed > 0.15).float().mean())
    taught, kept = clipped_to_mask(truths[1], mix.masks[0, 1], SIZE, 0.1)
    assert kept.all()
    assert torch.equal(taught.boxes, truths[1].boxes)  # nothing of it is hidden
    assert by_visibility(mix, 1, [truths[1]], images(1))[0].tolist() == pytest.approx([1.0], abs=0.06)


def test_nothing_is_pasted_beyond_a_smaller_image():
    truth = outlined(placed("corner", 5, 5, 50, 40), placed("disc", 60, 10, 20, 20), placed("disc", 4, 44, 16, 16))
    whole, part = torch.zeros(SIZE), torch.zeros(SIZE)
    paint(whole, truth, SIZE)
    paint(part, truth, (30, 40))
    assert torch.equal(part[:30, :40], whole[:30, :40])
    assert part.sum() == part[:30, :40].sum() > 0


@pytest.mark.parametrize("name", OUTLINES)
def test_the_box_of_an_object_that_is_pasted_whole_stays_wherever_it_lies(name):
    """Also where its tips fall between two pixels."""
    rng = np.random.default_rng(0)
    for x, y, width, height in rng.uniform((0, 0, 24, 24), (40, 20, 50, 40), (40, 4)):
        truth, seen = outlined(placed(name, x, y, width, height)), torch.zeros(SIZE)
        paint(seen, truth, SIZE)
        assert torch.equal(clipped_to_mask(truth, seen, SIZE, 0.1)[0].boxes, truth.boxes)


def test_an_object_without_an_outline_among_others_is_its_box_to_the_pixel():
    truth = outlined(placed("corner", 4, 4, 30, 30), placed("chevron", 50.4, 20.6, 30, 30))
    truth = Instances(truth.boxes, truth.classes, masks=truth.masks.index_fill(0, torch.tensor([1]), True))
    seen, boxes = torch.zeros(SIZE), torch.zeros(SIZE)
    paint(seen, truth, SIZE)
    paint(boxes, bare(truth), SIZE)
    assert torch.equal(seen[:, 45:], boxes[:, 45:])
    assert (seen[:, :45] < boxes[:, :45]).any()


def test_masks_of_whole_boxes_change_nothing_that_is_taught():
    rng = np.random.default_rng(0)
    for _ in range(20):
        low = torch.from_numpy(rng.uniform(0, 40, (6, 2))).float()
        truth = Instances(
            torch.cat([low, low + torch.from_numpy(rng.uniform(2, 23, (6, 2))).float()], 1), torch.arange(6)
        )
        whole = Instances(truth.boxes, truth.classes, masks=torch.ones(6, 28, 28, dtype=torch.bool))
        mask = torch.from_numpy(rng.random((16, 24)) < 0.4).float()
        for one, other in zip(
            clipped_to_mask(truth, mask, SIZE, 0.2), clipped_to_mask(whole, mask, SIZE, 0.2), strict=True
        ):
            assert torch.equal(getattr(one, "boxes", one), getattr(other, "boxes", other))
        mix = Mix(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[0.5, 0.5]]), torch.stack([1 - mask, mask])[None])
        assert_close(by_visibility(mix, 1, [truth], images(1)), by_visibility(mix, 1, [whole], images(1)))


def test_an_object_that_only_its_neighbour_was_pasted_over_is_not_taught():
    """The box of the corner holds most of the disc; by boxes alone it would be taught where a disc is seen."""
    corner, disc = placed("corner", 10, 10, 48, 48), placed("disc", 33, 12, 22, 22)
    truth = outlined(corner, disc, classes=[0, 1])
    seen = torch.zeros(SIZE)
    paint(seen, truth[1:], SIZE)
    taught, _ = clipped_to_mask(truth, seen, SIZE, 0.1)
    assert taught.classes.tolist() == [1]
    by_boxes, _ = clipped_to_mask(bare(truth), seen, SIZE, 0.1)
    assert by_boxes.classes.tolist() == [0, 1]


@pytest.mark.parametrize("name", OUTLINES)
def test_a_box_is_clipped_to_the_pixels_that_are_seen_of_its_object(name):
    """Half planes hide a part of the polygon; the oracle looks at its pixels."""
    polygon = placed(name, 10, 6, 60, 50)
    truth, inside = outlined(polygon), pixels_of(polygon, size=SIZE)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    for shown in (columns < 40, columns >= 45, rows < 30, rows >= 25, rows + columns < 70, rows < columns):
        mask = torch.from_numpy(shown).float()
        left = inside & shown
        clipped, _ = clipped_to_mask(truth, mask, SIZE, 0.1)
        mix = Mix(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[0.5, 0.5]]), torch.stack([1 - mask, mask])[None])
        assert float(by_visibility(mix, 1, [truth], images(1))[0]) == pytest.approx(left.sum() / inside.sum(), abs=0.04)
        ys, xs = np.nonzero(left)
        expected = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert np.abs(clipped.boxes[0].numpy() - expected).max() <= 3.2  # 60 pixels have 28 cells


def test_no_box_is_taught_beyond_the_image():
    """The tip of a disc lies below the image that it is pasted onto, which its coarse outline does not tell."""
    polygon = placed("disc", 50, 20, 300, 400)
    partner = outlined(polygon, size=(450, 450))
    for height in range(390, 420, 6):
        sizes = ((height, 400), (450, 450))
        pool = ImageBatch(torch.rand(2, 3, 480, 480), sizes)
        truths = (Instances.empty(), partner)
        mix = ClassMix(MixingConfig()).draw_objects(pool, np.array([[1]]), truths, np.random.default_rng(0))
        recipe = Recipe(MixingConfig(mixer="classmix"))
        taught = recipe.supervise(Supervision.full(truths), mix, blend(pool, mix))
        (box,) = taught[1].truths[0].boxes.tolist()
        assert box[:3] == pytest.approx([50, 20, 350], abs=2)
        assert height - 16 <= box[3] <= height


def test_the_truth_of_the_image_beneath_loses_what_is_hidden_of_its_object():
    own, over = placed("corner", 10, 10, 40, 40), placed("disc", 28, 10, 22, 20)  # beside the corner, inside its box
    truths = [outlined(own), outlined(over, classes=[1])]
    recipe = Recipe(MixingConfig(mixer="classmix", rule="lossmix", weighting="visibility"))
    mix = pasted(truths, images(2))
    first, second = recipe.supervise(Supervision.full(truths), mix, blend(images(2), mix))
    weights = [float(taught.class_weights[0] * taught.truths[0].weights[0]) for taught in (first, second)]
    assert weights == pytest.approx([1.0, 1.0], abs=0.03)
    assert torch.equal(first.truths[0].boxes, truths[0].boxes)


# ----------------------------------------------------------------------------------------------------- whole steps


@pytest.fixture
def batches(tmp_path):
    """Steps on two pictures, each with a convex and a concave object of one value, flipped and cropped."""
    size, objects = (96, 120), {}
    for number, (ground, value) in enumerate(((10, 100), (30, 200))):
        polygons = [placed("disc", 4 + number, 6, 44, 40), placed("corner", 58, 30, 55, 60 - number)]
        inside = pixels_of(*polygons, size=size)
        write_picture(tmp_path / f"{number}.png", ground, (inside, value))
        objects[f"{number}.png"] = [("thing", [polygon], polygon) for polygon in polygons]
    write_coco(tmp_path, objects, size)
    words = [f"datasets.mine.root={tmp_path}", "data.train=[mine]", "data.test=[]", "data.batch_size=2"]
    words += ["data.augment.min_sizes=[96]", "data.augment.crop=0.6", "data.augment.min_visibility=0.9"]
    words += ["data.views=[weak]", "data.workers=0", "mixing.mixer=classmix", "mixing.probability=1.0"]
    config = load_config(None, words)
    sets, _ = load_sets(config)
    return config, training_loader(sets, config.data, seed=2)


def test_a_step_pastes_the_objects_and_nothing_around_them(batches):
    """Each picture has a ground and objects of a value of its own, so that every pixel tells where it is from."""
    config, loader = batches
    compared = 0
    for number, (views, _) in enumerate(islice(loader, 12)):
        phase, values = SourceOnly(config.mixing), views.weak.to_float().pixels
        brighter = int(values[1].max() > values[0].max())  # the picture with ground 30 and objects of 200
        student = phase.compose(StepBatch(views), np.random.default_rng(number))
        for index, (height, width) in enumerate(student.sizes):
            if len(views.truths[1 - index]) < 2 or views.weak.sizes[0] != views.weak.sizes[1]:
                continue
            mixed = student.images.pixels[index, 0, :height, :width] * 255
            other = values[1 - index, 0, :height, :width] * 255
            own = values[index, 0, :height, :width] * 255
            pasted_there = (mixed == other) & (mixed != own)
            is_object = other > (115 if brighter == 1 - index else 55)
            assert overlap(pasted_there.numpy(), (is_object & (other != own)).numpy()) >= 0.88
            compared += 1
    assert compared > 4
