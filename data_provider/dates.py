"""The times of a series: read, checked, at one frequency, and continued into the future.

Shape legend: T rows, H rows ahead.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.tseries.frequencies import to_offset

from utils.errors import UserError

logger = logging.getLogger(__name__)

_SHORT_ALIASES = {"s": "s", "t": "min", "min": "min", "h": "h", "d": "D", "b": "B", "w": "W", "m": "ME"}
"""The one-letter frequencies of the Informer family, in either case, as pandas writes them now."""


def irregular_steps(dates: pd.DatetimeIndex, frequency: str) -> NDArray[np.int64]:
    """Rows whose distance from the row before is not one step of ``frequency``, ascending."""
    step = _step(frequency)
    with warnings.catch_warnings():  # calendar offsets are added row by row: slow, but rare and short
        warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
        expected = dates[:-1] + step
    return np.flatnonzero(np.asarray(expected != dates[1:])) + 1


def frequency_alias(freq: str, *, first: pd.Timestamp | None = None) -> str:
    """A frequency as a user wrote it, as a pandas alias.

    The family's single letters (h, t, d, ...) are understood in either case; months begin on their
    first day if ``first``, the first date, does.

    Raises:
        ValueError: if pandas does not know it.
    """
    alias = _SHORT_ALIASES.get(freq.lower(), freq)
    if alias == "ME" and first is not None and first.day == 1:
        alias = "MS"
    try:
        to_offset(alias)
    except ValueError:
        raise UserError(
            f"--freq: expected a pandas alias such as h, 15min, D, W or ME, found {freq!r}"
        ) from None
    return alias


def row_text(index: int) -> str:
    """How messages name the row with this 0-based index."""
    return f"data row {index + 1}"


def date_column(frame: pd.DataFrame, where: object) -> pd.Series:
    """The times of a table: its ``date`` column, or an index of dates; numbers and objects as text.

    Raises:
        ValueError: where it has neither, or both, or no row.
    """
    indexed = isinstance(frame.index, pd.DatetimeIndex)
    named = [str(c) for c in frame.columns].count("date")
    if named + indexed != 1:
        found = "both" if named == 1 else f"{named} such columns" if named else "neither"
        raise UserError(f"{where}: expected a column named 'date' or an index of dates, found {found}")
    if frame.empty:
        raise UserError(f"{where}: expected rows, found none")
    column = frame.index.to_series() if indexed else frame["date"]
    column = column.reset_index(drop=True).rename("date")
    if isinstance(column.dtype, pd.DatetimeTZDtype) or pd.api.types.is_datetime64_dtype(column):
        return column
    return column.astype(object).where(column.isna(), column.astype(str))


def parse_dates(text: pd.Series, where: object, *, only_warn: bool = False) -> pd.DatetimeIndex:
    """The ``date`` column as times; an offset from UTC is dropped.

    They must increase strictly; with ``only_warn`` it is said where they do not, as in published files.

    Raises:
        ValueError: a time that cannot be read, with its row; or times of several zones.
    """
    try:
        parsed = pd.to_datetime(text, format="ISO8601", errors="coerce")
        if parsed.isna().any():
            with warnings.catch_warnings():  # "could not infer format": the check below says it better
                warnings.simplefilter("ignore", UserWarning)
                general = pd.to_datetime(text, errors="coerce")
            parsed = general if general.isna().sum() < parsed.isna().sum() else parsed
    except ValueError as error:  # mixed offsets from UTC
        raise UserError(
            f"{where}: column 'date': expected times of one time zone, found: {error}; write them in UTC"
        ) from None
    missing = np.flatnonzero(parsed.isna().to_numpy())
    if missing.size:
        first = int(missing[0])
        found = "nothing" if pd.isna(text.iloc[first]) else repr(text.iloc[first])
        raise UserError(
            f"{where}: column 'date', {row_text(first)}: expected a time such as 2016-07-01 00:00:00, "
            f"found {found} ({missing.size} such rows); write all of them as in the example"
        )
    dates = pd.DatetimeIndex(parsed).tz_localize(None)
    dates.name = None
    _check_increasing(dates, where, only_warn=only_warn)
    return dates


def _check_increasing(dates: pd.DatetimeIndex, where: object, *, only_warn: bool) -> None:
    """Raise ValueError, or only warn, at the first date that does not follow the one before."""
    backward = np.flatnonzero(np.diff(dates.asi8) <= 0)
    if not backward.size:
        return
    first = int(backward[0]) + 1
    if dates[first] == dates[first - 1]:
        problem, advice = "a duplicate", "keep one row per time"
    else:
        problem, advice = f"an earlier time than {dates[first - 1]} before it", "sort the rows by date"
    place = f"{where}: column 'date', {row_text(first)}"
    text = f"{place}: expected increasing times, found {dates[first]}, {problem}"
    if not only_warn:
        raise UserError(f"{text}; {advice}")
    logger.warning("%s (%d such rows); the published file is used as it is", text, backward.size)


def check_frequency(dates: pd.DatetimeIndex, freq: str | None, where: object) -> str:
    """The pandas alias of the step between rows, given or inferred, after checking each step.

    Raises:
        ValueError: too few rows, or the first that is not one step after the one before.
    """
    if len(dates) < 3:
        raise UserError(f"{where}: expected 3 rows or more, found {len(dates)}")
    alias = _inferred(dates) if freq is None else frequency_alias(freq, first=dates[0])
    irregular = irregular_steps(dates, alias)
    if not irregular.size:
        return alias
    first = int(irregular[0])
    found = f"{dates[first]}, {dates[first] - dates[first - 1]} after the row before"
    if freq is None:
        raise UserError(
            f"{where}: column 'date', {row_text(first)}: expected steps of {alias} as in most rows, found "
            f"{found} ({irregular.size} such rows); fill the gaps, or accept them with --freq {alias}"
        )
    if 2 * irregular.size >= len(dates) - 1:
        raise UserError(
            f"{where}: --freq {freq}: expected steps of {alias}, found {found} ({irregular.size} such "
            f"rows of {len(dates)}); leave --freq out to have it inferred"
        )
    logger.warning(
        "%s: %d steps are not %s, the first at %s: found %s; rows are taken as if evenly spaced",
        where, irregular.size, alias, row_text(first), found,
    )  # fmt: skip
    return alias


def _inferred(dates: pd.DatetimeIndex) -> str:
    """The alias that fits all dates, or failing that the commonest step's."""
    with warnings.catch_warnings():  # text in pandas 3, an offset later: both are understood below
        warnings.simplefilter("ignore", DeprecationWarning)
        alias = pd.infer_freq(dates)
    if alias is not None:
        return str(to_offset(alias).freqstr)
    steps, counts = np.unique(np.diff(dates.asi8), return_counts=True)
    commonest = pd.Timedelta(int(steps[counts.argmax()]), unit=dates.unit)
    if commonest % pd.Timedelta(days=1) == pd.Timedelta(0):
        return f"{commonest.days}D" if commonest.days > 1 else "D"
    return str(to_offset(commonest).freqstr)


