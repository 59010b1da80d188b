"""Forecasts of test windows with truth and intervals: what pictures and pages are made from.

Shape legend: W windows, H horizon, M variables forecast, T rows shown of a lookback.
"""

from __future__ import annotations

from collections.abc import Sequence
from logging import getLogger

import numpy as np
import torch
from torch.utils.data import Subset

from models.trained import Forecasts
from scripts.lib.inspect.options import LoadedRun, spread
from utils.conformal import LevelError
from utils.reporting.run_plots import Evidence, Values

log = getLogger(__name__)


def gather(run: LoadedRun, *, windows: int | None, levels: Sequence[float]) -> Evidence:
    """Forecast ``windows`` test windows, evenly spread (None: all of them).

    Intervals are there for those of the ``levels`` that the run's calibration has.
    """
    f, test, series = run.forecaster, run.data.test, run.series
    count = len(test)  # type: ignore[arg-type]  # torch's Dataset does not declare __len__
    chosen = spread(count, windows)
    found = f.forecasts(Subset(test, list(chosen)))
    season = run.data.season if run.data.season <= f.seq_len else None
    shown = min(f.seq_len, max(2 * f.pred_len, run.data.season))
    columns = slice(len(series.columns) - len(f.targets), None)
    rows = (found.start + f.seq_len)[:, None] + np.arange(-shown, 0)  # [W, T]
    return Evidence(
        name=run.series.name,
        targets=f.targets,
        frequency=series.frequency,
        season=season,
        test_windows=count,
        start=found.start,
        lookback_times=series.dates.tz_localize(None).to_numpy()[rows],
        lookback=series.values[:, columns][rows],  # [W, T, M]
        times=f.times(series, found.start),
        truth=found.truth,
        prediction=found.prediction,
        std=f.standardisation.std[columns].numpy(),
        half_width=half_widths(run, found, levels),
    )


def half_widths(run: LoadedRun, found: Forecasts, levels: Sequence[float]) -> dict[float, Values]:
    """By level, half the intervals' width [W, H, M] in original units; without calibration none."""
    f = run.forecaster
    widths: dict[float, Values] = {}
    if f.calibration is None:
        return widths
    std = f.standardisation.std[-len(f.targets) :]
    for level in levels:
        try:
            half = f.calibration.half_width(level, torch.from_numpy(found.std))
        except LevelError as error:
            log.warning("no intervals at %g: %s", level, error)
            continue
        widths[level] = (half.double() * std).numpy()
    return widths
