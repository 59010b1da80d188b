"""A CSV file becomes a checked series: finite numbers at regular, increasing times.

Shape legend: T rows, N variables.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.tseries.frequencies import to_offset

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]
FillMissing = Literal["interpolate", "ffill"]

_SHORT_ALIASES = {"s": "s", "t": "min", "min": "min", "h": "h", "d": "D", "b": "B", "w": "W", "m": "ME"}
"""The one-letter frequencies of the Informer family, in either case, as pandas writes them now."""


@dataclass(frozen=True, eq=False)
class Series:
    """A multivariate series with all that names it.

    Make one with `Series.from_values`, which derives the two hashes.
    """

    name: str
    """What to call it in tables."""
    values: FloatArray
    """[T, N] float64, original units, finite."""
    dates: pd.DatetimeIndex
    """[T], strictly increasing (but where a published file is used as it is), without a time zone."""
    columns: tuple[str, ...]
    """[N] names of the variables."""
    frequency: str
    """pandas offset alias, e.g. h or 15min."""
    series_id: int
    """63 bits of the sha256 of values and columns; positive."""
    content_hash: str
    """sha256 of values and dates, hexadecimal."""

    @classmethod
    def from_values(
        cls,
        name: str,
        *,
        values: FloatArray,
        dates: pd.DatetimeIndex,
        columns: Sequence[str],
        frequency: str,
    ) -> Series:
        """A series of ``values`` [T, N] at ``dates`` [T], with its hashes."""
        assert values.shape == (len(dates), len(columns)), (values.shape, len(dates), len(columns))
        values = np.ascontiguousarray(values, dtype=np.float64)
        identity = hashlib.sha256(values.astype("<f8", copy=False).data)
        content = identity.copy()
        identity.update("\0".join(columns).encode())
        content.update(dates.as_unit("us").asi8.astype("<i8", copy=False).data)
        return cls(
            name=name,
            values=values,
            dates=dates,
            columns=tuple(columns),
            frequency=frequency,
            series_id=max(1, int.from_bytes(identity.digest()[:8], "big") >> 1),
            content_hash=content.hexdigest(),
        )

    def select(self, columns: Sequence[str]) -> Series:
        """The series of these columns, in this order.

        Raises:
            ValueError: if one is not there.
        """
        for name in columns:
            _check_target(name, self.columns, self.name)
        positions = [self.columns.index(name) for name in columns]
        return Series.from_values(
            self.name,
            values=self.values[:, positions],
            dates=self.dates,
            columns=columns,
            frequency=self.frequency,
        )


def read_csv(
    path: str | Path,
    *,
    features: Literal["M", "S", "MS"],
    target: str,
    freq: str | None = None,
    fill_missing: FillMissing | None = None,
    as_published: bool = False,
) -> Series:
    """Read a CSV file with a ``date`` column and numeric columns into a `Series`.

    Args:
        path: the file; UTF-8, with or without a byte order mark, any line ending.
        features: M keeps every variable, S the target alone, MS every variable, the target last.
        target: name of the target column (looked at for S and MS).
        freq: pandas alias of the step between rows; inferred where None. Given, it also accepts
            gaps in the dates, with a warning, as long as most steps are of that length.
        fill_missing: what to do with missing and infinite numbers. None: an error. interpolate:
            linear between the rows before and after, the nearest at the ends. ffill: the number
            before. Interpolation looks at rows that come later. A warning counts what was filled.
        as_published: take the rows of a benchmark's file in their order, as every published result
            does; times that repeat or go back are a warning instead of an error.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for anything wrong in the file; the message names file, column and first row.
    """
    path = Path(path)
    frame = _read_frame(path)
    dates = _parse_dates(frame["date"], path)
    _check_increasing(dates, path, only_warn=as_published)
    columns = [str(c) for c in frame.columns if c != "date"]
    if not columns:
        raise ValueError(f"{path}: expected numeric columns beside 'date', found none")
    if features != "M":
        _check_target(target, columns, path)
        columns = [c for c in columns if c != target and features == "MS"] + [target]
    values = np.empty((len(frame), len(columns)))  # [T, N]
    for position, column in enumerate(columns):
        values[:, position] = _numbers(frame[column], path, fill_missing)
    frequency = _check_frequency(dates, freq, path)
    return Series.from_values(path.stem, values=values, dates=dates, columns=columns, frequency=frequency)


def require_file(path: Path) -> None:
    """Raise FileNotFoundError, with what to do, unless there is such a file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; put a CSV file with a 'date' column and numeric columns there, "
            "or name another with --root_path and --data_path"
        )


