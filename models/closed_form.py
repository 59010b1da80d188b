"""Forecasts that need no neural network: what a trained model has to beat.

Shape legend: n windows, N variables, L lookback, H horizon, R rows (one variable of one window each).
All arithmetic is float64 NumPy; all values are in standardised units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from logging import getLogger
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from layers.ridge import Moments, solve
from utils.batches import window_batches
from utils.errors import UserError
from utils.types import Batch, DataBundle, WindowSource

log = getLogger(__name__)
Array = NDArray[np.float64]
ForecastRule = Callable[[Array], Array]

RIDGE_ALPHAS = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
"""Penalties that are tried, for a sum of squares over all training rows (56,511 on ETTh1)."""
ROWS_PER_BLOCK = 4096
"""A block of 4,096 rows of 512 values is 16 MiB in float64."""


class Scores(NamedTuple):
    """Errors over every value of every window, in standardised units."""

    mse: float
    mae: float


def persistence(x: Array, horizon: int) -> Array:
    """The last value of each lookback [n, L, N], repeated: [n, H, N]."""
    return np.repeat(x[:, -1:], horizon, axis=1)


def seasonal_naive(x: Array, horizon: int, season: int) -> Array:
    """The last ``season`` rows of each lookback [n, L, N], repeated to [n, H, N].

    Raises:
        ValueError: where the season is longer than the lookback.
    """
    if not 1 <= season <= x.shape[1]:
        raise ValueError(f"season: expected 1 to {x.shape[1]} rows (the lookback), found {season}")
    return x[:, -season:][:, np.arange(horizon) % season]


@dataclass(frozen=True)
class RidgeMap:
    """One linear map from lookback to future, shared by all variables, without an intercept.

    The lookback's mean is taken out before and added back after, so that a change of level between
    training and test costs nothing.
    """

    coefficients: Array
    """[L, H]."""
    alpha: float
    """The penalty that validation chose."""

    @classmethod
    def fit(
        cls,
        training: Iterable[tuple[Array, Array]],
        validation: Iterable[tuple[Array, Array]],
        *,
        alphas: Iterable[float] = RIDGE_ALPHAS,
    ) -> RidgeMap:
        """The map with the penalty of least squared error on the validation rows.

        Both arguments yield blocks (x [R, L], y [R, H]); each is read once.

        Raises:
            ValueError: where either holds no rows, or a value is not a finite number.
        """
        coefficients, alpha = solve(_sum_up(training, "training"), _sum_up(validation, "validation"), alphas)
        return cls(coefficients.numpy(), alpha)

    def predict(self, x: Array) -> Array:
        """Forecasts [n, H, N] of the lookbacks x [n, L, N]."""
        mean = x.mean(axis=1, keepdims=True)
        return np.einsum("nlv,lh->nhv", x - mean, self.coefficients, optimize=True) + mean


def evaluate(rule: ForecastRule, windows: Dataset[Batch]) -> Scores:
    """The rule's errors over every window, by exact sums and counts.

    Raises:
        ValueError: there is no window.
    """
    squared = absolute = 0.0
    values = 0
    for x, y in _window_blocks(windows):
        error = rule(x) - y  # [n, H, N]
        squared += float(np.sum(error**2))
        absolute += float(np.sum(np.abs(error)))
        values += error.size
    if not values:
        raise UserError("there is no window to evaluate on; use a longer series or shorter windows")
    return Scores(squared / values, absolute / values)


def fit_ridge(training: WindowSource, validation: Dataset[Batch]) -> RidgeMap:
    """Ridge on all training windows, its penalty chosen on the validation windows."""
    return RidgeMap.fit(
        _source_blocks(training),
        ((_as_rows(x), _as_rows(y)) for x, y in _window_blocks(validation)),
    )


def evaluate_baselines(bundle: DataBundle) -> dict[str, Scores]:
    """Test errors of ``persistence``, ``seasonal_naive`` and ``ridge``, over every test window.

    There is no ``seasonal_naive`` where a season is longer than the lookback; that is said. Ridge is
    fitted on all training windows; its penalty is chosen on ``bundle.validation``.
    """
    horizon = bundle.test[0].y.shape[0]
    ridge = fit_ridge(bundle.source, bundle.validation)
    rules: dict[str, ForecastRule] = {
        "persistence": lambda x: persistence(x, horizon),
        "seasonal_naive": lambda x: seasonal_naive(x, horizon, bundle.season),
        "ridge": ridge.predict,
    }
    lookback = bundle.test[0].x.shape[0]
    if bundle.season > lookback:
        log.warning("no seasonal naive: a season of %d rows, a lookback of %d", bundle.season, lookback)
        del rules["seasonal_naive"]
    return {name: evaluate(rule, bundle.test) for name, rule in rules.items()}


def _sum_up(blocks: Iterable[tuple[Array, Array]], part: str) -> Moments:
    """The moments of all blocks, rows less their lookback's mean; an error where there are none."""
    moments = Moments(0, 0)
    for x, y in blocks:
        if not moments.rows:
            moments = Moments(x.shape[1], y.shape[1])
        mean = x.mean(axis=1, keepdims=True)
        moments.add(torch.from_numpy(x - mean), torch.from_numpy(y - mean))
    moments.require(part)
    return moments


def _as_rows(values: Array) -> Array:
    """[n, T, N] -> [n * N, T], one row for each variable of each window."""
    return values.transpose(0, 2, 1).reshape(-1, values.shape[1])


def _window_blocks(windows: Dataset[Batch]) -> Iterator[tuple[Array, Array]]:
    """Lookbacks [n, L, N] and futures [n, H, N] of the forecast variables, every window once, in order."""
    for batch in window_batches(windows):
        y = batch.y.double().numpy()
        yield batch.x.double().numpy()[..., -y.shape[-1] :], y


def _source_blocks(source: WindowSource) -> Iterator[tuple[Array, Array]]:
    """Lookbacks [R, L] and futures [R, H] of every training row."""
    for index in torch.arange(source.num_rows).split(ROWS_PER_BLOCK):
        rows = source.rows(index)
        yield rows.lookback.double().numpy(), rows.future.double().numpy()
