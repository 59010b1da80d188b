"""Made-up series: a plausible hourly load set, and two focused ones whose structure is known.

They depend on their arguments alone (a numpy Generator of their own), need no file and no network,
and are never called by the name of a real data set. T rows, N variables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset

from data_provider.series import FloatArray, Series
from data_provider.time_features import season_rows

DATA_SEED = 2021
"""Seed of the built-in series: the same data whatever the seed of the training."""
DEFAULT_ROWS = 20 * 30 * 24
"""Rows of the built-in series: as many as the ETT-hour benchmark uses."""
DEFAULT_VARIABLES = 7
_FIRST_DAY = "2016-07-01"


@dataclass(frozen=True)
class SyntheticConfig:
    """Strength of each part of `make_series`, in units of the daily cycle; 0 leaves a part out.

    Every part draws from a random stream of its own: leaving one out changes no other.
    """

    daily: float = 1.0
    """Daily cycle: two harmonics with a shape of their own per variable."""
    weekly: float = 0.5
    """Lower load at the weekend."""
    trend: float = 1.0
    """Piecewise-linear level, a new slope every few weeks."""
    coupling: float = 0.6
    """Loads answer to the weather, and the oil temperature follows the loads with a lag."""
    recurrences: float = 0.8
    """Events of a few days, drawn from a small bank of shapes, that come back at random times."""
    noise: float = 0.3
    """Autoregressive noise."""


def make_series(
    *,
    rows: int = DEFAULT_ROWS,
    variables: int = DEFAULT_VARIABLES,
    seed: int = DATA_SEED,
    frequency: str = "h",
    parts: SyntheticConfig | None = None,
    name: str = "synthetic",
) -> Series:
    """Loads and, as the last column ``OT``, an oil temperature that follows them.

    Args:
        rows: length T, 3 or more.
        variables: columns N, 1 or more; with 1 there is the temperature alone.
        seed: of everything random.
        frequency: pandas alias of a step of one hour or less that divides a day.
        parts: strength of each part; all at their defaults where None.
        name: name of the series.
    """
    parts = parts or SyntheticConfig()
    step = to_offset(frequency)
    if not isinstance(step, pd.offsets.Tick) or pd.Timedelta(step) > pd.Timedelta(hours=1):
        raise ValueError(f"frequency: expected a step of one hour or less, found {frequency}")
    if rows < 3 or variables < 1:
        raise ValueError(f"expected rows >= 3 and variables >= 1, found {rows} and {variables}")
    day = season_rows(frequency)
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(6)]
    weather = _weather(rows, day, streams[0])
    shape = (rows, variables)
    values = parts.daily * _daily_cycle(shape, day, streams[1])
    values += parts.weekly * _weekly_cycle(shape, day, streams[2])
    values += parts.trend * _piecewise_linear(shape, day, streams[3])
    values += parts.recurrences * _events(shape, day, streams[4])
    if parts.coupling:
        values += parts.coupling * _coupled(values, weather, day)
    values += parts.noise * _autoregressive(shape, 0.8, streams[5])
    offsets = np.linspace(4.0, 12.0, variables)  # plausible magnitudes that differ by column
    values = offsets * (1 + 0.25 * values)
    return _series(name, values, frequency)


def planted_recurrences(
    *,
    seed: int,
    seq_len: int,
    pred_len: int,
    variables: int = 1,
    motifs: int = 8,
    motif_rows: int | None = None,
    noise: float = 0.1,
) -> Series:
    """A series whose future can be remembered but not extrapolated.

    It is a chain of random curves from a bank of ``motifs``: the rest of a curve says nothing to who
    has not met it before, and is known up to noise to who has. The chain has 10 rounds, each of which
    plays every curve once in an order of its own, so that with the fractions 0.7/0.1/0.2 each occurs
    7 times in training, once in validation and twice in test. Windows at any offset are helped whose
    lookback shows enough of the curve that their future continues. Curves have mean 0 and deviation 1;
    white noise of deviation ``noise``, new at each occurrence, lies on top.

    Args:
        seed: of everything random.
        seq_len: lookback L of the windows to be helped.
        pred_len: their horizon H.
        variables: columns N, each with a bank of its own and all in the same order.
        motifs: curves in the bank; the series has 10 * motifs * motif_rows rows.
        motif_rows: length of a curve, 2 * (L + H) where None: at L + H alone nearly every lookback
            mixes two curves, and neighbours that share only the older one win.
        noise: deviation of the noise.
    """
    rng = np.random.default_rng(seed)
    length = motif_rows or 2 * (seq_len + pred_len)
    # correlated over H / 12 rows: nothing local reaches far into the horizon
    bank = _smooth_noise((length, motifs * variables), max(1.5, pred_len / 12), rng)
    bank = bank.reshape(length, motifs, variables)
    order = np.concatenate([rng.permutation(motifs) for _ in range(10)])
    values = bank[:, order].transpose(1, 0, 2).reshape(-1, variables)  # [10 * motifs * length, N]
    values = values + noise * rng.standard_normal(values.shape)
    return _series("planted_recurrences", values, "h")


def planted_trends(
    *,
    seed: int,
    seq_len: int,
    pred_len: int,
    rows: int = 6000,
    variables: int = 1,
    season: int = 24,
    noise: float = 0.1,
) -> Series:
    """A series whose level rises, stays or falls over the horizon, as its lookback shows.

    Straight ramps of one to two times ``seq_len + 2 * pred_len`` rows follow each other; each
    group of three holds one up, one flat and one down, equally long and in random order, so the
    three directions have equal shares and the level stays bounded. A ramp moves by about 1 per
    horizon; a season of amplitude 0.5 and white noise of deviation ``noise`` lie on top.
    """
    rng = np.random.default_rng(seed)
    shortest = seq_len + 2 * pred_len
    level = np.empty((rows, variables))
    for variable in range(variables):
        slopes: list[FloatArray] = []
        while sum(map(len, slopes)) < rows:
            length = int(rng.integers(shortest, 2 * shortest))
            slope = rng.uniform(0.8, 1.2) / pred_len
            slopes += [np.full(length, sign * slope) for sign in rng.permutation([-1.0, 0.0, 1.0])]
        level[:, variable] = np.cumsum(np.concatenate(slopes)[:rows])
    phase = rng.uniform(0, 2 * np.pi, variables)
    cycle = 0.5 * np.sin(2 * np.pi * np.arange(rows)[:, None] / season + phase)  # [T, N]
    return _series("planted_trends", level + cycle + noise * rng.standard_normal(level.shape), "h")


def _series(name: str, values: FloatArray, frequency: str) -> Series:
    """A `Series` of ``values`` [T, N] from the first day on; the last column is called OT."""
    rows, variables = values.shape
    columns = [*(f"load_{i + 1}" for i in range(variables - 1)), "OT"]
    dates = pd.date_range(_FIRST_DAY, periods=rows, freq=frequency)
    return Series.from_values(
        name, values=values, dates=pd.DatetimeIndex(dates, freq=None), columns=columns, frequency=frequency
    )


def _weather(rows: int, day: int, rng: np.random.Generator) -> FloatArray:
    """Air temperature [T] in deviations: the year, the day (warmest in the afternoon), slow fronts."""
    days = np.arange(rows) / day
    fronts = _smooth_noise((rows, 1), 2.0 * day, rng)[:, 0]
    year, today = np.cos(2 * np.pi * days / 365), np.cos(2 * np.pi * (days - 15 / 24))
    return np.asarray(year + 0.5 * today + 0.7 * fronts)


def _daily_cycle(shape: tuple[int, int], day: int, rng: np.random.Generator) -> FloatArray:
    """Morning and evening peaks [T, N], a little different in each variable."""
    angle = 2 * np.pi * np.arange(shape[0])[:, None] / day
    first, second = rng.normal(-2.5, 0.4, shape[1]), rng.normal(0.5, 0.4, shape[1])
    return np.sin(angle + first) + rng.uniform(0.3, 0.6, shape[1]) * np.sin(2 * angle + second)


def _weekly_cycle(shape: tuple[int, int], day: int, rng: np.random.Generator) -> FloatArray:
    """Minus 1 or so at the weekend, 0 on working days, [T, N]; the first day is a Friday."""
    weekday = (np.arange(shape[0]) // day + pd.Timestamp(_FIRST_DAY).day_of_week) % 7
    return -(weekday >= 5).astype(np.float64)[:, None] * rng.uniform(0.6, 1.4, shape[1])


def _piecewise_linear(shape: tuple[int, int], day: int, rng: np.random.Generator) -> FloatArray:
    """Straight pieces [T, N] between random levels, two to six weeks apart."""
    rows, variables = shape
    result = np.empty(shape)
    for variable in range(variables):
        gaps = rng.integers(14 * day, 42 * day, size=rows // (14 * day) + 2)
        knots = np.concatenate([[0], np.cumsum(gaps)])
        levels = rng.normal(0.0, 1.0, size=len(knots))
        result[:, variable] = np.interp(np.arange(rows), knots, levels)
    return result


def _events(shape: tuple[int, int], day: int, rng: np.random.Generator) -> FloatArray:
    """Shapes of three days from a bank of eight [T, N], about one event a fortnight."""
    rows, variables = shape
    length = 3 * day
    window = np.sin(np.linspace(0, np.pi, length))[:, None]  # fades in and out
    bank = [window * _smooth_noise((length, variables), day / 6, rng) for _ in range(8)]
    result = np.zeros(shape)
    start = int(rng.integers(0, 14 * day))
    while start + length <= rows:
        result[start : start + length] += bank[rng.integers(len(bank))]
        start += length + int(rng.integers(0, 22 * day))
    return result


def _coupled(values: FloatArray, weather: FloatArray, day: int) -> FloatArray:
    """What coupling adds [T, N]: loads grow away from mild weather, the last column follows them."""
    discomfort = np.abs(weather) - np.abs(weather).mean()
    result = np.repeat(discomfort[:, None], values.shape[1], axis=1)
    loads = values[:, :-1].mean(axis=1) if values.shape[1] > 1 else np.zeros(len(values))
    result[:, -1] = weather + _lagged(loads + discomfort, lag=day / 4)
    return result


def _lagged(values: FloatArray, lag: float) -> FloatArray:
    """Exponential smoothing [T] with a time constant of ``lag`` rows, in float64."""
    kernel = np.exp(-np.arange(int(8 * lag)) / lag)  # the rest weighs less than exp(-8)
    return np.convolve(values, kernel / kernel.sum())[: len(values)]


def _autoregressive(shape: tuple[int, int], memory: float, rng: np.random.Generator) -> FloatArray:
    """Noise [T, N] of unit variance whose neighbours correlate by ``memory``."""
    steps = rng.standard_normal(shape) * np.sqrt(1 - memory**2)
    kernel = memory ** np.arange(int(np.ceil(np.log(1e-6) / np.log(memory))))
    return np.stack([np.convolve(column, kernel)[: shape[0]] for column in steps.T], axis=1)


def _smooth_noise(shape: tuple[int, int], width: float, rng: np.random.Generator) -> FloatArray:
    """White noise [T, N] smoothed by a Gaussian of ``width`` rows; mean 0, deviation 1 per column."""
    half = int(np.ceil(4 * width))
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / width) ** 2)
    white = rng.standard_normal((shape[0] + 2 * half, shape[1]))
    smooth = np.stack([np.convolve(column, kernel, mode="valid") for column in white.T], axis=1)
    return np.asarray((smooth - smooth.mean(axis=0)) / smooth.std(axis=0))
