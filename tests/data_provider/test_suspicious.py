"""Numbers that stand for something else are told, and ordinary ones are not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_provider.data_factory import build_data
from data_provider.suspicious import constants, sentinels
from utils.config import Config


def normal(seed: int = 0, rows: int = 600) -> np.ndarray:
    return np.random.default_rng(seed).normal(50, 7, rows)


def found(values: np.ndarray) -> list[tuple[float, int]]:
    return [(s.value, s.times) for s in sentinels(values[:, None], ["wv"])]


@pytest.mark.parametrize("value", [-9999, -999, 9999, 999, -99.9, -9999.9, 99999, -32768, 1e20, 0, -777])
@pytest.mark.parametrize("times", [4, 300])
def test_a_value_repeated_far_outside_the_rest_is_found_and_counted(value, times):
    """4 of 600 numbers of -9999 made the deviation 976 instead of 7, without a word."""
    values = normal() if value != 0 else normal() + 1000
    values[-times:] = value
    assert found(values) == [(value, times)]


def test_two_marks_in_one_column_do_not_hide_each_other():
    values = normal()
    values[[3, 5, 9]], values[[70, 80]] = -9999, 9999
    assert found(values) == [(-9999, 3), (9999, 2)]


@pytest.mark.parametrize(
    "values",
    [
        normal(),
        np.append(normal(), 500.0),  # a spike
        np.repeat([0.0, 1.0], 300),  # a switch
        np.where(np.arange(600) < 590, 0.0, 99.0),
        np.maximum(0, normal() - 60),  # rain
        np.round(normal()),
        np.exp(normal() / 7),  # a long tail
        np.clip(normal(), 40, 55),  # a sensor at its ends
        np.linspace(-2000, 2000, 600).round(),  # -999 among its like
        np.full(600, -9999.0),
    ],
)
def test_ordinary_columns_raise_no_alarm(values):
    assert found(values) == []


@given(st.lists(st.integers(-50, 50), min_size=3, max_size=40), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_what_is_found_lies_outside_all_others(values, times):
    column = np.array([*values, *[-9999] * times], dtype=float)
    for s in sentinels(column[:, None], ["x"]):
        others = column[column != s.value]
        assert s.times == (column == s.value).sum() and not others.min() <= s.value <= others.max()


def table(path, **columns: np.ndarray) -> Config:
    frame = pd.DataFrame(columns)
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=len(frame), freq="h"))
    frame.to_csv(path / "x.csv", index=False)
    flags = {"data": "custom", "root_path": str(path), "data_path": "x.csv", "seq_len": 24, "pred_len": 8}
    return Config.from_flat(flags)


def test_the_notes_name_column_value_and_count(tmp_path):
    marked = normal()
    marked[[4, 8, 100, 200]] = -9999
    notes = build_data(table(tmp_path, wv=marked, T=normal(1))).notes
    said = [text for text in notes.values() if text.startswith("warning: ")]
    assert len(said) == 1 and "column 'wv': the value -9999 stands in 4 rows of 600" in said[0]
    frame = pd.read_csv(tmp_path / "x.csv").replace(-9999, np.nan)  # the way out that it names
    frame.to_csv(tmp_path / "x.csv", index=False)
    config = table(tmp_path, wv=frame["wv"].to_numpy(), T=normal(1)).replace(fill_missing="interpolate")
    assert not any("-9999" in text for text in build_data(config).notes.values())


def test_a_column_constant_in_training_is_named_with_where_it_begins(tmp_path):
    """MSE 3113 of a sensor that starts in the test part, without a word."""
    late = np.where(np.arange(600) < 500, 0.0, normal())
    bundle = build_data(table(tmp_path, new_sensor=late, flat=np.full(600, 3.0), T=normal(1)))
    assert bundle.constant == ("new_sensor", "flat")
    said = "\n".join(bundle.notes.values())
    assert "'new_sensor': is 0 in every training row and changes from data row 501 on" in said
    assert "'flat': is 3 in every training row and after" in said
    assert constants(normal()[:, None], ["T"], trained=400) == []


def test_many_such_columns_are_told_in_a_few_lines(tmp_path):
    notes = build_data(
        table(tmp_path, **{f"c{i}": np.full(600, float(i)) for i in range(30)}, T=normal())
    ).notes
    assert sum(text.startswith("warning: ") for text in notes.values()) == 9 and "'c29'" in notes["constants"]
