"""Each data set by its name: parts, scaler and windows restated from the published protocol.

The files have the published length, and fewer columns than the real ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_provider.data_factory import build_data
from data_provider.splits import split_rows
from utils.config import Config, ConfigError
from utils.data_sets import DATA_SETS
from utils.types import DataBundle

LENGTHS = {
    "ETTh1": (17_420, "h"), "ETTh2": (17_420, "h"), "ETTm1": (69_680, "15min"), "ETTm2": (69_680, "15min"),
    "ECL": (26_304, "h"), "Traffic": (17_544, "h"), "Weather": (52_696, "10min"), "Exchange": (7_588, "D"),
    "ILI": (966, "W-TUE"),
}  # fmt: skip
TEST_AND_VALIDATION = {
    "ECL": (5_260, 2_632), "Traffic": (3_508, 1_756), "Weather": (10_539, 5_270), "Exchange": (1_517, 760),
    "ILI": (193, 97),
}  # fmt: skip
"""Rows as the long-horizon benchmark of another library states them."""
Write = Callable[..., Path]


@pytest.fixture
def published(tmp_path: Path) -> Write:
    """Write a file under the published name, of the published length, with two columns."""

    def write(name: str, *, drop: int = 0) -> Path:
        rows, step = LENGTHS[name]
        values = np.random.default_rng(len(name)).normal(5.0, 2.0, (rows, 2)).round(3)
        values += np.linspace(0, 3, rows)[:, None]  # training's mean is not the file's
        frame = pd.DataFrame(values, columns=["a", "OT"])
        dates = pd.date_range("2016-07-01", periods=rows + drop, freq=step)
        frame.insert(0, "date", np.delete(dates.astype(str).to_numpy(), np.arange(100, 100 + drop)))
        path = tmp_path / DATA_SETS[name].files[0].name
        frame.to_csv(path, index=False)
        return path

    return write


def restated(name: str, rows: int, *, lookback: int) -> list[tuple[int, int]]:
    """First and last row of the three parts, by the published loaders' own arithmetic."""
    if name.startswith("ETT"):
        k = 4 if name.startswith("ETTm") else 1
        begins = [0, 12 * 30 * 24 * k - lookback, 12 * 30 * 24 * k + 4 * 30 * 24 * k - lookback]
        ends = [12 * 30 * 24 * k, 12 * 30 * 24 * k + 4 * 30 * 24 * k, 12 * 30 * 24 * k + 8 * 30 * 24 * k]
        return list(zip(begins, ends, strict=True))
    train, test = int(rows * 0.7), int(rows * 0.2)
    validation = rows - train - test
    begins = [0, train - lookback, rows - test - lookback]
    return list(zip(begins, [train, train + validation, rows], strict=True))


def windows(bundle: DataBundle) -> list[int]:
    return [len(part) for part in (bundle.train, bundle.validation, bundle.test)]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LENGTHS)
