import io
import math
import subprocess

import pytest
import torch
from conftest import write_image
from rich.console import Console
from runs import TINY, trainer
from test_metrics import rows_of

from lossmix_det.config import ModelConfig, flat, load_config
from lossmix_det.data.catalog import load
from lossmix_det.structures import ImageBatch, StepBatch, Views
from lossmix_det.training.provenance import git_revision, name_of, read_run, settings_of
from lossmix_det.training.runlog import Remaining, RunLog, images_seen, memory_gib
from lossmix_det.training.summary import warn_of_known_test_images, warn_of_no_partners


def shown(folder, width: int, values: dict[str, float]) -> str:
    """What a terminal of that width shows of one row of 4 steps."""
    text = io.StringIO()
    log = RunLog(folder, 0, 4, Console(file=text, force_terminal=True, width=width), active=True)
    log.count(images=8, seconds=1.5, waited=0.5)
    log.count(images=8, seconds=2.5, waited=0.5)
    log.step(1)
    log.row(1, {"lr": 0.1, "loss": 2.5, "source/roi_class": 1.25, **values})
    log.close()
    return text.getvalue()


def test_the_progress_bar_shows_losses_speed_wait_and_memory(tmp_path):
    printed = shown(tmp_path, 300, {})
    words = ("1/4", "loss 2.500", "roi_class 1.250", "2.00 s/step", "4.0 images/s", "waiting for data 25%", "GiB")
    for word in words:
        assert word in printed
    (row,) = rows_of(tmp_path / "speed.csv")
    assert {name: row[name] for name in ("seconds_per_step", "images_per_s", "data_wait_share")} == {
        "seconds_per_step": "2.0",
        "images_per_s": "4.0",
        "data_wait_share": "0.25",
    }


def test_the_speed_of_a_row_is_that_of_its_own_steps(tmp_path):
    log = RunLog(tmp_path, 0, 4, Console(file=io.StringIO()), active=True)
    for step, seconds in ((1, 8.0), (2, 2.0)):
        log.count(images=4, seconds=seconds, waited=0.0)
        log.row(step, {"loss": 1.0})
    log.close()
    assert [row["seconds_per_step"] for row in rows_of(tmp_path / "speed.csv")] == ["8.0", "2.0"]


def test_in_a_narrow_terminal_the_note_is_cut_and_not_wrapped(tmp_path):
    printed = shown(tmp_path, 40, {})
    notes = [line for line in printed.split("\r") if "loss 2.500" in line]
    assert notes
    assert "images/s" not in printed
    assert "…" in notes[-1]


def test_a_precision_of_nothing_is_a_dash(tmp_path):
    pseudo = {"pseudo/per_image": 0.0, "pseudo/precision": math.nan, "pseudo/recall": 0.25}
    assert "precision –, recall 25%" in shown(tmp_path, 300, pseudo)


def test_without_a_terminal_nothing_but_the_log_is_written(tmp_path):
    text = io.StringIO()
    log = RunLog(tmp_path, 0, 4, Console(file=text), active=True)
    log.close()
    assert text.getvalue() == ""


def test_images_are_counted_as_the_student_sees_them():
    """Two views of the source; of the target the strong one, once it is adapted to."""
    images = {count: ImageBatch(torch.zeros(count, 3, 8, 8), ((8, 8),) * count) for count in (2, 3)}
    batch = StepBatch(Views(images[2], images[2], None), Views(images[3], images[3], None))
    assert images_seen(batch, adapting=False) == 4
    assert images_seen(batch, adapting=True) == 7
    assert images_seen(StepBatch(Views(images[2], None, None)), adapting=False) == 2


def test_processes_other_than_the_first_write_nothing(tmp_path):
    log = RunLog(tmp_path, 0, 4, Console(), active=False)
    log.row(1, {"loss": 1.0})
    log.scores(1, {})
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_memory_is_a_plausible_number_of_gib():
    assert 0.05 < memory_gib() < 1000


