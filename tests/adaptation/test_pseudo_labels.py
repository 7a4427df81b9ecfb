from dataclasses import replace

import numpy as np
import pytest
import torch
from adapting import SURE, adapting, batch, found

from lossmix_det.adaptation.pseudo_labels import build_thresholds, excused, match_truths, select
from lossmix_det.config import PseudoLabelConfig
from lossmix_det.errors import UserError
from lossmix_det.structures import Instances, Uncounted

CLASSES = ["cat", "dog", "fox"]
SIZE = (40, 60)


def scores_of(label: int, scores: np.ndarray) -> Instances:
    values = torch.as_tensor(scores, dtype=torch.float32)
    boxes = torch.tensor([[0.0, 0, 9, 9]]).repeat(len(values), 1)
    return Instances(boxes, torch.full((len(values),), label), values)


def least(config: PseudoLabelConfig) -> list[float]:
    return build_thresholds(config, CLASSES).least().tolist()


def test_one_threshold_for_all_or_one_for_each():
    assert least(PseudoLabelConfig(score=0.7)) == pytest.approx([0.7] * 3)
    config = PseudoLabelConfig(threshold="per_class", score=0.7, class_scores={"dog": 0.4})
    assert least(config) == pytest.approx([0.7, 0.4, 0.7])


def test_an_unknown_class_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="names no class 'dgo'.*did you mean 'dog'"):
        build_thresholds(PseudoLabelConfig(class_scores={"dgo": 0.5}), CLASSES)


def test_the_adaptive_threshold_is_the_quantile_of_each_classs_own_scores():
    """Against numpy, to the width of a bin; bounded by floor and score; `score` before anything was seen."""
    config = PseudoLabelConfig(threshold="adaptive", score=0.9, floor=0.3, portion=0.2, memory=1.0)
    thresholds = build_thresholds(config, CLASSES)
    assert thresholds.least().tolist() == pytest.approx([0.9] * 3)
    rng = np.random.default_rng(0)
    cat, dog = rng.beta(2, 3, 4000), rng.beta(1, 9, 4000)
    for part in range(4):
        share = slice(1000 * part, 1000 * part + 1000)
        thresholds.remember(thresholds.count([scores_of(0, cat[share]), scores_of(1, dog[share])]))
    expected = [np.quantile(cat, 0.8), 0.3, 0.9]
    assert np.quantile(dog, 0.8) < 0.3
    assert thresholds.least().tolist() == pytest.approx(expected, abs=0.006)


def test_the_rising_threshold_goes_from_the_floor_to_the_score():
    """δ = 2 / (1 + e^(-5r)) - 1 is 0, 0.848 and 0.987 at the beginning, half-way and at the end."""
    thresholds = build_thresholds(PseudoLabelConfig(threshold="rising", score=0.9, floor=0.4), CLASSES)
    for progress, delta in ((0.0, 0.0), (0.5, 0.84828), (1.0, 0.98661)):
        thresholds.advance(progress)
        assert thresholds.least().tolist() == pytest.approx([0.4 + 0.5 * delta] * 3, abs=1e-5)


def test_a_rising_threshold_whose_score_is_below_the_floor_stays_there():
    thresholds = build_thresholds(PseudoLabelConfig(threshold="rising", score=0.3, floor=0.5), CLASSES)
    thresholds.advance(0.7)
    assert thresholds.least().tolist() == pytest.approx([0.3] * 3)


def test_the_adaptive_threshold_never_asks_more_than_the_score():
    thresholds = build_thresholds(PseudoLabelConfig(threshold="adaptive", score=0.6), CLASSES)
    thresholds.remember(thresholds.count([scores_of(2, np.full(50, 0.99))]))
    assert thresholds.least()[2] == pytest.approx(0.6)


def test_old_scores_are_forgotten():
    thresholds = build_thresholds(PseudoLabelConfig(threshold="adaptive", score=1.0, floor=0.0, memory=0.5), CLASSES)
    thresholds.remember(thresholds.count([scores_of(0, np.full(100, 0.95))]))
    for _ in range(30):
        thresholds.remember(thresholds.count([scores_of(0, np.full(100, 0.25))]))
    assert thresholds.least()[0] == pytest.approx(0.25, abs=0.006)


def test_of_a_box_beyond_the_edge_nothing_is_left_to_teach():
    boxes = torch.tensor([[40.0, 5, 60, 20], [50, 5, 70, 20], [5, -20, 20, -3]])
    found = Instances(boxes, torch.zeros(3, dtype=torch.int64), torch.full((3,), 0.9))
    kept = select(found, torch.tensor([0.5]), (50, 50), PseudoLabelConfig(score=0.5, min_size=0))
    assert kept.boxes.tolist() == [[40.0, 5, 50, 20]]


