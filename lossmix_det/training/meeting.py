"""The processes of a run find each other, and end together with one sentence."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed
from torch.distributed import PrefixStore, Store, TCPStore

from lossmix_det.errors import Silent, UserError, first_line

PAUSE = 0.1  # seconds between two looks
FAREWELL = 5.0  # seconds that a process which fails waits for the others to notice
TOGETHER = timedelta(minutes=30)  # how far processes may be apart once all have come: one may be reading weights


@dataclass(frozen=True)
class Place:
    """Where one process stands among all.

    Args:
        rank: its number, from 0.
        world: the number of all.
        host, port: where process 0 listens.
        hosted: somebody else listens there already, such as torchrun.
        patience: seconds that it waits for the others.
    """

    rank: int
    world: int
    host: str
    port: int
    hosted: bool = False
    patience: float = 15.0

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{self.host}:{self.port}"


def meet(place: Place, backend: str) -> Store:
    """Wait for the other processes, and make the process group that they share.

    Args:
        place: of this process.
        backend: of torch.distributed.

    Returns:
        What the processes write to and read from, also after the group has failed.

    Raises:
        UserError: the address cannot be used, the processes disagree on how many they are, or not all of them come.
    """
    deadline = time.monotonic() + place.patience
    _check_address(place, deadline)
    try:
        store: Store = TCPStore(
            place.host,
            place.port,
            is_master=place.rank == 0 and not place.hosted,
            timeout=timedelta(seconds=place.patience),
            wait_for_workers=False,
        )
        store = PrefixStore(f"lossmix_det/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        _sign_in(store, place, deadline)
        store.set_timeout(TOGETHER)  # NCCL looks here for the others when the first gradient or weight is sent
        torch.distributed.init_process_group(
            backend, store=store, rank=place.rank, world_size=place.world, timeout=TOGETHER
        )
    except (RuntimeError, OSError) as error:  # of the store, of gloo, of NCCL
        raise UserError(
            f"the processes of the run cannot reach each other at {place.address} ({first_line(error)}); check that "
            "all of them run, and that their network lets them connect"
        ) from None
    return store


def _check_address(place: Place, deadline: float) -> None:
    """Look up the host, and see that process 0 can listen there, or does."""
    try:
        socket.getaddrinfo(place.host, place.port)
    except OSError as error:
        raise UserError(
            f"the host {place.host!r} of process 0 is not known ({error.strerror}); correct --dist-url or MASTER_ADDR"
        ) from None
    if place.rank == 0 and not place.hosted:
        _check_free(place)
        return
    while True:
        with suppress(OSError), socket.create_connection((place.host, place.port), timeout=1.0):
            return
        if time.monotonic() > deadline:
            raise UserError(
                f"nobody answers at {place.address} within {place.patience:g} s; start process 0 there, or correct "
                "--dist-url or MASTER_ADDR"
            )
        time.sleep(PAUSE)


def _check_free(place: Place) -> None:
    kind = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        socket.create_server(("", place.port), family=kind, dualstack_ipv6=kind == socket.AF_INET6).close()
    except OSError as error:
        known = {errno.EADDRINUSE: "is in use", errno.EACCES: "may not be used"}
        reason = known.get(error.errno, f"cannot be used ({error.strerror})")
        raise UserError(
            f"port {place.port} of this machine {reason}; give another one by --dist-url or MASTER_PORT"
        ) from None


def _sign_in(store: Store, place: Place, deadline: float) -> None:
    """Tell the others that this process is here, and wait until all are; who disagrees with the first is told."""
    world = int(store.compare_set("world", "", str(place.world)))
    if world != place.world:
        store.set("refused", f"one process counts {world} processes in all and another {place.world}")
    elif store.add(f"rank {place.rank}", 1) > 1:
        store.set("refused", f"two processes have the number {place.rank}")
    store.add("here", 1)
    while store.add("here", 0) < place.world or store.check(["refused"]):
        if store.check(["refused"]):
            store.add("told", 1)
            time.sleep(10 * PAUSE)  # who hosts the store must not go before the others have read it
            raise UserError(
                f"the world of the processes does not add up: {store.get('refused').decode()}; start them with the "
                "same number of processes, and each machine with its own --machine-rank"
            )
        if time.monotonic() > deadline:
            raise UserError(
                f"{store.add('here', 0)} of {place.world} processes came within {place.patience:g} s; start the others "
                "as well, or lengthen the time by --dist-timeout"
            )
        time.sleep(PAUSE)


@contextmanager
def ending_together(store: Store | None, world: int) -> Iterator[None]:
    """Within the block, when one process fails the others end too; the first to fail says why.

    Args:
        store: of `meet`; absent: there is one process.
        world: the number of processes.

    Raises:
        Silent: another process has failed, and has said why.
    """
    try:
        yield
    except BaseException as error:
        if store is not None and not _is_first(store, world):
            raise Silent from error
        raise


def _is_first(store: Store, world: int) -> bool:
    """Tell the others that this process fails; whether it is the first. Whoever hosts the store goes last but one."""
    try:
        first = store.add("failed", 1) == 1
        torch.distributed.destroy_process_group()  # so that nobody waits for this process
        deadline = time.monotonic() + FAREWELL
        while store.add("failed", 0) < world and time.monotonic() < deadline:
            time.sleep(PAUSE)
    except (RuntimeError, ValueError):  # the process that hosts it has ended
        return False
    return first