def test_parts_scaler_and_windows_are_those_of_the_published_protocol(name, published):
    path = published(name)
    raw = pd.read_csv(path)[["a", "OT"]].to_numpy()
    lookback, horizon = (104, 24) if name == "ILI" else (512, 96)
    config = Config.from_flat({"data": name, "root_path": str(path.parent), "label_len": 0})
    assert (config.data.seq_len, config.data.pred_len) == (lookback, horizon)
    bundle = build_data(config)
    borders = restated(name, len(raw), lookback=lookback)
    assert windows(bundle) == [end - begin - lookback - horizon + 1 for begin, end in borders]
    if name in TEST_AND_VALIDATION:
        test, validation = TEST_AND_VALIDATION[name]
        assert windows(bundle)[1:] == [validation - horizon + 1, test - horizon + 1]
    begin, end = borders[0]
    mean, std = raw[begin:end].mean(axis=0), raw[begin:end].std(axis=0)
    np.testing.assert_allclose(bundle.standardisation.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(bundle.standardisation.std, std, rtol=1e-12)
    for part, (first, last) in zip((bundle.train, bundle.validation, bundle.test), borders, strict=True):
        for position in (0, last - first - lookback - horizon):
            item, at = part[position], first + position
            assert item.start.item() == at
            np.testing.assert_allclose(item.x, (raw[at : at + lookback] - mean) / std, atol=2e-5)
            future = raw[at + lookback : at + lookback + horizon]
            np.testing.assert_allclose(item.y, (future - mean) / std, atol=2e-5)
    assert (bundle.frequency, bundle.season) == (
        "W" if name == "ILI" else LENGTHS[name][1],
        {"h": 24, "15min": 96, "10min": 144, "D": 7, "W-TUE": 52}[LENGTHS[name][1]],
    )


@given(name=st.sampled_from(list(LENGTHS)), lookback=st.integers(1, 40), horizon=st.integers(1, 40))
def test_other_lengths_move_the_same_borders(name, lookback, horizon):
    rows = LENGTHS[name][0]
    if name != "ILI":
        lookback, horizon = 16 * lookback, 16 * horizon
    parts = split_rows(name, rows, seq_len=lookback, pred_len=horizon)
    assert [(part.begin, part.end) for part in parts] == restated(name, rows, lookback=lookback)


def test_the_table_states_the_published_sizes():
    for name, (rows, step) in LENGTHS.items():
        known = DATA_SETS[name]
        assert known.rows == rows and step.startswith(known.frequency or "?")
    widths = dict(ETTh1=7, ECL=321, Traffic=862, Weather=21, Exchange=8, ILI=7, M4=1)
    assert {name: DATA_SETS[name].variables for name in widths} == widths


def test_a_published_file_with_gaps_is_taken_row_by_row(published, caplog):
    """Weather has 8 rows fewer than its year; every published result takes them as evenly spaced."""
    path = published("Weather", drop=8)
    with caplog.at_level(logging.WARNING):
        bundle = build_data(Config.from_flat({"data": "Weather", "root_path": str(path.parent)}))
    assert "1 steps are not 10min" in caplog.text and "gaps" in bundle.notes
    assert windows(bundle)[2] == 10_539 - 96 + 1


def test_a_published_file_whose_times_repeat_is_taken_as_it_is_and_ones_own_is_not(published, caplog):
    path = published("Exchange")
    lines = path.read_text().splitlines()
    lines[50] = lines[49].split(",", 1)[0] + "," + lines[50].split(",", 1)[1]
    path.write_text("\n".join(lines) + "\n")
    with caplog.at_level(logging.WARNING):
        build_data(Config.from_flat({"data": "Exchange", "root_path": str(path.parent)}))
    assert "a duplicate (1 such rows); the published file is used as it is" in caplog.text
    own = {"data": "custom", "root_path": str(path.parent), "data_path": path.name}
    with pytest.raises(ValueError, match="a duplicate .1 such rows.; keep one row per time"):
        build_data(Config.from_flat(own))


def test_the_number_of_variables_is_the_files_own(published):
    """A scripts' --enc_in that is not the file's is told, not believed."""
    path = published("Exchange")
    with pytest.raises(ConfigError, match="--enc_in: expected 2 .* found 8"):
        build_data(Config.from_flat({"data": "Exchange", "root_path": str(path.parent), "enc_in": 8}))


def test_a_data_sets_own_defaults_give_way_to_flags():
    illness = Config.from_flat({"data": "ILI"})
    assert (illness.data.seq_len, illness.data.pred_len, illness.data.label_len) == (104, 24, 18)
    assert (illness.backbone.patch_len, illness.backbone.stride) == (24, 2)
    assert illness.data.root_path == "./dataset/illness"
    assert Config.from_flat({"data": "ILI", "pred_len": 60}).data.pred_len == 60
    assert Config.from_flat({"data": "ETTh2"}) == Config.from_flat({}).replace(data="ETTh2")
    assert illness.replace(seed=1).replace(seed=illness.training.seed) == illness


def test_a_name_in_another_case_is_the_same_data_set_and_an_unknown_one_an_error():
    assert Config.from_flat({"data": "etth2"}) == Config.from_flat({"data": "ETTh2"})
    with pytest.raises(ConfigError, match="--data: expected one of ETTh1, .*, synthetic, found weahter"):
        Config.from_flat({"data": "weahter"})
