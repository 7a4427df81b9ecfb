import pytest
from adapting import ADAPT
from runs import assert_same_tensors, last_checkpoint, trainer

from lossmix_det.adaptation.guards import Guard
from lossmix_det.config import AdaptationConfig
from lossmix_det.errors import UserError
from lossmix_det.files import read_checkpoint

pytestmark = pytest.mark.slow


def watch(guard: Guard, levels: list[float], labels: int = 3) -> list[str | None]:
    return [guard.observe(level, 0.4, labels) for level in levels]


def guard(**settings) -> Guard:
    return Guard(AdaptationConfig(guard_steps=3, collapse_ratio=4.0, **settings), 0.8)


def test_a_steady_teacher_is_left_alone():
    it = guard()
    assert watch(it, [2.0, 2.5, 1.5, 2.0, 4.0, 1.0, 0.8, 3.0]) == [None] * 8
    assert it.healthy


@pytest.mark.parametrize(("level", "word"), [(0.1, "vanish"), (40.0, "explode")])
def test_detections_that_vanish_or_explode_are_said_once_with_what_to_change(level, word):
    it = guard()
    watch(it, [2.0] * 3)
    said = watch(it, [level] * 6)
    (message,) = [text for text in said if text]
    assert f"detections on the target {word}" in message
    assert "2.00 after hand-over" in message
    assert "adaptation.unsupervised_weight" in message
    assert not it.healthy


def test_a_teacher_that_finds_nothing_from_the_start_is_starving():
    it = guard()
    said = watch(it, [0.3] * 7, labels=0)
    assert said[:2] == [None, None]
    assert "no pseudo-label for 3 steps: the teacher's highest score was 0.40, pseudo_labels.score is 0.8" in said[2]
    assert not any(said[3:])
    watch(it, [0.3], labels=1)
    assert watch(it, [0.3] * 3, labels=0)[2] is not None


def test_doubt_comes_before_collapse():
    """A checkpoint to come back to is taken only while the level is within the square root of the ratio."""
    it = guard()
    watch(it, [2.0] * 3)
    assert it.healthy
    assert watch(it, [0.8] * 3) == [None] * 3
    assert not it.healthy


def test_a_teacher_that_begins_with_nothing_has_nothing_to_collapse_from():
    it = guard()
    assert watch(it, [0.0, 0.0, 0.0, 0.05, 0.5, 2.0, 3.0, 3.0, 3.0]) == [None] * 9
    assert it.reference is not None


def test_the_state_comes_back():
    it, other = guard(), guard()
    watch(it, [2.0, 1.0, 2.0, 0.5], labels=0)
    other.load_state_dict(it.state_dict())
    assert other.state_dict() == it.state_dict()
    assert watch(it, [0.1] * 4) == watch(other, [0.1] * 4)


COLLAPSING = [
    *ADAPT,
    "adaptation.burn_in_steps=2",
    "adaptation.guard_steps=2",
    "train.steps=10",
    "train.save_every=2",
    "train.eval_every=0",
]


def collapsing(folder, action: str, until: float, *overrides: str):
    """A run whose teacher goes blind at step 6 while pseudo-labels weigh more than ``until``."""
    it = trainer(folder, *COLLAPSING, f"train.on_collapse={action}", *overrides, resume=True)
    observe = it.state.labeller.guard.observe

    def blind(found, best, labels):
        level = 0.001 if it.state.step >= 6 and it.state.labeller.factor > until else 2.0
        return observe(level, best, 1)

    it.state.labeller.guard.observe = blind
    return it


def test_collapse_is_warned_of_and_training_goes_on(tmp_path, caplog):
    assert collapsing(tmp_path, "warn", 0.1).train()
    assert "the teacher's detections on the target vanish" in caplog.text
    assert last_checkpoint(tmp_path)["step"] == 10


def test_collapse_stops_the_run_after_saving(tmp_path):
    with pytest.raises(UserError, match=r"stopped at step \d: the teacher's detections on the target vanish"):
        collapsing(tmp_path, "stop", 0.1).train()
    assert last_checkpoint(tmp_path)["step"] in (7, 8)


