"""Small real runs, in this process or as the command that people type."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import torch
from lightning_fabric import Fabric
from rich.console import Console

from lossmix_det.config import Config, load_config
from lossmix_det.files import read_checkpoint
from lossmix_det.training.checkpoints import Checkpoints
from lossmix_det.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "shapes.train_images=12",
    "shapes.test_images=6",
    "shapes.size=64",
    "data.augment.min_sizes=[64]",
    "data.batch_size=4",
    "data.workers=0",
    "data.test=[shapes_clipart_test]",
    "model.roi_samples=16",
    "optimizer.warmup_steps=2",
    "train.log_every=1",
    "train.device=cpu",
    "train.report=false",
]


def trainer(folder: Path, *overrides: str, resume: bool = False, config: Config | None = None) -> Trainer:
    config = config or load_config(None, [*TINY, f"output_dir={folder}", *overrides])
    precision = {"32": "32-true", "bf16": "bf16-mixed"}[config.train.precision]
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    fabric.launch()
    return Trainer(config, fabric, resume=resume, console=Console(file=io.StringIO()))


class AsRank:
    """A Fabric that says it is another process."""

    def __init__(self, fabric, rank: int) -> None:
        self.fabric, self.global_rank = fabric, rank

    def __getattr__(self, name: str):
        return getattr(self.fabric, name)


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / "train_net.py"), *arguments, *TINY, f"output_dir={folder}"]


def run(folder: Path, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the command with options, then overrides after them."""
    options = [word for word in arguments if "=" not in word]
    overrides = [word for word in arguments if "=" in word]
    return subprocess.run(
        [*command(folder, *options), *overrides],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=env(),
    )


def env() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def last_checkpoint(folder: Path) -> dict:
    return read_checkpoint(Checkpoints(folder / "checkpoints", 1).paths()[-1])


def assert_same_tensors(first: object, second: object, where: str = "") -> None:
    """Bit for bit, through dictionaries and lists."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same_tensors(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same_tensors(*pair, f"{where}[{index}]")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        both_nan = first != first and second != second  # noqa: PLR0124 - that is what nan is
        assert first == second or both_nan, where
