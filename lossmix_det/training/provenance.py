"""What a run began with and what it was resumed with, as `run.json` and `config.yaml` in its folder."""

from __future__ import annotations

import json
import logging
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lossmix_det.config import Config, as_dict, flat, save_config
from lossmix_det.data.records import ImageSet
from lossmix_det.errors import first_line
from lossmix_det.files import set_aside, write_atomically

log = logging.getLogger(__name__)

PACKAGES = (
    "lossmix-det",
    "torch",
    "torchvision",
    "lightning-fabric",
    "albumentations",
    "opencv-python-headless",
    "numpy",
    "pycocotools",
    "omegaconf",
)


def describe(folder: Path, config: Config, device: str, sets: list[ImageSet], step: int = 0) -> None:
    """Write down in the folder of a run what it is made of.

    A run that begins writes ``run.json`` and ``config.yaml``. A run that resumes leaves both as they are, but for an
    entry in ``run.json`` under ``resumed``; with other settings than before, they are written to
    ``config.resumed_at_<step>.yaml``.

    Args:
        folder: of the run.
        config: of this start.
        device: that it runs on.
        sets: all data sets.
        step: that it resumes at; 0: it begins.
    """
    about = read_run(folder) if step else None
    if step and about is None and (folder / "run.json").is_file():
        set_aside(folder / "run.json")
    datasets = {one.name: {"images": len(one), "fingerprint": one.fingerprint} for one in sets}
    if about is None:
        save_config(config, folder / "config.yaml")
        about = {**_start(step, device), "seed": config.train.seed, "datasets": datasets, "config": as_dict(config)}
        about["resumed"] = []
    else:
        changed = changes(settings_of(about), flat(as_dict(config)))
        about.setdefault("resumed", []).append({**_start(step, device), "changed": changed})
        about["datasets"] = about.get("datasets", {}) | datasets
        if changed:
            save_config(config, folder / f"config.resumed_at_{step}.yaml")
    write_atomically(folder / "run.json", json.dumps(about, indent=2) + "\n")


def read_run(folder: Path) -> dict[str, Any] | None:
    """What ``run.json`` in the folder of a run says; None if there is no readable one."""
    path = folder / "run.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings_of(content)  # whether all that it needs is there
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s cannot be read (%s: %s)", path, type(error).__name__, first_line(error))
        return None
    return content


def settings_of(about: dict[str, Any]) -> dict[str, Any]:
    """The settings that a run was last started with, by dotted key.

    Args:
        about: what `read_run` gave: the settings that it began with, and the changes of each resumption.
    """
    settings = flat(about["config"])
    for entry in about.get("resumed", []):
        settings |= {key: now for key, (_, now) in entry["changed"].items()}
    return settings


def changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """By dotted key, the values [before, now] of the settings that differ; a setting that is missing is null."""
    keys = dict.fromkeys([*now, *before])
    return {key: [before.get(key), now.get(key)] for key in keys if before.get(key) != now.get(key)}


def name_of(device: torch.device) -> str:
    """A device as people call it: ``cpu``, or ``cuda:0 (NVIDIA H100)``."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _start(step: int, device: str) -> dict[str, Any]:
    """When, where and with what a run is started."""
    return {
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "step": step,
        "device": device,
        "cpu_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        "git_revision": git_revision(),
    }


def git_revision() -> str | None:
    """Commit of the source tree, with ``+changes`` if it differs; None if this file is not in a repository."""
    file = Path(__file__).resolve()
    name_of_commit = ["describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    commands = (["ls-files", "--error-unmatch", file.name], name_of_commit)  # first: is the file of that repository?
    try:
        for words in commands:
            line = ["git", "-C", str(file.parent), *words]
            done = subprocess.run(line, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
