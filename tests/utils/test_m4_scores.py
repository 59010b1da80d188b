"""M4's measures against references written from the published formulas, value by value."""

from __future__ import annotations

import math

import numpy as np
import pytest

from utils.m4_scores import autocorrelations, is_seasonal, mase_scale, naive2, owa, seasonal_indices


def wave(rows: int, season: int, *, noise: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = 1 + 0.4 * np.sin(2 * np.pi * np.arange(rows) / season)
    return (50 + 0.3 * np.arange(rows)) * shape * np.exp(noise * rng.normal(size=rows))


def acf_by_sums(x: list[float], lag: int) -> float:
    mean = sum(x) / len(x)
    below = sum((v - mean) ** 2 for v in x)
    return sum((x[t] - mean) * (x[t + lag] - mean) for t in range(len(x) - lag)) / below


def naive2_by_hand(x: list[float], horizon: int, season: int) -> list[float]:
    """As the competition's code has it: test, classical decomposition, naive, seasonality put back."""
    n = len(x)
    seasonal = False
    if season > 1 and n >= 3 * season:
        limit = 1.645 * math.sqrt((1 + 2 * sum(acf_by_sums(x, k) ** 2 for k in range(1, season))) / n)
        seasonal = abs(acf_by_sums(x, season)) > limit
    if not seasonal:
        return [x[-1]] * horizon
    ratios: dict[int, list[float]] = {phase: [] for phase in range(season)}
    half = season // 2
    for t in range(half, n - half):
        window = x[t - half : t + half + 1]
        if season % 2 == 0:
            average = (0.5 * window[0] + sum(window[1:-1]) + 0.5 * window[-1]) / season
        else:
            average = sum(window) / season
        ratios[t % season].append(x[t] / average)
    index = [sum(ratios[phase]) / len(ratios[phase]) for phase in range(season)]
    mean = sum(index) / season
    index = [value / mean for value in index]
    adjusted = x[-1] / index[(n - 1) % season]
    return [adjusted * index[(n + h) % season] for h in range(horizon)]


@pytest.mark.parametrize("season", [4, 7, 12, 24])
@pytest.mark.parametrize("rows", [260, 263, 301])
@pytest.mark.parametrize("noise", [0.01, 0.3, 2.0])
def test_naive2_is_the_competitions(season, rows, noise):
    series = wave(rows, season, noise=noise)
    np.testing.assert_allclose(
        naive2(series, 18, season), naive2_by_hand(series.tolist(), 18, season), rtol=1e-10
    )


def test_both_answers_of_the_seasonality_test_occur():
    assert is_seasonal(wave(120, 12, noise=0.05), 12)
    assert not is_seasonal(np.random.default_rng(1).normal(10, 1, 120), 12)


@pytest.mark.parametrize(("rows", "season"), [(35, 12), (100, 1), (72, 24)])
def test_short_series_and_far_lags_have_no_season(rows, season):
    """Below three seasons by the competition's rule; at 72 rows R's acf ends at lag 18."""
    assert not is_seasonal(wave(rows, max(season, 2), noise=0.0), season)


def test_a_constant_series_has_no_season_and_is_forecast_by_itself():
    constant = np.full(60, 3.0)
    assert np.isnan(autocorrelations(constant, 4)).all() and not is_seasonal(constant, 4)
    assert naive2(constant, 4, 4).tolist() == [3.0] * 4


def test_indices_of_a_pure_season_are_its_own():
    shape = np.array([0.5, 1.5, 1.2, 0.8])
    np.testing.assert_allclose(seasonal_indices(np.tile(shape, 10) * 7, 4), shape, rtol=1e-12)


def test_the_scale_is_the_seasonal_naive_error_in_sample():
    series = np.array([1.0, 4.0, 2.0, 8.0, 5.0])
    assert mase_scale(series, 1) == pytest.approx((3 + 2 + 6 + 3) / 4)
    assert mase_scale(series, 2) == pytest.approx((1 + 4 + 3) / 3)
    assert mase_scale(series, 5) == mase_scale(np.full(9, 2.0), 1) == 0.0


def test_the_benchmarks_own_average_is_1():
    assert owa(13.0, 1.9, naive2_smape=13.0, naive2_mase=1.9) == 1.0
    assert owa(11.374, 1.536, naive2_smape=13.564, naive2_mase=1.912) == pytest.approx(0.821, abs=5e-4)
