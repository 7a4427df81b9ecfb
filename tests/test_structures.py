from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from lossmix_det.structures import ImageBatch, Instances, Supervision


def instances(count: int) -> Instances:
    return Instances(torch.rand(count, 4), torch.arange(count))


@pytest.mark.parametrize(
    ("boxes", "classes", "message"),
    [
        (torch.rand(2, 5), torch.zeros(2, dtype=torch.int64), r"boxes must be float of shape \(N, 4\)"),
        (torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), "boxes must be float"),
        (torch.rand(2, 4), torch.zeros(3, dtype=torch.int64), r"classes must have shape \(2,\)"),
        (torch.rand(2, 4), torch.zeros(2), "classes must be int64"),
    ],
)
def test_instances_refuse_shapes_that_disagree(boxes, classes, message):
    with pytest.raises(ValueError, match=message):
        Instances(boxes, classes)


def test_instances_are_selected_by_mask_with_all_their_fields():
    whole = Instances(torch.rand(3, 4), torch.arange(3), torch.rand(3), torch.rand(3))
    kept = whole[torch.tensor([True, False, True])]
    assert len(kept) == 2
    assert_close(kept.classes, torch.tensor([0, 2]))
    assert_close(kept.weights, whole.weights[[0, 2]])


def test_union_keeps_the_order_and_gives_each_box_the_weight_of_its_image():
    joined = Instances.union(instances(2).weighted(0.25, 0.5), instances(1).weighted(0.75, 0.5))
    assert_close(joined.weights, torch.tensor([0.25, 0.25, 0.75]))
    assert_close(joined.classes, torch.tensor([0, 1, 0]))
    assert Instances.union(instances(2), instances(1)).weights is None


def test_valid_pixels_are_those_inside_each_image():
    batch = ImageBatch(torch.zeros(2, 3, 4, 6), ((2, 6), (4, 3)))
    assert_close(batch.valid().sum(dim=(1, 2, 3)), torch.tensor([12, 12]))
    assert batch.valid()[0, 0, 1, 5]
    assert not batch.valid()[1, 0, 0, 3]


@pytest.mark.parametrize(
    ("shape", "sizes", "keys", "message"),
    [
        ((2, 1, 4, 4), ((4, 4), (4, 4)), None, "pixels must have shape"),
        ((2, 3, 4, 4), ((4, 4),), None, "sizes must name 2 images"),
        ((1, 3, 4, 4), ((5, 4),), None, "does not fit"),
        ((1, 3, 4, 4), ((0, 4),), None, "does not fit"),
        ((1, 3, 4, 4), ((4, 4),), (1, 2), "keys must name 1 images"),
    ],
)
def test_image_batch_refuses_what_disagrees(shape, sizes, keys, message):
    with pytest.raises(ValueError, match=message):
        ImageBatch(torch.zeros(shape), sizes, keys)


def test_batches_are_joined_on_the_larger_canvas():
    small = ImageBatch(torch.ones(1, 3, 2, 2), ((2, 2),), (5,))
    large = ImageBatch(torch.ones(2, 3, 4, 3), ((4, 3), (1, 1)), (6, 7))
    joined = ImageBatch.cat([small, large])
    assert joined.pixels.shape == (3, 3, 4, 3)
    assert joined.sizes == ((2, 2), (4, 3), (1, 1))
    assert joined.keys == (5, 6, 7)
    assert joined.pixels[0].sum() == 12


def test_some_images_are_taken_with_their_keys_and_canvases():
    batch = ImageBatch(
        torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2), ((2, 2), (1, 2), (2, 1), (1, 1)), (1, 2, 3, 4)
    )
    part = replace(batch, canvases=((2, 2), (32, 64), (2, 2), (64, 32))).take([3, 1])
    assert part.canvases == ((64, 32), (32, 64))
    assert (part.keys, part.sizes) == ((4, 2), ((1, 1), (1, 2)))
    assert part.pixels[:, 0, 0, 0].tolist() == [3, 1]


