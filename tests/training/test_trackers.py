"""Trackers get the numbers of a run, go on under their ids, and never end a run that has begun."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
from runs import trainer

from lossmix_det.config import load_config
from lossmix_det.errors import UserError
from lossmix_det.training.trackers import Trackers


class Logger:
    """Stands for a logger of Lightning."""

    made: list = []
    fails_at = -1

    def __init__(self, **settings):
        self.settings, self.rows, self.told = settings, [], {}
        self.version = settings.get("id") or f"id{len(self.made)}"
        self.run_id = settings.get("run_id") or f"run{len(self.made)}"
        self.made.append(self)

    def log_hyperparams(self, settings):
        self.told = settings

    def log_metrics(self, values, step):
        if step == self.fails_at:
            raise ConnectionError("no route to host")
        self.rows.append((step, values))

    def finalize(self, status):
        self.rows.append(status)


@pytest.fixture
def loggers(monkeypatch):
    monkeypatch.setattr(Logger, "made", [])
    module = ModuleType("pytorch_lightning.loggers")
    module.WandbLogger = module.MLFlowLogger = Logger
    monkeypatch.setitem(sys.modules, "pytorch_lightning.loggers", module)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", SimpleNamespace(loggers=module))
    return Logger.made


@pytest.mark.slow
def test_a_run_sends_its_losses_speed_and_scores_and_goes_on_under_its_ids(tmp_path, loggers):
    words = ["train.trackers=[wandb,mlflow]", "train.eval_every=1", "ema.decay=0"]
    assert trainer(tmp_path, *words, "train.steps=1").train()
    wandb, mlflow = loggers
    for logger in (wandb, mlflow):
        (first, losses), (_, scores), end = logger.rows
        assert first == 1
        assert {"loss", "lr", "speed/images_per_s"} <= losses.keys()
        assert "student/shapes_clipart_test/AP50" in scores
        assert end == "success"
        assert logger.told["train.steps"] == 1
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": "id0", "mlflow": "run1"}
    assert trainer(tmp_path, *words, "train.steps=2", resume=True).train()
    assert loggers[2].settings["id"] == "id0"
    assert loggers[3].settings["run_id"] == "run1"
    assert [row[0] for row in loggers[2].rows[:-1]] == [2, 2]


def test_a_tracker_that_fails_on_the_way_is_left_out_and_said_once(tmp_path, loggers, monkeypatch, caplog):
    monkeypatch.setattr(Logger, "fails_at", 2)
    trackers = Trackers(["wandb"], tmp_path, {})
    for step in (1, 2, 3):
        trackers.log(step, {"loss": 1.0})
    trackers.close()
    assert loggers[0].rows == [(1, {"loss": 1.0})]
    assert caplog.text.count("wandb takes no more numbers (ConnectionError: no route to host)") == 1


def test_a_tracker_that_fails_at_the_end_does_not_end_the_run(tmp_path, loggers, monkeypatch, caplog):
    def fail(self, status):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(Logger, "finalize", fail)
    Trackers(["mlflow", "wandb"], tmp_path, {}).close()
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} lacks the end of the run (ConnectionError: no route to host)" for name in ("mlflow", "wandb")
    ]


def test_a_missing_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_lightning.loggers", None)
    with pytest.raises(UserError, match=r"train.trackers=wandb needs .*pip install 'lossmix-det\[wandb\]'"):
        Trackers(["wandb"], tmp_path, {})


def test_a_tracker_that_does_not_start_is_one_sentence(tmp_path, loggers, monkeypatch):
    def refuse(*_):
        raise OSError("no key")

    monkeypatch.setattr(Logger, "log_hyperparams", refuse)
    with pytest.raises(UserError, match=r"train.trackers=mlflow does not start \(OSError: no key\)"):
        Trackers(["mlflow"], tmp_path, {})


def test_an_unknown_tracker_is_refused():
    with pytest.raises(UserError, match=r"train.trackers=\['comet'\] may name wandb and mlflow"):
        load_config(None, ["train.trackers=[comet]"])
