"""Made-up series: a plausible load set.

It depends on its arguments alone (a numpy Generator of its own), needs no file and no network, and is
never called by the name of a real data set. T rows, N variables.

``python -m data_provider.synthetic my.csv --rows 17544 --variables 862`` writes one to a file, of any
length, width and frequency, with gaps where they are asked for; ``--events 0 --texts notices.csv`` one with
events that texts in a file of their own announce (`event_series`).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd

from data_provider.dates import frequency_alias
from data_provider.event_series import with_events
from data_provider.series import FloatArray, Series
from data_provider.table_files import table_file, write_table
from data_provider.time_features import season_rows
from utils.atomic_files import whole_file
from utils.cli import PathFlag
from utils.ending import command
from utils.errors import UserError
from utils.frequency import step_of

DATA_SEED = 2021
"""Seed of the built-in series: the same data whatever the seed of the training."""
DEFAULT_ROWS = 20 * 30 * 24
"""Rows of the built-in series: as many as the ETT-hour benchmark uses."""
DEFAULT_VARIABLES = 7
_FIRST_DAY = "2016-07-01"
_DAY = pd.Timedelta(days=1)
LONG_KERNEL = 1 << 15
"""Entries of a kernel from which on a convolution by FFT is worth its rounding."""
GAP_ROWS = 12
"""Mean length of a run of missing numbers, in rows."""


@dataclass(frozen=True)
class SyntheticConfig:
    """Strength of each part of `make_series`, in units of the daily cycle; 0 leaves a part out.

    Every part draws from a random stream of its own: leaving one out changes no other. Where rows are a
    day or more apart, what is said of a day holds of the frequency's own season (7 rows of days, 52 of
    weeks, 12 of months), and where they are more than a day apart there is no weekend.
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


