"""Starting the processes of a run: device, precision, several GPUs, several machines."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from urllib.parse import urlparse

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch.distributed import Store

from lossmix_det.config import Config
from lossmix_det.errors import UserError
from lossmix_det.training.launchers import Processes
from lossmix_det.training.meeting import Place, ending_together, meet


@dataclass(frozen=True)
class Precision:
    """A precision under its name in Fabric, and whether CPUs have it."""

    fabric_name: str
    on_cpu: bool = True


ONE_PROCESS = Processes()
SCHEMES = ("tcp",)  # of the address of machine 0
PRECISIONS = {"32": Precision("32-true"), "bf16": Precision("bf16-mixed"), "fp16": Precision("16-mixed", on_cpu=False)}


def launch(config: Config, processes: Processes = ONE_PROCESS) -> Fabric:
    """Start Fabric's processes; each of them runs the command from its start.

    Args:
        config: of the run.
        processes: how many, and where.

    Raises:
        UserError: the machine does not have what is asked for, or the processes do not find each other.
    """
    device = AUTOMATIC.get(config.train.device, lambda: config.train.device)()
    kind = DEVICES[device]
    kind.check(config, processes)
    give_memory_back()
    _check_counts(processes)
    _check_batches(config, processes)
    _set_rendezvous(processes)
    fabric = Fabric(
        accelerator=device,
        devices=processes.gpus,
        num_nodes=processes.machines,
        strategy=Meeting(processes, kind.backend) if processes.world > 1 else "auto",
        precision=PRECISIONS[config.train.precision].fabric_name,
        plugins=None if processes.world > 1 else [LightningEnvironment()],
    )
    fabric.launch()
    if not fabric.is_global_zero:  # what goes wrong everywhere is said once
        logging.getLogger("lossmix_det").setLevel(logging.ERROR)
    return fabric


def together(fabric: Fabric) -> AbstractContextManager[None]:
    """Within the block all processes of a run end where one fails, and the first to fail says why."""
    return ending_together(getattr(fabric.strategy, "store", None), fabric.world_size)


class Meeting(DDPStrategy):
    """Fabric's DDP, whose processes find each other by `meet`.

    Args:
        processes: how many, and where.
        backend: of torch.distributed.
    """

    store: Store | None = None

    def __init__(self, processes: Processes, backend: str) -> None:
        super().__init__(cluster_environment=processes.launcher(), process_group_backend=backend)
        self.processes = processes

    def setup_environment(self) -> None:
        """Meet first; Fabric then finds the process group made."""
        environment, processes = self.cluster_environment, self.processes
        rank = processes.machine_rank * processes.gpus + environment.local_rank()
        hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
        own = processes.launcher is LightningEnvironment and processes.machines == 1
        patience = STARTING if own else processes.patience
        place = Place(rank, processes.world, environment.main_address, environment.main_port, hosted, patience)
        self.store = meet(place, self.process_group_backend)
        super().setup_environment()


STARTING = 300.0  # seconds; processes of one machine that this program starts by itself are known to come


def give_memory_back() -> None:
    """Let glibc return tensors of 4 MiB and more to the system as they are freed.

    Left alone it comes to keep all below 32 MiB, in pieces between what is still needed, so that every step takes new
    memory beside the old. Who sets glibc's own variable has decided already; elsewhere nothing is done.
    """
    if platform.libc_ver()[0] == "glibc" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED)


M_MMAP_THRESHOLD, MAPPED = -3, 4 << 20  # mallopt's name for the least size that is mapped, and that size in bytes


def _check_cpu(config: Config, processes: Processes) -> None:
    if not PRECISIONS[config.train.precision].on_cpu:
        raise UserError(f"train.precision={config.train.precision} needs a GPU; use bf16 or 32 on a CPU")


def _check_cuda(config: Config, processes: Processes) -> None:
    if not torch.cuda.is_available():
        raise UserError("train.device=cuda, but torch finds no GPU; set train.device=cpu, or install torch for CUDA")
    count = torch.cuda.device_count()
    if count < processes.gpus:
        raise UserError(f"{processes.gpus} GPUs asked for, {count} found; lower --num-gpus")


@dataclass(frozen=True)
class Device:
    """A kind of device: how its processes talk to each other, and what is refused on it."""

    backend: str
    check: Callable[[Config, Processes], None]


DEVICES = {"cpu": Device("gloo", _check_cpu), "cuda": Device("nccl", _check_cuda)}
# Settings of train.device that leave the choice to the machine.
AUTOMATIC: dict[str, Callable[[], str]] = {"auto": lambda: "cuda" if torch.cuda.is_available() else "cpu"}


def _check_counts(processes: Processes) -> None:
    counts = (processes.gpus, processes.machines)
    if min(counts) < 1 or not 0 <= processes.machine_rank < processes.machines:
        raise UserError("--num-gpus and --num-machines must be at least 1, --machine-rank below --num-machines")


def _check_batches(config: Config, processes: Processes) -> None:
    """Every process and every micro-batch gets the same number of images."""
    sizes = {"batch_size": config.data.batch_size}
    if config.data.target and config.data.target_batch_size:
        sizes["target_batch_size"] = config.data.target_batch_size
    for name, size in sizes.items():
        if size % (processes.world * config.train.accumulate):
            raise UserError(
                f"data.{name}={size} cannot be shared evenly by {processes.world} processes"
                f" × train.accumulate={config.train.accumulate}"
            )


def _set_rendezvous(processes: Processes) -> None:
    """Say in the environment where machine 0 is, as torch.distributed reads it."""
    if processes.launcher is not LightningEnvironment:
        return
    if processes.machines > 1:
        if not processes.dist_url:
            raise UserError("--num-machines needs --dist-url tcp://host:port of machine 0")
        os.environ["NODE_RANK"] = str(processes.machine_rank)
    if processes.dist_url:
        host, port = _address(processes.dist_url)
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = host, str(port)


def _address(dist_url: str) -> tuple[str, int]:
    try:
        url = urlparse(dist_url)
        host, port = url.hostname, url.port
    except ValueError:
        host = port = None
    if not host or not port or url.scheme not in SCHEMES:
        raise UserError(f"--dist-url {dist_url!r} is not of the form tcp://host:port")
    return host, port
