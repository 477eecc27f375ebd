"""What a step of a training does beside the gradients: the learning rate, and the running mean of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from .config import TrainConfig

Scheduler: TypeAlias = ReduceLROnPlateau | LambdaLR

_BETTER = 0.99


def scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int) -> Scheduler:
    """What changes the learning rate: after an epoch by its loss, or after each of so many `steps` in all."""
    if config.schedule == "plateau":
        return ReduceLROnPlateau(optimizer, patience=config.patience, factor=config.factor)

    def factor(step: int) -> float:
        risen = min(1.0, (step + 1) / (config.warmup + 1))
        return risen * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2

    return LambdaLR(optimizer, factor)


def stalled(config: TrainConfig, history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the validation loss has not become 1 % better in `stop_after` epochs of the last phase."""
    if config.stop_after is None or len(history) < config.min_epochs:
        return False
    best, since = math.inf, 0
    for record in history[config.phases[-1]["epoch"] - 1 if config.phases else 0 :]:
        if record["val"]["total"] < _BETTER * best:
            best, since = record["val"]["total"], 0
        else:
            since += 1
    return since >= config.stop_after


def running_mean(net: nn.Module, decay: float) -> AveragedModel:
    """A network of the running mean of weights and statistics.

    Its decay is smaller at first, (1 + n) / (10 + n) after n steps: the first weights are soon forgotten.
    """

    @torch.no_grad()
    def update(means: Sequence[Tensor], values: Sequence[Tensor], _: Tensor | int) -> None:
        kept = min(decay, (1 + taken()) / (10 + taken()))
        if means[0].is_floating_point():
            torch._foreach_lerp_(list(means), list(values), 1 - kept)
        else:
            torch._foreach_copy_(list(means), list(values))

    mean = AveragedModel(net, multi_avg_fn=update, use_buffers=True)

    def taken() -> int:
        return int(mean.n_averaged)  # on the CPU; what `update` is given is not, and would be waited for

    return mean
