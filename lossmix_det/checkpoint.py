"""Saving and finding checkpoints: written beside and renamed, never half there."""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from lossmix_det.errors import UserError, first_line

log = logging.getLogger(__name__)

NAME = re.compile(r"step_(\d+)\.pt")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one, whatever happens."""
    with _draft(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def save_tensors(content: Any, path: Path) -> None:
    """`torch.save`, atomically and on the disk before it returns."""
    with _draft(path) as file:
        torch.save(content, file)


@contextmanager
def _draft(path: Path) -> Iterator[BinaryIO]:
    """A file beside, which takes the place of the path once it is whole and on the disk; else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(draft, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


class Checkpoints:
    """The checkpoints of one run: the last ``keep_last``, and the best.

    Args:
        folder: where they lie; need not exist.
        keep_last: how many of the latest to keep.
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder, self.keep_last = folder, keep_last

    @property
    def best(self) -> Path:
        return self.folder / "best.pt"

    def paths(self) -> list[Path]:
        """The numbered checkpoints, latest last."""
        found = [(NAME.fullmatch(path.name), path) for path in self.folder.glob("step_*.pt")]
        return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]

    @property
    def healthy(self) -> Path:
        """The last one from before anything looked like collapse."""
        return self.folder / "healthy.pt"

    @property
    def burned_in(self) -> Path:
        """The state in which adaptation begins; other adaptations may begin there too."""
        return self.folder / "burned_in.pt"

    def save(self, content: dict[str, Any], is_best: bool = False, is_healthy: bool = False) -> Path:
        """Write ``step_<step>.pt``, and the same as ``best.pt`` or ``healthy.pt``; then delete what is over."""
        path = self.folder / f"step_{content['step']:07d}.pt"
        for wanted, copy in ((is_best, self.best), (is_healthy, self.healthy)):
            if wanted:
                save_tensors(content, copy)
        save_tensors(content, path)
        for old in self.paths()[: -self.keep_last]:
            old.unlink()
        return path

    def rewind(self, content: dict[str, Any]) -> None:
        """Make an earlier step the latest: write it, and only then delete those that came after."""
        save_tensors(content, self.folder / f"step_{content['step']:07d}.pt")
        for path in self.paths():
            if int(NAME.fullmatch(path.name)[1]) > content["step"]:
                path.unlink()

    def latest_readable(self) -> Path | None:
        """The latest checkpoint that can be read, as a path."""
        content = self.load_latest()
        return self.folder / f"step_{content['step']:07d}.pt" if content else None

    def load_latest(self) -> dict[str, Any] | None:
        """The latest checkpoint that can be read; one that cannot is named and passed over. None if there is none.

        Raises:
            UserError: there are checkpoints, but none can be read.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                return read_checkpoint(path)
            except UserError as error:
                log.warning("%s; falling back to the one before", error)
        if paths:
            raise UserError(f"{self.folder}: none of its {len(paths)} checkpoints can be read; use another output_dir")
        return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours without unpickling code.

    Raises:
        UserError: the file is missing, damaged, or no checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch raises almost anything on a damaged file
        raise UserError(f"{path}: damaged checkpoint ({first_line(error)})") from None
    if not isinstance(content, dict) or "student" not in content or "step" not in content:
        raise UserError(f"{path}: not a checkpoint of lossmix_det")
    return content


def read_model(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a file: bare, under ``model``, or of a checkpoint of ours (its average if it has one).

    Raises:
        UserError: the file is missing, damaged, holds more than tensors, or no state dict.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint, export or state dict") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: refused: it is damaged, or holds more than tensors; save the bare state dict with torch.save"
        ) from None
    except Exception as error:  # torch raises almost anything on a damaged file
        raise UserError(f"{path}: cannot be read as weights ({first_line(error)})") from None
    if isinstance(content, dict) and "student" in content:
        content = content.get("ema") or content["student"]
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise UserError(f"{path}: holds no state dict (a dictionary of tensors)")
    return content


def classes_of(weights: Path) -> list[str] | None:
    """The class names that a checkpoint of ours, or the JSON beside an export, records; None if there are none."""
    if weights.with_suffix(".json").is_file():
        about = json.loads(weights.with_suffix(".json").read_text())
        return about.get("classes") if isinstance(about, dict) else None
    try:
        return read_checkpoint(weights)["classes"]
    except (UserError, KeyError):
        return None


def random_state() -> dict[str, Any]:
    """Every global generator's state, as numbers and tensors."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
