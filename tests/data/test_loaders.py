from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import voc_object, voc_xml

from lossmix_det.config import load_config
from lossmix_det.data.catalog import load
from lossmix_det.data.loaders import StreamSampler, evaluation_loader, target_loader, to_batch, training_loader
from lossmix_det.data.workers import WorkerLost
from lossmix_det.data.workers import batches as batches_of
from lossmix_det.errors import UserError

SQUARE = [(10, 10)] * 7
MIXED = [(10, 20)] * 5 + [(20, 10)] * 6


def batches(sampler: StreamSampler, count: int) -> list[list[tuple[int, int]]]:
    return [[(draw.index, draw.key) for draw in batch] for batch in islice(sampler, count)]


def test_every_image_comes_once_before_any_comes_twice():
    drawn = [index for batch in batches(StreamSampler(SQUARE, 7, seed=0), 3) for index, _ in batch]
    for start in (0, 7, 14):
        assert sorted(drawn[start : start + 7]) == list(range(7))
    assert drawn[:7] != drawn[7:14]


@pytest.mark.parametrize("start", [1, 4, 9])
def test_starting_later_gives_the_batches_that_would_have_come(start):
    whole = batches(StreamSampler(MIXED, 4, seed=3), 12)
    assert batches(StreamSampler(MIXED, 4, seed=3, start=start), 12 - start) == whole[start:]


def test_processes_share_the_joint_batch():
    joint = batches(StreamSampler(MIXED, 4, seed=3), 6)
    shares = [batches(StreamSampler(MIXED, 4, seed=3, rank=rank, world=2), 6) for rank in (0, 1)]
    assert [first + second for first, second in zip(*shares, strict=True)] == joint
    with pytest.raises(ValueError, match="4 cannot be shared evenly by 3"):
        StreamSampler(MIXED, 4, seed=3, world=3)


def test_wide_and_tall_images_are_kept_apart():
    for batch in batches(StreamSampler(MIXED, 4, seed=1), 20):
        assert len({index < 5 for index, _ in batch}) == 1
    together = batches(StreamSampler(MIXED, 4, seed=1, group_by_shape=False), 20)
    assert any(len({index < 5 for index, _ in batch}) == 2 for batch in together)


def test_grouping_still_shows_every_image_equally_often():
    counts = Counter(index for batch in batches(StreamSampler(MIXED, 4, seed=1), 275) for index, _ in batch)
    assert max(counts.values()) - min(counts.values()) <= 1


MOSTLY_WIDE = [(10, 20)] * 40 + [(20, 10)] * 10
MOSTLY_TALL = [(20, 10)] * 40 + [(10, 20)] * 10


def met(source: list, target: list, **settings) -> tuple[StreamSampler, StreamSampler]:
    first, second = StreamSampler(source, 2, seed=4), StreamSampler(target, 2, seed=4, stream=1, **settings)
    second.meets = first
    return first, second


def share_alike(source: list, target: list, pairs: int = 2000) -> float:
    first, second = met(source, target)
    shapes = zip(islice(first, pairs), islice(second, pairs), strict=True)
    alike = [(source[a[0].index][1] == 20) == (target[b[0].index][1] == 20) for a, b in shapes]
    return sum(alike) / pairs


def test_streams_meet_in_shape_as_often_as_equal_shares_allow():
    """80 % of one are wide and 20 % of the other: 20 + 20 % can meet their like, of which chance alone finds 32."""
    assert 0.38 < share_alike(MOSTLY_WIDE, MOSTLY_TALL) <= 0.41
    assert share_alike(MOSTLY_WIDE, MOSTLY_WIDE) > 0.95  # by chance 68 %


@pytest.mark.parametrize("count", [25, 250, 2500])
def test_a_stream_that_meets_another_still_shows_every_image_equally_often(count):
    """At any time no image is ahead of another by more than the window and the pass that is under way."""
    _, second = met(MOSTLY_WIDE, MOSTLY_TALL)
    counts = Counter(index for batch in batches(second, count) for index, _ in batch)
    times = [counts[index] for index in range(len(MOSTLY_TALL))]
    assert max(times) - min(times) <= 2
    keys = [key for batch in batches(second, count) for _, key in batch]
    assert len(set(keys)) == len(keys)


def test_a_stream_that_meets_another_goes_on_where_it_was_and_is_shared_by_processes():
    whole = batches(met(MOSTLY_WIDE, MOSTLY_TALL)[1], 60)
    assert batches(met(MOSTLY_WIDE, MOSTLY_TALL, start=37)[1], 23) == whole[37:]
    shares = [batches(met(MOSTLY_WIDE, MOSTLY_TALL, rank=rank, world=2)[1], 60) for rank in (0, 1)]
    assert [first + second for first, second in zip(*shares, strict=True)] == whole


