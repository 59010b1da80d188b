"""A panel's parts, scales, windows and masks, against plain loops in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_provider import panel_data
from data_provider.data_factory import build_data, evaluation_loader, training_loader
from data_provider.panel import series_numbers
from data_provider.panel_data import grouped_moments, panel_parts, part_places
from data_provider.panel_windows import PanelDataset
from data_provider.time_features import time_marks
from layers.retrieval.search import Rows, admissible
from utils.config import Config, ConfigError
from utils.errors import UserError
from utils.types import DataBundle

L, H = 10, 4
LENGTHS = {"a": 80, "b": 33, "c": 18, "d": 15, "e": 9, "f": 3}
"""c is too short for a training window, d for validation too, e and f for any."""
WritePanel = Callable[..., Path]


@pytest.fixture
def write_panel(tmp_path: Path) -> WritePanel:
    """Write days of each series, each beginning three days after the one before."""

    def write(lengths: dict[str, int] = LENGTHS, seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        days = pd.date_range("2020-01-01", periods=200, freq="D")
        parts = [
            pd.DataFrame(
                {
                    "unique_id": name,
                    "ds": days[3 * s : 3 * s + n],
                    "y": 50.0 * s + rng.normal(0, s + 1, n).cumsum(),
                }
            )
            for s, (name, n) in enumerate(lengths.items())
        ]
        pd.concat(parts).to_csv(tmp_path / "panel.csv", index=False)
        return tmp_path / "panel.csv"

    return write


def config_of(path: Path, **changes: object) -> Config:
    own = {"data": "custom", "root_path": str(path.parent), "data_path": path.name, "batch_size": 4}
    return Config.from_flat({**own, "seq_len": L, "pred_len": H, "patch_len": 4, "stride": 2, **changes})


def values_of(path: Path) -> dict[str, np.ndarray]:
    frame = pd.read_csv(path)
    return {str(name): own["y"].to_numpy() for name, own in frame.groupby("unique_id", sort=False)}


def parts_by_hand(rows: int) -> tuple[int, int]:
    """Where training and validation of a series end."""
    train, test = int(0.7 * rows), int(0.2 * rows)
    validation = max(H, rows - train - test)
    test = max(H, test)
    return rows - test - validation, rows - test


def windows_by_hand(values: dict[str, np.ndarray]) -> dict[str, list[tuple[str, int]]]:
    """(series, cut) of every window of each part."""
    found: dict[str, list[tuple[str, int]]] = {"train": [], "validation": [], "test": []}
    for name, own in values.items():
        train, validation = parts_by_hand(len(own))
        for part, begin, end in (
            ("train", 0, train),
            ("validation", train, validation),
            ("test", validation, len(own)),
        ):
            found[part] += [(name, cut) for cut in range(max(begin, L), end - H + 1)]
    return found


@pytest.mark.parametrize("scaler", ["series", "global"])
def test_windows_scales_and_parts_are_what_a_plain_loop_gives(write_panel, scaler):
    path = write_panel()
    values = values_of(path)
    bundle = build_data(config_of(path, panel_scaler=scaler))
    wanted = windows_by_hand(values)
    days = pd.date_range("2020-01-01", periods=200, freq="D")
    marks, names = time_marks(days, "D"), list(values)
    trained = {name for name, _ in wanted["train"]}
    rows = {n: own[: parts_by_hand(len(own))[0 if n in trained else 1]] for n, own in values.items()}
    everything = np.concatenate([own for name, own in rows.items() if name in trained])
    numbers = series_numbers(names)
    for part in ("train", "validation", "test"):
        dataset = getattr(bundle, part)
        assert isinstance(dataset, PanelDataset) and len(dataset) == len(wanted[part])
        for item, (name, cut) in zip((dataset[i] for i in range(len(dataset))), wanted[part], strict=True):
            own = rows[name] if scaler == "series" else everything
            standardised = (values[name] - own.mean()) / own.std()
            np.testing.assert_allclose(item.x[:, 0], standardised[cut - L : cut], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(item.y[:, 0], standardised[cut : cut + H], rtol=1e-5, atol=1e-6)
            begin = 3 * names.index(name) + cut - L
            assert item.start == begin and item.series_id == numbers[names.index(name)]
            np.testing.assert_array_equal(item.x_mark, marks[begin : begin + L])
            np.testing.assert_array_equal(item.y_mark, marks[begin + L : begin + L + H])
    assert trained == {"a", "b"}
    assert "'c', 'd', 'e', ... (4 in all)" in bundle.notes["untrained"]
    assert "'e', 'f'" in bundle.notes["without_test"]


def test_training_scale_and_windows_read_nothing_of_later_rows(write_panel):
    path = write_panel()
    before = build_data(config_of(path))
    frame = pd.read_csv(path)
    for name, own in frame.groupby("unique_id"):
        rows = parts_by_hand(len(own))[0]
        if name in ("a", "b"):
            frame.loc[own.index[rows:], "y"] += 1000.0
    frame.to_csv(path, index=False)
    after = build_data(config_of(path))
    index = torch.arange(before.source.num_rows)
    for name in ("lookback", "future", "start", "series_id", "marks"):
        assert torch.equal(getattr(before.source.rows(index), name), getattr(after.source.rows(index), name))
    assert torch.equal(before.standardisation.mean[:2], after.standardisation.mean[:2])
    assert before.content_hash != after.content_hash


def test_the_source_finds_its_rows_again_by_series_and_place(write_panel):
    bundle = build_data(config_of(write_panel()))
    rows = bundle.source.rows(torch.arange(bundle.source.num_rows))
    again = bundle.source.lookbacks(series_id=rows.series_id, variable=rows.variable, start=rows.start)
    assert torch.equal(again, rows.lookback) and rows.marks is not None
    assert torch.equal(rows.marks[5], bundle.train[5].x_mark[-1])


def test_a_share_of_the_training_leaves_the_other_parts_as_they_are(write_panel):
    path = write_panel()
    whole, half = build_data(config_of(path)), build_data(config_of(path, percent=50))
    assert half.windows[1:] == whole.windows[1:]
    rows = parts_by_hand(80)[0], parts_by_hand(33)[0]
    used = [(r - L) * 50 // 100 + L for r in rows]
    assert half.windows[0] == sum(max(0, r - L - H + 1) for r in used)
    assert half.panel is not None and half.panel.trained[:2].tolist() == used


@given(st.integers(1, 400), st.integers(1, 30), st.integers(1, 20))
def test_no_forecast_row_is_in_two_parts_and_each_part_has_a_horizon(rows, seq_len, pred_len):
    lengths = np.array([rows])
    parts = panel_parts(lengths, seq_len=seq_len, pred_len=pred_len)
    train, begins, validation = (int(part[0]) for part in parts)
    assert train == begins <= validation - pred_len and validation <= rows - pred_len
    forecast = []
    for begin, end in ((0, train), (begins, validation), (validation, rows)):
        cuts = part_places(np.array([begin]), np.array([end]), seq_len=seq_len, pred_len=pred_len).of_all()[1]
        forecast.append({row for cut in cuts.tolist() for row in range(cut, cut + pred_len)})
        assert all(cut >= seq_len for cut in cuts.tolist())
    assert not (forecast[0] & forecast[1] or forecast[0] & forecast[2] or forecast[1] & forecast[2])


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.floats(-1e6, 1e6), st.integers(0, 99))
def test_moments_by_group_are_numpys(groups, level, seed):
    """Sums of squares lose what is small beside its level."""
    numbers = np.array(groups)
    values = level + np.random.default_rng(seed).normal(0, 1, len(numbers))
    mean, std = grouped_moments(values, numbers, 7)
    for group in range(7):
        own = values[numbers == group]
        if len(own) > 1:
            np.testing.assert_allclose(mean[group], own.mean(), rtol=1e-12)
            np.testing.assert_allclose(std[group], own.std(), rtol=1e-7)
        else:
            assert std[group] == 1 and mean[group] == (own[0] if len(own) else 0)


def test_many_windows_are_scored_at_even_distances_and_said(write_panel, monkeypatch):
    path = write_panel()
    whole = build_data(config_of(path))
    monkeypatch.setattr(panel_data, "MOST_EVALUATED", 5)
    few = build_data(config_of(path))
    total = len(whole.test)  # type: ignore[arg-type]
    assert len(few.test) == 5 and f"test: 5 of {total} windows" in few.notes["test_windows"]  # type: ignore[arg-type]
    starts = [few.test[i] for i in range(5)]
    expected = [whole.test[i * total // 5] for i in range(5)]
    assert all(torch.equal(a.x, b.x) and a.start == b.start for a, b in zip(starts, expected, strict=True))


@pytest.mark.parametrize(("part", "flag"), [("validation", "eval_stride"), ("test", "test_stride")])
def test_a_stride_takes_every_nth_window_of_each_series_and_is_noted(write_panel, part, flag):
    """A stride that was passed over in silence would be scored as if it had been taken."""
    path = write_panel({"a": 120, "b": 90})
    values = values_of(path)
    strided, whole = build_data(config_of(path, **{flag: 3})), build_data(config_of(path))
    windows = windows_by_hand(values)[part]
    first: dict[str, int] = {}
    wanted = [(name, cut) for name, cut in windows if (cut - first.setdefault(name, cut)) % 3 == 0]
    found = getattr(strided, part)
    assert isinstance(found, PanelDataset)
    series, cut = found.places.of_all()
    assert [(list(values)[s], c) for s, c in zip(series.tolist(), cut.tolist(), strict=True)] == wanted
    assert strided.notes[f"{part}_stride"] == f"every 3th {part} window of each series"
    assert strided.windows[2] == whole.windows[2], "what is tested binds no resume"


def drawn(bundle: DataBundle, config: Config, epoch: int = 0) -> list[int]:
    loader = training_loader(bundle, config)
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return [int(i) for batch in loader for i in batch.series_id]


def test_sampling_by_series_takes_each_as_often_however_long(write_panel):
    config = config_of(write_panel({"a": 150, "b": 60, "c": 40}), sampling="series")
    bundle = build_data(config)
    found = drawn(bundle, config)
    assert len(found) == len(bundle.train) // 4 * 4  # type: ignore[arg-type]
    counts = np.unique(found, return_counts=True)[1]
    assert counts.max() - counts.min() <= 1 and len(counts) == 3
    assert drawn(bundle, config) == found != drawn(bundle, config, epoch=1)
    by_window = drawn(bundle, config.replace(sampling="window"))
    assert np.ptp(np.unique(by_window, return_counts=True)[1]) > 20


def test_loaders_take_series_of_different_lengths(write_panel):
    config = config_of(write_panel())
    bundle = build_data(config)
    batch = next(iter(evaluation_loader(bundle.test, 8)))
    assert batch.x.shape == (8, L, 1) and batch.y.shape == (8, H, 1) and batch.x_mark.shape == (8, L, 3)


@settings(max_examples=30)
@given(st.integers(0, 999), st.sampled_from([0, H]), st.booleans())
def test_the_mask_is_the_rule_pair_by_pair(seed, apart, same_series):
    """Futures of all series at one time hold the same shock: a training window found it in its neighbours."""
    rng = np.random.default_rng(seed)
    queries, memory = (
        Rows(*(torch.from_numpy(rng.integers(low, high, n)) for low, high in ((-1, 3), (0, 2), (0, 40))))
        for n in (9, 11)
    )
    found = admissible(queries, memory, span=L + H, same_variable=False, same_series=same_series, apart=apart)
    for q in range(9):
        for m in range(11):
            own = queries.series_id[q] == memory.series_id[m]
            distance = abs(int(queries.start[q] - memory.start[m]))
            allowed = not own or distance >= L + H
            allowed &= not (apart and distance < apart and queries.series_id[q] >= 0)
            allowed &= bool(own) or not same_series
            assert bool(found[q, m]) == allowed


def test_only_a_panels_runs_mask_by_time():
    panel = Config.from_flat({"data": "custom", "id_column": ["unique_id"], "pred_len": H})
    assert (panel.apart, panel.replace(retrieval_mask="series").apart) == (H, 0)
    assert Config.from_flat({"data": "custom"}).apart == 0


def test_a_series_that_does_not_change_keeps_its_units_and_is_named(write_panel):
    path = write_panel()
    frame = pd.read_csv(path)
    frame.loc[frame["unique_id"] == "b", "y"] = 7.0
    frame.to_csv(path, index=False)
    bundle = build_data(config_of(path))
    assert bundle.standardisation.std[1] == 1 and bundle.standardisation.mean[1] == 7
    assert "1 series do not change in the rows they are scaled by: 'b'" in bundle.notes["constant"]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"features": "MS"}, ConfigError, "--features MS: a panel's series are one variable"),
        ({"eval_data": "ETTh1"}, ConfigError, "--eval_data: a panel is tested on its own series"),
        ({"enc_in": 7}, ConfigError, "--enc_in: expected 1"),
        ({"non_negative": True}, ConfigError, "--non_negative: it goes with a table of one series"),
        ({"round_dates": True}, ConfigError, "--round_dates: the times of a panel are not rounded"),
        ({"seq_len": 60}, UserError, "expected a series of 72 rows or more for a training window, found "
            "6 series "
         "of at most 80"),
        ({"id_column": ["store"]}, UserError, "the column of --id_column, 'store'"),
        ({"data": "ETTh1", "id_column": ["x"]}, ConfigError, "--id_column, --date_column: expected "
            "--data custom"),
    ],
)  # fmt: skip
def test_what_a_panel_cannot_do_is_refused(write_panel, changes, error, said):
    path = write_panel()
    with pytest.raises(error, match=said):
        build_data(config_of(path, **changes))


def test_a_number_beyond_float32_is_named_with_its_series(write_panel):
    path = write_panel()
    frame = pd.read_csv(path)
    frame.loc[70, "y"] = 1e30
    frame.to_csv(path, index=False)
    with pytest.raises(UserError, match="series 'a', its row 71: expected a number like the series' others"):
        build_data(config_of(path))
