"""The M4 competition's measures and its benchmark: SMAPE, MASE, Naive2, OWA.

Source: Makridakis, Spiliotis and Assimakopoulos, "The M4 Competition", International Journal of
Forecasting 2020, and the published R code of its benchmarks ("Benchmarks and Evaluation.R").
All is float64 NumPy; T rows, H horizon, m rows of a season.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
CRITICAL = 1.645
"""Of the seasonality test: 90%."""


def mase_scale(insample: Array, season: int) -> float:
    """Mean absolute error in sample of the seasonal naive forecast; 0 where there is none to measure."""
    if len(insample) <= season:
        return 0.0
    return float(np.abs(insample[season:] - insample[:-season]).mean())


def autocorrelations(values: Array, count: int) -> Array:
    """Sample autocorrelations at lags 1 to ``count``, as R's ``acf`` has them; NaN for a constant series."""
    centred = values - values.mean()
    energy = float(centred @ centred)
    if energy == 0:
        return np.full(count, np.nan)
    return np.array([centred[lag:] @ centred[:-lag] for lag in range(1, count + 1)]) / energy


def is_seasonal(values: Array, season: int) -> bool:
    """The competition's test: the autocorrelation at lag m is beyond its 90% limit.

    Series shorter than three seasons have none, nor have those whose lag m R's ``acf`` does not
    compute by default (more than 10 log10 T).
    """
    count = len(values)
    if season < 2 or count < 3 * season or season > int(10 * np.log10(count)):
        return False
    found = autocorrelations(values, season)
    limit = CRITICAL / np.sqrt(count) * np.sqrt(1 + 2 * np.sum(found[:-1] ** 2))
    return bool(abs(found[-1]) > limit)  # False for NaN


def seasonal_indices(values: Array, season: int) -> Array:
    """Multiplicative indices [m] of the phases, by R's ``decompose``: ratios to a centred moving average."""
    weights = np.ones(season) / season
    if season % 2 == 0:
        weights = np.concatenate([[0.5], np.ones(season - 1), [0.5]]) / season
    half = len(weights) // 2
    ratios = values[half : len(values) - half] / np.convolve(values, weights, mode="valid")
    phases = np.arange(half, len(values) - half) % season
    indices = np.bincount(phases, weights=ratios, minlength=season) / np.bincount(phases, minlength=season)
    return np.asarray(indices / indices.mean())


def naive2(insample: Array, horizon: int, season: int) -> Array:
    """The last value, seasonally adjusted where the series is seasonal: [H]."""
    if not is_seasonal(insample, season):
        return np.full(horizon, insample[-1])
    indices = seasonal_indices(insample, season)
    phases = np.arange(len(insample) - 1, len(insample) + horizon) % season
    adjusted = insample[-1] / indices[phases[0]]
    return np.asarray(adjusted * indices[phases[1:]])


def owa(smape: float, mase: float, *, naive2_smape: float, naive2_mase: float) -> float:
    """The overall weighted average: below 1 beats Naive2."""
    return (smape / naive2_smape + mase / naive2_mase) / 2