def test_streams_of_one_shape_keep_their_order():
    alone = batches(StreamSampler(SQUARE, 2, seed=4, stream=1), 30)
    assert batches(met(SQUARE, SQUARE)[1], 30) == alone


def test_keys_differ_by_draw_seed_and_stream():
    keys = [key for batch in batches(StreamSampler(SQUARE, 7, seed=0), 20) for _, key in batch]
    assert len(set(keys)) == len(keys)
    for other in (StreamSampler(SQUARE, 7, seed=1), StreamSampler(SQUARE, 7, seed=0, stream=1)):
        assert not set(keys) & {key for batch in batches(other, 20) for _, key in batch}


def test_images_are_laid_on_a_canvas_of_multiples_of_32():
    batch = to_batch([torch.ones(3, 33, 10), torch.ones(3, 5, 64)], (1, 2))
    assert batch.pixels.shape == (2, 3, 64, 64)
    assert batch.sizes == ((33, 10), (5, 64))
    assert batch.pixels.sum() == 3 * (330 + 320)


def voc(root, *overrides):
    base = [f"datasets.mine.root={root}", "datasets.mine.split=train", "data.augment.min_sizes=[40]"]
    return load_config(None, [*base, "data.batch_size=2", "data.workers=0", *overrides])


def first_batch(config, **settings):
    return next(iter(training_loader([load("mine", config)], config.data, seed=0, **settings)))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(voc_folder, workers):
    alone = voc(voc_folder, "data.views=[weak,strong]", "data.drop_empty=false")
    many = voc(voc_folder, "data.views=[weak,strong]", "data.drop_empty=false", f"data.workers={workers}")
    streams = [training_loader([load("mine", config)], config.data, seed=0) for config in (alone, many)]
    for (first, _), (second, _) in islice(zip(*streams, strict=False), 4):
        assert torch.equal(first.strong.pixels, second.strong.pixels)
        assert torch.equal(first.weak.pixels, second.weak.pixels)
        assert torch.equal(first.truths[0].boxes, second.truths[0].boxes)
        assert first.strong.keys == second.strong.keys


def test_images_without_boxes_are_left_out_if_wanted(voc_folder):
    views, _ = first_batch(voc(voc_folder))
    assert [len(truth) for truth in views.truths] == [2, 2]
    views, _ = first_batch(voc(voc_folder, "data.drop_empty=false"))
    assert sorted(len(truth) for truth in views.truths) == [0, 2]


def test_difficult_objects_are_trained_on_if_wanted(voc_folder):
    views, _ = first_batch(voc(voc_folder, "data.keep_difficult=false"))
    assert [truth.classes.tolist() for truth in views.truths] == [[0], [0]]


def test_the_loader_leaves_the_global_generators_alone(voc_folder):
    config = voc(voc_folder, "data.workers=1")
    torch.manual_seed(3)
    np.random.seed(3)
    first_batch(config)
    after = torch.rand(1), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    assert (torch.rand(1), np.random.rand()) == after


def test_a_truncated_image_is_replaced_by_the_next_and_reported(voc_folder):
    config = voc(voc_folder, "data.drop_empty=false", "data.views=[weak]")
    image_set = load("mine", config)
    path = voc_folder / "JPEGImages" / "one.png"
    path.write_bytes(path.read_bytes()[:400])
    views, problems = next(iter(training_loader([image_set], config.data, seed=0)))
    assert torch.equal(
        views.weak.pixels[0, :, :40, 20:40].sort().values, views.weak.pixels[1, :, :40, 20:40].sort().values
    )
    assert len(problems) == 1
    assert problems[0].path == path
    assert "one.png: image cannot be read" in str(problems[0])


def test_evaluation_goes_through_the_images_once_in_order(voc_folder):
    config = voc(voc_folder, "data.test_batch_size=1", "data.augment.test_size=32")
    image_set = load("mine", config)
    found = list(evaluation_loader(image_set, config.data))
    assert [indices for _, indices, _ in found] == [[0], [1]]
    assert found[0][0].sizes == ((32, 48),)
    shares = [
        indices for rank in (0, 1) for _, indices, _ in evaluation_loader(image_set, config.data, rank=rank, world=2)
    ]
    assert sorted(sum(shares, [])) == [0, 1]


def test_evaluation_reports_an_unreadable_image_by_its_index(voc_folder):
    config = voc(voc_folder)
    image_set = load("mine", config)
    (voc_folder / "JPEGImages" / "two.png").write_bytes(b"")
    _, indices, problems = next(iter(evaluation_loader(image_set, config.data)))
    assert indices == [0, 1]
    assert list(problems) == [1]
    assert problems[1].path == image_set.records[1].path
    assert "two.png: image cannot be read" in str(problems[1])


