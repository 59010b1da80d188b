"""Optimizer over the trained parts, and learning-rate schedules in optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from utils.config import TrainingConfig


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training moves (the frozen LLM's do not require a gradient)."""
    return [p for p in model.parameters() if p.requires_grad]


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Fused AdamW over the trained parameters; without weight decay it is Adam."""
    return torch.optim.AdamW(
        trained_parameters(model), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )


def rate_factor(config: TrainingConfig, total_steps: int) -> Callable[[int], float]:
    """Factor on the learning rate at each optimizer step, counted from 0.

    Linear warm-up to 1 over ``lr_warmup_steps``, then ``constant``, or ``COS``: half a cosine to 0
    at ``total_steps``.
    """
    warm = config.lr_warmup_steps

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        if config.lradj == "constant":
            return 1.0
        progress = (step - warm) / max(1, total_steps - warm)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor


def build_schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig, *, total_steps: int) -> LambdaLR:
    """The schedule ``--lradj``; step it once per optimizer step."""
    return LambdaLR(optimizer, rate_factor(config, total_steps))
