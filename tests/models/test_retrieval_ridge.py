"""RetrievalRidge against scikit-learn and against a search written out in float64."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

import run_main
from layers.retrieval.futures import KINDS, RetrievedFutures
from layers.retrieval.search import Rows
from layers.ridge import Moments, solve
from models.registry import MODELS
from utils.config import Config
from utils.types import WindowRows

L, H, SEASON, ROWS, VARIABLES = 12, 4, 3, 80, 2


class Source:
    """All windows of a random series."""

    series_id = 7
    num_variables = VARIABLES
    num_windows = ROWS - L - H + 1
    num_rows = num_windows * VARIABLES

    def __init__(self, seed: int) -> None:
        self.values = torch.randn(ROWS, VARIABLES, generator=torch.Generator().manual_seed(seed)).cumsum(0)

    def rows(self, index: torch.Tensor) -> WindowRows:
        variable, start = index // self.num_windows, index % self.num_windows
        windows = torch.stack(
            [self.values[s : s + L + H, v] for s, v in zip(start.tolist(), variable.tolist(), strict=True)]
        )
        return WindowRows(windows[:, :L], windows[:, L:], torch.full_like(start, 7), variable, start)


def by_hand(source: Source, lookback: np.ndarray, *, variable: int, start: int, known: bool) -> np.ndarray:
    """The mean continuation of each kind, one window at a time: [F, H] float64."""
    values = source.values.double().numpy()
    means = []
    for kind in KINDS:
        candidates = []
        for other in range(source.num_windows):
            window = values[other : other + L + H, variable]
            overlaps = known and abs(other - start) < L + H
            if overlaps or (known and kind.same_phase and (other - start) % SEASON):
                continue
            shape, own = window[:L] - window[L - 1], lookback - lookback[-1]
            candidates.append((np.mean((shape - own) ** 2), window[L:] - window[L - 1]))
        nearest = sorted(candidates, key=lambda pair: pair[0])[: kind.neighbours]
        means.append(lookback[-1] + np.mean([future for _, future in nearest], axis=0))
    return np.stack(means)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), known=st.booleans())
def test_a_retrieved_future_is_the_mean_of_what_followed_the_nearest_windows(seed, known):
    source: Any = Source(seed)
    memory = RetrievedFutures(seq_len=L, horizon=H, season=SEASON)
    memory.width = L
    memory.keys = memory.keys.new_empty(0, L)
    memory.fill(source)
    rows = source.rows(torch.arange(seed % 7, source.num_rows, 29))
    series = rows.series_id if known else rows.series_id + 1
    query = Rows(series, rows.variable, rows.start)
    found = memory(rows.lookback, query)
    by_variable = memory.search(rows.lookback, query)
    with mock.patch.object(
        memory, "_groups", lambda own: [(torch.arange(len(own)), slice(0, len(memory.keys)))]
    ):
        assert torch.equal(memory.search(rows.lookback, query), by_variable)  # as on a GPU
    for i in range(len(rows.start)):
        expected = by_hand(
            source,
            rows.lookback[i].double().numpy(),
            variable=int(rows.variable[i]),
            start=int(rows.start[i]),
            known=known,
        )
        np.testing.assert_allclose(found[i], expected, atol=1e-4)


def test_a_window_that_overlaps_all_others_goes_on_at_its_last_value():
    source: Any = Source(3)
    memory = RetrievedFutures(seq_len=L, horizon=ROWS, season=SEASON)
    assert memory.span > ROWS
    memory.futures = memory.futures[:, :H]
    memory.fill(source)
    rows = source.rows(torch.tensor([0, 40]))
    found = memory(rows.lookback, Rows(rows.series_id, rows.variable, rows.start))
    assert torch.equal(found, rows.lookback[:, None, -1:].expand(-1, len(KINDS), H))


@pytest.mark.parametrize("penalty", [0.5, 30.0])
def test_the_map_is_scikit_learns_with_these_weights(penalty):
    rng = np.random.default_rng(0)
    x, y, weight = rng.normal(size=(60, 9)), rng.normal(size=(60, 3)), rng.uniform(0.1, 4, size=60)
    moments = Moments(9, 3)
    for part in np.array_split(np.arange(60), 3):
        moments.add(*(torch.from_numpy(values[part]) for values in (x, y, weight[:, None])))
    found, chosen = solve(moments, moments, [penalty])
    reference = Ridge(alpha=penalty, fit_intercept=False).fit(x, y, sample_weight=weight / weight.mean())
    np.testing.assert_allclose(found, reference.coef_.T, rtol=1e-8)
    assert chosen == penalty
    left = weight @ np.square(y - x @ reference.coef_.T).sum(axis=1)
    assert moments.mse(found) == pytest.approx(left / y.size, rel=1e-9)


def test_the_penalty_is_the_one_that_errs_least_on_validation():
    rng = np.random.default_rng(1)
    parts = []
    for noise in (3.0, 0.0):
        x = rng.normal(size=(40, 20))
        moments = Moments(20, 2)
        y = x[:, :2] + noise * rng.normal(size=(40, 2))
        moments.add(torch.from_numpy(x), torch.from_numpy(y))
        parts.append(moments)
    penalties = [0.01, 1.0, 30.0, 1e4]
    train, valid = parts
    errors = {p: valid.mse(solve(train, valid, [p])[0]) for p in penalties}
    assert solve(train, valid, penalties)[1] == min(errors, key=errors.__getitem__)


def test_a_run_is_ahead_of_ridge_where_the_past_recurs_and_loads_again(tmp_path):
    """Rare events whose course no linear map of the lookback can tell, but an earlier occurrence can."""
    rng = np.random.default_rng(5)
    courses = rng.normal(size=(6, 8)).cumsum(1) * 2
    values = 0.05 * rng.normal(size=(1600, 2))
    for variable in range(2):
        for begin in range(0, 1590, 10):
            course = courses[rng.integers(6)]
            values[begin : begin + 4, variable] += course[:4]
            values[begin + 4 : begin + 8, variable] += course[4:] * np.sign(course[0])
    lines = ["date,a,b"]
    dates = np.datetime64("2020-01-01T00") + np.arange(1600).astype("timedelta64[h]")
    lines += [f"{d},{a:.5f},{b:.5f}" for d, (a, b) in zip(dates, values, strict=True)]
    (tmp_path / "events.csv").write_text("\n".join(lines), "utf-8")
    flags = {
        "data": "custom", "root_path": str(tmp_path), "data_path": "events.csv", "seq_len": 24,
        "label_len": 0, "pred_len": 4, "season": 10, "checkpoints": str(tmp_path / "runs"), "cpu": True,
    }  # fmt: skip
    test = {}
    for name in ("Ridge", "RetrievalRidge"):
        result = run_main.train(Config.from_flat({**flags, "model": name}), model=name)
        test[name] = result.results["best"]["test"]["mse"]
    assert test["RetrievalRidge"] < 0.95 * test["Ridge"]
    saved = torch.load(result.run_dir / "checkpoint", weights_only=True)["model"]
    model: Any = MODELS["RetrievalRidge"](Config.from_flat({**flags, "freq": "h", "model": "RetrievalRidge"}))
    model.load_state_dict(saved)
    assert len(model.start.retrieved.keys) == len(saved["start.retrieved.keys"]) > 1000
