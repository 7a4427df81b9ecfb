"""Optimizer and learning-rate schedule, from torch's own parts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lossmix_det.config import OptimizerConfig
from lossmix_det.errors import UserError


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> Optimizer:
    """An optimizer over every parameter that learns; norms are not decayed, nor biases unless that is set.

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
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay} for decay in (config.weight_decay, 0.0)]
    for parameter in learning:
        decayed = parameter.ndim > 1 or id(parameter) in biases
        groups[0 if decayed else 1]["params"].append(parameter)
    if config.name == "adamw":
        # Fused is several times faster on a CPU; on a GPU it would unscale fp16 gradients itself, and clipping needs
        # them unscaled before.
        return AdamW(groups, lr=config.lr, fused=all(parameter.device.type == "cpu" for parameter in learning))
    return SGD(groups, lr=config.lr, momentum=config.momentum)


def match_layout(optimizer: Optimizer) -> None:
    """Give momenta the memory layout of their parameters, which a fused step takes for granted without a look."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def build_schedule(optimizer: Optimizer, config: OptimizerConfig, steps: int, burn_in_steps: int = 0) -> LRScheduler:
    """Linear warm-up from ``warmup_factor``, then multi-step, cosine to zero, or constant; stepped once a step.

    With ``restart_lr`` the whole schedule is run through by the end of burn-in, and again from there to the end at that
    rate, so that burn-in ends as an ordinary training does.
    """
    restart = burn_in_steps if config.restart_lr is not None and burn_in_steps < steps else 0

    def factor(step: int) -> float:
        if restart and step >= restart:
            return _factor(step - restart, steps - restart, config) * config.restart_lr / max(config.lr, 1e-12)
        return _factor(step, restart or steps, config)

    return LambdaLR(optimizer, factor)


def _factor(step: int, steps: int, config: OptimizerConfig) -> float:
    """What the rate is multiplied by at a step of a schedule of so many."""
    warmup = min(config.warmup_steps, steps - 1)
    if step < warmup:
        start = max(config.warmup_factor, 1e-8)
        return start + (1 - start) * step / warmup
    if config.schedule == "cosine":
        return (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))) / 2
    if config.schedule == "multistep":
        return config.gamma ** sum(step >= max(round(share * steps), warmup + 1) for share in config.milestones)
    return 1.0
