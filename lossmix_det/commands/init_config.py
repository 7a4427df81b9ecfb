"""Write a configuration for folders of your own."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from lossmix_det.commands.options import quiet, run_tool
from lossmix_det.config import load_config
from lossmix_det.errors import UserError

SCRIPTS = {"train": "train_net.py", "predict": "predict.py"}  # beside the script that was called


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write a configuration that trains on your folders as it is. Formats (VOC, COCO, YOLO, Hugging "
        "Face, plain images) and splits are told from the folders; FOLDER:SPLIT names a split.",
    )
    parser.add_argument("source", metavar="SOURCE", help="folder of labelled images to train on")
    parser.add_argument("target", metavar="TARGET", nargs="?", help="folder of images to adapt to; needs no labels")
    parser.add_argument("--target-test", metavar="DIR", help="labelled images of the target, to score on")
    parser.add_argument("--output", type=Path, metavar="FILE", help="new YAML file; default: configs/my.yaml")
    return parser


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser(prog).parse_args(arguments)
    return run_tool(lambda: _run(options, prog))


def _run(options: argparse.Namespace, prog: str | None) -> int:
    output = options.output or (Path("configs") if Path("configs").is_dir() else Path()) / "my.yaml"
    if os.path.lexists(output):
        raise UserError(f"{output} exists already; name another file by --output, because nothing is written over")
    if options.target_test and not options.target:
        raise UserError("--target-test needs TARGET, the images to adapt to")
    from lossmix_det.data.parts import Place  # loads torch
    from lossmix_det.files import write_atomically
    from lossmix_det.training.first_config import Folders, first_config

    words = (options.source, options.target, options.target_test)
    folders = Folders(*(word and Place.parse(word) for word in words))
    train = f"{_program('train', prog)} --config-file {shlex.quote(str(output))}"
    with quiet("lossmix_det.data"):  # of every format that is tried
        text, remarks = first_config(folders, output, train)
    write_atomically(output, text)
    load_config(output)  # as the run will
    for remark in remarks:
        print(f"note: {remark}")
    print(f"wrote {output}; next:\n  {train}")
    print(f"  {_program('predict', prog)} runs/{shlex.quote(output.stem)} {_pictures(options)}")
    return 0


def _pictures(options: argparse.Namespace) -> str:
    """The folder to detect on, without a split."""
    word = options.target or options.source
    return shlex.quote(word if Path(word).expanduser().is_dir() else word.rpartition(":")[0])


def _program(command: str, prog: str | None) -> str:
    """How a command is called from here: as this one was."""
    called = Path(sys.argv[0])
    if prog is None:
        python = "python" if shutil.which("python") == sys.executable else shlex.quote(sys.executable)
        return f"{python} {shlex.quote(str(called.with_name(SCRIPTS[command])))}"
    installed = shutil.which("lossmix")
    known = installed is not None and called.exists() and os.path.samefile(installed, called)
    return f"{'lossmix' if known else shlex.quote(str(called))} {command}"
