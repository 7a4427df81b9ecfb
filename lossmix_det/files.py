"""Writing files whole or not at all, and reading tensors without running code."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from zipfile import ZipFile

import torch

from lossmix_det.errors import UserError, first_line

Value = TypeVar("Value")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one, whatever happens."""
    with growing(path) as file:
        # Bytes of a file's name that are not UTF-8 reach us as characters that have no encoding.
        file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def save_tensors(content: Any, path: Path, *copies: Path) -> None:
    """`torch.save`, atomically and on the disk before it returns.

    Args:
        content: serialised once.
        path: of the file; it takes its name last, so that where it exists the copies do too.
        copies: further names of the same file; where the file system has no links, real copies.
    """
    with growing(path) as file:
        watched = _Watched(file)
        try:
            torch.save(content, watched)
        except RuntimeError:  # torch's own, which says nothing of the disk
            raise watched.failure or OSError("torch could not write it") from None
        file.flush()
        os.fsync(file.fileno())  # no name may point at what is not on the disk
        for copy in copies:
            _link(Path(file.name), copy)


class _Watched:
    """A file that remembers why a write failed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.failure = file, None

    def write(self, content: bytes) -> int:
        """As of the file."""
        try:
            return self.file.write(content)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        """As of the file."""
        self.file.flush()


def mistaken(path: Path) -> str:
    """What a file is that was saved in the place of another: empty, a web page or a pointer of Git LFS; else nothing.

    Args:
        path: of a regular file.
    """
    with open(path, "rb") as file:
        head = file.read(100)
    if not head:
        return "it is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; fetch the file itself with git lfs pull"
    return (
        "it is a web page; download the file itself" if head.lstrip().lower().startswith((b"<!doc", b"<html")) else ""
    )


def set_aside(path: Path) -> Path:
    """Give a file that cannot be read another name, under which it is kept."""
    return path.replace(path.with_name(f"{path.name}.unreadable"))


def draft_of(path: Path) -> Path:
    """Where a file is written before it takes its name. Long names are cut, because file systems limit their length."""
    name = os.fsencode(path.name)[:LONGEST].decode(errors="ignore")  # whole characters alone
    return path.with_name(f".{name}.{os.getpid()}")


LONGEST = 200  # bytes of a name; most file systems take 255


def clear_drafts(folder: Path) -> None:
    """Remove what writes that were killed left in a folder; nobody else may be writing there."""
    for draft in folder.glob(".*"):
        if DRAFT.fullmatch(draft.name) and draft.is_file():
            draft.unlink(missing_ok=True)


DRAFT = re.compile(r"\..+\.\d+")  # .<name>.<process>


def _link(file: Path, copy: Path) -> None:
    """Give a file another name, in place of whatever has that name."""
    draft = draft_of(copy)
    draft.unlink(missing_ok=True)
    try:
        try:
            os.link(file, draft)
        except OSError:  # no links on this file system
            shutil.copyfile(file, draft)
            with open(draft, "rb") as written:
                os.fsync(written.fileno())
        os.replace(draft, copy)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def growing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside the path, which replaces it once it is whole and on the disk; else it is removed."""
    draft = draft_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(draft, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise OSError(f"{path} cannot be written ({reason}); what was there before is as it was") from error
    finally:
        with suppress(OSError):  # a folder that may no longer be written to
            draft.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours without unpickling code.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint.
    """
    try:
        content = _verified(path, torch.load)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except UserError:
        raise
    except pickle.UnpicklingError:  # torch advises to run the code that a file may hold
        raise UserError(f"{path}: damaged checkpoint, or of another program; use another, or copy it again") from None
    except Exception as error:  # torch raises almost anything on a damaged file
        raise UserError(f"{path}: damaged checkpoint ({first_line(error)})") from None
    if not isinstance(content, dict) or "student" not in content or "step" not in content:
        raise UserError(f"{path}: not a checkpoint of lossmix_det")
    return content


def read_model(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a file: bare, in the checkpoint of a training script, or of ours (its average if it has one).

    A name that ends in ``.safetensors`` is one of that format, as hubs give away.

    Other objects in the file, such as the arguments of a script, are passed over, and no code of theirs is run. A
    ``module.`` before every name is taken off.

    Raises:
        UserError: the file is missing, damaged, holds what cannot be read without running code, or no state dict.
    """
    try:
        content = _load_safetensors(path) if path.suffix == SAFE else _verified(path, _load_foreign)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint, export or state dict") from None
    except ModuleNotFoundError:
        raise UserError(
            f"{path} needs safetensors, which is not installed; install it by: pip install safetensors"
        ) from None
    except UserError:
        raise
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: refused: it is damaged, or holds {_named(_unsafe(path))}, which could run code; if you trust it, "
            f"save its weights alone: torch.save(torch.load({str(path)!r}, weights_only=False)['model'], 'weights.pth')"
        ) from None
    except Exception as error:  # torch raises almost anything on a damaged file
        raise UserError(f"{path}: cannot be read as weights ({first_line(error)})") from None
    state = _state_dict(content)
    if state is None:
        raise UserError(
            f"{path}: holds no state dict (a dictionary of tensors); write one by torch.save(model.state_dict(), …)"
        )
    return without_common(state, WRAPPERS)