def irregular_steps(dates: pd.DatetimeIndex, frequency: str) -> NDArray[np.int64]:
    """Rows whose distance from the row before is not one step of ``frequency``, ascending."""
    step = to_offset(frequency)
    if isinstance(step, pd.offsets.Week):  # weekly data need not fall on the alias's weekday
        step = pd.Timedelta(weeks=step.n)
    with warnings.catch_warnings():  # calendar offsets are added row by row: slow, but rare and short
        warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
        expected = dates[:-1] + step
    return np.flatnonzero(np.asarray(expected != dates[1:])) + 1


def _listed(columns: Sequence[object]) -> str:
    """The first column names, for a message."""
    shown = ", ".join(str(c) for c in columns[:12])
    return shown + (f", ... ({len(columns)} in all)" if len(columns) > 12 else "")


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
        raise ValueError(
            f"--freq: expected a pandas alias such as h, 15min, D, W or ME, found {freq!r}"
        ) from None
    return alias


def _check_target(target: str, columns: Sequence[str], where: object) -> None:
    """Raise ValueError if ``target`` is none of the columns."""
    if target not in columns:
        raise ValueError(
            f"{where}: expected the column of --target, {target!r}, found {_listed(columns)}; "
            "name one of these with --target"
        )


def _row(index: int) -> str:
    """How messages name the row with this 0-based index."""
    return f"data row {index + 1}"


def _read_frame(path: Path) -> pd.DataFrame:
    """The file as a table with a ``date`` column of text and at least one row."""
    require_file(path)
    try:
        _check_header(path)
        frame = pd.read_csv(path, dtype={"date": str}, encoding="utf-8-sig", low_memory=False)
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path}: expected a header line and rows, found an empty file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, found {error}; save the file as UTF-8") from None
    except (pd.errors.ParserError, csv.Error) as error:
        raise ValueError(f"{path}: expected comma-separated rows of equal length, found: {error}") from None
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError(f"{path}: expected as many fields per row as in the header, found more")
    if frame.empty:
        raise ValueError(f"{path}: expected rows below the header, found none")
    return frame


def _check_header(path: Path) -> None:
    """Raise ValueError unless the first line that is not blank names each column once, one of them date."""
    with path.open(encoding="utf-8-sig", newline=None) as file:
        line = next((line for line in file if line.strip()), "")
    names = next(csv.reader([line]), [])
    if not names:
        raise pd.errors.EmptyDataError
    other = next((mark for mark in ";\t|" if "date" in line.strip().split(mark)), None)
    if "date" not in names and other is not None:
        raise ValueError(
            f"{path}: expected columns separated by commas, found {other!r} between them; save the file "
            "with commas (and points in the numbers)"
        )
    if "date" not in names:
        raise ValueError(
            f"{path}: expected a column named 'date', found {_listed(names)}; "
            "rename the column that holds the times"
        )
    for position, name in enumerate(names):
        if not name.strip():
            raise ValueError(
                f"{path}: expected a name for each column, found none for column {position + 1} "
                f"(of {_listed(names)}); name it, or remove it where it only numbers the rows"
            )
        if name in names[:position]:
            raise ValueError(
                f"{path}: expected each column once, found {name!r} in columns {names.index(name) + 1} "
                f"and {position + 1}; rename or remove one"
            )


def _parse_dates(text: pd.Series, path: Path) -> pd.DatetimeIndex:
    """The ``date`` column as times; an offset from UTC is dropped."""
    try:
        parsed = pd.to_datetime(text, format="ISO8601", errors="coerce")
        if parsed.isna().any():
            with warnings.catch_warnings():  # "could not infer format": the check below says it better
                warnings.simplefilter("ignore", UserWarning)
                general = pd.to_datetime(text, errors="coerce")
            parsed = general if general.isna().sum() < parsed.isna().sum() else parsed
    except ValueError as error:  # mixed offsets from UTC
        raise ValueError(
            f"{path}: column 'date': expected times of one time zone, found: {error}; write them in UTC"
        ) from None
    missing = np.flatnonzero(parsed.isna().to_numpy())
    if missing.size:
        first = int(missing[0])
        found = "nothing" if pd.isna(text.iloc[first]) else repr(text.iloc[first])
        raise ValueError(
            f"{path}: column 'date', {_row(first)}: expected a time such as 2016-07-01 00:00:00, "
            f"found {found} ({missing.size} such rows); write all of them as in the example"
        )
    dates = pd.DatetimeIndex(parsed).tz_localize(None)
    dates.name = None
    return dates


