"""How long a run will take, from a few timed steps and a few timed windows of evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from typing import Any

import torch
from torch.utils.data import Dataset

from utils.config import Config
from utils.training.forward import forecasts, stacked
from utils.types import Batch, DataBundle

log = getLogger(__name__)
TIMED_WINDOWS = 8
"""Windows of evaluation that are timed."""
TIMED_SERIES = 64
"""Fewer windows are, where they have so many variables that this number of series is passed; one at least."""
GPU_PRESETS = {"6GB": 12e9, "15GB": 24e9}
"""Presets for a GPU with less than so many bytes, smallest first."""
LONG_RUN = 1800
"""Seconds from which on a run is told how to be shorter."""


def first_items(dataset: Dataset[Batch], count: int, device: torch.device) -> Batch:
    """The first ``count`` items of a data set, or all it has, as one batch."""
    items = [dataset[i] for i in range(min(count, len(dataset)))]  # type: ignore[arg-type]
    return stacked(items, device)


@torch.no_grad()
def seconds_per_window(
    model: Any, dataset: Dataset[Batch], device: torch.device, *, most: int | None
) -> float:
    """Seconds of evaluation per window, on a few windows; the model's mode is as it was afterwards.

    ``most`` variables are forecast at a time, all where None.

    A first pass makes what an evaluation makes once. Nothing random is drawn.
    """
    windows = min(TIMED_WINDOWS, max(1, TIMED_SERIES // dataset[0].y.shape[-1]))
    batch = first_items(dataset, windows, device)
    was_training = model.training
    model.eval()
    forecasts(model, batch, most)
    began = now(device)
    forecasts(model, batch, most)
    seconds = now(device) - began
    model.train(was_training)
    return seconds / len(batch.x)


def planned_steps(config: Config, steps_per_epoch: int) -> int:
    """Optimizer steps of a run: its epochs', unless ``--max_steps`` are fewer."""
    steps = config.training.train_epochs * steps_per_epoch
    return steps if config.training.max_steps is None else min(config.training.max_steps, steps)


def windows_to_evaluate(
    config: Config, data: DataBundle, *, step: int, total_steps: int, steps_per_epoch: int
) -> int:
    """Windows of all validations after ``step`` and of the tests: at most, if patience does not run out.

    A validation follows each ``--eval_steps``-th optimizer step, or each epoch, and the last step, and one
    comes before the first where there is a solved start; the last and the best weights are tested. Intervals
    take one validation more.
    """
    every = config.training.eval_steps or steps_per_epoch
    validations = total_steps // every - step // every + bool(total_steps % every)
    validations += config.begins_solved and not step
    calibrations = bool(config.training.levels)
    tests = 2 + validations * config.training.eval_test_each_epoch
    evaluated = (validations + calibrations) * len(data.validation)  # type: ignore[arg-type]
    return evaluated + tests * len(data.test)  # type: ignore[arg-type]


def time_text(*, steps: int, seconds_per_step: float, evaluation: float) -> str:
    """How long ``steps`` optimizer steps and ``evaluation`` seconds take; NaN is not known."""
    training = steps * seconds_per_step
    known = not math.isnan(evaluation)
    return (
        f"estimated time: {clock_text(training + evaluation if known else training)} at most, "
        f"{clock_text(training)} of training at {seconds_per_step:.2f} s a step, "
        + (f"{clock_text(evaluation)} of validation and test" if known else "validation and test not counted")
    )


def fitting_preset(device: torch.device) -> str | None:
    """The largest preset that fits a device: by its memory on a GPU; None beyond all of them."""
    if device.type != "cuda":
        return "cpu"
    memory = torch.cuda.get_device_properties(device).total_memory
    return next((name for name, most in GPU_PRESETS.items() if memory < most), None)


def announce(*, steps: int, seconds_per_step: float, evaluation: float, preset: str | None) -> None:
    """Say how long this will take, and what would take less.

    Args:
        steps: optimizer steps to come.
        seconds_per_step: measured.
        evaluation: seconds of the validations and tests to come; NaN where that is not known.
        preset: of `fitting_preset`.
    """
    log.info("%s", time_text(steps=steps, seconds_per_step=seconds_per_step, evaluation=evaluation))
    if steps * seconds_per_step + (0.0 if math.isnan(evaluation) else evaluation) > LONG_RUN:
        shorter = "--max_steps N, --eval_stride N"
        if preset is not None:
            shorter += f", or the preset that fits this machine, --preset {preset}"
        log.info("this is long: shorter runs by %s", shorter)


def now(device: torch.device) -> float:
    """The time in seconds, once the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Clock:
    """Seconds per optimizer step, the first one (which also warms up) and all pauses left out."""

    def __init__(self, first_step: int) -> None:
        """``first_step`` is the one that the run begins or goes on with."""
        self.first_step = first_step
        self._began = math.nan

    def seconds_per_step(self, step: int) -> float:
        """Mean since the end of the first step; NaN before there is one to count."""
        moment = time.perf_counter()
        if step <= self.first_step + 1:
            self._began = moment
            return math.nan
        return (moment - self._began) / (step - self.first_step - 1)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not counted."""
        paused_at = time.perf_counter()
        yield
        self._began += time.perf_counter() - paused_at


def clock_text(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    if math.isnan(seconds):
        return "?"
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
