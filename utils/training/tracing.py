"""The bytes of a training step on a GPU, traced without one: every tensor of it, by what torch would make.

Where `utils.reporting.peak_memory` has a formula, this has the step itself, on the device of
`utils.simulated_device`. Left out: kernels' own workspaces, what the allocator rounds up, and the driver.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from utils.config import Config
from utils.micro_step import MicroStep, StepValue
from utils.simulated_device import NAME, simulated
from utils.training.forward import channel_parts, forecast_state, forecasts
from utils.training.objective import Objective
from utils.training.optim import build_optimizer, trained_parameters
from utils.types import Batch

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TracedPeaks(NamedTuple):
    """Bytes held on the device."""

    training: int
    """At the peak of an optimizer step."""
    evaluation: int
    """At the peak of a batch of an evaluation, before any training."""


def traced_peaks(
    config: Config, model: Any, *, variables: int, prompt: tuple[int, int] | None
) -> TracedPeaks:
    """The peaks of a model, which is moved to the simulated device: it is of no other use afterwards.

    Args:
        config: of the run.
        model: the run's, built, with its memory filled where it has one; its weights may be ``meta``.
        variables: that are forecast.
        prompt: tokens of the constant part of a prompt and of the rest; None without an LLM.
    """
    training, precision = config.training, config.training.mixed_precision
    with simulated() as watch:
        watch.move(model)
        tokens = sum(prompt or ())
        if prompt is not None:
            model.prompt.width = tokens  # as the formula has it
        with torch.autocast(NAME, PRECISIONS[precision], enabled=precision != "no"):
            model.eval()
            watch.restart_peak()
            windows = _windows(config, training.eval_batch_size or training.batch_size, variables, tokens)
            forecasts(model, windows, training.max_channels_per_step)
            evaluation = watch.peak
            model.train()
            of_window = 1 if config.data.channel_sampling == "single" else variables
            watch.restart_peak()
            _step(config, model, _windows(config, training.batch_size, of_window, tokens))
    return TracedPeaks(watch.peak, evaluation)


def _step(config: Config, model: Any, batch: Batch) -> None:
    """One optimizer step; its moments are there before, as in any but the first."""
    passes, most = config.training.gradient_accumulation_steps, config.training.max_channels_per_step
    optimizer, objective = build_optimizer(model, config.training), Objective(config)
    for weight in trained_parameters(model):
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    shared = StepValue()
    for number in range(passes):
        for part in channel_parts(batch, most):
            last = number == passes - 1 and part.last
            state = forecast_state(model, part.batch, MicroStep(shared, last))
            loss = objective(state, part.batch, step=1).total
            del state  # holds no more than the graph does
            loss.backward()
    optimizer.step()


def _windows(config: Config, count: int, variables: int, tokens: int) -> Batch:
    """Windows of noise on the device, with prompts of so many tokens."""
    d = config.data
    read = variables if d.features != "MS" else d.enc_in or variables
    start = torch.arange(count, device=NAME)
    return Batch(
        x=torch.randn(count, d.seq_len, read, device=NAME),
        y=torch.randn(count, d.pred_len, variables, device=NAME),
        x_mark=torch.randn(count, d.seq_len, 4, device=NAME),
        y_mark=torch.randn(count, d.pred_len, 4, device=NAME),
        start=start,
        series_id=torch.zeros_like(start),
        variable=torch.arange(variables, device=NAME).expand(count, -1),
        prompt=torch.zeros(count if tokens else 0, variables, tokens, dtype=torch.int64, device=NAME),
    )
