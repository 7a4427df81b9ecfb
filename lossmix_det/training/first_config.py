"""A configuration for folders of which nothing is known: what their files tell, and settings for the device at hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lossmix_det.config import Config, DatasetConfig
from lossmix_det.data.catalog import load, load_target
from lossmix_det.data.formats import FORMATS
from lossmix_det.data.parts import TEST, TRAIN, VALIDATION, Place, settled
from lossmix_det.data.paths import unread_labels
from lossmix_det.data.records import ImageSet, RawImage, class_names
from lossmix_det.engines.timm_weights import LITE0_ARCHITECTURE, LITE0_PACKAGE
from lossmix_det.errors import UserError, nearest
from lossmix_det.training.launch import AUTOMATIC

HOLDOUT = 0.1  # share of a source without splits
BURN_IN = 2 / 3  # of the steps, where there is a target
STEP = 32  # pixels, of image sizes


@dataclass(frozen=True)
class Device:
    """What a kind of device can train in an hour or so.

    Args:
        batch_size: images per step.
        epochs: over the source, before adaptation.
        steps: least and most of them.
        box: side in pixels that the median box is to have.
        size: least and most shorter side of images in pixels.
        precision, workers: of ``train`` and ``data``.
    """

    batch_size: int
    epochs: int
    steps: tuple[int, int]
    box: int
    size: tuple[int, int]
    precision: str = "32"
    workers: int = 1


DEVICES = {
    "cpu": Device(4, 15, (600, 1200), 32, (128, 320)),
    "cuda": Device(16, 30, (1500, 12000), 64, (320, 800), "bf16", 4),
}


def _model_settings(device: str) -> dict[str, Any]:
    """The ``model`` branch: EfficientNet-Lite0 with ImageNet weights where the extra ``lite0`` is installed.

    Without it a network of random weights. On a CPU its pyramid is narrow and few regions are sampled, because a step
    at full width takes several times as long.
    """
    if find_spec(LITE0_PACKAGE) and find_spec("timm"):
        narrow = {"cpu": {"fpn_channels": 64, "roi_samples": 128}, "cuda": {}}[device]
        return {"architecture": LITE0_ARCHITECTURE, "weights": "lite0", **narrow}
    return {"cpu": {"architecture": "slim"}, "cuda": {"architecture": "resnet18_fpn"}}[device]


@dataclass(frozen=True)
class Declared:
    """A data set of the new configuration.

    Args:
        entry: its declaration.
        found: its images and boxes, of all its classes.
        names: of the classes that its boxes have.
    """

    entry: DatasetConfig
    found: ImageSet
    names: list[str]

    @property
    def labelled(self) -> bool:
        """Whether there is a box."""
        return bool(self.names)


@dataclass(frozen=True)
class Folders:
    """What a command line names.

    Args:
        source: with labels.
        target: to adapt to, with labels or without.
        target_test: with labels.
    """

    source: Place
    target: Place | None = None
    target_test: Place | None = None


def first_config(folders: Folders, output: Path, command: str) -> tuple[str, list[str]]:
    """The text of a configuration that trains as it is, and what is to be said about it.

    Args:
        folders: of the data.
        output: where the text will lie; its name becomes that of the run.
        command: that starts the run, for the first line.

    Raises:
        UserError: a folder is of no known format, holds no image, or the source no box.
    """
    sets, remarks = _declare(folders)
    classes = _classes(sets, remarks)
    device = AUTOMATIC["auto"]()
    groups = _groups(sets, classes, device)
    if "weights" not in groups["model"]:
        remarks.append(
            "it begins with random weights; for ImageNet's, which do better, install the extra lite0 and write it again"
        )
    text = _header(command, device, len(sets["source_train"].found)) + f"output_dir: {_flow(f'runs/{output.stem}')}\n\n"
    text += _datasets(sets, classes) + "\n"
    for name, settings in groups.items():
        text += f"{name}:\n" + "".join(_line(name, key, value) for key, value in settings.items())
    return text, remarks


# ------------------------------------------------------------------------------------------------------ the data sets


def _declare(folders: Folders) -> tuple[dict[str, Declared], list[str]]:
    """The data sets by name, and what was chosen for want of anything better."""
    remarks: list[str] = []
    train, validation = _source(folders.source, remarks)
    if not FORMATS[train.format].labelled:
        hint = unread_labels(folders.source.root)
        raise UserError(f"{folders.source.root}: read as {train.format}, and holds no box to learn from{hint}")
    sets = dict(zip(("source_train", "source_val"), _declared([train, validation], remarks), strict=True))
    if not sets["source_train"].labelled:
        raise UserError(
            f"{folders.source.root}: read as {train.format}, and none of its images has a box to learn from"
        )
    if any(map(_faults, sets.values())):
        remarks.append("some images or boxes of the source cannot be used; check_dataset lists them")
    if folders.target is not None:
        entries = filter(None, _target(folders.target, folders.target_test))
        sets |= dict(zip(("target_train", "target_test"), _declared(entries, remarks, labelled=False), strict=False))
        scored = sets.get("target_test")
        if scored is not None and not scored.labelled:
            raise UserError(f"{scored.entry.root}: read as {scored.entry.format}, and holds no box to measure with")
        _check_apart(sets["source_train"].entry, sets["target_train"].entry)
        if "target_test" not in sets and sets["target_train"].labelled:
            remarks.append("the target has no test part: scores are those on the images that are adapted to")
        elif "target_test" not in sets:
            remarks.append("the target has no labels, so only the source is scored; give --target-test to score both")
    return sets, remarks


def _check_apart(source: DatasetConfig, target: DatasetConfig) -> None:
    if replace(source, holdout=0.0) == target:
        raise UserError(
            f"{target.root}: source and target are the same images, so there is nothing to adapt to; name another "
            "folder, or only the source, to train on it alone"
        )


def _source(place: Place, remarks: list[str]) -> tuple[DatasetConfig, DatasetConfig]:
    """What to train on and what to choose by."""
    train = None if place.split else place.part(TRAIN)
    if train is not None:
        validation = place.part((*VALIDATION, *TEST), labelled=True)
        if validation is not None:
            return train, validation
    train = train or place.whole()
    remarks.append(f"the source has no validation part, so {HOLDOUT:.0%} of its images are held out")
    return replace(train, holdout=HOLDOUT), replace(train, holdout=HOLDOUT, held_out=True)


def _target(place: Place, test: Place | None) -> tuple[DatasetConfig, DatasetConfig | None]:
    """What to adapt to, and what to score on if there is such a part."""
    train = None if place.split else place.part(TRAIN)
    if test is not None:
        scored = test.whole() if test.split else test.part((*TEST, *VALIDATION), labelled=True) or test.whole()
        return train or place.whole(), scored
    return (place.whole(), None) if train is None else (train, place.part((*TEST, *VALIDATION), labelled=True))


def _declared(entries: Iterable[DatasetConfig], remarks: list[str], *, labelled: bool = True) -> list[Declared]:
    """The parts of a data set, which need labels or not, read as a run will read them but for their classes."""
    found = settled(list(entries), labelled=labelled)
    roots = dict.fromkeys(entry.root for entry, _ in found if entry.format == "voc" and not entry.pixel_origin)
    remarks += [f"{root}: pixels are counted from 0, because some boxes begin there" for root in roots]
    return [_loaded(entry, images) for entry, images in found]


def _loaded(entry: DatasetConfig, images: list[RawImage]) -> Declared:
    config = Config()
    config.data.on_error, config.data.remember = "skip", False
    config.datasets["data"] = entry
    names = class_names(images)
    found = load("data", config, names) if names else load_target("data", config, ["none"])
    present = [name for index, name in enumerate(found.classes) if (found.records.classes == index).any()]
    return Declared(entry, found, present)


def _classes(sets: dict[str, Declared], remarks: list[str]) -> list[str]:
    """Those that the source has, and the labelled target too.

    Raises:
        UserError: they have none in common.
    """
    source = sets["source_train"].names
    targets = (sets[name] for name in ("target_test", "target_train") if name in sets)
    scored = next((each for each in targets if each.labelled), None)
    if scored is None:
        return source
    classes = [name for name in source if name in scored.names]
    strange = [f"{name!r}{nearest(name, source)}" for name in scored.names if name not in source]
    if not classes:
        raise UserError(
            f"source and target have no class in common: {', '.join(source)} there, {', '.join(scored.names)} here; "
            "rename one of them"
        )
    if len(classes) < len(source) or strange:
        left_out = ", ".join([*(repr(name) for name in source if name not in classes), *strange])
        remarks.append(f"classes that source and target share are learned; left out: {left_out}")
    return classes


def _faults(each: Declared) -> int:
    """How many of its images and boxes cannot be used."""
    return len(each.found.problems.skipped)


def _datasets(sets: dict[str, Declared], classes: list[str]) -> str:
    lines = ["datasets:\n"]
    defaults = DatasetConfig()
    for name, each in sets.items():
        entry = replace(each.entry, ignore_classes=[label for label in each.names if label not in classes])
        changed = {
            spec.name: getattr(entry, spec.name)
            for spec in fields(entry)
            if getattr(entry, spec.name) != getattr(defaults, spec.name)
        }
        boxes = f"{len(each.found.records.boxes)} boxes" if each.labelled else "no labels"
        faults = f", {_faults(each)} faults" if _faults(each) else ""
        lines.append(f"  # {len(each.found)} images, {boxes}{faults}\n  {name}: {_flow(changed)}\n")
    return "".join(lines)


# ------------------------------------------------------------------------------------------------------- the settings


def _groups(sets: dict[str, Declared], classes: list[str], device: str) -> dict[str, dict[str, Any]]:
    """The other branches of the configuration."""
    source, kind = sets["source_train"].found, DEVICES[device]
    adapts = "target_train" in sets
    steps = _rounded(np.clip(kind.epochs * len(source) / kind.batch_size, *kind.steps), 50)
    total = _rounded(steps / BURN_IN, 50) if adapts else steps
    faulty = any(map(_faults, sets.values()))
    tests = [name for name in ("source_val", "target_test") if name in sets]
    if adapts and "target_test" not in sets and sets["target_train"].labelled:
        tests.append("target_train")
    data = {"train": ["source_train"], **({"target": ["target_train"]} if adapts else {}), "test": tests}
    data |= {"classes": classes, "on_error": "skip" if faulty else "raise", "views": ["strong" if adapts else "weak"]}
    data |= {"batch_size": kind.batch_size, "workers": kind.workers, "augment": _augment(source, kind)}
    train = {"steps": total, "precision": kind.precision, "eval_every": _rounded(total / 4, 50)}
    train |= {"save_every": _rounded(total / 8, 50), "best_metric": "source_val/AP50"}
    groups = {"data": data, "model": _model_settings(device)}
    groups |= _adapting(steps) if adapts else _supervised()
    return groups | {"train": train}


def _supervised() -> dict[str, dict[str, Any]]:
    return {
        "mixing": {"rule": "lossmix", "probability": 0.5},
        "optimizer": {"name": "adamw", "lr": 0.0005, "warmup_steps": 100},
    }


def _adapting(burn_in_steps: int) -> dict[str, dict[str, Any]]:
    """Adaptive Teacher with LossMix, with soft pseudo-labels (ALDI, Kay et al., TMLR 2025).

    Hard ones teach each object without a label as background, and there are many such objects at a score that is right
    for images with few objects.
    """
    return {
        "mixing": {"rule": "lossmix", "probability": 0.5, "burn_in_probability": 0.0},
        "optimizer": {"name": "adamw", "lr": 0.0005, "warmup_steps": 100, "restart_lr": 0.0002},
        "ema": {"decay": 0.99, "warmup": False},
        "adaptation": {"burn_in_steps": burn_in_steps},
        "pseudo_labels": {"kind": "soft", "score": 0.8},
        "alignment": {"parts": ["image"]},
    }


def _augment(source: ImageSet, kind: Device) -> dict[str, Any]:
    """Sizes at which the median box is large enough to be seen, and images are not larger than they are."""
    shorter = float(np.median(source.records.sizes.min(axis=1)))
    longer = float((source.records.sizes.max(axis=1) / source.records.sizes.min(axis=1)).max())
    boxes = source.records.boxes
    side = float(np.median(np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))))
    least, most = kind.size
    size = _rounded(np.clip(min(shorter * kind.box / side, max(shorter, least)), least, most), STEP)
    sizes = sorted({max(size - STEP, 64), size, size + STEP})
    result = {"min_sizes": sizes, "test_size": size, "max_size": _rounded(min(longer, 2.5) * sizes[-1] + STEP, STEP)}
    return result | ({"blur": 0.0, "erasing": []} if size < 200 else {})


def _rounded(value: float, to: int) -> int:
    return max(to, int(round(value / to)) * to)


# ----------------------------------------------------------------------------------------------------------- the text

COMMENTS = {
    "data.target": "its labels, if it has any, only measure",
    "data.test": "best.pt is chosen by train.best_metric",
    "data.classes": "names that the detector learns; boxes of ignore_classes are left out",
    "data.on_error": "raise: stop at the first faulty image or box; skip: leave them out and list them",
    "data.views": "weak: flips and sizes; strong: colours, blur and erasing too",
    "data.augment": "shorter side in pixels, one drawn per image; larger is slower, and finds smaller objects",
    "model.architecture": "a backbone, see docs/backbones.md",
    "model.weights": "ImageNet weights, which come with the extra lite0",
    "mixing.probability": "share of the images that are mixed; 0: none",
    "optimizer.lr": "at this batch size",
    "optimizer.restart_lr": "with which adaptation begins",
    "ema.decay": "of the teacher, which is the average of the student",
    "adaptation.burn_in_steps": "on the source alone; the rest of train.steps adapts to the target",
    "pseudo_labels.kind": "soft: the student learns the teacher's scores; hard: its boxes, as if annotated",
    "pseudo_labels.score": "of a pseudo-label; lower it if the log says that there are none",
    "alignment.parts": "a discriminator makes features of both domains alike; []: none",
    "train.best_metric": "of the source: the target's labels are not to choose",
}


WIDTH = 120  # of a line with its comment


def _line(group: str, key: str, value: Any) -> str:
    """A setting with its comment behind it, or above it where the line would be long."""
    comment, line = COMMENTS.get(f"{group}.{key}"), f"  {key}: {_flow(value)}"
    if comment is None:
        return f"{line}\n"
    behind = f"{line}  # {comment}\n"
    return behind if len(behind) <= WIDTH else f"  # {comment}\n{line}\n"


def _header(command: str, device: str, images: int) -> str:
    hardware = HARDWARE[device]()
    return (
        f"# {command}\n"
        f"# Written by init_config for {images} training images. All settings: lossmix_det/config/.\n"
        f"# Hardware: made for {hardware}. Expected AP50: not yet run.\n"
    )


HARDWARE: dict[str, Callable[[], str]] = {
    "cpu": lambda: f"a CPU ({os.cpu_count()} cores here)",
    "cuda": lambda: "one GPU",
}


def _flow(value: Any) -> str:
    """A value on one line, as YAML reads it back to the same."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=float("inf"))
    return text.removesuffix("\n").removesuffix("...").rstrip()
