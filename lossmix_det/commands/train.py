"""Train or resume a detector."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lossmix_det.commands.evaluate import RULE, evaluate
from lossmix_det.commands.options import add_processes, new_parser, parse, processes_of, run_tool
from lossmix_det.config import load_config


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options of the command."""
    parser = new_parser("Train, resume or evaluate a detector.", prog)
    parser.add_argument("--resume", action="store_true", help="continue the run in output_dir exactly where it stopped")
    parser.add_argument("--eval-only", action="store_true", help=f"train nothing; score {RULE}")
    add_processes(parser)
    return parser


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(build_parser(prog), arguments)
    return run_tool(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    config = load_config(options.config_file, options.overrides)
    # The heavy imports come after the configuration has been read, so that --help and misspelt keys answer at once.
    from lossmix_det.training.launch import launch, together
    from lossmix_det.training.trainer import Trainer

    fabric = launch(config, processes_of(options))
    with together(fabric):
        if options.eval_only:
            return evaluate(config, fabric, options.overrides)
        Trainer(config, fabric, resume=options.resume).train()
        return 0
