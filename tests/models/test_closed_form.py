"""The closed forms against plain restatements, scikit-learn's ridge, and known scores on ETTh1."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.utils.data import Dataset

from models.closed_form import (
    RIDGE_ALPHAS,
    RidgeMap,
    evaluate,
    evaluate_baselines,
    persistence,
    seasonal_naive,
)
from utils.config import Config
from utils.types import Batch, DataBundle, SeriesIdentity, Standardisation, WindowRows

LOOKBACK, HORIZON, VARIABLES, SEASON = 12, 5, 2, 4


class Windows(Dataset[Batch]):
    """Every window of a series [T, N], as the real data sets yield them."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values) - LOOKBACK - HORIZON + 1

    def __getitem__(self, index: int) -> Batch:
        x, y = self.values[index : index + LOOKBACK + HORIZON].split([LOOKBACK, HORIZON])
        nothing = torch.zeros(0)
        return Batch(x, y, nothing, nothing, torch.tensor(index), torch.tensor(0), torch.arange(x.shape[1]))


class Source:
    """The same windows as rows."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self.series_id = 0
        self.num_windows = len(windows)
        self.num_variables = windows.values.shape[1]
        self.num_rows = self.num_windows * self.num_variables

    def rows(self, index: Tensor) -> WindowRows:
        variable, start = index // self.num_windows, index % self.num_windows
        pairs = list(zip(start.tolist(), variable.tolist(), strict=True))
        x = torch.stack([self.windows[s].x[:, v] for s, v in pairs])
        y = torch.stack([self.windows[s].y[:, v] for s, v in pairs])
        return WindowRows(x, y, torch.zeros_like(index), variable, start)

    def holds(self, series_id: Tensor) -> bool:
        return not bool(series_id.any())

    def lookbacks(self, *, series_id: Tensor, variable: Tensor, start: Tensor) -> Tensor:
        return torch.stack(
            [self.windows[s].x[:, v] for s, v in zip(start.tolist(), variable.tolist(), strict=True)]
        )


def bundle_of(series: Tensor) -> DataBundle:
    """Train, validation and test cut from one series [T, N] in the middle and at three quarters."""
    half, three_quarters = len(series) // 2, 3 * len(series) // 4
    train = Windows(series[:half])
    return DataBundle(
        name="tiny",
        train=train,
        validation=Windows(series[half:three_quarters]),
        test=Windows(series[three_quarters:]),
        source=Source(train),
        standardisation=Standardisation(torch.zeros(VARIABLES), torch.ones(VARIABLES)),
        columns=["a", "b"],
        targets=["a", "b"],
        frequency="h",
        season=SEASON,
        content_hash="",
        identity=SeriesIdentity(0, half, 0),
        tested="tiny",
        test_targets=["a", "b"],
        windows=(0, 0, 0),
        notes={},
    )


def noisy_rows(rows: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Lookbacks [R, L] and futures [R, H] of random walks."""
    walk = np.cumsum(np.random.default_rng(seed).normal(size=(rows, LOOKBACK + HORIZON)), axis=1)
    return walk[:, :LOOKBACK], walk[:, LOOKBACK:]


def test_persistence_repeats_the_last_row():
    x = np.arange(24.0).reshape(1, 12, 2)
    assert persistence(x, 3).tolist() == [[[22.0, 23.0]] * 3]


@pytest.mark.parametrize("horizon", [2, 4, 9])
def test_seasonal_naive_continues_a_periodic_series_exactly(horizon):
    """A wrong phase after the first repetition would show only where the horizon exceeds the season."""
    series = np.sin(2 * np.pi * np.arange(40) / 4)[None, :, None]
    np.testing.assert_allclose(
        seasonal_naive(series[:, :15], horizon, 4), series[:, 15 : 15 + horizon], atol=1e-12
    )


def test_a_season_longer_than_the_lookback_is_refused():
    with pytest.raises(ValueError, match="season: expected 1 to 12 rows .* found 13"):
        seasonal_naive(np.zeros((1, 12, 1)), 3, 13)


