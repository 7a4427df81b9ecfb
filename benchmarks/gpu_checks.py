"""What `benchmarks.gpu_check` tries, each in a process of its own; a check returns what it found, in a few words."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks import mixer_cost, speed
from benchmarks.steps import Setup, frame_of, longest_of
from benchmarks.timing import gpu_peak, ratio, rounds_before, seconds_of
from lossmix_det.errors import UserError
from lossmix_det.mixing.mixers import MIXERS
from lossmix_det.structures import ImageBatch, StepBatch

NETWORK = "R50-FPN"
TRAIN = (sys.executable, "tools/train_net.py", "--config-file", "configs/quick.yaml")
SHORT_RUN = (
    *("shapes.train_images=16", "shapes.test_images=8", "data.workers=0", "train.eval_every=0", "train.save_every=2"),
    *("adaptation.burn_in_steps=3", "pseudo_labels.score=0.05", "train.steps=8", "train.report=false", "data.test=[]"),
)


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Args:
        device: of `train.device`.
        short_side: of the images, in pixels.
        rounds: in which the steps take turns.
        sizes: of `benchmarks.steps.SIZES`.
    """

    device: str
    short_side: int
    rounds: int
    sizes: str = "equal"

    @property
    def gpu(self) -> bool:
        """Whether memory is that of a GPU."""
        return self.device == "cuda"


State = dict[str, torch.Tensor]
FARTHER = 10  # times the distance of two runs that a resumed run may end away from them

# By name: checks whose results are no times, so that they may run beside others.
UNTIMED = ("killed and resumed", "two processes on one device")


def detectron2_steps(words: tuple[str, ...], network: str, scale: Scale) -> str:
    """Our step beside the plain one and beside Adaptive Teacher's structure."""
    setup = Setup(network, scale.sizes, scale.short_side, (*words, f"train.device={scale.device}"))
    measured = speed.measure(setup, scale.rounds, memory_too=scale.gpu)
    ours, floor, theirs = (measured.seconds[name] for name in ("ours", "floor", "adaptive_teacher"))
    memory = ", ".join(f"{name} {value:.1f} GiB" for name, value in measured.memory.items())
    return _joined(
        f"step {_median(ours)}",
        f"{ratio(ours, floor)} of plain Detectron2",
        f"{ratio(theirs, ours)} times as fast as Adaptive Teacher's structure",
        memory,
    )


def torchvision_steps(words: tuple[str, ...], scale: Scale) -> str:
    """Our adaptation step, with Mixup, beside torchvision's own losses of as many images and a teacher's detections."""
    with tempfile.TemporaryDirectory() as folder:
        bench = _bench(["mixup"], words, folder, scale)
        device = bench.fabric.device

        def plain_step(number: int) -> float:
            batch = bench.batches[number % len(bench.batches)]
            return seconds_of(lambda: _plain_step(bench.trainer, batch), device)

        def our_step(number: int) -> float:
            return bench.take("mixup", number)[1]

        steps = {"plain": plain_step, "ours": our_step}
        for number, step in itertools.product(rounds_before(scale.rounds, device), steps.values()):
            step(number)
        taken = [[step(number) for step in steps.values()] for number in range(scale.rounds)]
        plain, ours = zip(*taken, strict=True)
        memory = {name: gpu_peak(partial(step, 0)) for name, step in steps.items()} if scale.gpu else {}
    sizes = ", ".join(f"{name} {value:.1f} GiB" for name, value in memory.items())
    return _joined(f"step {_median(ours)}", f"{ratio(ours, plain)} of plain torchvision", sizes)


def every_mixer(scale: Scale) -> str:
    """A step of adaptation with each mixer and each kind of saliency, beside the same step with Mixup."""
    with tempfile.TemporaryDirectory() as folder:
        measured = mixer_cost.measure(_bench(MIXERS, (), folder, scale), scale.rounds)
    rows = {name: ratio(row.step, measured["mixup"].step) for name, row in measured.items() if name != "mixup"}
    return "of Mixup's step: " + "; ".join(f"{name} {value}" for name, value in rows.items())


