"""Convert a data set to VOC, COCO or YOLO."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lossmix_det.commands.options import run_tool
from lossmix_det.config import Config, DatasetConfig, load_config
from lossmix_det.errors import UserError, pick

if TYPE_CHECKING:
    from lossmix_det.data.records import ImageSet

NAME = "source"  # of the data set that is read
KEYS = [spec.name for spec in fields(DatasetConfig) if spec.name not in ("root", "split")]


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog=prog, description="Convert a data set to VOC, COCO or YOLO.")
    parser.add_argument("root", type=Path, help="folder of the data set")
    parser.add_argument("output", type=Path, help="new folder; it must not exist, or be empty")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="voc, coco or yolo")
    parser.add_argument("--splits", nargs="+", default=[""], metavar="SPLIT", help="default: the data set has none")
    parser.add_argument("--images", default="link", metavar="HOW", help="link (the default) or copy the images")
    parser.epilog = f"KEY=VALUE settings of the data set may follow: {', '.join(KEYS)}; also data.on_error=skip."
    return parser


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; returns its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    settings = [word for word in words if "=" in word and (word.startswith("data.") or word.partition("=")[0] in KEYS)]
    options = build_parser(prog).parse_args([word for word in words if word not in settings])
    return run_tool(lambda: _run(options, settings))


def _run(options: argparse.Namespace, settings: list[str]) -> int:
    config = _config(options.root, settings)
    from lossmix_det.data.writers import ALL, ONE_SPLIT, PUT, WRITERS  # loads torch

    kind, put = pick(WRITERS, options.to, "--to"), pick(PUT, options.images, "--images")
    _check(options)
    sets = {split or ONE_SPLIT.get(options.to, ALL): _load(config, split) for split in options.splits}
    classes = list(dict.fromkeys(name for image_set in sets.values() for name in image_set.classes))
    with _draft(options.output.resolve()) as draft:  # a link to an empty folder stays one
        writer = kind(draft, classes, put)
        for split, image_set in sets.items():
            writer.write(split, image_set)
        writer.finish()
    for split, image_set in sets.items():
        _report(split, image_set)
    for line in writer.lost:
        print(line)
    if any(not image_set.records.exif.all() for image_set in sets.values()):
        print("set exif: ignore for the new data set too, because its images are the same")
    print(f"{options.to} in {options.output}")
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse a folder that holds anything, and splits that are no names."""
    output = options.output
    if os.path.lexists(output) and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is not empty; give a new folder")
    if output.resolve() == Path.cwd():
        raise UserError(f"{output} is the folder that you are in, which cannot be replaced; give a new one")
    if any(set("/\\") & set(split) or split.startswith(".") for split in options.splits):
        raise UserError(f"--splits {' '.join(options.splits)}: a split is a name, not a path")


@contextmanager
def _draft(output: Path) -> Iterator[Path]:
    """A new folder beside the output, which takes its place once all is written; else it is removed."""
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        draft.mkdir()
        yield draft
        os.replace(draft, output)  # an empty folder is replaced, a full one is not
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _config(root: Path, settings: list[str]) -> Config:
    """The configuration with the one data set."""
    words = [word if word.startswith("data.") else f"datasets.{NAME}.{word}" for word in settings]
    config = load_config(None, words)
    config.data.remember = False
    config.datasets[NAME] = replace(config.datasets.get(NAME, DatasetConfig()), root=str(root))
    return config


def _load(config: Config, split: str) -> ImageSet:
    from lossmix_det.data.catalog import load

    config.datasets[NAME].split = split
    return load(NAME, config)


def _report(split: str, image_set: ImageSet) -> None:
    problems = image_set.problems
    for title, lines in (("skipped", problems.skipped), ("left out", problems.left_out), ("noted", problems.notes)):
        for line in lines:
            print(f"{title}: {line}")
    print(f"{split}: {len(image_set)} images, {len(image_set.records.boxes)} boxes")
