"""Who has started the processes of a run: torchrun, SLURM's srun, or this program itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from lossmix_det.errors import UserError

OPTIONS = {"gpus": "--num-gpus", "machines": "--num-machines", "machine_rank": "--machine-rank"}


@dataclass(frozen=True)
class Processes:
    """How many processes train together.

    Args:
        gpus: of this machine; on a CPU the number of processes.
        machines: that train together.
        machine_rank: the number of this machine, from 0.
        dist_url: ``tcp://host:port`` of machine 0; needed where there are several machines.
        patience: seconds that machines wait for each other.
        launcher: who has started them.
    """

    gpus: int = 1
    machines: int = 1
    machine_rank: int = 0
    dist_url: str = ""
    patience: float = 15.0
    launcher: type[ClusterEnvironment] = LightningEnvironment

    @property
    def world(self) -> int:
        """The number of processes on all machines."""
        return self.gpus * self.machines


def asked_for(asked: Mapping[str, int | None], dist_url: str = "", patience: float = 15.0) -> Processes:
    """The processes of a run: those that a launcher has started, else those that options ask for.

    Args:
        asked: ``gpus``, ``machines`` and ``machine_rank`` of the command line; None where the option is left out.
        dist_url: of the command line.
        patience: seconds that machines wait for each other.

    Raises:
        UserError: an option contradicts the launcher, or the launcher's own variables do not add up.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    for launcher in LAUNCHERS:
        if launcher.detect():
            found = launcher.read()
            for name, value in given.items():
                if value != found[name]:
                    raise UserError(
                        f"{OPTIONS[name]} {value} contradicts {launcher.name}, which says {found[name]}; leave the "
                        "option out"
                    )
            if dist_url:
                raise UserError(f"--dist-url is said by {launcher.name} already; leave the option out")
            return Processes(**found, patience=patience, launcher=launcher.environment)
    return replace(Processes(**given), dist_url=dist_url, patience=patience)


@dataclass(frozen=True)
class Launcher:
    """A program that starts processes.

    Args:
        name: as people call it.
        detect: whether it has started this process.
        read: the fields of `Processes`.
        environment: Fabric's.
    """

    name: str
    detect: Callable[[], bool]
    read: Callable[[], dict[str, int]]
    environment: type[ClusterEnvironment]


def _torchrun() -> dict[str, int]:
    variables = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "RANK", "LOCAL_RANK", "MASTER_PORT")
    world, gpus, machine, rank, local, _ = (_number(name, "torchrun") for name in variables)
    _check_adds_up("torchrun", world, gpus, rank, local)
    return {"gpus": gpus, "machines": world // gpus, "machine_rank": machine}


def _slurm() -> dict[str, int]:
    world, rank, local = (_number(name, "srun") for name in ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"))
    machines = _number("SLURM_NNODES", "srun") if "SLURM_NNODES" in os.environ else 1
    gpus = world // max(machines, 1)
    _check_adds_up("srun", world, gpus, rank, local)
    if gpus * machines != world:
        raise UserError(
            f"srun has started {world} tasks on {machines} machines; give each as many, by --ntasks-per-node"
        )
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(gpus))  # which Fabric asks for
    os.environ.setdefault("SLURM_NODEID", str(rank // gpus))
    return {"gpus": gpus, "machines": machines, "machine_rank": _number("SLURM_NODEID", "srun")}


def _number(name: str, launcher: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise UserError(f"{launcher} sets the variable {name} to a number, found {text!r}; start the run by {launcher}")
    return int(text)


def _check_adds_up(launcher: str, world: int, gpus: int, rank: int, local: int) -> None:
    if not (0 < gpus <= world and world % gpus == 0 and rank < world and local < gpus):
        raise UserError(
            f"the variables of {launcher} do not add up: process {rank} of {world}, and {local} of the {gpus} on this "
            f"machine; start the run by {launcher}, with the same number of processes on each machine"
        )


def _is_srun() -> bool:
    """Several tasks, each a process; a job of one task may start more by itself."""
    several = os.environ.get("SLURM_NTASKS", "1") != "1"
    return several and "SLURM_PROCID" in os.environ and SLURMEnvironment.job_name() not in ("bash", "interactive")


LAUNCHERS = (
    Launcher("torchrun", TorchElasticEnvironment.detect, _torchrun, TorchElasticEnvironment),
    Launcher("srun", _is_srun, _slurm, SLURMEnvironment),
)
