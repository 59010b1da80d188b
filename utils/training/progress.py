"""How far a run has come, what its loop asks of its owner, and how long it takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import Tensor


@dataclass
class Progress:
    """How far a run has come; all of it is in every checkpoint."""

    epoch: int = 0
    """Epochs finished."""
    epoch_steps: int = 0
    """Optimizer steps taken in the current epoch."""
    global_step: int = 0
    """Optimizer steps taken."""
    val_loss_min: float = math.inf
    counter: int = 0
    """Validations without improvement."""
    best_step: int = -1
    validation_due: bool = False
    """The run stopped between this step and its validation."""
    loss_sums: dict[str, Tensor | float] = field(default_factory=dict)
    """This process's sums of the losses since the last validation, for its line in the log."""

    def state(self) -> dict[str, Any]:
        """As plain values, without the sums: those differ from process to process."""
        return {name: value for name, value in vars(self).items() if name != "loss_sums"}

    def own_sums(self) -> dict[str, float]:
        """The sums of this process, as plain values."""
        return {name: float(value) for name, value in self.loss_sums.items()}


@dataclass(frozen=True)
class Hooks:
    """What the trainer asks its owner to do."""

    refresh: Callable[[], None]
    """Recompute what validation needs to be up to date."""
    save_best: Callable[[], None]
    save_step: Callable[[], None]
    test: Callable[[], dict[str, float]]
    stopped: Callable[[], NoReturn]
    """Save what is needed to go on, and end the run."""


class Clock:
    """Seconds per optimizer step, the first one (which also warms up) and all pauses left out."""

    def __init__(self, first_step: int) -> None:
        """``first_step`` is the one that the run begins or goes on with."""
        self.first_step = first_step
        self._began = math.nan

    def seconds_per_step(self, step: int) -> float:
        """Mean since the end of the first step; NaN before there is one to count."""
        now = time.perf_counter()
        if step <= self.first_step + 1:
            self._began = now
            return math.nan
        return (now - self._began) / (step - self.first_step - 1)

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
