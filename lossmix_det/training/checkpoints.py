"""The checkpoints of a run, and the state of its random number generators."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lossmix_det.errors import UserError
from lossmix_det.files import NUMBERED, clear_drafts, numbered_checkpoints, read_checkpoint, save_tensors

log = logging.getLogger(__name__)


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
        """The one with the best value of ``train.best_metric``."""
        return self.folder / "best.pt"

    def paths(self) -> list[Path]:
        """The numbered checkpoints, latest last."""
        return numbered_checkpoints(self.folder)

    @property
    def healthy(self) -> Path:
        """The last one from before anything looked like collapse."""
        return self.folder / "healthy.pt"

    @property
    def burned_in(self) -> Path:
        """The state in which adaptation begins; other adaptations may begin there too."""
        return self.folder / "burned_in.pt"

    def save(self, content: dict[str, Any], *copies: Path) -> Path:
        """Write ``step_<step>.pt`` once, and make it known under further names; then delete earlier ones that are over.

        Later ones are of a run that fell back from them; they count for nothing until they are written anew.

        Args:
            content: of the checkpoint.
            copies: of `best`, `healthy` and `burned_in`.
        """
        path = self.folder / f"step_{content['step']:07d}.pt"
        save_tensors(content, path, *copies)
        paths = self.paths()
        for old in paths[: paths.index(path) + 1][: -self.keep_last]:
            old.unlink()
        return path

    def rewind(self, content: dict[str, Any]) -> None:
        """Make an earlier step the latest: write it, and only then delete those that came after."""
        save_tensors(content, self.folder / f"step_{content['step']:07d}.pt")
        for path in self.paths():
            if int(NUMBERED.fullmatch(path.name)[1]) > content["step"]:
                path.unlink()

    def latest_readable(self) -> Path | None:
        """The latest checkpoint that can be read, as a path."""
        content = self.load_latest()
        return self.folder / f"step_{content['step']:07d}.pt" if content else None

    def load_latest(self, check: Callable[[dict[str, Any]], None] = lambda content: None) -> dict[str, Any] | None:
        """The latest checkpoint that can be used; one that cannot is named and passed over. None if there is none.

        Args:
            check: raises `Unfit` for a content that is not what it should be.

        Raises:
            UserError: there are checkpoints, but none can be used.
        """
        paths = self.paths()
        for path in reversed(paths):
            content = self._read(path)
            if content is None:
                continue
            try:
                check(content)
            except Unfit as error:
                log.warning("%s: unexpected content (%s); falling back to the one before", path, error)
            else:
                return content
        if paths:
            raise UserError(
                f"{self.folder}: none of its {len(paths)} checkpoints can be read (see above); use another output_dir"
            )
        return None

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            return read_checkpoint(path)
        except UserError as error:
            log.warning("%s; falling back to the one before", error)
            return None

    def clear_drafts(self) -> None:
        """Remove what runs that were killed while they wrote a checkpoint left; under the lock of the run."""
        clear_drafts(self.folder)


class Unfit(UserError):
    """The content of a checkpoint is not what it should be."""


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
    """Set every global generator to what `random_state` gave."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