def test_data_without_anything_to_learn_is_refused(voc_folder):
    """Only difficult boxes, and they are not wanted."""
    (voc_folder / "Annotations" / "one.xml").write_text(voc_xml(voc_object("dog", 11, 6, 60, 40, difficult=1)))
    with pytest.raises(UserError, match="no image of mine has a box to learn"):
        first_batch(voc(voc_folder, "data.keep_difficult=false"))


class Pinned:
    """Stands in for torch's pinning, which needs a GPU: it only remembers what was to be pinned."""

    def __init__(self, monkeypatch) -> None:
        self.tensors = []
        monkeypatch.setattr(
            torch.Tensor, "pin_memory", lambda tensor, device=None: self.tensors.append(tensor) or tensor
        )


def test_batches_for_a_gpu_are_pinned(voc_folder, monkeypatch):
    """torch pins what it knows, and else what says how; anything else it hands back as it is."""
    from torch.utils.data._utils.pin_memory import pin_memory

    views, problems = first_batch(voc(voc_folder, "data.views=[weak,strong]"))
    pinned = Pinned(monkeypatch)
    again, _ = pin_memory((views, problems))
    pixels = {id(tensor) for tensor in pinned.tensors}
    assert {id(views.weak.pixels), id(views.strong.pixels)} <= pixels
    assert {id(truth.boxes) for truth in views.truths} <= pixels
    assert (again.weak.sizes, again.weak.keys) == (views.weak.sizes, views.weak.keys)
    config = voc(voc_folder, "data.test_batch_size=2")
    images, *_ = next(iter(evaluation_loader(load("mine", config), config.data)))
    images, *_ = pin_memory((images, [0, 1], {}))
    assert id(images.pixels) in {id(tensor) for tensor in pinned.tensors}


def fail(*_):
    raise ValueError("height and width should be > 0")


def test_an_image_that_augmentation_fails_on_is_reported_like_one_that_cannot_be_read(voc_folder, monkeypatch):
    config = voc(voc_folder, "data.views=[weak,strong]")
    sets = [load("mine", config)]
    monkeypatch.setattr("lossmix_det.data.loaders.Augment.__call__", fail)
    views, problems = next(iter(training_loader(sets, config.data, seed=0)))
    assert (views.weak.sizes, views.strong.sizes) == (((32, 32),) * 2,) * 2
    assert not views.weak.pixels.any()
    assert {str(problem).partition(": ")[2] for problem in problems} == {
        "image cannot be read (ValueError: height and width should be > 0)"
    }


def test_an_image_that_resizing_fails_on_is_reported_like_one_that_cannot_be_read(voc_folder, monkeypatch):
    config = voc(voc_folder)
    image_set = load("mine", config)
    monkeypatch.setattr("lossmix_det.data.loaders.resize", fail)
    images, _, problems = next(iter(evaluation_loader(image_set, config.data)))
    assert images.sizes == ((32, 32),) * 2
    assert [problem.reason for problem in problems.values()] == ["ValueError: height and width should be > 0"] * 2


class Lost:
    """A loader with one process, which is lost after two batches; or one that loads by itself and fails."""

    def __init__(self, workers: int, error: Exception) -> None:
        self.num_workers, self.error = workers, error

    def __iter__(self):
        yield from (1, 2)
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("worker (pid 3) is killed"), EOFError(), ConnectionRefusedError("no")])
def test_a_lost_worker_is_one_sentence(error):
    stream = batches_of(Lost(1, error))
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(WorkerLost, match="a process that loads images was ended from outside .*lower data.workers"):
        next(stream)
    with pytest.raises(type(error)):  # no worker is to blame
        list(batches_of(Lost(0, error)))


def test_only_the_targets_strong_view_is_masked_and_spared_from_erasing(voc_folder):
    still = ["data.augment.flip=0", "data.augment.jitter=0", "data.augment.grayscale=0", "data.augment.blur=0"]
    config = voc(voc_folder, "data.views=[weak,strong]", "data.augment.masking.ratio=1", *still)
    source, _ = first_batch(config)
    target, _ = next(iter(target_loader([load("mine", config)], config.data, seed=0)))
    assert target.weak.pixels.any()
    assert not target.strong.pixels.any()
    changed = (source.strong.pixels != source.weak.pixels).float().mean()  # three erasings
    assert 0 < changed < 0.9
    assert source.strong.pixels.any()
    config.data.augment.masking.ratio, config.data.augment.target_erasing = 0.0, []
    target, _ = next(iter(target_loader([load("mine", config)], config.data, seed=0)))
    assert torch.equal(target.strong.pixels, target.weak.pixels)
    config.data.augment.erasing, config.data.augment.target_erasing = [], None
    source, _ = first_batch(config)
    assert torch.equal(source.strong.pixels, source.weak.pixels)