def test_ridge_equals_the_library_on_mean_removed_rows():
    """Accumulating in blocks must not change the solution."""
    x, y = noisy_rows(300, seed=0)
    blocks = [(x[:128], y[:128]), (x[128:], y[128:])]
    fit = RidgeMap.fit(blocks, [(x, y)], alphas=[7.0])
    mean = x.mean(axis=1, keepdims=True)
    reference = Ridge(alpha=7.0, fit_intercept=False, solver="cholesky").fit(x - mean, y - mean)
    np.testing.assert_allclose(fit.coefficients, reference.coef_.T, atol=1e-10)


def test_the_penalty_is_the_one_with_least_error_on_the_validation_rows():
    """Chosen from sums alone, it must be the one that a plain evaluation finds."""
    train, valid = noisy_rows(25, seed=1), noisy_rows(400, seed=2)

    def error(alpha):
        fit = RidgeMap.fit([train], [valid], alphas=[alpha])
        return np.mean((fit.predict(valid[0][:, :, None])[..., 0] - valid[1]) ** 2)

    chosen = RidgeMap.fit([train], [valid]).alpha
    assert chosen == min(RIDGE_ALPHAS, key=error)
    assert chosen != RIDGE_ALPHAS[0], "the least penalty always wins on the training rows themselves"


def test_a_change_of_level_moves_the_ridge_forecast_by_the_same_amount():
    x, y = noisy_rows(60, seed=3)
    fit = RidgeMap.fit([(x, y)], [(x, y)])
    window = x[:4, :, None]
    np.testing.assert_allclose(fit.predict(window + 50.0), fit.predict(window) + 50.0, atol=1e-9)


@pytest.mark.parametrize(
    "blocks, match", [([], "expected training windows, found none"), (None, "found NaN")]
)
def test_ridge_refuses_rows_it_cannot_learn_from(blocks, match):
    x, y = noisy_rows(5, seed=4)
    spoiled = [(np.where(x > x.min(), x, np.nan), y)] if blocks is None else blocks
    with pytest.raises(ValueError, match=match):
        RidgeMap.fit(spoiled, [(x, y)])


def test_every_window_counts_once_when_blocks_are_uneven():
    """A mean of block means would weigh the last, partial block too heavily."""
    series = torch.randn(300 + LOOKBACK + HORIZON - 1, VARIABLES, generator=torch.Generator().manual_seed(5))
    windows = Windows(series)
    error = np.stack(
        [(windows[i].x[-1:].double() - windows[i].y.double()).numpy() for i in range(len(windows))]
    )
    expected = (np.mean(error**2), np.mean(np.abs(error)))
    assert tuple(evaluate(lambda x: persistence(x, HORIZON), windows)) == pytest.approx(expected, rel=1e-12)


def test_a_periodic_series_is_forecast_by_season_and_ridge_but_not_by_persistence():
    wave = torch.tensor([0.0, 1.0, 0.0, -1.0]).repeat(60)
    series = torch.stack([wave, wave.roll(1)], dim=1)
    scores = evaluate_baselines(bundle_of(series))
    assert list(scores) == ["persistence", "seasonal_naive", "ridge"]
    assert scores["seasonal_naive"] == (0.0, 0.0)
    assert scores["ridge"].mse < 1e-2
    assert scores["persistence"].mse > 0.5


def test_no_test_window_is_an_error():
    with pytest.raises(ValueError, match="no window to evaluate on"):
        evaluate(lambda x: persistence(x, HORIZON), Windows(torch.zeros(LOOKBACK + HORIZON - 1, VARIABLES)))


def test_scores_on_etth1_are_the_known_ones():
    """Lookback 512, horizon 96: a wrong border, scaler or window count moves these numbers."""
    folder = Path(os.environ.get("ETT_ROOT", ""))
    if not os.environ.get("ETT_ROOT") or not (folder / "ETTh1.csv").is_file():
        pytest.skip("needs real data: set ETT_ROOT to the folder of ETTh1.csv")
    from data_provider.data_factory import build_data

    scores = evaluate_baselines(build_data(Config.from_flat({"root_path": str(folder), "eval_stride": 8})))
    assert tuple(scores["persistence"]) == pytest.approx((1.294, 0.713), abs=0.003)
    assert tuple(scores["seasonal_naive"]) == pytest.approx((0.512, 0.433), abs=0.003)
    assert tuple(scores["ridge"]) == pytest.approx((0.367, 0.391), abs=0.01)
