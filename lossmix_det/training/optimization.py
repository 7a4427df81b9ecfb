"""Optimizer and learning-rate schedule, from torch's own parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)

from lossmix_det.config import OptimizerConfig
from lossmix_det.errors import UserError


def build_optimizer(module: nn.Module, config: OptimizerConfig, backbone: nn.Module | None = None) -> Optimizer:
    """An optimizer over every parameter that learns; norms are not decayed, nor biases unless that is set.

    Args:
        module: whose parameters learn.
        config: the ``optimizer`` branch.
        backbone: the part of it that learns at ``backbone_lr_factor`` times the rate; absent: none does.

    Raises:
        UserError: nothing learns.
    """
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not learning:
        raise UserError("no parameter learns; raise model.trainable_layers")
    biases = {
        id(part.bias)
        for part in module.modules()
        if config.decay_biases and isinstance(part, (_ConvNd, nn.Linear)) and part.bias is not None
    }
    slower = {id(parameter) for parameter in backbone.parameters()} if backbone is not None else set()
    groups: list[dict[str, Any]] = []
    for decay, wanted in ((config.weight_decay, True), (0.0, False)):
        chosen = [each for each in learning if (each.ndim > 1 or id(each) in biases) is wanted]
        for factor, in_backbone in ((1.0, False), (config.backbone_lr_factor, True)):
            members = [each for each in chosen if (id(each) in slower) is in_backbone]
            group = {"params": members, "weight_decay": decay, "lr": config.lr * factor, "lr_factor": factor}
            groups += [group] if members else []
    return OPTIMIZERS[config.name](groups, config)


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    """Fused is several times faster on a CPU; on a GPU it would unscale fp16 gradients itself, after clipping."""
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return AdamW(groups, lr=config.lr, fused=devices <= {"cpu"})


def _sgd(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    return SGD(groups, lr=config.lr, momentum=config.momentum)


OPTIMIZERS = {"adamw": _adamw, "sgd": _sgd}


def momenta_of(optimizer: Optimizer, module: nn.Module) -> dict[str, dict[str, Any]]:
    """What an optimizer remembers of each parameter, by the names that these have in a module."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {names[id(parameter)]: kept for parameter, kept in optimizer.state.items()}


def load_momenta(optimizer: Optimizer, module: nn.Module, momenta: dict[str, dict[str, Any]]) -> None:
    """Give an optimizer back what `momenta_of` found; parameters that are not named begin without.

    Raises:
        ValueError: momenta are of no parameter that learns.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    learning = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    strange = set(momenta).difference(learning)
    if strange:
        raise ValueError(f"momenta of {min(map(str, strange))}, which does not learn here")
    state = {place: momenta[name] for place, name in enumerate(learning) if name in momenta}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    match_layout(optimizer)


def match_layout(optimizer: Optimizer) -> None:
    """Give momenta the memory layout of their parameters, which a fused step takes for granted without a look."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def build_schedule(optimizer: Optimizer, config: OptimizerConfig, steps: int, burn_in_steps: int = 0) -> LRScheduler:
    """Linear warm-up from ``warmup_factor``, then multi-step, cosine to zero, or constant; stepped once a step.

    With ``restart_lr`` the whole schedule is run through by the end of burn-in, and again from there to the end at that
    rate, so that burn-in ends as an ordinary training does. If there is no burn-in, all steps are at that rate.
    """
    restart = steps if config.restart_lr is None else min(burn_in_steps, steps)
    if not restart:  # the first schedule begins at the rates of the optimizer
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = config.restart_lr * group["lr_factor"]
    parts = _parts(optimizer, config, restart, config.lr, start=0) if restart else []
    if restart < steps:
        parts += _parts(optimizer, config, steps - restart, config.restart_lr, start=restart)
    milestones = [start for start, _ in parts[1:]]
    return SequentialLR(optimizer, [schedule for _, schedule in parts], milestones)


def _parts(
    optimizer: Optimizer, config: OptimizerConfig, steps: int, rate: float, start: int
) -> list[tuple[int, LRScheduler]]:
    """Warm-up, if there is any, and what follows it, each with the step that it begins at."""
    warmup = min(config.warmup_steps, steps - 1)
    parts = []
    if warmup:
        factor = max(config.warmup_factor, 1e-8)
        parts.append((start, LinearLR(optimizer, factor, total_iters=warmup)))
    parts.append((start + warmup, SCHEDULES[config.schedule](optimizer, config, steps, warmup)))
    for _, schedule in parts:
        schedule.base_lrs = [rate * group["lr_factor"] for group in optimizer.param_groups]
    return parts


def rate_of(optimizer: Optimizer) -> float:
    """The learning rate of what has no factor of its own."""
    group = optimizer.param_groups[0]
    return group["lr"] / group["lr_factor"]


# What follows a warm-up of so many steps, in a schedule of so many.
Schedule = Callable[[Optimizer, OptimizerConfig, int, int], LRScheduler]


def _cosine(optimizer: Optimizer, config: OptimizerConfig, steps: int, warmup: int) -> LRScheduler:
    return CosineAnnealingLR(optimizer, max(steps - warmup, 1))


def _multistep(optimizer: Optimizer, config: OptimizerConfig, steps: int, warmup: int) -> LRScheduler:
    milestones = [max(round(share * steps), warmup + 1) - warmup for share in config.milestones]
    return MultiStepLR(optimizer, milestones, config.gamma)


def _constant(optimizer: Optimizer, config: OptimizerConfig, steps: int, warmup: int) -> LRScheduler:
    return ConstantLR(optimizer, factor=1.0, total_iters=1)


SCHEDULES: dict[str, Schedule] = {"cosine": _cosine, "multistep": _multistep, "constant": _constant}
