"""Processes find each other or say why not, and end together."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from runs import TINY, command, env
from torch.distributed import HashStore

from lossmix_det.errors import Silent, UserError
from lossmix_det.training import meeting
from lossmix_det.training.meeting import TOGETHER, Place, ending_together, meet

LIMIT = 200.0  # seconds, after which a test fails


def place(rank: int, world: int = 2, patience: float = 0.3, port: int = 1, host: str = "127.0.0.1") -> Place:
    return Place(rank, world, host, port, patience=patience)


def test_a_host_that_is_not_known_is_told_at_once(monkeypatch):
    def unknown(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    with pytest.raises(
        UserError, match="the host 'nowhere' of process 0 is not known .*correct --dist-url or MASTER_A"
    ):
        meet(place(1, host="nowhere"), "gloo")


def test_a_port_in_use_is_told_at_once():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of this machine is in use; give another one by --dist-url"):
            meet(place(0, port=port), "gloo")


def test_a_port_that_may_not_be_used_is_told(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("socket.create_server", refuse)
    with pytest.raises(UserError, match="port 1 of this machine may not be used"):
        meet(place(0), "gloo")


def test_nobody_at_the_address_is_told_after_the_time():
    port = find_free_network_port()
    with pytest.raises(UserError, match=f"nobody answers at 127.0.0.1:{port} within 0.3 s; start process 0 there"):
        meet(place(1, port=port), "gloo")


def test_processes_that_do_not_come_are_counted():
    with pytest.raises(UserError, match="1 of 2 processes came within 0.3 s; start the others as well, or lengthen"):
        meet(place(0, port=find_free_network_port()), "gloo")


def test_one_process_is_a_group():
    try:
        store = meet(place(0, world=1, port=find_free_network_port(), patience=20), "gloo")
        assert torch.distributed.get_world_size() == 1
        assert store.add("here", 0) == 1
        assert store.underlying_store.timeout == TOGETHER  # and not the patience of the meeting
    finally:
        with suppress(ValueError):
            torch.distributed.destroy_process_group()


def test_what_the_network_refuses_is_one_sentence(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no route\nat line 3")

    monkeypatch.setattr("torch.distributed.init_process_group", refuse)
    with pytest.raises(UserError, match=r"cannot reach each other at 127.0.0.1:\d+ \(no route\); check"):
        meet(place(0, world=1, port=find_free_network_port(), patience=20), "gloo")


def sign_in(places: list[Place]) -> list[str]:
    """What each of several processes is told, which come one after the other."""
    store, said = HashStore(), {}

    def come(index: int) -> None:
        try:
            meeting._sign_in(store, places[index], meeting.time.monotonic() + 20)
            said[index] = ""
        except UserError as error:
            said[index] = str(error)

    threads = [threading.Thread(target=come, args=(index,)) for index in range(len(places))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    return [said[index] for index in range(len(places))]


def test_processes_that_agree_all_go_on():
    assert sign_in([place(rank, world=3) for rank in range(3)]) == ["", "", ""]


def test_a_world_that_does_not_add_up_is_told_to_all():
    said = sign_in([place(0, world=4), place(1, world=2)])
    for sentence in said:
        assert sentence.startswith("the world of the processes does not add up: one process counts ")
        assert {"4", "2"} <= set(sentence.replace(";", "").split())


def test_a_number_that_two_processes_have_is_told_to_all():
    for sentence in sign_in([place(1, world=3), place(1, world=3)]):
        assert "does not add up: two processes have the number 1; start them" in sentence


# ------------------------------------------------------------------------------------------------------------- ending


def test_the_first_to_fail_says_why_and_the_others_are_silent(monkeypatch):
    monkeypatch.setattr(meeting, "FAREWELL", 0.2)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    store = HashStore()
    with pytest.raises(UserError, match="why"), ending_together(store, 2):
        raise UserError("why")
    with pytest.raises(Silent), ending_together(store, 2):
        raise RuntimeError("Connection closed by peer")


def test_where_the_store_has_gone_another_process_has_failed_before(monkeypatch):
    class Gone:
        def add(self, *_):
            raise RuntimeError("Connection reset by peer")

    with pytest.raises(Silent), ending_together(Gone(), 2):
        raise RuntimeError("Connection closed by peer")


def test_one_process_alone_fails_as_it_does():
    with pytest.raises(RuntimeError, match="shape"), ending_together(None, 1):
        raise RuntimeError("shape")
    with ending_together(None, 1):
        pass


# What reading an image does in the process of one rank, after the first few.
FAULTY = """
import os
import lossmix_det.data.loaders as loaders

read, count = loaders.read, 0

def faulty(path, *rest, **named):
    global count
    count += 1
    if count > 4 and os.environ["LOCAL_RANK"] == "RANK":
        raise OSError("image file is truncated")
    return read(path, *rest, **named)

loaders.read = faulty
"""


def run_together(folder: Path, line: list[str], *settings: str) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": f"{env()['PYTHONPATH']}:{folder}"}
    words = [*line, *TINY, f"output_dir={folder / 'run'}", "train.steps=6", *settings]
    return subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False, env=env() | paths)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_unreadable_image_in_one_process_is_one_sentence_and_ends_all(tmp_path, rank):
    (tmp_path / "faulty.py").write_text(FAULTY.replace('RANK":', f'{rank}":'))
    done = run_together(tmp_path, [*command(tmp_path)[:2], "--num-gpus", "2"], "data.imports=[faulty]")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "image cannot be read (image file is truncated); correct it, or set data.on_error=skip" in sentence


@pytest.mark.slow
def test_torchrun_starts_a_run_without_any_option(tmp_path):
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    done = run_together(tmp_path, [*line, str(find_free_network_port()), command(tmp_path)[1]])
    assert done.returncode == 0, done.stderr
    assert "another process is training" not in done.stderr
    assert (tmp_path / "run" / "results.json").is_file()


@pytest.mark.slow
def test_srun_starts_a_run_without_any_option(tmp_path):
    port = str(find_free_network_port())
    slurm = {"SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": port}
    words = [*command(tmp_path / "run"), "train.steps=2"]
    tasks = [
        subprocess.Popen(
            words, stderr=subprocess.PIPE, text=True, env=env() | slurm | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        )
        for rank in ("0", "1")
    ]
    errors = [task.communicate(timeout=LIMIT)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], errors
    assert (tmp_path / "run" / "results.json").is_file()