def compiled_backbone(scale: Scale) -> str:
    """The backbone alone, forward and backward, as it is and by `torch.compile`."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = _bench(["mixup"], (), folder, scale).trainer
        body = trainer.state.detector.model.backbone
        images = torch.rand(4, 3, *(side // 32 * 32 for side in frame_of(scale.short_side)), device=scale.device)
        eager, compiled = [], []
        forms = ((eager, body), (compiled, torch.compile(body)))
        for _ in range(scale.rounds + 2):
            for seconds, form in forms:
                seconds.append(seconds_of(partial(_pass_through, form, images, trainer.fabric), trainer.fabric.device))
    return _joined(f"forward and backward {_median(eager[2:])}", f"compiled {ratio(compiled[2:], eager[2:])} of it")


def channels_last(engine: Callable[[tuple[str, ...], Scale], list[float]], scale: Scale) -> str:
    """Our step with the weights channels last, beside the same step without."""
    last, first = (engine((f"train.channels_last={value}",), scale) for value in ("true", "false"))
    return f"step {statistics.median(last) / statistics.median(first):.2f} of that with the channels first"


def detectron2_seconds(words: tuple[str, ...], scale: Scale) -> list[float]:
    """Of our step."""
    setup = Setup(NETWORK, scale.sizes, scale.short_side, (*words, f"train.device={scale.device}"))
    return speed.measure(setup, scale.rounds, memory_too=False).seconds["ours"]


def torchvision_seconds(words: tuple[str, ...], scale: Scale) -> list[float]:
    """Of our step."""
    with tempfile.TemporaryDirectory() as folder:
        bench = _bench(["mixup"], words, folder, scale)
        for number in rounds_before(scale.rounds, bench.fabric.device):
            bench.take("mixup", number)
        return [bench.take("mixup", number)[1] for number in range(scale.rounds)]


def killed_and_resumed(scale: Scale) -> str:
    """Weights of a run that was killed and resumed, beside those of two that were not.

    Raises:
        UserError: it ended before it was killed, or its weights differ more than two such runs do: on a GPU some sums
            are taken in an order that changes from run to run.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole, again, broken = Path(folder, "whole"), Path(folder, "again"), Path(folder, "broken")
        process = subprocess.Popen(_words(broken, scale), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not any(broken.glob("checkpoints/step_*.pt")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise UserError("the run that was to be killed had ended")
        with ThreadPoolExecutor(3) as pool:
            runs = [(whole, scale), (again, scale), (broken, scale, "--resume")]
            list(pool.map(lambda words: _train(*words), runs))
        weights = [torch.load(run / "export" / "student.pth", weights_only=True) for run in (whole, again, broken)]
    return compared(*weights)


def compared(whole: State, again: State, resumed: State) -> str:
    """How far a resumed run ended from one that was not interrupted, beside how far two such runs do.

    Raises:
        UserError: much farther.
    """
    usual, gap = _gap(whole, again), _gap(whole, resumed)
    found = f"weights differ by {gap:.1g} at most, those of two runs that were not killed by {usual:.1g}"
    if not gap <= FARTHER * usual:
        raise UserError(found)
    return found


def _gap(first: State, second: State) -> float:
    gaps = [(first[name].double() - second[name].double()).abs().max() for name in first if first[name].numel()]
    return float(torch.stack(gaps).max())


def two_processes(scale: Scale) -> str:
    """Two processes share one device, as two machines would; both must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ("--num-machines", "2", "--dist-url", f"tcp://127.0.0.1:{port}", "--dist-timeout", "60")
    with tempfile.TemporaryDirectory() as folder:
        line = [*_words(Path(folder), scale, *words), "--num-gpus", "1"]
        # NCCL refuses two processes on one GPU, unless they are of machines that it takes for different.
        processes = [
            subprocess.Popen(
                [*line, "--machine-rank", str(rank)],
                env={**os.environ, "NCCL_HOSTID": str(rank)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        errors = [process.communicate()[1] for process in processes]
    failed = [error for process, error in zip(processes, errors, strict=True) if process.returncode]
    if failed:
        raise UserError(last_line(failed[0]))
    return "both ended well"


def last_line(text: str) -> str:
    """What a program said last; empty if it said nothing."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _words(folder: Path, scale: Scale, *more: str) -> list[str]:
    return [*TRAIN, *more, *SHORT_RUN, f"train.device={scale.device}", f"output_dir={folder}"]


def _train(folder: Path, scale: Scale, *more: str) -> None:
    done = subprocess.run(_words(folder, scale, *more), capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(last_line(done.stderr))


def _bench(names, words: tuple[str, ...], folder: str, scale: Scale) -> mixer_cost.Bench:
    overrides = [*words, f"train.device={scale.device}"]
    return mixer_cost.Bench(names, overrides, folder, scale.short_side, True, scale.sizes)


def _plain_step(trainer, batch: StepBatch) -> None:
    """torchvision's own step on the student's images, and detection on the teacher's."""
    state, source, target = trainer.state, batch.source, batch.target
    student, teacher = state.detector.model.train(), state.teacher.module.model.eval()
    height = min(source.strong.sizes[0])
    for model in (student, teacher):  # torchvision would enlarge them
        model.transform.min_size, model.transform.max_size = (height,), longest_of(height)
    for part in (student.rpn, student.roi_heads):
        part.fg_bg_sampler.ranks = None  # of our own step
    with torch.no_grad(), trainer.fabric.autocast():
        teacher(_images(target.weak))
    truths = [{"boxes": truth.boxes, "labels": truth.classes + 1} for truth in (*source.truths, *target.truths)]
    with trainer.fabric.autocast():
        losses = student(_images(source.strong) + _images(target.strong), truths)
    trainer.fabric.backward(sum(losses.values()))
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)


def _images(view: ImageBatch) -> list[torch.Tensor]:
    pixels = view.to_float().pixels
    return [pixels[index, :, :height, :width] for index, (height, width) in enumerate(view.sizes)]


def _pass_through(body: nn.Module, images: torch.Tensor, fabric) -> None:
    with fabric.autocast():
        total = sum(level.float().mean() for level in body(images).values())
    total.backward()


def _median(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} s"


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def checks_of(precisions: tuple[str, ...]) -> dict[str, Callable[[Scale], str]]:
    """By name, the most important ones first.

    Args:
        precisions: of `train.precision` that the device has.
    """
    result: dict[str, Callable[[Scale], str]] = {
        "killed and resumed": killed_and_resumed,
        "two processes on one device": two_processes,
    }
    for precision in precisions:
        words = (f"train.precision={precision}",)
        result[f"Detectron2 {NETWORK}, {precision}"] = partial(detectron2_steps, words, NETWORK)
        result[f"torchvision {NETWORK}, {precision}"] = partial(torchvision_steps, words)
    return result | {
        "every mixer": every_mixer,
        "torch.compile": compiled_backbone,
        "channels last, torchvision": partial(channels_last, torchvision_seconds),
        "channels last, Detectron2": partial(channels_last, detectron2_seconds),
        "Detectron2 R50-C4, bf16": partial(detectron2_steps, ("train.precision=bf16",), "R50-C4"),
    }