def test_collapse_goes_back_to_the_last_healthy_state_with_half_the_weight(tmp_path, caplog):
    it = collapsing(tmp_path, "restore", 0.3)
    assert it.train()
    assert it.state.labeller.restores == 2
    assert it.state.labeller.factor == 0.25
    assert caplog.text.count("restored step 6") == 2
    assert "pseudo-labels now weigh 0.25 of what is set" in caplog.text
    content = last_checkpoint(tmp_path)
    assert content["step"] == 10
    assert content["labeller"]["factor"] == [0.25, 2]
    steps = [line.split(",")[0] for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == [str(step) for step in range(1, 11)]


def test_what_is_restored_is_the_healthy_state_to_the_last_bit(tmp_path):
    it = collapsing(tmp_path, "restore", 0.3)
    restored, restore = [], it.recovery.restore

    def watched():
        healthy = read_checkpoint(tmp_path / "checkpoints" / "healthy.pt")
        restore()
        now = last_checkpoint(tmp_path)
        for part in ("student", "ema", "optimizer", "step"):
            assert_same_tensors(healthy[part], now[part], part)
        assert_same_tensors(healthy["student"], dict(it.state.detector.exported()))
        restored.append(now["step"])

    it.recovery.restore = watched
    it.train()
    assert restored == [6, 6]


def test_a_run_that_is_resumed_with_restoring_on_has_somewhere_to_go_back_to(tmp_path):
    trainer(tmp_path, *COLLAPSING[:-3], "train.steps=4", "train.save_every=2").train()
    it = collapsing(tmp_path, "restore", 0.3)
    assert not (tmp_path / "checkpoints" / "healthy.pt").exists()
    assert it.train()
    assert it.state.labeller.restores == 2


def test_a_run_that_had_collapsed_before_it_was_to_restore_goes_back_to_the_end_of_burn_in(tmp_path):
    collapsing(tmp_path, "warn", 0.1, "train.steps=8").train()
    it = trainer(tmp_path, *COLLAPSING, "train.on_collapse=restore", resume=True)
    assert it.state.labeller.guard.collapsed
    it.recovery.prepare()
    assert not (tmp_path / "checkpoints" / "healthy.pt").exists()
    assert it.state.step == 2
    assert not it.state.labeller.guard.collapsed
    assert last_checkpoint(tmp_path)["step"] == 2
    (tmp_path / "checkpoints" / "burned_in.pt").unlink()
    with pytest.raises(UserError, match="the teacher has collapsed, and no checkpoint is from before; train again"):
        it.recovery.restore()


def test_restoring_gives_up_in_the_end(tmp_path):
    with pytest.raises(UserError, match="collapsed again after 2 restorations; lower adaptation.unsupervised_weight"):
        collapsing(tmp_path, "restore", 0.0, "adaptation.restores=2").train()


def test_losses_that_are_not_finite_are_a_reason_to_go_back_too(tmp_path, caplog):
    it = trainer(tmp_path, *COLLAPSING, "train.on_collapse=restore", "train.max_bad_steps=2")
    losses = it.state.detector.losses

    def poisoned(encoding, supervision, marker):
        bad = it.state.step >= 5 and it.state.labeller.factor == 1
        return {
            name: value * (float("inf") if bad else 1) for name, value in losses(encoding, supervision, marker).items()
        }

    it.state.detector.losses = poisoned
    assert it.train()
    assert "loss or gradient not finite for 2 steps in a row" in caplog.text
    assert it.state.labeller.restores == 1
    assert all(value.isfinite().all() for value in last_checkpoint(tmp_path)["student"].values())


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_a_starving_run_says_so_and_goes_on_because_nothing_has_collapsed(tmp_path, caplog, action):
    assert trainer(tmp_path, *COLLAPSING, "pseudo_labels.min_size=1000", f"train.on_collapse={action}").train()
    assert "no pseudo-label for 2 steps" in caplog.text