def test_the_revision_is_a_commit_or_unknown(monkeypatch):
    revision = git_revision()
    assert revision is None or len(revision.removesuffix("+changes")) == 40
    monkeypatch.setenv("PATH", "")
    assert git_revision() is None


def test_a_repository_that_does_not_hold_this_file_is_not_its_revision(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    installed = tmp_path / "site-packages" / "lossmix_det"
    installed.mkdir(parents=True)
    monkeypatch.setattr("lossmix_det.training.provenance.__file__", str(installed / "provenance.py"))
    assert git_revision() is None


STEPS = ["train.steps=2", "train.save_every=1"]


@pytest.fixture(scope="module")
def resumed_twice(tmp_path_factory):
    """A run of 2 steps that was continued to 3, and then to 4 with another learning rate; its run.json as it began."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOSSMIX_DATASETS", str(tmp_path_factory.mktemp("datasets")))
        trainer(folder, *STEPS).train()
        began = read_run(folder), (folder / "config.yaml").read_bytes()
        trainer(folder, *STEPS, resume=True).train()
        trainer(folder, "train.steps=4", "train.save_every=1", "optimizer.lr=0.001", resume=True).train()
    return folder, *began


def test_what_a_run_began_with_stays_known_when_it_is_resumed(resumed_twice):
    folder, about, config = resumed_twice
    now = read_run(folder)
    assert about.pop("resumed") == []
    assert {key: now[key] for key in about} == about
    assert about["step"] == 0
    assert (folder / "config.yaml").read_bytes() == config


def test_each_resumption_is_recorded_with_the_settings_that_changed(resumed_twice):
    folder, *_ = resumed_twice
    same, changed = read_run(folder)["resumed"]
    assert (same["step"], same["changed"]) == (2, {})
    assert changed["step"] == 2
    assert changed["changed"] == {"train.steps": [2, 4], "optimizer.lr": [0.0005, 0.001]}
    assert set(changed) >= {"started", "command", "versions", "git_revision"}


def test_other_settings_of_a_resumption_are_written_beside_those_of_the_beginning(resumed_twice):
    folder, *_ = resumed_twice
    assert [path.name for path in folder.glob("config.*")].count("config.yaml") == 1
    (path,) = folder.glob("config.resumed_at_*.yaml")
    assert path.name == "config.resumed_at_2.yaml"
    assert load_config(path).optimizer.lr == 0.001


def test_the_settings_in_force_are_those_of_the_beginning_with_all_changes(resumed_twice):
    folder, *_ = resumed_twice
    about = read_run(folder)
    expected = flat(about["config"]) | {"train.steps": 4, "optimizer.lr": 0.001}
    assert settings_of(about) == expected


def test_a_run_that_begins_from_a_borrowed_state_says_at_which_step(tmp_path):
    trainer(tmp_path, *STEPS).train()
    (tmp_path / "run.json").unlink()
    trainer(tmp_path, *STEPS, resume=True).train()
    about = read_run(tmp_path)
    assert (about["step"], about["resumed"]) == (2, [])


@pytest.mark.parametrize("text", ["{", "[]", '{"config": 3}'])
def test_a_run_json_that_is_none_is_written_anew(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    assert read_run(tmp_path) is None


def summary_of(folder, caplog, *words: str) -> dict[str, str]:
    with caplog.at_level("INFO", logger="lossmix_det.training.summary"):
        trainer(folder, *words).train()
    lines = [record.getMessage() for record in caplog.records if record.name == "lossmix_det.training.summary"]
    return dict(line.split(maxsplit=1) for line in lines)


def test_a_run_opens_with_its_data_model_and_steps(tmp_path, caplog):
    words = ["train.steps=2", "data.target=[shapes_clipart_train]", "ema.decay=0.9", "adaptation.burn_in_steps=1"]
    lines = summary_of(tmp_path, caplog, *words, "data.views=[weak,strong]")
    config = load_config(None, TINY)
    boxes = sum(len(record.boxes) for record in load("shapes_photo_train", config).records)
    assert lines["train"] == f"shapes_photo_train: 12 images, {boxes} boxes"
    assert lines["target"].startswith("shapes_clipart_train: 12 images, ")
    assert lines["classes"] == "6: circle, square, triangle, star, cross, crescent"
    assert lines["model"].startswith("torchvision faster_rcnn slim, ")
    assert lines["weights"] == "random"
    assert lines["batch"] == "4 source images in weak and strong view, 4 target images per step"
    assert lines["steps"] == "2: 1 of burn-in, 1 of adaptation"
    assert lines["device"] == "cpu, precision 32, seed 0"


def test_parameters_that_learn_are_told_from_those_that_are_frozen():
    from lossmix_det.training.summary import summary

    model = torch.nn.Sequential(torch.nn.Linear(999, 1000), torch.nn.Linear(99, 100))
    model[1].requires_grad_(False)
    config = load_config(None, ["train.accumulate=2", "data.workers=9999"])
    config.model = ModelConfig(engine="detectron2", weights="x.pth")
    lines = dict(summary(config, {}, model, "cuda:0"))
    assert lines["model"] == "detectron2 R50-C4, its default, 1.00 M parameters learn, 0.01 M are frozen"
    assert lines["weights"] == "x.pth"
    assert lines["batch"] == "4 source images in weak view per step, in 2 micro-batches"
    assert lines["steps"] == "700"
    assert "lower data.workers if loading is slow" in lines["loading"]


@pytest.mark.parametrize(
    ("words", "processes", "said"),
    [
        (["data.batch_size=1"], 1, "because a step has one image, which has no partner: raise data.batch_size"),
        (["data.batch_size=2"], 2, "because a step has one image for each process, which has no partner"),
        (["data.batch_size=2"], 1, ""),
        (["data.batch_size=1", "mixing.probability=0"], 1, ""),
        (["data.batch_size=1", "data.target=[shapes_clipart_train]", "ema.decay=0.9"], 1, ""),
    ],
)
def test_that_images_without_partners_are_not_mixed_is_said(caplog, words, processes, said):
    warn_of_no_partners(load_config(None, words), processes)
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


@pytest.mark.parametrize(
    ("step", "eval_every", "seconds"),
    [
        (0, 0, 10 * 2.0 + 5.0),  # the evaluation at the end
        (4, 4, 6 * 2.0 + 2 * 5.0),  # after steps 8 and 10
        (3, 4, 7 * 2.0 + 3 * 5.0),
        (5, 5, 5 * 2.0 + 5.0),
        (10, 4, 0.0 + 0.0),
    ],
)
def test_the_time_that_is_left_counts_evaluations(step, eval_every, seconds):
    remaining = Remaining(10, eval_every)
    assert remaining.text(step) == ""  # nothing has been timed
    remaining.per_step, remaining.per_evaluation = 2.0, 5.0
    if step < 10:
        assert remaining.seconds(step) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(40.4, "40 s left"), (720, "12 min left"), (11100, "3 h 05 min left"), (0, "0 s left")]
)
def test_the_time_that_is_left_is_said_as_a_person_would(seconds, text):
    remaining = Remaining(1, 0)
    remaining.per_step = seconds
    assert remaining.text(0) == text


def test_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", {torch.device("cuda:1"): "NVIDIA H100"}.get)
    assert name_of(torch.device("cuda:1")) == "cuda:1 (NVIDIA H100)"
    assert name_of(torch.device("cpu")) == "cpu"


def test_that_test_images_are_trained_on_is_said(tmp_path, caplog):
    """By the files, whatever the sets are called and however their folder is reached."""
    for index in range(3):
        write_image(tmp_path / "photos" / f"{index}.png")
    write_image(tmp_path / "others" / "0.png")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    words = [f"datasets.{name}={{root: {tmp_path / name}, format: folder}}" for name in ("photos", "link", "others")]
    config = load_config(None, words)
    photos, link, others = (load(name, config, ["cat"]) for name in ("photos", "link", "others"))
    warn_of_known_test_images([others], [photos])
    assert not caplog.records
    warn_of_known_test_images([photos], [others, link])
    (record,) = caplog.records
    assert record.getMessage().startswith("3 of the 3 images of test set link are trained on with their labels")
