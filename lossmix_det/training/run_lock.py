"""One run at a time in a folder."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lossmix_det.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None


@contextmanager
def run_lock(folder: Path, first: bool = True, everywhere: Callable[[bool], bool] = bool) -> Iterator[None]:
    """Make the folder of a run, and keep other runs out of it within the block.

    The lock ends with the process, however that ends.

    Args:
        folder: of the run.
        first: this is the process of the run that holds the lock.
        everywhere: whether something holds on all processes of the run, which then stop together.

    Raises:
        UserError: it cannot be written to, or another process holds it.
    """
    file, problem = None, None
    try:
        file = _locked(folder) if first else None
    except UserError as error:
        problem = error
    if not everywhere(problem is None):
        raise problem or UserError(f"{folder} cannot be used")
    try:
        yield
    finally:
        if file is not None:
            file.close()


def _locked(folder: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115 - open as long as it is held
    except OSError as error:
        raise UserError(f"output_dir={folder} cannot be written to ({error})") from None
    if fcntl is not None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # processes that load data do not inherit it
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # else the file system knows no locks
                file.close()
                raise UserError(
                    f"{folder}: another process is training in it; stop that one or give another output_dir"
                ) from None
    return file
