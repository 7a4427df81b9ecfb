"""Which clock tells how long a step takes."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks import timing

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("threads", "clock", "text"), [(1, time.process_time, "CPU time"), (2, time.perf_counter, "wall")]
)
def test_one_thread_is_measured_in_cpu_time_and_several_by_the_wall(monkeypatch, threads, clock, text):
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    assert timing.clock_of(CPU) is clock
    assert text in timing.clock_text(CPU)


def test_a_gpu_is_measured_by_the_wall(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert timing.clock_of(torch.device("cuda")) is time.perf_counter


def test_seconds_are_between_two_readings_of_the_clock(monkeypatch):
    monkeypatch.setattr(timing, "clock_of", lambda _: iter((10.0, 13.5)).__next__)
    assert timing.seconds_of(lambda: None, CPU) == 3.5
    assert timing.seconds_of(lambda: None, CPU, iter((1.0, 1.25)).__next__) == 0.25


def test_a_gpu_takes_every_round_before_it_is_measured():
    """Each has shapes of its own, which it gets ready for."""
    assert list(timing.rounds_before(5, torch.device("cuda"))) == [0, 1, 2, 3, 4]
    assert list(timing.rounds_before(5, CPU)) == [0]
    assert list(timing.rounds_before(0, CPU)) == []
