"""Writing files whole or not at all, and reading tensors without running code."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lossmix_det.errors import UserError, first_line


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one, whatever happens."""
    with _draft(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def save_tensors(content: Any, path: Path, *copies: Path) -> None:
    """`torch.save`, atomically and on the disk before it returns.

    Args:
        content: serialised once.
        path: of the file; it takes its name last, so that where it exists the copies do too.
        copies: further names of the same file; where the file system has no links, real copies.
    """
    with _draft(path) as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())  # no name may point at what is not on the disk
        for copy in copies:
            _link(Path(file.name), copy)


def _link(file: Path, copy: Path) -> None:
    """Give a file another name, in place of whatever has that name."""
    draft = copy.with_name(f".{copy.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    try:
        os.link(file, draft)
    except OSError:  # no links on this file system
        shutil.copyfile(file, draft)
        with open(draft, "rb") as written:
            os.fsync(written.fileno())
    os.replace(draft, copy)


@contextmanager
def _draft(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside the path, which replaces it once it is whole and on the disk; else it is removed."""
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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours without unpickling code.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint.
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
    """The class names that weights were trained on, in order; None if nothing says so.

    Args:
        weights: an export, whose classes stand in the JSON beside it, or a checkpoint of ours.
    """
    classes = _exported_classes(weights.with_suffix(".json"))
    if classes is not None:
        return classes
    try:
        return read_checkpoint(weights)["classes"]
    except (UserError, KeyError):
        return None


def _exported_classes(path: Path) -> list[str] | None:
    """The classes in a JSON that was written with an export; None for any other file, which is not ours to judge."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or "engine" not in content:
        return None
    classes = content.get("classes")
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return classes if named else None