def _check_increasing(dates: pd.DatetimeIndex, path: Path, *, only_warn: bool) -> None:
    """Raise ValueError, or only warn, at the first date that does not follow the one before."""
    backward = np.flatnonzero(np.diff(dates.asi8) <= 0)
    if not backward.size:
        return
    first = int(backward[0]) + 1
    if dates[first] == dates[first - 1]:
        problem, advice = "a duplicate", "keep one row per time"
    else:
        problem, advice = f"an earlier time than {dates[first - 1]} before it", "sort the rows by date"
    text = f"{path}: column 'date', {_row(first)}: expected increasing times, found {dates[first]}, {problem}"
    if not only_warn:
        raise ValueError(f"{text}; {advice}")
    logger.warning("%s (%d such rows); the published file is used as it is", text, backward.size)


def _numbers(column: pd.Series, path: Path, fill_missing: FillMissing | None) -> FloatArray:
    """A column as finite float64 [T], missing numbers filled where that is asked for."""
    where = f"{path}: column {column.name!r}"
    if pd.api.types.is_bool_dtype(column):
        raise ValueError(f"{where}, {_row(0)}: expected a number, found {column.iloc[0]}; write 0 and 1")
    numbers = pd.to_numeric(column, errors="coerce")
    text = np.flatnonzero((numbers.isna() & column.notna()).to_numpy())
    if text.size:
        first = int(text[0])
        raise ValueError(
            f"{where}, {_row(first)}: expected a number, found {column.iloc[first]!r} "
            f"({text.size} such rows); correct it, or remove the column"
        )
    values: FloatArray = numbers.to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if not bad.size:
        return values
    first = int(bad[0])
    found = "nothing (or nan)" if np.isnan(values[first]) else str(values[first])
    problem = f"{where}, {_row(first)}: expected a finite number, found {found} ({bad.size} such rows)"
    if bad.size == len(values):
        raise ValueError(f"{problem}; the column has none: remove it")
    if fill_missing is None:
        raise ValueError(f"{problem}; fill it with --fill_missing interpolate, or remove the column")
    if fill_missing == "ffill" and first == 0:
        raise ValueError(f"{problem}, and no row before it for --fill_missing ffill; use interpolate")
    logger.warning("%s; filled with --fill_missing %s", problem, fill_missing)
    return _filled(values, fill_missing)


def _filled(values: FloatArray, how: FillMissing) -> FloatArray:
    """Numbers [T], those that are not finite replaced; for ``ffill`` the first is finite."""
    rows, known = np.arange(len(values)), np.flatnonzero(np.isfinite(values))
    if how == "interpolate":
        return np.interp(rows, known, values[known])
    before = np.searchsorted(known, rows, side="right") - 1
    return values[known[before]]


def _check_frequency(dates: pd.DatetimeIndex, freq: str | None, path: Path) -> str:
    """The pandas alias of the step between rows, given or inferred, after checking each step."""
    if len(dates) < 3:
        raise ValueError(f"{path}: expected 3 rows or more, found {len(dates)}")
    alias = _inferred(dates) if freq is None else frequency_alias(freq, first=dates[0])
    irregular = irregular_steps(dates, alias)
    if not irregular.size:
        return alias
    first = int(irregular[0])
    found = f"{dates[first]}, {dates[first] - dates[first - 1]} after the row before"
    if freq is None:
        raise ValueError(
            f"{path}: column 'date', {_row(first)}: expected steps of {alias} as in most rows, found "
            f"{found} ({irregular.size} such rows); fill the gaps, or accept them with --freq {alias}"
        )
    if 2 * irregular.size >= len(dates) - 1:
        raise ValueError(
            f"{path}: --freq {freq}: expected steps of {alias}, found {found} ({irregular.size} such "
            f"rows of {len(dates)}); leave --freq out to have it inferred"
        )
    logger.warning(
        "%s: %d steps are not %s, the first at %s: found %s; rows are taken as if evenly spaced",
        path, irregular.size, alias, _row(first), found,
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