def test_what_is_kept_is_confident_inside_large_enough_and_best_first():
    config = PseudoLabelConfig(score=0.5, min_size=4, max_per_image=2)
    detections = found(
        (1, 1, 20, 20, 0, 0.6),
        (5, 5, 30, 30, 1, 0.49),  # below its threshold
        (50, 30, 90, 70, 2, 0.9),  # reaches out of the image
        (10, 10, 12, 30, 0, 0.99),  # narrower than 4 pixels
        (58, 2, 80, 20, 0, 0.95),  # 2 pixels wide once clipped
        (2, 2, 22, 22, 1, 0.7),
    )
    kept = select(detections, torch.full((3,), 0.5), SIZE, config)
    assert kept.scores.tolist() == pytest.approx([0.9, 0.7])
    assert kept.boxes.tolist() == [[50, 30, 60, 40], [2, 2, 22, 22]]
    assert kept.classes.tolist() == [2, 1]
    assert kept.box_weights.tolist() == [0, 0]


def test_only_the_confident_teach_box_regression_if_any_do():
    config = PseudoLabelConfig(score=0.5, box_score=0.8)
    detections = found((1, 1, 20, 20, 0, 0.6), (5, 5, 30, 30, 1, 0.85))
    assert select(detections, torch.full((3,), 0.5), SIZE, config).box_weights.tolist() == [1, 0]


def test_nothing_detected_is_nothing_kept():
    assert len(select(found(), torch.full((3,), 0.5), SIZE, PseudoLabelConfig())) == 0


def test_a_truth_is_found_once_and_by_its_class_alone():
    truth = found((0, 0, 10, 10, 0, 1), (20, 20, 30, 30, 1, 1))
    labels = found(
        (0, 0, 10, 9, 0, 0.9),  # finds the first
        (0, 0, 10, 10, 0, 0.8),  # which is taken
        (20, 20, 30, 30, 0, 0.7),  # of another class
        (20, 20, 30, 26, 1, 0.6),  # overlap 0.6: finds the second
    )
    assert match_truths(labels, truth).tolist() == [True, False, False, True]
    assert match_truths(found((20, 20, 30, 24, 1, 0.9)), truth).tolist() == [False]
    assert match_truths(found(), truth).tolist() == []
    assert match_truths(labels, found()).tolist() == [False] * 4


def test_what_shows_a_difficult_object_or_a_part_of_a_crowd_is_no_mistake():
    labels = found(
        (0, 0, 10, 10, 0, 0.9),  # the difficult object
        (0, 0, 10, 4, 0, 0.9),  # a part of it alone
        (40, 0, 50, 10, 0, 0.9),  # one of the crowd
        (46, 0, 66, 10, 0, 0.9),  # beyond it for the greater part
        (40, 0, 50, 10, 1, 0.9),  # of another class
    )
    uncounted = Uncounted(found((0, 0, 10, 10, 0, 1), (20, 0, 52, 32, 0, 1)), torch.tensor([False, True]))
    assert excused(labels, uncounted).tolist() == [True, False, True, False, False]
    assert excused(found(), uncounted).tolist() == []
    assert excused(labels, Uncounted(found(), torch.zeros(0, dtype=torch.bool))).tolist() == [False] * 5


def test_precision_is_of_the_labels_that_count(tmp_path):
    """All labels of the first image show what does not count; one of the second shows a truth, the others nothing."""
    it, target = adapting(tmp_path, *SURE), batch().target
    labeller, teacher = it.state.labeller, it.state.teacher.module
    first, second = labeller.label(teacher, target, 0)[0].truths
    labeller.row()
    assert min(len(first), len(second)) >= 2
    nothing = first[:0]
    truths = (nothing, second[:1])

    def row(uncounted) -> dict[str, float]:
        labeller.label(teacher, replace(target, truths=truths, uncounted=uncounted), 0)
        return labeller.row()

    crowd = torch.arange(len(first)) > 0
    some = Uncounted(first, crowd), Uncounted(nothing, crowd[:0])
    plain, excusing = row(None), row(some)
    assert plain["pseudo/precision"] == pytest.approx(1 / (len(first) + len(second)))
    assert excusing["pseudo/precision"] == pytest.approx(1 / len(second))
    assert plain["pseudo/per_image"] == excusing["pseudo/per_image"]
    assert plain["pseudo/recall"] == excusing["pseudo/recall"] == 1


def test_the_rising_threshold_of_a_resumed_run_is_that_of_its_last_step(tmp_path):
    words = ["pseudo_labels.threshold=rising", "pseudo_labels.score=0.9", "pseudo_labels.floor=0.5"]
    it, other = (adapting(tmp_path / name, *words).state.labeller for name in ("a", "b"))
    it.label(adapting(tmp_path / "c").state.teacher.module, batch().target, 3)  # the last of four steps
    assert it.thresholds.least().min() > 0.8
    other.load_state_dict(it.state_dict(), 4)
    assert torch.equal(other.thresholds.least(), it.thresholds.least())
