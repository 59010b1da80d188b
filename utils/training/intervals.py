"""Prediction intervals of a run: calibrated on its validation windows, measured on its test windows.

The best weights get them, and their checkpoint keeps them.

Shape legend: n windows, B windows of a batch, H horizon, M variables forecast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from utils.conformal import (
    SCORES,
    Calibration,
    FloatArray,
    LevelError,
    Score,
    calibrate,
    choose_score,
    rank_of,
)
from utils.data_sets import SHORT_TERM
from utils.training import checkpoint as checkpoints
from utils.training.checkpoint import SaveError
from utils.training.run_state import Loaders, RunContext
from utils.training.trainer import Trainer
from utils.types import Batch, ForecastState
from utils.windows import floored_std, per_series

log = getLogger(__name__)
KEY = "calibration"
"""Of the best checkpoint's payload."""
MOST_BYTES = 1 << 30
"""Of the errors that are kept; where the windows have more, every second, third, ... one is kept."""
DEFAULT_SCORE: Score = "absolute"
"""Where there are too few windows to choose by."""


def std_of(batch: Batch) -> Tensor:
    """Deviation [B, M] of the lookback of each variable that is forecast, floored, standardised units."""
    forecast = batch.x[..., -batch.y.shape[-1] :]
    return floored_std(per_series(forecast)).reshape(len(forecast), -1)


class Errors(NamedTuple):
    """Absolute errors of windows in the order of their start."""

    absolute: FloatArray
    """[n, H, M], standardised units."""
    std: FloatArray
    """[n, M], `std_of` each window."""
    start: NDArray[np.int64]
    """[n], absolute row."""


