"""Theta forecasts of many series at once: the dynamic optimised Theta model, fitted on a grid.

A seasonal series is divided by its indices first, and its forecast multiplied by them. Smoothing, slope and
initial level are those of least squared error one step ahead on a grid: nothing is drawn, and one series
costs what another does.

Source: Fiorucci, Pellegrini, Louzada, Petropoulos and Koehler, "Models for optimising the theta method and
their relationship to state space models", International Journal of Forecasting 2016, equations of DOTM;
seasonality as in the M4 competition (`utils.m4_scores`).

Shape legend: S series, T rows, H horizon, A smoothings, O slopes, I initial levels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.m4_scores import Array, is_seasonal, seasonal_indices

SMOOTHINGS = (*(round(0.1 + 0.06 * i, 2) for i in range(15)), 0.99)
"""Within the bounds of the source."""
SLOPES = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0, 25.0, 100.0)
"""Theta: 1 is simple exponential smoothing, 2 the classic method, more a trend with less of it left out."""
LEVELS = (0.5, 1.0)
"""Initial levels, as shares of a series' first value."""
SKIPPED = 3
"""Errors of the first steps, which the initial level decides, do not count."""
SMALLEST_INDEX = 0.01
"""A series with a seasonal index below it is not divided by its indices."""
AT_ONCE = 128
"""Series whose grids are held at once: their state stays in a CPU's cache."""


class _State(NamedTuple):
    """What the model has seen of each series, in the shape of the grid or of its chosen point."""

    level: Tensor
    intercept: Tensor
    slope: Tensor
    mean: Tensor
    seen: Tensor
    """Rows so far."""


def theta_forecasts(series: list[Array], horizon: int, season: int) -> Array:
    """The forecasts [S, H] of series, each of one row at least, float64."""
    found = [
        _forecast_block(series[begin : begin + AT_ONCE], horizon, season)
        for begin in range(0, len(series), AT_ONCE)
    ]
    return np.concatenate(found) if found else np.zeros((0, horizon))


def _forecast_block(series: list[Array], horizon: int, season: int) -> Array:
    """As `theta_forecasts`, of a few."""
    longest = max(map(len, series))
    values = np.zeros((len(series), longest))
    indices = np.ones((len(series), horizon))
    for row, own in enumerate(series):
        adjusted = own
        if own.min() > 0 and is_seasonal(own, season):
            phases = seasonal_indices(own, season)
            if phases.min() > SMALLEST_INDEX:
                adjusted = own / phases[np.arange(len(own)) % season]
                indices[row] = phases[np.arange(len(own), len(own) + horizon) % season]
        values[row, : len(own)] = adjusted
    lengths = torch.tensor([len(own) for own in series])
    return np.asarray(_dotm(torch.from_numpy(values), lengths, horizon).numpy() * indices)


def _dotm(values: Tensor, lengths: Tensor, horizon: int) -> Tensor:
    """Forecasts [S, H] of rows [S, T], of each series the first ``lengths`` [S]."""
    alpha = torch.tensor(SMOOTHINGS, dtype=torch.float64)[:, None, None]
    theta = torch.tensor(SLOPES, dtype=torch.float64)[:, None]
    shape = (len(values), len(SMOOTHINGS), len(SLOPES), len(LEVELS))  # [S, A, O, I]
    first = values[:, 0].reshape(-1, 1, 1, 1)
    level = (first * torch.tensor(LEVELS, dtype=torch.float64)).expand(shape)
    state = _State(level, first, torch.zeros_like(first), first, torch.zeros_like(first))
    squared = torch.zeros(shape, dtype=torch.float64)
    for row in range(values.shape[1]):
        own = values[:, row].reshape(-1, 1, 1, 1)
        error = own - _ahead(state, alpha, theta)
        lives = (lengths > row).reshape(-1, 1, 1, 1)
        if row >= SKIPPED:
            squared = torch.where(lives, squared + error.square(), squared)
        after = _advanced(state, own, alpha)
        state = _State(*(torch.where(lives, new, old) for new, old in zip(after, state, strict=True)))
    best = squared.flatten(1).argmin(dim=1)
    at_alpha, rest = best // (len(SLOPES) * len(LEVELS)), best % (len(SLOPES) * len(LEVELS))
    alpha, theta = alpha.flatten()[at_alpha], theta.flatten()[rest // len(LEVELS)]
    level = state.level.flatten(1).gather(1, best[:, None])[:, 0]
    chosen = _State(level, *(part.flatten() for part in state[1:]))
    forecast = []
    for _ in range(horizon):
        forecast.append(_ahead(chosen, alpha, theta))
        chosen = _advanced(chosen, forecast[-1], alpha)
    return torch.stack(forecast, dim=1)


def _ahead(state: _State, alpha: Tensor, theta: Tensor) -> Tensor:
    """The forecast of the next row."""
    faded = (1 - alpha) ** state.seen
    trend = state.intercept * faded + state.slope * (1 - faded * (1 - alpha)) / alpha
    return state.level + (1 - 1 / theta) * trend


def _advanced(state: _State, own: Tensor, alpha: Tensor) -> _State:
    """The state after a row: smoothed level, and the line of least squares through all rows so far."""
    count = state.seen + 1
    mean = state.mean + (own - state.mean) / count
    slope = ((count - 2) * state.slope + 6 * (own - state.mean) / count) / (count + 1)
    slope = torch.where(count > 1, slope, torch.zeros_like(slope))
    level = alpha * own + (1 - alpha) * state.level
    return _State(level, mean - slope * (count + 1) / 2, slope, mean, count)
