"""Theta forecasts of many series at once, against one series and one point of the grid at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from layers.theta import LEVELS, SKIPPED, SLOPES, SMOOTHINGS, theta_forecasts
from utils.m4_scores import Array, seasonal_indices


def by_hand(y: np.ndarray, horizon: int) -> np.ndarray:
    """The source's equations, one row after the other, the line fitted anew to all rows so far by polyfit."""

    def run(alpha: float, theta: float, share: float) -> tuple[float, np.ndarray]:
        rows = list(y)
        level, squared, forecast = share * y[0], 0.0, []
        for t in range(len(y) + horizon):
            seen = np.array(rows[:t])
            if t > 1:
                slope, intercept = np.polyfit(np.arange(1, t + 1), seen, 1)
            else:
                slope, intercept = 0.0, y[0]
            trend = intercept * (1 - alpha) ** t + slope * (1 - (1 - alpha) ** (t + 1)) / alpha
            ahead = level + (1 - 1 / theta) * trend
            if t >= len(y):
                forecast.append(ahead)
                rows.append(ahead)
            elif t >= SKIPPED:
                squared += (y[t] - ahead) ** 2
            level = alpha * rows[t] + (1 - alpha) * level
        return squared, np.array(forecast)

    grid = itertools.product(SMOOTHINGS[::3], SLOPES[::4], LEVELS)
    return min((run(*point) for point in grid), key=lambda found: found[0])[1]


def series_of(seed: int, rows: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 50 + rng.normal(0, 2, rows).cumsum() + 0.3 * np.arange(rows)


def test_forecasts_are_the_equations_row_by_row(monkeypatch):
    """The line through all rows is carried forward by a recursion, the grid at once."""
    monkeypatch.setattr("layers.theta.SMOOTHINGS", SMOOTHINGS[::3])
    monkeypatch.setattr("layers.theta.SLOPES", SLOPES[::4])
    series = [series_of(seed, rows) for seed, rows in enumerate((5, 11, 18))]
    found = theta_forecasts(series, 4, 1)
    for own, forecast in zip(series, found, strict=True):
        np.testing.assert_allclose(forecast, by_hand(own, 4), rtol=1e-9)


def test_a_series_forecast_does_not_depend_on_its_neighbours():
    series = [series_of(seed, rows) for seed, rows in enumerate((3, 40, 24, 60))]
    together = theta_forecasts(series, 6, 4)
    for place, own in enumerate(series):
        np.testing.assert_allclose(theta_forecasts([own], 6, 4)[0], together[place], rtol=1e-12)


def test_a_seasonal_series_is_forecast_by_its_indices():
    rows, season = 48, 12
    noise = np.random.default_rng(0).normal(0, 1, rows)
    own: Array = (50 + 0.1 * np.arange(rows) + noise) * (
        1 + 0.4 * np.sin(2 * np.pi * np.arange(rows) / season)
    )
    indices = seasonal_indices(own, season)
    phases = np.arange(rows + 6) % season
    expected = theta_forecasts([own / indices[phases[:rows]]], 6, 1)[0] * indices[phases[rows:]]
    np.testing.assert_allclose(theta_forecasts([own], 6, season)[0], expected, rtol=1e-12)


@pytest.mark.parametrize(
    "own", [np.array([4.0]), np.array([4.0, 5.0]), np.full(30, 7.0), np.zeros(20), -series_of(0, 30)]
)
def test_every_series_has_a_finite_forecast(own):
    assert np.isfinite(theta_forecasts([own], 5, 12)).all()


def test_a_constant_series_goes_on_as_it_was():
    np.testing.assert_allclose(theta_forecasts([np.full(40, 7.0)], 5, 4)[0], 7.0, rtol=1e-3)


def test_a_straight_line_goes_on():
    line = np.linspace(10, 100, 46)
    np.testing.assert_allclose(theta_forecasts([line[:40]], 6, 1)[0], line[40:], rtol=2e-2)