def test_images_are_cropped_to_a_smaller_canvas():
    batch = ImageBatch(torch.arange(12.0).view(1, 1, 3, 4).expand(1, 3, 3, 4), ((2, 1),), (7,), ((2, 2),))
    cropped = batch.cropped(2, 2)
    assert cropped.pixels[0, 0].tolist() == [[0, 1], [4, 5]]
    assert (cropped.sizes, cropped.keys, cropped.canvases) == (batch.sizes, batch.keys, None)


@pytest.mark.parametrize("name", ["keys", "canvases"])
def test_what_is_known_of_images_must_name_each(name):
    with pytest.raises(ValueError, match=f"{name} must name 2 images, got 1"):
        ImageBatch(torch.zeros(2, 3, 4, 4), ((4, 4),) * 2, **{name: ((32, 32),)})


def test_bytes_become_floats_between_zero_and_one():
    batch = ImageBatch(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8), ((2, 2),)).to_float()
    assert_close(batch.pixels, torch.ones(1, 3, 2, 2))
    assert batch.to_float() is batch


@pytest.mark.parametrize(
    ("weights", "background", "message"),
    [
        (torch.ones(3), 1.0, r"class_weights must have shape \(2,\)"),
        (torch.tensor([1.0, -0.1]), 1.0, "must be finite and not negative"),
        (torch.tensor([1.0, float("nan")]), 1.0, "must be finite and not negative"),
        (torch.tensor([1.0, float("inf")]), 1.0, "must be finite and not negative"),
        (torch.ones(2), -1.0, "background_weight must be finite and not negative"),
        (torch.ones(2), float("nan"), "background_weight must be finite and not negative"),
    ],
)
def test_supervision_refuses_wrong_weights(weights, background, message):
    with pytest.raises(ValueError, match=message):
        Supervision((instances(1), instances(0)), weights, weights, background)


@pytest.mark.parametrize("differ", [{"background_weight": 0.5}, {"mean_over": 3}])
def test_supervisions_that_are_joined_must_be_alike(differ):
    one = Supervision.full([instances(1)])
    assert Supervision.cat([replace(one, **differ)] * 2).take([0]) is not None
    with pytest.raises(ValueError, match=f"differ in {next(iter(differ))}"):
        Supervision.cat([one, replace(one, **differ)])


def test_only_images_with_a_weight_are_active():
    supervision = Supervision(
        (instances(1),) * 4, torch.tensor([0.0, 0.5, 0.0, 1.0]), torch.tensor([0.0, 0.5, 0.2, 0.0])
    )
    assert supervision.active == [1, 2, 3]
    assert [supervision.take(part).active for part in ([0, 1], [2, 3])] == [[1], [0, 1]]


def test_a_part_of_a_supervision_is_a_mean_over_its_share():
    supervision = Supervision(tuple(instances(1) for _ in range(6)), torch.ones(6), torch.ones(6), mean_over=4)
    assert supervision.take([0, 2, 4]).mean_over == 2
    halved = supervision.scaled(torch.tensor([0.5] * 6))
    assert halved.mean_over == 4
    assert halved.class_weights.tolist() == [0.5] * 6
    assert supervision.scaled(1.0, mean_over=2).mean_over == 2


def test_boxes_are_weighted_on_top_of_the_weights_that_they_have():
    pseudo = Instances(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), box_weights=torch.tensor([0.0, 1.0]))
    own = pseudo.weighted(0.5, 0.25)
    assert own.weights.tolist() == [0.5, 0.5]
    assert own.box_weights.tolist() == [0.0, 0.25]
    assert Instances.union(own, pseudo).weights is None
    joined = Instances.union(own, pseudo.weighted(1, 1))
    assert joined.weights.tolist() == [0.5, 0.5, 1, 1]
    assert joined.box_weights.tolist() == [0.0, 0.25, 0, 1]
