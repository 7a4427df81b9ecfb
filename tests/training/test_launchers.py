"""What a launcher says counts; an option that contradicts it, or variables that do not add up, are one sentence."""

from __future__ import annotations

import pytest
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from lossmix_det.errors import UserError
from lossmix_det.training.launchers import Processes, asked_for

NOTHING = {"gpus": None, "machines": None, "machine_rank": None}
TORCHRUN = {
    **{"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1", "RANK": "3"},
    **{"LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
}
SRUN = {"SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in (*TORCHRUN, *SRUN, "SLURM_NTASKS_PER_NODE", "SLURM_JOB_NAME"):
        monkeypatch.setenv(name, "")  # so that what the code sets is undone after the test
        monkeypatch.delenv(name)


def set_all(monkeypatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_without_a_launcher_the_options_count():
    assert asked_for(NOTHING) == Processes(1, 1, 0, "", 15.0, LightningEnvironment)
    found = asked_for({"gpus": 2, "machines": 3, "machine_rank": 1}, "tcp://h:1", 9.0)
    assert found == Processes(2, 3, 1, "tcp://h:1", 9.0, LightningEnvironment)
    assert found.world == 6


@pytest.mark.parametrize("asked", [NOTHING, {**NOTHING, "gpus": 2}, {"gpus": 2, "machines": 2, "machine_rank": 1}])
def test_under_torchrun_no_option_is_needed_and_one_that_agrees_is_taken(monkeypatch, asked):
    set_all(monkeypatch, TORCHRUN)
    assert asked_for(asked) == Processes(2, 2, 1, launcher=TorchElasticEnvironment)


def test_under_srun_no_option_is_needed(monkeypatch):
    set_all(monkeypatch, SRUN)
    assert asked_for(NOTHING) == Processes(2, 2, 1, launcher=SLURMEnvironment)
    assert SLURMEnvironment().local_rank() == 0  # Fabric takes the variables too


def test_srun_on_one_machine_need_not_say_that_it_is_one(monkeypatch):
    set_all(monkeypatch, {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"})
    assert asked_for(NOTHING) == Processes(2, 1, 0, launcher=SLURMEnvironment)


@pytest.mark.parametrize("more", [{"SLURM_NTASKS": "1"}, {"SLURM_JOB_NAME": "interactive"}])
def test_a_slurm_job_of_one_task_or_an_interactive_one_starts_its_processes_by_itself(monkeypatch, more):
    set_all(monkeypatch, {**SRUN, **more})
    assert asked_for({**NOTHING, "gpus": 4}) == Processes(4)


@pytest.mark.parametrize(
    ("variables", "option", "message"),
    [
        (TORCHRUN, {"gpus": 4}, "--num-gpus 4 contradicts torchrun, which says 2; leave the option out"),
        (TORCHRUN, {"machines": 1}, "--num-machines 1 contradicts torchrun, which says 2"),
        (SRUN, {"machine_rank": 0}, "--machine-rank 0 contradicts srun, which says 1"),
    ],
)
def test_an_option_that_contradicts_the_launcher_is_refused(monkeypatch, variables, option, message):
    set_all(monkeypatch, variables)
    with pytest.raises(UserError, match=message):
        asked_for({**NOTHING, **option})
    with pytest.raises(UserError, match="--dist-url is said by (torchrun|srun) already"):
        asked_for(NOTHING, "tcp://h:1")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({**TORCHRUN, "RANK": ""}, "torchrun sets the variable RANK to a number, found ''"),
        ({**TORCHRUN, "WORLD_SIZE": "two"}, "WORLD_SIZE to a number, found 'two'"),
        ({**TORCHRUN, "WORLD_SIZE": "3"}, "the variables of torchrun do not add up: process 3 of 3, and 1 of the 2"),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, "do not add up"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "0"}, "do not add up"),
        ({**SRUN, "SLURM_PROCID": "4"}, "the variables of srun do not add up: process 4 of 4"),
        ({**SRUN, "SLURM_NTASKS": "5", "SLURM_NNODES": "2"}, "do not add up|5 tasks on 2 machines"),
        ({**SRUN, "SLURM_NNODES": "9"}, "do not add up"),
    ],
)
def test_variables_that_do_not_add_up_are_one_sentence(monkeypatch, variables, message):
    set_all(monkeypatch, variables)
    with pytest.raises(UserError, match=message):
        asked_for(NOTHING)
