"""A network of timm (PyTorch Image Models) as the body of a feature pyramid: its levels, its stages, its norms.

timm is imported where it is needed, so that everything else works without it. What a network can do is found out by
running it once on a small image, because timm's families differ in how they are put together.
"""

from __future__ import annotations

import logging
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lossmix_det.engines.norms import KeepsFrozenStatistics, rest_frozen_norms
from lossmix_det.errors import UserError, first_line

log = logging.getLogger(__name__)

COARSEST = 32  # pixels from one cell to the next in the last level of a pyramid
# Multiples of that stride, and sizes that no network was made for: a small one, and one as long as photos are.
PROBE, LONG = (64, 96), (32, 640)
STAGES = 5  # of strides 2 to 32
NEEDS_TIMM = "{} needs timm, which is not installed; install it by: pip install timm"


def import_timm(setting: str) -> Any:
    """The module timm.

    Args:
        setting: that needs it, for the message.

    Raises:
        UserError: it is not installed.
    """
    try:
        import timm
    except ModuleNotFoundError:
        raise UserError(NEEDS_TIMM.format(setting)) from None
    return timm


def check_name(name: str, setting: str) -> None:
    """Refuse what timm has no network of.

    Args:
        name: of a network, with or without a tag of its weights behind a dot.
        setting: as the user writes it, with the name.

    Raises:
        UserError: timm has no such network; it says which names are like it.
    """
    timm = import_timm(setting)
    if not timm.is_model(name):
        close = get_close_matches(name.partition(".")[0], timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() in Python lists them"
        raise UserError(f"{setting}: timm has no network {name!r}; {hint}")


class TimmBody(KeepsFrozenStatistics):
    """A timm network that gives some of its features as levels by name.

    Args:
        name: of timm's, with or without a tag of its weights: ``convnext_tiny.in12k``.
        strides: of each level, by name; finest first.
        setting: that names the network, for messages: ``model.architecture=timm/convnext_tiny``.
        norm: ``frozen`` freezes every BatchNorm as timm does; ``batch`` leaves all norms as they are.
        drop_path: share of residual branches that is left out in training.

    Raises:
        UserError: timm is not installed, or the network is unknown or gives no such levels.
    """

    def __init__(
        self, name: str, strides: Mapping[str, int], setting: str, norm: str = "batch", drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.strides = dict(strides)
        self.arguments, self.net = _create(name, self.strides.values(), setting, drop_path)
        self.has_batch_norm = any(isinstance(part, _BatchNorm) for part in self.net.modules())
        self.net = NORMS[norm](self.net, setting)
        info = self.net.feature_info
        places = {stride: index for index, stride in enumerate(info.reduction())}  # of one stride, the last
        self.places = {level: places[stride] for level, stride in self.strides.items()}
        self.channels = {level: info.channels()[index] for level, index in self.places.items()}
        self.return_layers = {info.module_name()[index]: level for level, index in self.places.items()}
        self.mean, self.std = (tuple(self.net.pretrained_cfg[key]) for key in ("mean", "std"))
        self._stages = self._sort_parameters()
        self._ends: dict[str, str] | None = None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised images, sides multiples of 32, to levels (B, C, h, w) by name."""
        features, last = _features(self.net, images), _channels_last(self.net)
        levels = ((level, features[index]) for level, index in self.places.items())
        return OrderedDict((level, found.permute(0, 3, 1, 2) if last else found) for level, found in levels)

    def in_timms_names(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors of a classifier whose publisher named them otherwise than timm does, by timm's own rules.

        Args:
            state: of the published file.

        Returns:
            As it is if timm has no rules for the network, or they do not fit.
        """
        name = self.arguments["model_name"]
        with torch.random.fork_rng(devices=()):  # its weights are drawn, and looked at by nobody
            network = import_timm(name).create_model(name)
        convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        try:
            return convert(dict(state), network) if convert else state
        except Exception:  # of any of timm's families
            return state

    # ------------------------------------------------------------------------------------------------ stages

    def freeze(self, stride: int) -> None:
        """Let the stages up to a stride not learn; the statistics of their norms stay as well."""
        for of_stage, names in self._stages.items():
            if of_stage <= stride:
                for name in names:
                    self.net.get_parameter(name).requires_grad_(False)
        rest_frozen_norms(self)

    def freeze_stages(self, learning: int) -> None:
        """Let only the last stages learn, of the five of strides 2 to 32, as for a ResNet.

        What is finer than stride 2 belongs to the first of them.
        """
        self.freeze(COARSEST // 2**learning if learning < STAGES else 0)

    def stage_ends(self) -> dict[str, tuple[nn.Module, tuple[str, ...]]]:
        """By name ``1``, ``2``, … (strides 4, 8, …): the module that ends a stage, and the levels given before it ends.

        Stages at which more than the end's output goes on to the next are left out.
        """
        if self._ends is None:
            self._ends = self._find_ends()
        return {
            number: (
                self.net.get_submodule(name),
                tuple(level for level, stride in self.strides.items() if stride < 2 ** (int(number) + 1)),
            )
            for number, name in self._ends.items()
        }

    def _sort_parameters(self) -> dict[int, list[str]]:
        """Names of the parameters of each stage, by its stride: of the first features that depend on them.

        What no level depends on is frozen, because DDP waits for the gradient of all that learns.
        """
        with _evaluating(self.net):
            features = _features(self.net, _probe())
        levels = sum(features[index].sum() for index in self.places.values())
        left = dict(self.net.named_parameters())
        for name, gradient in zip(left, _gradients(levels, left), strict=True):
            if gradient is None:
                left[name].requires_grad_(False)
        left = {name: value for name, value in left.items() if value.requires_grad}
        stages: dict[int, list[str]] = {}
        for stride, level in zip(self.net.feature_info.reduction(), features, strict=True):
            reached = [gradient is not None for gradient in _gradients(level.sum(), left)]
            names = [name for name, is_reached in zip(left, reached, strict=True) if is_reached]
            stages.setdefault(stride, []).extend(names)
            left = {name: value for name, value in left.items() if name not in names}
        return stages

    def _find_ends(self) -> dict[str, str]:
        """By number, the module that ends each stage: exchanging two images behind it exchanges all that follows."""
        info, ends = self.net.feature_info, {}
        images = _probe(2).to(next(self.net.parameters()).device)
        with _evaluating(self.net), torch.no_grad():
            plain = _features(self.net, images)
            for index, (stride, name) in enumerate(zip(info.reduction(), info.module_name(), strict=True)):
                number, end = int(math.log2(stride)) - 1, self._module(name)
                if number > 0 and end and self._follows(end, images, plain, index):
                    ends[str(number)] = end
        return ends

    def _follows(self, end: str, images: Tensor, plain: list[Tensor], index: int) -> bool:
        """Whether the features from this one on are those of what the module gives, and of nothing else."""
        hook = self.net.get_submodule(end).register_forward_hook(lambda _, __, output: output.flip(0))
        try:
            exchanged = _features(self.net, images)
        except AttributeError:  # it gives more than one tensor
            return False
        finally:
            hook.remove()
        earlier = all(_alike(*pair) for pair in zip(exchanged[:index], plain[:index], strict=True))
        later = [level.flip(0) for level in plain[index:]]
        return earlier and all(_alike(*pair) for pair in zip(exchanged[index:], later, strict=True))

    def _module(self, name: str) -> str:
        """A module as it is named here: timm may lay a row of layers flat."""
        known = dict(self.net.named_modules())
        return next((spelled for spelled in (name, name.replace(".", "_", 1)) if spelled in known), "")


def _features(net: nn.Module, images: Tensor) -> list[Tensor]:
    """All features of a network, finest first; what it keeps for the next evaluation would be of old weights."""
    features = net(images)
    for part in net.modules():
        if hasattr(part, KEPT):
            setattr(part, KEPT, {})
    return features


KEPT = "attention_bias_cache"


def _alike(found: Tensor, wanted: Tensor) -> bool:
    scale = wanted.abs().max().clamp(min=1e-12)
    return bool(((found - wanted).abs().max() / scale) < 1e-4)


def _probe(count: int = 1, sides: tuple[int, int] = PROBE) -> Tensor:
    """Images that differ, without a draw of the global generator."""
    size = (count, 3, *sides)
    return torch.sin(torch.arange(math.prod(size), dtype=torch.float32) ** 1.5).view(size)


def _gradients(total: Tensor, parameters: dict[str, nn.Parameter]) -> list[Tensor | None]:
    if not parameters:
        return []
    return list(torch.autograd.grad(total, list(parameters.values()), retain_graph=True, allow_unused=True))


class _evaluating:  # noqa: N801 - used like a function
    """Within the block a network is in evaluation mode, with gradients; afterwards as it was."""

    def __init__(self, net: nn.Module) -> None:
        self.modes = [(part, part.training) for part in net.modules()]
        self.net = net

    def __enter__(self) -> None:
        self.net.eval()

    def __exit__(self, *error: object) -> None:
        for part, mode in self.modes:
            part.training = mode


def _channels_last(net: nn.Module) -> bool:
    """Whether its features are (B, h, w, C), as those of Swin."""
    return str(getattr(getattr(net, "output_fmt", None), "value", "")).endswith("HWC")


# ------------------------------------------------------------------------------------------------------- building

# Arguments to try in turn: networks with windows take other sizes than their own only if they are told to.
ATTEMPTS: tuple[dict[str, Any], ...] = ({}, {"strict_img_size": False})


def _create(name: str, strides: Iterable[int], setting: str, drop_path: float) -> tuple[dict[str, Any], nn.Module]:
    """The network, and the arguments that `timm.create_model` makes it with."""
    check_name(name, setting)
    more = {"drop_path_rate": drop_path} if drop_path else {}
    fault = ""
    for attempt in ATTEMPTS:
        arguments = {"model_name": name, **attempt}
        try:
            net = import_timm(setting).create_model(features_only=True, **arguments, **more)
        except Exception as error:  # of any of timm's families
            fault = fault or f"timm cannot build it so ({first_line(error)})"
            continue
        _check_strides(net, tuple(strides), setting)
        found = _fault(net)
        if not found:
            _check_drop_path(net, setting, drop_path)
            return arguments, net
        fault = fault or found
    raise UserError(f"{setting}: {fault}; use another network, such as timm/convnext_tiny")


def _frozen(net: nn.Module, setting: str) -> nn.Module:
    """timm's own way: its norms hold an activation and an eps of their own, which torchvision's frozen norm drops."""
    net = import_timm(setting).layers.freeze_batch_norm_2d(net)
    left = {type(part).__name__ for part in net.modules() if isinstance(part, _BatchNorm)}
    if left:
        raise UserError(f"{setting} has norms that timm cannot freeze ({', '.join(left)}); let them learn: norm batch")
    return net


def _rather_frozen(net: nn.Module, setting: str) -> nn.Module:
    """Frozen where timm can, else as it is."""
    left = {type(part).__name__ for part in net.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm3d)}
    if not left:
        return _frozen(net, setting)
    log.info("%s has norms that timm cannot freeze (%s), so all of them learn", setting, ", ".join(left))
    return net


RATHER_FROZEN = "rather frozen"  # what `auto` means for weights with batch statistics
NORMS: dict[str, Callable[[nn.Module, str], nn.Module]] = {
    "frozen": _frozen,
    "batch": lambda net, _: net,
    RATHER_FROZEN: _rather_frozen,
}


def _check_strides(net: nn.Module, needed: tuple[int, ...], setting: str) -> None:
    given = net.feature_info.reduction()
    if not set(needed) <= set(given):
        raise UserError(
            f"{setting} has no feature pyramid: its features have strides {', '.join(map(str, given))}, and "
            f"{', '.join(map(str, needed))} are needed; use a network with stages, such as timm/convnext_tiny"
        )


def _fault(net: nn.Module) -> str:
    """Why it cannot be used on images of any size; empty if it can."""
    faults = (_fault_at(net, sides) for sides in (PROBE, LONG))
    return next((fault for fault in faults if fault), "")


def _fault_at(net: nn.Module, sides: tuple[int, int]) -> str:
    try:
        with _evaluating(net), torch.no_grad():
            features = _features(net, _probe(sides=sides))
    except Exception as error:  # of any of timm's families
        return f"it cannot take images of any size ({first_line(error)})"
    info, last = net.feature_info, _channels_last(net)
    for level, stride, channels in zip(features, info.reduction(), info.channels(), strict=True):
        size = (sides[0] // stride, sides[1] // stride)
        wanted = (1, *size, channels) if last else (1, channels, *size)
        if tuple(level.shape) != wanted:
            return f"its features of stride {stride} are {tuple(level.shape)} where {wanted} were expected"
    return ""


def _check_drop_path(net: nn.Module, setting: str, drop_path: float) -> None:
    """A network that has no residual branches would not say that it leaves none out."""
    if drop_path and not any(getattr(part, "drop_prob", 0.0) for part in net.modules()):
        raise UserError(f"{setting}: this network has no residual branches to leave out; set its drop-path to 0")
