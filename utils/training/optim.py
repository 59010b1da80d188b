"""Optimizer over the trained parts, and learning-rate schedules in optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.autograd.graph import increment_version
from torch.optim.lr_scheduler import LambdaLR

from utils.config import TrainingConfig


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training moves (the frozen LLM's do not require a gradient)."""
    return [p for p in model.parameters() if p.requires_grad]


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Fused AdamW over the trained parameters, if any; without weight decay it is Adam.

    A fused step of torch 2.13.0 leaves the weights' version counters as they were, by which what is kept of
    weights is known to be out of date: they are raised behind it.
    """
    trained = trained_parameters(model)
    group = {"params": trained}  # an empty list alone would be refused
    optimizer = torch.optim.AdamW(
        [group], lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    optimizer.register_step_post_hook(lambda *_: increment_version(trained))
    return optimizer


TYPE2_RATES = {2: 5e-5, 4: 1e-5, 6: 5e-6, 8: 1e-6, 10: 5e-7, 15: 1e-7, 20: 5e-8}
"""The family's ``type2``: absolute rates from the beginning of these epochs on (the first is 1)."""
TST_WARM_SHARE = 0.2
"""Share of the run in which ``TST`` rises, from a 25th of the rate."""
TST_START = 1 / 25
TST_END = TST_START / 1e4


def rate_factor(config: TrainingConfig, *, total_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Factor on the learning rate at each optimizer step, counted from 0.

    Linear warm-up to 1 over ``lr_warmup_steps``, then the schedule over the steps that are left:
    ``COS`` half a cosine to 0; ``TST`` a one-cycle (up and down by cosines); ``type1`` halved each
    epoch; ``type2`` a table of absolute rates; ``type3`` and ``PEMS`` by 0.9 an epoch after the third
    and by 0.95 an epoch; ``constant``. Epochs are ``steps_per_epoch`` optimizer steps.
    Source: `adjust_learning_rate` of the Time-LLM family, and Smith and Topin 2018 for one-cycle.
    """
    warm = config.lr_warmup_steps
    left = max(1, total_steps - warm)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        done = step - warm
        epoch = done // max(1, steps_per_epoch) + 1
        match config.lradj:
            case "COS":
                return _cosine(1.0, 0.0, done / left)
            case "TST":
                return _one_cycle(done, left)
            case "type1":
                return 0.5 ** (epoch - 1)
            case "type2":
                reached = [rate for first, rate in TYPE2_RATES.items() if epoch >= first]
                return reached[-1] / config.learning_rate if reached else 1.0
            case "type3":
                return 0.9 ** max(0, epoch - 3)
            case "PEMS":
                return 0.95 ** (epoch - 1)
            case _:
                return 1.0

    return factor


def _cosine(begin: float, end: float, progress: float) -> float:
    """From ``begin`` to ``end`` along half a cosine, ``progress`` from 0 to 1."""
    return end + (begin - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _one_cycle(step: int, total: int) -> float:
    """The one-cycle factor at ``step`` of ``total``: 1/25 to 1 to nearly 0."""
    top = TST_WARM_SHARE * total - 1
    if step <= top:
        return _cosine(TST_START, 1.0, step / top if top else 1.0)
    return _cosine(1.0, TST_END, (step - top) / max(1e-9, total - 1 - top))


def build_schedule(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, *, total_steps: int, steps_per_epoch: int
) -> LambdaLR:
    """The schedule ``--lradj``; step it once per optimizer step."""
    return LambdaLR(optimizer, rate_factor(config, total_steps=total_steps, steps_per_epoch=steps_per_epoch))
