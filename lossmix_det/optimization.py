"""Optimizer and learning-rate schedule, from torch's own parts."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR, SequentialLR

from lossmix_det.config import OptimizerConfig
from lossmix_det.errors import UserError


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> Optimizer:
    """An optimizer over every parameter that learns; norms and biases are not decayed.

    Raises:
        UserError: nothing learns.
    """
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not learning:
        raise UserError("no parameter learns; raise model.trainable_layers")
    groups = [
        {"params": [parameter for parameter in learning if parameter.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in learning if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.name == "adamw":
        return AdamW(groups, lr=config.lr)
    return SGD(groups, lr=config.lr, momentum=config.momentum)


def build_schedule(optimizer: Optimizer, config: OptimizerConfig, steps: int) -> LRScheduler:
    """Linear warm-up from ``warmup_factor``, then multi-step, cosine to zero, or constant; stepped once a step."""
    warmup = min(config.warmup_steps, steps - 1)
    rest = steps - warmup
    main: LRScheduler
    if config.schedule == "cosine":
        main = CosineAnnealingLR(optimizer, T_max=max(rest, 1))
    elif config.schedule == "multistep":
        milestones = sorted(max(round(share * steps) - warmup, 1) for share in config.milestones)
        main = MultiStepLR(optimizer, milestones, gamma=config.gamma)
    else:
        main = ConstantLR(optimizer, factor=1.0, total_iters=0)
    if not warmup:
        return main
    start = LinearLR(optimizer, start_factor=max(config.warmup_factor, 1e-8), total_iters=warmup)
    return SequentialLR(optimizer, [start, main], milestones=[warmup])
