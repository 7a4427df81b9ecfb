"""One process at a time in the folder of a run."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lossmix_det.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other processes out of it within the block.

    The lock ends with the process, however that ends.

    Raises:
        UserError: it cannot be written to, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except OSError as error:
        raise UserError(f"output_dir={folder} cannot be written to ({error})") from None
    with open(folder / ".lock", "w") as file:
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # processes that load data do not inherit it
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise UserError(
                        f"{folder}: another process is training in it; stop that one or give another output_dir"
                    ) from None
        yield
