"""One burn-in for all methods of a comparison that would take the same one.

A run that continues from another's state ends exactly as if it had burned in itself, so that no score depends on it.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

from lossmix_det.config import Config, as_dict, flat
from lossmix_det.files import read_checkpoint
from lossmix_det.training.checkpoints import Checkpoints
from lossmix_det.training.run_lock import run_lock

log = logging.getLogger(__name__)

LATER = ("output_dir", "pseudo_labels.", "alignment.", "train.loss_weights.alignment")  # settings without effect on it
ROWS = ("metrics.csv", "scores.csv", "speed.csv")  # a run that resumes drops the rows of later steps


def lenders_of(settings: dict[Path, Config]) -> dict[Path, Path]:
    """By run, the other run at whose end of burn-in it may begin: the first with the same burn-in.

    Args:
        settings: of each run, by its folder.
    """
    first: dict[str, Path] = {}
    result = {}
    for folder, config in settings.items():
        if config.data.target and config.adaptation.burn_in_steps:
            lender = first.setdefault(_burn_in_of(config), folder)
            if lender != folder:
                result[folder] = lender
    return result


def _burn_in_of(config: Config) -> str:
    """All settings that burn-in depends on: not pseudo-labels nor alignment, and mixing only where burn-in mixes."""
    share = config.mixing.in_burn_in.probability
    later = (*LATER, *(() if share else ("mixing.",)))
    settings = flat(as_dict(config))
    return json.dumps({name: value for name, value in settings.items() if not name.startswith(later)}, sort_keys=True)


def borrow(lender: Path, borrower: Path) -> None:
    """Let a run that has not begun start from the state in which another one ended burn-in, if it has done so.

    Args:
        lender, borrower: folders of the runs.

    Raises:
        UserError: another process trains in the borrower's folder.
    """
    with run_lock(borrower):
        _borrow(lender, borrower)


def _borrow(lender: Path, borrower: Path) -> None:
    lent, borrowed = Checkpoints(lender / "checkpoints", 1), Checkpoints(borrower / "checkpoints", 1)
    if borrowed.paths() or not lent.burned_in.is_file():
        return
    borrowed.folder.mkdir(parents=True, exist_ok=True)
    content = read_checkpoint(lent.burned_in)
    best = content["best"]
    if best and read_checkpoint(lent.best)["step"] == best["step"]:
        shutil.copy2(lent.best, borrowed.best)
    else:  # the lender has found a better one since
        content["best"] = None
    content["alignment"] = None  # discriminators have learned nothing yet, and are as the borrower's seed draws them
    for name in ROWS:
        shutil.copy2(lender / name, borrower / name)
    if (lender / "burn_in").is_dir():  # there are test sets
        shutil.copytree(lender / "burn_in", borrower / "burn_in", dirs_exist_ok=True)
    borrowed.save(content)  # last: from here on it has begun
    log.info("%s begins where %s ended the same burn-in, at step %d", borrower, lender, content["step"])