def frequency_like(dates: pd.DatetimeIndex, expected: str, *, freq: str | None, where: object) -> str:
    """The frequency of ``dates``, which is ``expected`` or another alias of the same length.

    ``freq``, where given, accepts gaps.

    Raises:
        ValueError: for dates of another frequency, or with gaps.
    """
    if len(dates) > 1 and freq is None and not irregular_steps(dates, expected).size:
        return expected
    found = check_frequency(dates, freq, where)
    if _length(found) != _length(expected):
        raise UserError(
            f"{where}: expected rows at the frequency {expected}, which the model was trained on, found "
            f"{found}; resample the table"
        )
    return found


def dates_after(last: pd.Timestamp, frequency: str, rows: int) -> pd.DatetimeIndex:
    """The ``rows`` times that follow ``last``, one step of ``frequency`` after the other."""
    step = _step(frequency)
    dates = []
    for _ in range(rows):
        last = last + step
        dates.append(last)
    return pd.DatetimeIndex(dates)


def _step(frequency: str) -> Any:
    """What leads from one row to the next; weekly rows need not fall on the alias's weekday."""
    step: Any = to_offset(frequency)
    return pd.Timedelta(weeks=step.n) if isinstance(step, pd.offsets.Week) else step


def _length(frequency: str) -> tuple[str, int]:
    """What two frequencies of the same length have in common: 60min and h, or ME and MS."""
    step: Any = to_offset(frequency)
    if isinstance(step, pd.offsets.Tick):
        return "ns", pd.Timedelta(step).value
    if isinstance(step, pd.offsets.Day | pd.offsets.Week):
        days = step.n * (7 if isinstance(step, pd.offsets.Week) else 1)
        return "ns", pd.Timedelta(days=days).value
    return type(step).__name__.removesuffix("Begin").removesuffix("End"), int(step.n)
