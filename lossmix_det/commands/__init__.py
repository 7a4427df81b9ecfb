"""The commands. A new one is a file with ``main(arguments, prog)`` that parses, calls and prints, and a line here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from lossmix_det.commands.options import run_tool
from lossmix_det.errors import pick

# By name: the module with its ``main``, imported when the command is called, and what the command does.
COMMANDS = {
    "init_config": ("lossmix_det.commands.init_config", "write a configuration for folders of your own"),
    "check_dataset": ("lossmix_det.commands.check_dataset", "read all images and annotations, and report their faults"),
    "train": ("lossmix_det.commands.train", "train or resume a detector"),
    "evaluate": ("lossmix_det.commands.evaluate", "score a detector on the test sets"),
    "report": ("lossmix_det.commands.report", "write the page of a run, or of several side by side"),
    "predict": ("lossmix_det.commands.predict", "detect on images and videos, and draw what was found"),
    "export": ("lossmix_det.commands.export", "write a detector as an ONNX file, with a card"),
    "convert": ("lossmix_det.commands.convert", "convert a data set to VOC, COCO or YOLO"),
    "visualize_mixing": ("lossmix_det.commands.visualize_mixing", "draw mixed images with what is taught on them"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The program ``lossmix``: call the command that is named first; returns its exit status."""
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="lossmix",
        description="LossMix and domain adaptation for object detection.",
        epilog="\n".join(["commands:", *(f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", help="one of those below; COMMAND --help lists its options")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its options and settings")
    options = parser.parse_args(arguments)
    return run_tool(lambda: _call(options.command, options.arguments))


def _call(name: str, arguments: list[str]) -> int:
    module, _ = pick(COMMANDS, name, "command")
    return import_module(module).main(arguments, f"lossmix {name}")