QUIET = SyntheticConfig(trend=0.0, coupling=0.0, recurrences=0.0)
"""Cycles and noise alone: what events add to it nothing else does."""


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
        frequency: pandas alias of the step, from seconds to years.
        parts: strength of each part; all at their defaults where None.
        name: name of the series.

    Raises:
        ValueError: for sizes or a frequency that can not be, or dates beyond what pandas can write.
    """
    parts = parts or SyntheticConfig()
    if rows < 3 or variables < 1:
        raise UserError(f"expected rows >= 3 and variables >= 1, found {rows} and {variables}")
    dates = _dates(rows, frequency)
    day = max(2, season_rows(frequency))  # yearly rows have no season: two rows stand for one
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(6)]
    weather = _weather(dates, day, streams[0])
    shape = (rows, variables)
    values = parts.daily * _daily_cycle(shape, day, streams[1])
    if _longest_step(dates) <= _DAY:
        values += parts.weekly * _weekly_cycle(dates, variables, streams[2])
    values += parts.trend * _piecewise_linear(shape, day, streams[3])
    values += parts.recurrences * _events(shape, day, streams[4])
    if parts.coupling:
        values += parts.coupling * _coupled(values, weather, day)
    values += parts.noise * _autoregressive(shape, 0.8, streams[5])
    offsets = np.linspace(4.0, 12.0, variables)  # plausible magnitudes that differ by column
    values = offsets * (1 + 0.25 * values)
    return _series(name, values, frequency)


def with_gaps(
    series: Series, *, missing: float = 0.0, dropped: float = 0.0, seed: int = DATA_SEED
) -> pd.DataFrame:
    """The series as a table with a ``date`` column, some of its numbers missing and some rows left out.

    Args:
        series: T rows of N variables.
        missing: share of the numbers that are missing, in runs of `GAP_ROWS` rows on average, in each
            column apart.
        dropped: share of the rows left out, single ones; the first and the last are always there.
        seed: of what is missing.

    Raises:
        ValueError: for shares outside 0 to below 1.
    """
    for name, share in (("missing", missing), ("dropped", dropped)):
        if not 0 <= share < 1:
            raise UserError(f"{name}: expected a share from 0 to below 1, found {share}")
    rows, variables = series.values.shape
    holes, lost = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    # a hole begins with probability p and goes on with 1 - 1 / length: two states, of the asked share
    ends, begins = 1 / GAP_ROWS, min(1.0, missing / (1 - missing) / GAP_ROWS)
    state = holes.random(variables) < missing
    absent = np.empty((rows, variables), dtype=bool)
    for row, draw in enumerate(holes.random((rows, variables))):
        absent[row] = state
        state = np.where(state, draw >= ends, draw < begins)
    frame = pd.DataFrame(np.where(absent, np.nan, series.values), columns=list(series.columns))
    frame.insert(0, "date", series.dates.astype(str))
    draws: FloatArray = np.asarray(lost.random(rows))
    draws[[0, -1]] = 1.0
    return frame[draws >= dropped]


def _dates(rows: int, frequency: str) -> pd.DatetimeIndex:
    """The times [T] from the first day on."""
    season_rows(frequency)  # refuses a frequency that is in no table
    try:
        dates = pd.date_range(_FIRST_DAY, periods=rows, freq=step_of(frequency))
    except (pd.errors.OutOfBoundsDatetime, OverflowError):
        raise UserError(
            f"expected fewer rows of frequency {frequency}, found {rows}: they end beyond any calendar"
        ) from None
    return pd.DatetimeIndex(dates, freq=None)


def _longest_step(dates: pd.DatetimeIndex) -> pd.Timedelta:
    """The commonest distance between rows (over a weekend, working days are further apart)."""
    return pd.Timedelta(np.median(np.diff(dates.as_unit("ns").asi8)), unit="ns")


def _series(name: str, values: FloatArray, frequency: str) -> Series:
    """A `Series` of ``values`` [T, N] from the first day on; the last column is called OT."""
    rows, variables = values.shape
    columns = [*(f"load_{i + 1}" for i in range(variables - 1)), "OT"]
    dates = _dates(rows, frequency)
    return Series.from_values(name, values=values, dates=dates, columns=columns, frequency=frequency)


def _weather(dates: pd.DatetimeIndex, day: int, rng: np.random.Generator) -> FloatArray:
    """Air temperature [T] in deviations: the year, the day (warmest in the afternoon), slow fronts."""
    days = np.asarray((dates - dates[0]) / _DAY)
    fronts = _smooth_noise((len(dates), 1), 2.0 * day, rng)[:, 0]
    year, today = np.cos(2 * np.pi * days / 365), np.cos(2 * np.pi * (days - 15 / 24))
    return np.asarray(year + 0.5 * today + 0.7 * fronts)


def _daily_cycle(shape: tuple[int, int], day: int, rng: np.random.Generator) -> FloatArray:
    """Morning and evening peaks [T, N], a little different in each variable."""
    angle = 2 * np.pi * np.arange(shape[0])[:, None] / day
    first, second = rng.normal(-2.5, 0.4, shape[1]), rng.normal(0.5, 0.4, shape[1])
    return np.sin(angle + first) + rng.uniform(0.3, 0.6, shape[1]) * np.sin(2 * angle + second)


def _weekly_cycle(dates: pd.DatetimeIndex, variables: int, rng: np.random.Generator) -> FloatArray:
    """Minus 1 or so at the weekend, 0 on working days, [T, N]; the first day is a Friday."""
    weekend = np.asarray(dates.day_of_week >= 5, dtype=np.float64)
    return -weekend[:, None] * rng.uniform(0.6, 1.4, variables)


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
    kernel = np.exp(-np.arange(max(1, int(8 * lag))) / lag)  # the rest weighs less than exp(-8)
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
    smooth = np.stack([_valid_part(column, kernel) for column in white.T], axis=1)
    return np.asarray((smooth - smooth.mean(axis=0)) / smooth.std(axis=0))


def _valid_part(values: FloatArray, kernel: FloatArray) -> FloatArray:
    """The convolution of ``values`` with ``kernel`` where the two overlap wholly; by FFT for a long one."""
    if len(kernel) < LONG_KERNEL:
        return np.convolve(values, kernel, mode="valid")
    size = 1 << (len(values) + len(kernel) - 2).bit_length()
    whole = np.fft.irfft(np.fft.rfft(values, size) * np.fft.rfft(kernel, size), size)
    return whole[len(kernel) - 1 : len(values)]


@command
def main(argv: list[str] | None = None) -> int:
    """Command line: write a made-up series to a CSV file."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=main.__doc__)
    parser.add_argument("path", action=PathFlag, kind=Path, help="the file to write, .csv or another ending")
    parser.add_argument("--rows", type=int, default=DEFAULT_ROWS, help="length [%(default)s]")
    parser.add_argument("--variables", type=int, default=DEFAULT_VARIABLES, help="columns [%(default)s]")
    parser.add_argument("--frequency", default="h", help="pandas alias of the step [%(default)s]")
    parser.add_argument("--seed", type=int, default=DATA_SEED, help="of everything random [%(default)s]")
    parser.add_argument("--missing", type=float, default=0.0, help="share of numbers that are missing")
    parser.add_argument("--dropped", type=float, default=0.0, help="share of rows left out")
    for part in fields(SyntheticConfig):
        parser.add_argument(
            f"--{part.name}", type=float, default=part.default, help="strength of this part [%(default)s]"
        )
    add = parser.add_argument
    add(
        "--events", type=int, metavar="SPLIT", help="events in the last column, by this split of the wordings"
    )
    add("--texts", action=PathFlag, kind=Path, metavar="FILE", help="the file of their notices")
    args = parser.parse_args(argv)
    kind = table_file(args.path)
    if (args.events is None) != (args.texts is None):
        raise UserError("--events and --texts: expected both or neither, found one")
    series = make_series(
        rows=args.rows,
        variables=args.variables,
        seed=args.seed,
        frequency=frequency_alias(args.frequency),
        parts=SyntheticConfig(**{part.name: getattr(args, part.name) for part in fields(SyntheticConfig)}),
    )
    if args.events is not None:
        announced = with_events(series, split=args.events, seed=args.seed)
        series, notices = announced.series, table_file(args.texts)
        with whole_file(args.texts) as file:
            write_table(announced.texts, file, notices.ending, name=notices.stem)
        print(
            f"{args.texts}: {len(announced.texts)} notices, {int(announced.held_out.sum())} in held-out words"
        )
    frame = with_gaps(series, missing=args.missing, dropped=args.dropped, seed=args.seed)
    with whole_file(args.path) as file:
        write_table(frame, file, kind.ending, name=kind.stem, digits=6)
    print(
        f"{args.path}: {len(frame)} rows, {args.variables} variables, {int(frame.isna().sum().sum())} missing"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