class ErrorCollector:
    """Keeps the errors of windows that pass: of all, or of every second, third, ... where they are many."""

    def __init__(self, windows: Dataset[Batch], *, stride: int) -> None:
        """``windows`` are those that will pass, over all processes, each ``stride`` rows after the last."""
        self._windows = len(windows)  # type: ignore[arg-type]  # torch's Dataset does not declare __len__
        self._first = windows[0].start
        self._stride = stride
        self._kept: list[Errors] = []

    def add(self, state: ForecastState, batch: Batch) -> None:
        """Keep one batch of a process."""
        thinning = -(-self._windows * batch.y[0].numel() * 4 // MOST_BYTES)
        own = (batch.start - self._first.to(batch.start)) // self._stride % thinning == 0
        error = (state.prediction - batch.y)[own].abs()
        kept = (error.float(), std_of(batch)[own].float(), batch.start[own])
        self._kept.append(Errors(*(part.cpu().numpy() for part in kept)))

    def gather(self) -> Errors:
        """The errors of all processes; every one must call it."""
        every = [Errors(*parts) for parts in gather_object([tuple(part) for part in self._kept])]
        together = [np.concatenate(column) for column in zip(*every, strict=True)]
        order = np.argsort(together[2], kind="stable")
        return Errors(*(column[order] for column in together))


def calibrated(errors: Errors, *, asked: str, levels: Sequence[float]) -> dict[str, Any]:
    """The state of the calibration by these errors, as a checkpoint keeps it.

    Args:
        errors: of the validation windows, under the weights that the checkpoint holds.
        asked: a score, or auto: the one of less weighted interval score on the later half.
        levels: of which the exact ranks are kept.
    """
    choice = choose_score(*errors) if asked == "auto" else {}
    named: list[Score] = [score for score in SCORES if score == asked]
    score = next(iter([*named, *choice, DEFAULT_SCORE]))
    if asked == "auto" and not choice:
        log.info("intervals: %d windows are too few to choose a score by; %s", len(errors.start), score)
    state = calibrate(errors.absolute, errors.std, score=score, levels=levels).state()
    return {**state, "asked": asked, "choice": {str(k): v for k, v in choice.items()}}


def still_valid(state: dict[str, Any] | None, *, asked: str, levels: Sequence[float]) -> bool:
    """Whether a checkpoint's calibration is the one that these settings would make."""
    if state is None or state["asked"] != asked:
        return False
    kept = set(state["ranks"].tolist())
    ranks = (rank_of(level, state["count"]) for level in levels)
    return all(rank in kept for rank in ranks if rank <= state["count"])


class IntervalSums:
    """How often the truth lay inside, and how wide the intervals were, by level, step and variable."""

    def __init__(self, state: dict[str, Any], levels: Sequence[float]) -> None:
        """``state`` as of `calibrated`; levels that its windows are too few for are left out, and said."""
        self.calibration = Calibration.from_state(state)
        self.choice = dict(state["choice"])
        self.levels: list[float] = []
        for level in levels:
            try:
                self.calibration.quantile(level)
            except LevelError as error:
                log.warning("intervals: %s", str(error).removeprefix("--levels: "))
            else:
                self.levels.append(level)
        shape = (len(self.levels), 2, *self.calibration.values.shape[1:])
        self.sums = torch.zeros(shape, dtype=torch.float64)  # inside, width: [levels, 2, H, M]
        self.windows = 0

    def add(self, state: ForecastState, batch: Batch) -> None:
        """Count one batch."""
        error = (state.prediction - batch.y).abs().float().cpu()
        std = std_of(batch).float().cpu()
        for place, level in enumerate(self.levels):
            half = self.calibration.half_width(level, std)
            self.sums[place, 0] += (error <= half).sum(dim=0)
            self.sums[place, 1] += (2 * half.double()).sum(dim=0)
        self.windows += len(error)

    def reduce(
        self, over_processes: Callable[[Tensor], Tensor], *, targets: Sequence[str], device: torch.device
    ) -> dict[str, Any]:
        """Coverage and width, of all and by step and by variable.

        ``over_processes`` sums a tensor on ``device``.
        """
        sums = over_processes(self.sums.to(device)).cpu()
        windows = int(over_processes(torch.tensor(self.windows, device=device)))
        means = sums / windows
        return {
            "score": self.calibration.score,
            "calibration_windows": self.calibration.count,
            "choice": self.choice,
            "windows": windows,
            "levels": {
                f"{level:g}": {
                    "coverage": float(inside.mean()),
                    "width": float(width.mean()),
                    "coverage_by_step": inside.mean(dim=1).tolist(),
                    "width_by_step": width.mean(dim=1).tolist(),
                    "coverage_by_variable": dict(zip(targets, inside.mean(dim=0).tolist(), strict=True)),
                    "width_by_variable": dict(zip(targets, width.mean(dim=0).tolist(), strict=True)),
                }
                for level, (inside, width) in zip(self.levels, means, strict=True)
            },
        }


def calibration_of_best(ctx: RunContext, trainer: Trainer, loaders: Loaders) -> dict[str, Any] | None:
    """The calibration of the best weights, which the model holds; None where none is asked for.

    A run that was cut off after its calibration takes the one that its checkpoint keeps.

    Raises:
        EvaluationStopped: a stop was asked for; everything saved is as it was.
        SaveError: the checkpoint cannot be written; what it held it holds.
    """
    settings = ctx.config.training
    path = ctx.folder / checkpoints.BEST
    if not settings.levels or trainer.progress.best_step == -1:
        return None
    if ctx.config.run.task_name == SHORT_TERM:
        log.info("intervals: none for the short-term task, which has one validation window a series")
        return None
    asked, levels = settings.interval_score, settings.levels
    kept = [checkpoints.load(path).get(KEY) if ctx.accelerator.is_main_process else None]
    stored: dict[str, Any] | None = broadcast_object_list(kept)[0]
    if stored is not None and still_valid(stored, asked=asked, levels=levels):
        log.info("intervals: those that %s keeps", path)
        return stored
    with ctx.phase(KEY):
        errors = ErrorCollector(ctx.data.validation, stride=ctx.config.data.eval_stride)
        trainer.evaluate(loaders.validation, name=KEY, watchers=[errors.add])
        state = calibrated(errors.gather(), asked=asked, levels=levels)
        _store(ctx, path, state)
    return state


def _store(ctx: RunContext, path: Path, state: dict[str, Any]) -> None:
    """Add a calibration to a checkpoint, on the main process; what goes wrong there is raised in all."""
    problem: list[str | None] = [None]
    if ctx.accelerator.is_main_process:
        try:
            checkpoints.save_again({**checkpoints.load(path), KEY: state}, path)
        except OSError as error:
            problem = [str(error)]
    found = broadcast_object_list(problem)[0]
    if found is not None:
        raise SaveError(found)
