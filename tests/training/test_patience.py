"""A run ends early once its scores stand still, and goes on exactly as before if it is resumed."""

import logging
from pathlib import Path

import numpy as np
import pytest
from runs import TINY, last_checkpoint, trainer
from test_metrics import rows_of

from lossmix_det.config import as_dict, load_config
from lossmix_det.data.records import ImageRecord, ImageSet, Problems
from lossmix_det.errors import UserError
from lossmix_det.training.patience import Patience, keep_best

EVERY_2 = ("train.eval_every=2", "train.save_every=100", "train.steps=12", "train.patience=2")


class Stand:
    """What `Patience` reads of a run."""

    def __init__(self, step, best=None, adapting=False):
        self.step, self.adapting = step, adapting
        self.best = None if best is None else {"metric": "AP50", "value": 50.0, "step": best}


@pytest.mark.parametrize(
    ("step", "best", "over"),
    [
        (4, 2, False),  # one evaluation since the best
        (5, 2, False),  # and no other yet
        (6, 2, True),  # two
        (6, 4, False),
        (2, None, False),  # no score so far
        (4, None, True),
    ],
)
def test_evaluations_since_the_best_are_counted(step, best, over):
    patience = Patience(load_config(None, [*TINY, *EVERY_2]))
    assert patience.is_over(Stand(step, best)) is over


@pytest.mark.parametrize(
    ("step", "adapting", "over"), [(9, False, False), (10, True, False), (12, True, False), (14, True, True)]
)
def test_in_adaptation_only_evaluations_after_burn_in_count(step, adapting, over):
    words = ["data.target=[shapes_clipart_train]", "ema.decay=0.9", "adaptation.burn_in_steps=10", "train.steps=20"]
    patience = Patience(load_config(None, [*TINY, *EVERY_2, *words]))
    assert patience.is_over(Stand(step, 2, adapting)) is over


def test_a_set_in_which_no_object_counts_cannot_be_waited_for():
    patience = Patience(load_config(None, [*TINY, *EVERY_2]))
    counts, empty = (
        ImageSet(name, ["cat"], [one_box(crowd)], True, [1], "", Problems())
        for name, crowd in (("good", False), ("herd", True))
    )
    patience.check([counts])
    with pytest.raises(
        UserError, match="train.patience=2 has no score to watch, because herd has no object that counts"
    ):
        patience.check([counts, empty])


def test_patience_0_never_stops():
    patience = Patience(load_config(None, [*TINY, *EVERY_2, "train.patience=0"]))
    assert not patience.is_over(Stand(1000, 2))


def one_box(crowd: bool) -> ImageRecord:
    boxes, flags = np.array([[1.0, 2, 30, 40]], np.float32), np.array([False])
    return ImageRecord(
        Path("a.png"), 1, (48, 64), boxes, np.zeros(1, np.int64), flags, np.array([crowd]), np.full(1, 1102.0)
    )


@pytest.fixture
def scores(monkeypatch):
    """Gives the evaluations to come these scores; the network's own are those of a few steps, which say nothing."""

    def give(*values):
        left = iter(values)
        monkeypatch.setattr("lossmix_det.training.trainer.metric_of", lambda metric, results: next(left))

    return give


@pytest.mark.slow
def test_a_run_ends_early_saves_scores_and_says_why(tmp_path, caplog, scores):
    scores(10.0, 20.0, 20.0, 19.0)
    it = trainer(tmp_path, *EVERY_2)
    with caplog.at_level(logging.INFO):
        assert it.train()
    assert it.state.step == 8
    assert "ended early at step 8 of 12: no better AP50 in 2 evaluations" in caplog.text
    assert "the best was 20.0 at step 4" in caplog.text
    assert last_checkpoint(tmp_path)["step"] == 8
    assert (tmp_path / "results.json").is_file()


@pytest.mark.slow
def test_resuming_ends_at_once_or_goes_on_with_more_patience(tmp_path, scores):
    scores(20.0, 10.0, 10.0)
    assert trainer(tmp_path, *EVERY_2).train()
    scores(10.0)
    again = trainer(tmp_path, *EVERY_2, resume=True)
    assert again.train()
    assert again.state.step == 6
    scores(10.0)
    more = trainer(tmp_path, *EVERY_2, "train.patience=3", resume=True)
    assert more.train()
    assert more.state.step == 8
    assert [row["step"] for row in rows_of(tmp_path / "metrics.csv")] == [str(step) for step in range(1, 9)]


def test_patience_needs_evaluations_and_labels(tmp_path, voc_folder):
    with pytest.raises(UserError, match=r"train.patience=2 needs evaluations on the way; set train.eval_every"):
        load_config(None, [*TINY, "train.patience=2"])
    words = ["datasets={art: {format: folder, root: %s}}" % (voc_folder / "JPEGImages"), "data.test=[art]"]  # noqa: UP031
    with pytest.raises(UserError, match=r"train.patience=2 has no score to watch, because no test set has labels"):
        trainer(tmp_path, *EVERY_2, *words, "data.on_error=skip")


class Scored:
    """What `keep_best` reads and changes of a run."""

    def __init__(self, *words, best=None, step=500):
        self.config, self.step = load_config(None, [*TINY, *words]), step
        self.best = {"metric": "AP50", "value": 60.0, "step": 300} if best is None else best


@pytest.mark.parametrize(
    ("now", "kept"),
    [
        ([], True),
        (["train.best_metric=AP"], False),
        (["data.test=[shapes_photo_test,shapes_clipart_train]"], False),  # AP50 is that of the last set
        (["data.test=[shapes_photo_test,shapes_clipart_test]"], True),
    ],
)
def test_a_best_score_of_another_metric_is_not_kept(now, kept):
    before, state = as_dict(load_config(None, TINY)), Scored(*now)
    best = dict(state.best)
    keep_best(state, before)
    assert state.best == (best if kept else None)


def test_evaluations_are_counted_anew_where_they_are_more_frequent():
    every = {count: ("train.patience=5", f"train.eval_every={count}") for count in (20, 100)}
    state = Scored(*every[20])
    state.adapting = False
    keep_best(state, as_dict(load_config(None, [*TINY, *every[100]])))
    patience = Patience(state.config)
    over = {}
    for state.step in (500, 580, 600):
        over[state.step] = patience.is_over(state)
    assert over == {500: False, 580: False, 600: True}
    keep_best(state, as_dict(state.config))  # resumed once more
    assert state.best["counted_from"] == 500
