from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_provider.series import FloatArray
from data_provider.splits import Splits, split_rows
from data_provider.synthetic import SyntheticConfig, make_series, planted_recurrences, planted_trends

L, H = 96, 24
OFF = SyntheticConfig(**{field.name: 0.0 for field in dataclasses.fields(SyntheticConfig)})


def windows(values: FloatArray, splits: Splits, part: int) -> tuple[FloatArray, FloatArray]:
    """Lookbacks [W, L] and futures [W, H] of the first variable."""
    rows = values[splits[part].begin : splits[part].end, 0]
    both = np.lib.stride_tricks.sliding_window_view(rows, L + H)
    return both[:, :L], both[:, L:]


def prepared(values: FloatArray) -> tuple[tuple[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]:
    splits = split_rows("custom", len(values), seq_len=L, pred_len=H)
    return windows(values, splits, 0), windows(values, splits, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: make_series(rows=2000, variables=3, seed=seed),
        lambda seed: planted_recurrences(seed=seed, seq_len=L, pred_len=H, motifs=4),
        lambda seed: planted_trends(seed=seed, seq_len=L, pred_len=H, rows=2000),
    ],
)
def test_a_seed_means_one_series(make):
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    assert make(1).content_hash == make(1).content_hash != make(2).content_hash
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]
    assert np.isfinite(make(1).values).all()


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


def test_a_step_longer_than_an_hour_is_refused():
    with pytest.raises(ValueError, match="one hour or less, found D"):
        make_series(rows=100, frequency="D")
    with pytest.raises(ValueError, match="rows >= 3"):
        make_series(rows=2)


def test_planted_recurrences_can_be_remembered_but_not_extrapolated():
    """The positive control of retrieval: nearest neighbours must win by far, a linear model must not."""
    values = planted_recurrences(seed=0, seq_len=L, pred_len=H).values
    (x_train, y_train), (x_test, y_test) = prepared(values)
    x_test, y_test = x_test[::7], y_test[::7]
    distance = (x_test**2).sum(1)[:, None] - 2 * x_test @ x_train.T + (x_train**2).sum(1)
    nearest = distance.argmin(axis=1)
    remembered = (y_train[nearest] - y_test) ** 2
    design = np.column_stack([x_train, np.ones(len(x_train))])
    weights = np.linalg.solve(design.T @ design + 10 * np.eye(L + 1), design.T @ y_train)
    linear = (np.column_stack([x_test, np.ones(len(x_test))]) @ weights - y_test) ** 2
    assert linear.mean() > 0.8 * y_test.var()
    assert remembered.mean() < 0.5 * linear.mean()
    # windows at most offsets are helped, not only those that begin with a curve
    assert (remembered.mean(axis=1) < 0.5 * linear.mean(axis=1)).mean() > 0.6


def test_every_motif_occurs_in_every_part():
    """A curve that training has not seen can not be remembered."""
    motifs, length = 6, L + H + 30
    values = planted_recurrences(
        seed=1, seq_len=L, pred_len=H, motifs=motifs, motif_rows=length, noise=0.0
    ).values
    curves = np.round(values.reshape(-1, length), 9)
    kinds = np.unique(curves, axis=0, return_inverse=True)[1].ravel()
    rounds = kinds.reshape(10, motifs)
    assert (np.sort(rounds, axis=1) == np.arange(motifs)).all()
    train, validation, test = split_rows("custom", len(values), seq_len=L, pred_len=H)
    assert abs(train.end - 7 * motifs * length) <= 1
    assert abs(validation.end - 8 * motifs * length) <= 1 and test.end == len(values)


def test_planted_trends_go_three_ways_in_about_equal_shares():
    """The positive control of the trend router: one class too many and predicting it alone wins."""
    values = planted_trends(seed=0, seq_len=L, pred_len=H, rows=12_000).values
    for lookback, future in prepared(values):
        change = future.mean(axis=1) - lookback[:, -24:].mean(axis=1)
        shares = [(change < -0.4).mean(), (np.abs(change) <= 0.4).mean(), (change > 0.4).mean()]
        assert min(shares) > 0.2 and max(shares) < 0.5


def test_the_planted_direction_shows_in_the_lookback():
    values = planted_trends(seed=0, seq_len=L, pred_len=H, rows=12_000).values
    _, (lookback, future) = prepared(values)
    change = future.mean(axis=1) - lookback[:, -24:].mean(axis=1)
    slope = lookback[:, -24:].mean(axis=1) - lookback[:, -48:-24].mean(axis=1)
    classes = [np.digitize(v, [-0.4, 0.4]) for v in (change, slope)]
    assert (classes[0] == classes[1]).mean() > 0.75
