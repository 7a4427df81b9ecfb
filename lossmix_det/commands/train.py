"""The command line of `tools/train_net.py`: options that Detectron2's users know, then KEY=VALUE overrides."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from urllib.parse import urlparse

from lossmix_det.config import Config, load_config
from lossmix_det.errors import UserError

log = logging.getLogger(__name__)

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description="Train, resume or evaluate a detector. Without --config-file: the quick run on generated data.",
    )
    result.add_argument("--config-file", metavar="FILE", help="YAML; see configs/")
    result.add_argument("--eval-only", action="store_true", help="score model.weights, else the run's last checkpoint")
    result.add_argument("--resume", action="store_true", help="continue the run in output_dir exactly where it stopped")
    result.add_argument("--num-gpus", type=int, default=1, metavar="N", help="GPUs (or CPU processes) of this machine")
    result.add_argument("--num-machines", type=int, default=1, metavar="M", help="machines that train together")
    result.add_argument("--machine-rank", type=int, default=0, metavar="R", help="number of this machine, from 0")
    result.add_argument("--dist-url", default="", metavar="URL", help="tcp://host:port of machine 0")
    result.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, for example train.steps=1000")
    return result


def parse(options: argparse.ArgumentParser, words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line on which KEY=VALUE overrides may stand anywhere, also behind an option that takes a list."""
    words = list(sys.argv[1:] if words is None else words)
    keys = tuple(f.name for f in fields(Config))
    overrides = [word for word in words if re.match(rf"({'|'.join(keys)})[.=]", word) and "=" in word]
    found = options.parse_args([word for word in words if word not in overrides])
    found.overrides = [*overrides, *found.overrides]
    return found


def run_tool(action: Callable[[], int]) -> int:
    """Run a tool; what its user or the machine can mend becomes one sentence and status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for name in ("lightning", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return action()
    except (UserError, OSError) as error:  # the latter: a full disk, a folder that may not be written to
        print(f"error: {error}", file=sys.stderr)
        return 2


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(parser(), arguments)
    return run_tool(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    config = load_config(options.config_file, options.overrides)
    # The heavy imports come after the configuration has been read, so that --help and misspelt keys answer at once.
    from lossmix_det.training.trainer import Trainer

    fabric = launch(config, options)
    if options.eval_only:
        return _evaluate_only(config, fabric)
    Trainer(config, fabric, resume=options.resume).train()
    return 0


def launch(config: Config, options: argparse.Namespace):
    """Start Fabric's processes as the options ask; each of them runs the command from its start.

    Raises:
        UserError: the machine does not have what is asked for.
    """
    import torch
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    device = config.train.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device=cuda, but torch finds no GPU; set train.device=cpu, or install torch for CUDA")
    if device == "cuda" and torch.cuda.device_count() < options.num_gpus:
        raise UserError(f"{options.num_gpus} GPUs asked for, {torch.cuda.device_count()} found; lower --num-gpus")
    if device == "cpu" and config.train.precision == "fp16":
        raise UserError("train.precision=fp16 needs a GPU; use bf16 or 32 on a CPU")
    world = options.num_gpus * options.num_machines
    if options.num_gpus < 1 or options.num_machines < 1 or not 0 <= options.machine_rank < options.num_machines:
        raise UserError("--num-gpus and --num-machines must be at least 1, --machine-rank below --num-machines")
    sizes = {"batch_size": config.data.batch_size}
    if config.data.target and config.data.target_batch_size:
        sizes["target_batch_size"] = config.data.target_batch_size
    for name, size in sizes.items():
        if size % (world * config.train.accumulate):
            raise UserError(
                f"data.{name}={size} cannot be shared evenly by {world} processes"
                f" × train.accumulate={config.train.accumulate}"
            )
    _set_rendezvous(options)
    backend = "gloo" if device == "cpu" else "nccl"
    fabric = Fabric(
        accelerator=device,
        devices=options.num_gpus,
        num_nodes=options.num_machines,
        strategy=DDPStrategy(process_group_backend=backend) if world > 1 else "auto",
        precision=PRECISIONS[config.train.precision],
    )
    fabric.launch()
    if not fabric.is_global_zero:  # what goes wrong everywhere is said once
        logging.getLogger("lossmix_det").setLevel(logging.ERROR)
    return fabric


def _set_rendezvous(options: argparse.Namespace) -> None:
    if options.num_machines > 1:
        if not options.dist_url:
            raise UserError("--num-machines needs --dist-url tcp://host:port of machine 0")
        os.environ["NODE_RANK"] = str(options.machine_rank)
    if options.dist_url:
        try:
            url = urlparse(options.dist_url)
            host, port = url.hostname, url.port
        except ValueError:
            host = port = None
        if not host or not port or url.scheme != "tcp":
            raise UserError(f"--dist-url {options.dist_url!r} is not of the form tcp://host:port")
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = host, str(port)


def _evaluate_only(config: Config, fabric) -> int:
    """Score ``model.weights``, else the last checkpoint of ``output_dir``, without touching that run's own files."""
    from dataclasses import replace

    from rich.console import Console

    from lossmix_det.data.catalog import load_test_sets
    from lossmix_det.engines import build_detector, place
    from lossmix_det.evaluation import print_tables, write_results
    from lossmix_det.evaluation.scores import report_problems, score_models
    from lossmix_det.files import classes_of, write_atomically
    from lossmix_det.training.checkpoints import Checkpoints

    with fabric.rank_zero_first():
        test_sets = load_test_sets(config)
    if not test_sets:
        raise UserError("data.test is empty; name at least one data set to evaluate on")
    classes = test_sets[0].classes
    checkpoints = Checkpoints(Path(config.output_dir) / "checkpoints", config.train.keep_last)
    weights = config.model.weights or str(checkpoints.latest_readable() or "")
    if not weights:
        raise UserError(f"nothing to evaluate: {config.output_dir} has no checkpoint, and model.weights is empty")
    trained_on = classes_of(Path(weights))
    if trained_on and trained_on != classes:
        raise UserError(
            f"{weights} was trained on the classes {', '.join(trained_on)}, the test data has {', '.join(classes)}; "
            f"set data.classes to the former"
        )
    detector = build_detector(replace(config.model, weights=weights), len(classes), strict=True)
    detector = place(detector, fabric.device, config.train.channels_last)
    console = Console()
    results, detections, problems = score_models({"model": detector}, test_sets, config, fabric, console)
    if fabric.is_global_zero:
        folder = Path(config.output_dir) / "inference" / Path(weights).stem
        write_results(results, folder)
        for name, found in detections.items():
            write_atomically(folder / f"detections_{name}.json", json.dumps(found))
        report_problems(test_sets, problems, folder)
        log.info("evaluated %s", weights)
        print_tables(results, console)
        console.print(f"scores and detections are in {folder}", soft_wrap=True)
    return 0
