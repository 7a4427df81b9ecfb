"""The exponential moving average of the student."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lossmix_det.config import EmaConfig
from lossmix_det.engines.contract import Detector

Average = Callable[[list[Tensor], list[Tensor], int | Tensor], None]


def averaged(student: Detector, config: EmaConfig) -> AveragedModel:
    """An average that starts as a copy of the student and follows it by ``update_parameters``.

    average ← d·average + (1 - d)·student over parameters and buffers; integer buffers are copied.
    """
    average = AveragedModel(student, multi_avg_fn=decaying(config), use_buffers=True)
    average.n_averaged.fill_(1)  # the copy counts, so that the first update already averages
    for parameter in average.parameters():
        parameter.requires_grad_(False)
    return average.eval()


def decaying(config: EmaConfig) -> Average:
    """The averaging rule: d = ``decay``, with warm-up at most (1 + n) / (10 + n) at the n-th update.

    The warm-up keeps a short run from being mostly its random start (TensorFlow's ExponentialMovingAverage).
    """

    @torch.no_grad()
    def update(averages: list[Tensor], current: list[Tensor], count: int | Tensor) -> None:
        decay = config.decay
        if config.warmup:
            updates = int(count)
            decay = min(decay, (1 + updates) / (10 + updates))
        if averages[0].is_floating_point():
            get_ema_multi_avg_fn(decay)(averages, current, count)
        else:
            torch._foreach_copy_(averages, current)

    return update
