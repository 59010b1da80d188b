from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_provider.dates import irregular_steps
from data_provider.series import read_csv
from data_provider.synthetic import (
    GAP_ROWS,
    LONG_KERNEL,
    SyntheticConfig,
    _valid_part,
    main,
    make_series,
    with_gaps,
)

OFF = SyntheticConfig(**{field.name: 0.0 for field in dataclasses.fields(SyntheticConfig)})


def test_a_seed_means_one_series():
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    one, same, other = (make_series(rows=2000, variables=3, seed=seed) for seed in (1, 1, 2))
    assert one.content_hash == same.content_hash != other.content_hash
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]
    assert np.isfinite(one.values).all()


@pytest.mark.parametrize("frequency", ["h", "15min"])
def test_size_columns_and_step_are_as_asked(frequency):
    series = make_series(rows=500, variables=4, seed=0, frequency=frequency)
    assert series.values.shape == (500, 4)
    assert series.columns == ("load_1", "load_2", "load_3", "OT")
    assert make_series(rows=500, variables=1, seed=0).columns == ("OT",)


def test_each_part_can_be_left_out_without_changing_the_others():
    """Draws shared between parts would turn an ablation of one into another series."""
    constant = make_series(rows=3000, variables=2, parts=OFF).values
    assert np.ptp(constant, axis=0).max() == 0
    alone = [
        make_series(rows=3000, variables=2, parts=dataclasses.replace(OFF, **{name: 1.0})).values - constant
        for name in ("daily", "weekly", "trend", "recurrences", "noise")
    ]
    assert all(np.ptp(part, axis=0).min() > 0 for part in alone)
    together = dataclasses.replace(SyntheticConfig(1.0, 1.0, 1.0, 0.0, 1.0, 1.0))
    np.testing.assert_allclose(
        make_series(rows=3000, variables=2, parts=together).values - constant, sum(alone), atol=1e-9
    )


def test_the_default_has_daily_and_weekly_cycles_and_coupled_columns():
    """A load set without these teaches a reader of the quick start nothing."""
    values = make_series().values
    assert values.shape == (14400, 7)
    centred = values - values.mean(axis=0)
    for column in centred.T:
        power = np.abs(np.fft.rfft(column)) ** 2
        assert power[600] > 20 * np.median(power[500:700])  # 14400 rows / 24
    assert np.abs(np.asarray(np.corrcoef(values.T))[-1, :-1]).max() > 0.3


@pytest.mark.parametrize(
    ("frequency", "season"), [("15min", 96), ("2h", 12), ("D", 7), ("B", 5), ("W", 52), ("MS", 12), ("QE", 4)]
)
def test_every_frequency_has_its_season(frequency, season):
    parts = dataclasses.replace(OFF, daily=1.0, noise=0.1)
    series = make_series(rows=40 * season, variables=2, seed=0, frequency=frequency, parts=parts)
    assert series.frequency == frequency and len(series.dates) == 40 * season
    assert not len(irregular_steps(series.dates, frequency))
    power = np.abs(np.fft.rfft(series.values - series.values.mean(0), axis=0)) ** 2
    assert (power[1:].argmax(axis=0) + 1 == 40).all()  # 40 seasons


def test_weekends_are_those_of_the_calendar():
    parts = dataclasses.replace(OFF, weekly=1.0)
    for frequency in ("h", "D"):
        series = make_series(rows=24 * 28, variables=1, frequency=frequency, parts=parts)
        low = series.values[:, 0] < series.values.max()
        assert (low == (series.dates.day_of_week >= 5)).all()
    assert np.ptp(make_series(rows=100, variables=1, frequency="W", parts=parts).values) == 0


def test_loads_answer_to_the_weather_and_the_temperature_to_the_loads():
    coupled = make_series(rows=24 * 400, variables=3, parts=dataclasses.replace(OFF, coupling=1.0)).values
    loads, oil = coupled[:, :-1].mean(axis=1), coupled[:, -1]
    lagged = [np.corrcoef(loads[: -lag or None], oil[lag:])[0, 1] for lag in (0, 12)]
    assert max(lagged) > 0.2
    alone = make_series(rows=24 * 400, variables=3, parts=OFF).values
    assert np.ptp(alone) > 0 and np.ptp(alone, axis=0).max() == 0


def test_a_wide_kernel_is_the_same_by_fft():
    rng = np.random.default_rng(0)
    values, kernel = rng.normal(size=3 * LONG_KERNEL), rng.normal(size=LONG_KERNEL)
    found = _valid_part(values, kernel)
    assert found.shape == (2 * LONG_KERNEL + 1,)
    for place in (0, 12_345, 2 * LONG_KERNEL):
        wanted = values[place : place + LONG_KERNEL] @ kernel[::-1]
        assert found[place] == pytest.approx(wanted, abs=1e-8)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rows": 2}, "rows >= 3"),
        ({"variables": 0}, "variables >= 1"),
        ({"frequency": "ms"}, "--freq"),
        ({"rows": 10_000_000, "frequency": "YE"}, "beyond any calendar"),
    ],
)
def test_what_can_not_be_made_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        make_series(**{"rows": 100, **wrong})


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_gaps_have_the_share_and_the_length_that_were_asked_for(share):
    series = make_series(rows=4000, variables=20)
    absent = with_gaps(series, missing=share, seed=1).isna().to_numpy()[:, 1:]
    assert absent.mean() == pytest.approx(share, rel=0.25)
    runs = (np.diff(absent.astype(int), axis=0) == 1).sum()
    assert absent.sum() / runs == pytest.approx(GAP_ROWS, rel=0.25)
    shares = absent.mean(axis=0)
    assert shares.std() < share  # in every column, not in one


def test_gaps_change_nothing_else_and_follow_from_the_seed():
    series = make_series(rows=500, variables=3)
    whole = with_gaps(series)
    assert whole.drop(columns="date").to_numpy().tolist() == series.values.tolist()
    first, again, other = (with_gaps(series, missing=0.1, dropped=0.1, seed=s) for s in (1, 1, 2))
    assert first.equals(again) and not first.equals(other)
    assert first["date"].iloc[[0, -1]].tolist() == series.dates[[0, -1]].astype(str).tolist()
    kept = series.values[first.index]
    numbers = first.drop(columns="date").to_numpy()
    assert (np.isnan(numbers) | (numbers == kept)).all() and 400 < len(first) < 490


def test_a_written_series_is_read_back_and_its_gaps_are_met_by_the_flags(tmp_path, capsys):
    path = tmp_path / "mine.csv"
    words = (
        f"{path} --rows 300 --variables 4 --frequency 15min --seed 3 --missing 0.05 --dropped 0.02 --noise 1"
    )
    assert main(words.split()) == 0
    assert "4 variables" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--fill_missing"):
        read_csv(path, features="M", target="OT", freq="15min")
    series = read_csv(path, features="M", target="OT", freq="15min", fill_missing="interpolate")
    assert series.values.shape[1] == 4 and 280 < len(series.values) < 300
    assert main([str(path), "--missing", "2"]) == 2
    assert "missing: expected a share" in capsys.readouterr().err