# Where training scripts keep one; the average comes first.
STATE_DICTS = ("ema", "model_ema", "student", "model", "state_dict", "model_state_dict", "module", "net", "weights")
WRAPPERS = ("module.", "_orig_mod.")  # DataParallel, DDP; torch.compile


def _state_dict(content: Any) -> dict[str, torch.Tensor] | None:
    """The state dict that a file holds, bare or under one of the usual keys; None if there is none."""
    if not isinstance(content, dict) or not content:
        return None
    if all(isinstance(value, torch.Tensor) for value in content.values()):
        return dict(content)
    return next((found for key in STATE_DICTS if (found := _state_dict(content.get(key))) is not None), None)


def without_common(state: dict[str, Value], prefixes: Collection[str]) -> dict[str, Value]:
    """A state dict without the prefixes that all of its names begin with."""
    for prefix in prefixes:
        while state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


NUMBERED = re.compile(r"step_(\d+)\.pt")


def numbered_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints ``step_<step>.pt`` in a folder, latest last."""
    found = [(NUMBERED.fullmatch(path.name), path) for path in folder.glob("step_*.pt")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


# ---------------------------------------------------------------------------------------------- without running code


def _verified(path: Path, load: Callable[..., Any]) -> Any:
    """What a file of torch's holds, if its checksums hold; torch itself does not look at them.

    Files of torch before 1.6 have none.
    """
    if path.exists() and not path.is_file():  # a pipe would wait for its writer
        raise Damaged(f"{path}: is no regular file")
    reason = mistaken(path)
    if reason:
        raise Damaged(f"{path}: holds no weights; {reason}")
    with open(path, "rb") as file:
        if file.read(len(ZIP)) == ZIP:
            _check_archive(file, path)
    return load(path, map_location="cpu", weights_only=True)


SAFE = ".safetensors"


def _load_safetensors(path: Path) -> Any:
    """The tensors of a file that can hold nothing else."""
    from safetensors.torch import load_file

    return load_file(path)


def _check_archive(file: BinaryIO, path: Path) -> None:
    """Hold the parts of a file against their checksums."""
    names: list[str] = []
    try:
        with ZipFile(file) as archive:
            names = archive.namelist()
            damaged = archive.testzip() and "a checksum does not hold"
    except Exception as error:  # as many kinds as a damaged directory has ways to mislead
        damaged = first_line(error)
    if damaged:
        raise Damaged(f"{path}: damaged checkpoint ({damaged}); use another, or copy it again")
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(f"{path}: is a TorchScript archive; save the state dict of the model that it was made of")


class Damaged(UserError):
    """A file whose bytes are not those that were written."""


ZIP = b"PK\x03\x04"  # how such a file begins


class _Inert:
    """Takes the place of an object that is not read."""

    def __new__(cls, *_: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        """Nothing of it is kept."""

    def __setstate__(self, _: Any) -> None:
        """Nothing of it is kept."""


class _InertTable(_Inert):
    """Takes the place of a dictionary of another class, which pickle fills entry by entry."""

    def __new__(cls, *_: Any) -> dict[Any, Any]:
        return {}


def _load_foreign(path: Path, **settings: Any) -> Any:
    """`torch.load`, with something inert in the place of every object whose class torch does not know to be safe."""
    try:
        return torch.load(path, **settings)
    except pickle.UnpicklingError as error:
        names = _unsafe(path)
        for inert in (_Inert, _InertTable) if names else ():
            with torch.serialization.safe_globals([(inert, name) for name in names]), suppress(pickle.UnpicklingError):
                return torch.load(path, **settings)
        raise error


def _unsafe(path: Path) -> list[str]:
    """The classes and functions in a file of torch's that it does not know to be safe; none where it cannot tell."""
    list_names = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)  # torch 2.5
    with suppress(Exception):  # of a damaged file, or one before torch 1.6
        return sorted(list_names(path))
    return []


def _named(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + ("" if len(names) <= most else ", …") or "more than tensors"


# ----------------------------------------------------------------------------------------------------------- classes


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
        content = json.loads(path.read_text()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or "engine" not in content:
        return None
    classes = content.get("classes")
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return classes if named else None
