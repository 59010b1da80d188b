"""Several targets from all columns, and forecasts with a floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import run_main
from data_provider import scaling
from data_provider.data_factory import build_data
from models import Forecaster
from models.TimeLLM import _each_last
from tests.conftest import AsWords, TinySettings, forget_accelerator
from utils.config import Config, ConfigError
from utils.errors import UserError
from utils.flag_history import read_settings
from utils.training.forward import linked
from utils.types import ForecastState, Standardisation


def frame(rows: int = 200, low: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    columns = {name: np.maximum(rng.normal(0.3, 1, rows), low) for name in ("a", "b", "c", "d")}
    return pd.DataFrame({"date": pd.date_range("2020-01-01", periods=rows, freq="h"), **columns})


def settings(folder: Path, tiny: TinySettings, **changes: Any) -> dict[str, Any]:
    frame().to_csv(folder / "my.csv", index=False)
    return {**tiny(folder / "my.csv", folder / "checkpoints"), "max_steps": 1, **changes}


@pytest.mark.parametrize("features", ["MS", "S"])
def test_the_targets_named_are_forecast_and_scored(
    tmp_path: Path, tiny_settings: TinySettings, as_words: AsWords, features: str
) -> None:
    """One target alone could be named: for two of fifty columns all fifty were forecast, or two runs made."""
    words = as_words(settings(tmp_path, tiny_settings, features=features, start="solved", non_negative=True))
    result = run_main.main([*words, "--target", "d", "b"])
    assert list(result.results["best"]["by_variable"]) == ["d", "b"]
    forget_accelerator()
    forecaster = Forecaster.load(result.run_dir, device="cpu")
    assert forecaster.columns == (("a", "c", "d", "b") if features == "MS" else ("d", "b"))
    found = forecaster.predict(frame(), levels=(0.5,))
    assert [c for c in found if "_" not in c] == ["date", "d", "b"]
    assert (found[["d", "b", "d_lo_50", "b_lo_50"]] >= 0).all(axis=None)
    tested = forecaster.backtest(frame(), 20)
    assert list(tested.scores.index) == ["d", "b"] and tested.mean.notna().any()


def test_each_target_is_read_as_the_last_of_all_columns() -> None:
    """Two targets of one window would be forecast alike, from the same patches."""
    windows = torch.arange(2 * 3 * 4.0).view(2, 3, 4)
    found = _each_last(windows, 2)
    assert found.shape == (4, 4, 3)
    for window in range(2):
        for place, order in enumerate(([0, 1, 3, 2], [0, 1, 2, 3])):
            assert torch.equal(found[2 * window + place], windows[window].T[order])
    assert torch.equal(_each_last(windows, 1), windows.transpose(1, 2))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"features": "MS", "target": ()}, "--target: --features MS forecasts the columns that it names"),
        ({"features": "S", "target": ("a", "a")}, "--target: expected each column once, found 'a'"),
    ],
)
def test_targets_that_cannot_be_are_named(changes: dict[str, Any], expected: str) -> None:
    """One line."""
    with pytest.raises(ConfigError, match=expected):
        Config.from_flat(changes)


def test_a_lone_target_counts_as_the_word_that_it_was() -> None:
    """The hash of each run with a target of its own would change, and none would be found to be resumed."""
    one = Config.from_flat({"features": "MS", "target": "load"})
    assert one.identity()["target"] == "load" and one == Config.from_flat(
        {"features": "MS", "target": ["load"]}
    )
    assert "target" not in Config().identity()
    assert read_settings({"target": "load"})[0]["target"] == ("load",)


numbers = st.floats(-1e6, 1e6, allow_nan=False, width=32)


@given(mean=st.floats(0, 1e6), std=st.floats(1e-3, 1e6), forecast=numbers)
def test_a_floor_holds_in_the_targets_own_units(mean: float, std: float, forecast: float) -> None:
    """Rounded to float32, zero could lie below itself, and a forecast at the floor be -1e-9."""
    scale = Standardisation(*(torch.tensor([v], dtype=torch.float64) for v in (mean, std)))
    floor = scaling.floor(scale)
    state = linked(ForecastState(torch.full((1, 1, 1), forecast), None, None), floor[None])
    found = scaling.inverse(state.prediction, scale)
    assert float(found) >= 0
    above = forecast - float(floor)
    if above > 0.5:
        assert abs(float(state.prediction) - forecast) <= 0.004 + 1e-6 * (abs(forecast) + abs(float(floor)))


def test_training_goes_through_the_floor() -> None:
    """Clipped, a forecast below the floor has no gradient: nothing learns there, and the scores hide it."""
    raw = torch.tensor([[[-0.3]], [[0.3]]], requires_grad=True)
    linked(ForecastState(raw, None, None), torch.zeros(2, 1)).prediction.sum().backward()
    assert raw.grad is not None and bool((raw.grad > 0.01).all())


def test_a_floor_that_the_data_break_is_refused(tmp_path: Path, tiny_settings: TinySettings) -> None:
    """Negative truths cannot be met; the column and the row are named."""
    given = settings(tmp_path, tiny_settings, non_negative=True)
    changed = frame()
    changed.loc[7, "c"] = -1.0
    changed.to_csv(tmp_path / "my.csv", index=False)
    with pytest.raises(UserError, match="--non_negative: .* found -1 in my, column 'c', data row 8"):
        build_data(Config.from_flat(given))
    assert build_data(Config.from_flat({**given, "features": "MS", "target": "a"})).test[0].floor.shape == (
        1,
    )
