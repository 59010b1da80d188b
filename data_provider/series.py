"""A CSV file becomes a checked series: finite numbers at regular, increasing times.

Shape legend: T rows, N variables.
"""

from __future__ import annotations

import csv
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_provider.dates import check_frequency, date_column, frequency_like, parse_dates, row_text
from utils.errors import FileMissingError, UserError, using_file

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]
FillMissing = Literal["interpolate", "ffill"]


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
        content = hashlib.sha256(values.astype("<f8", copy=False).data)
        content.update(dates.as_unit("us").asi8.astype("<i8", copy=False).data)
        return cls(
            name=name,
            values=values,
            dates=dates,
            columns=tuple(columns),
            frequency=frequency,
            series_id=identity_of(values, columns),
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


def identity_of(values: FloatArray, columns: Sequence[str]) -> int:
    """63 bits of the sha256 of ``values`` [T, N] and the columns' names; positive."""
    digest = hashlib.sha256(np.ascontiguousarray(values, dtype="<f8").data)
    digest.update("\0".join(columns).encode())
    return max(1, int.from_bytes(digest.digest()[:8], "big") >> 1)


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
    frame = read_table(path)
    dates = parse_dates(frame["date"], path, only_warn=as_published)
    columns = [str(c) for c in frame.columns if c != "date"]
    if not columns:
        raise UserError(f"{path}: expected numeric columns beside 'date', found none")
    if features != "M":
        _check_target(target, columns, path)
        columns = [c for c in columns if c != target and features == "MS"] + [target]
    values = np.empty((len(frame), len(columns)))  # [T, N]
    for position, column in enumerate(columns):
        values[:, position] = _numbers(frame[column], path, fill_missing)
    frequency = check_frequency(dates, freq, path)
    return Series.from_values(path.stem, values=values, dates=dates, columns=columns, frequency=frequency)


def series_of(
    frame: pd.DataFrame,
    *,
    where: object,
    columns: Sequence[str],
    frequency: str,
    freq: str | None = None,
    fill_missing: FillMissing | None = None,
) -> Series:
    """The series of these columns of a table, in this order, at this frequency.

    Args:
        frame: a ``date`` column, or dates as its index, and numeric columns; further ones are passed
            over, with a warning that names them.
        where: what messages call the table.
        columns: the variables.
        frequency: pandas alias that the dates must follow; months, quarters and years may begin where
            those of the alias end.
        freq: given, it accepts gaps in the dates, as in `read_csv`.
        fill_missing: as in `read_csv`.

    Raises:
        ValueError: for anything wrong in the table; the message names it, the column and the first row.
    """
    text = date_column(frame, where)
    names = [str(c) for c in frame.columns]
    missing = [c for c in columns if c not in names]
    if missing:
        raise UserError(
            f"{where}: expected the columns {_listed(columns)}, which the model was trained on, found no "
            f"{_listed(missing)} among {_listed(names)}"
        )
    repeated = [c for c in columns if names.count(c) > 1]
    if repeated:
        raise UserError(f"{where}: expected each column once, found {_listed(repeated)} more than once")
    extra = [c for c in names if c not in (*columns, "date")]
    if extra:
        logger.warning("%s: columns that are not read: %s", where, _listed(extra))
    dates = parse_dates(text, where)
    found = frequency_like(dates, frequency, freq=freq, where=where)
    own = [frame.iloc[:, names.index(c)].rename(c) for c in columns]
    values = np.stack([_numbers(column, where, fill_missing) for column in own], axis=1)  # [T, N]
    name = where.stem if isinstance(where, Path) else str(where)
    return Series.from_values(name, values=values, dates=dates, columns=columns, frequency=found)


def require_file(path: Path) -> None:
    """Make sure that there is such a file.

    Raises:
        FileNotFoundError: there is none; the message says what to put there.
    """
    with using_file(path):
        if path.is_file():
            path.open("rb").close()
            return
    raise FileMissingError(
        f"{path}: no such file; put a CSV file with a 'date' column and numeric columns there, "
        "or name another with --root_path and --data_path"
    )


def _listed(columns: Sequence[object]) -> str:
    """The first column names, for a message."""
    shown = ", ".join(str(c) for c in columns[:12])
    return shown + (f", ... ({len(columns)} in all)" if len(columns) > 12 else "")


def _check_target(target: str, columns: Sequence[str], where: object) -> None:
    """Raise ValueError if ``target`` is none of the columns."""
    if target not in columns:
        raise UserError(
            f"{where}: expected the column of --target, {target!r}, found {_listed(columns)}; "
            "name one of these with --target"
        )


def read_table(path: Path) -> pd.DataFrame:
    """The CSV file as a table with a ``date`` column of text and at least one row.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for anything but comma-separated rows under a header that names each column once.
    """
    require_file(path)
    try:
        _check_header(path)
        frame = pd.read_csv(path, dtype={"date": str}, encoding="utf-8-sig", low_memory=False)
    except pd.errors.EmptyDataError:
        raise UserError(f"{path}: expected a header line and rows, found an empty file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text, found {error}; save the file as UTF-8") from None
    except (pd.errors.ParserError, csv.Error) as error:
        raise UserError(f"{path}: expected comma-separated rows of equal length, found: {error}") from None
    if not isinstance(frame.index, pd.RangeIndex):
        raise UserError(f"{path}: expected as many fields per row as in the header, found more")
    if frame.empty:
        raise UserError(f"{path}: expected rows below the header, found none")
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
        raise UserError(
            f"{path}: expected columns separated by commas, found {other!r} between them; save the file "
            "with commas (and points in the numbers)"
        )
    if "date" not in names:
        raise UserError(
            f"{path}: expected a column named 'date', found {_listed(names)}; "
            "rename the column that holds the times"
        )
    for position, name in enumerate(names):
        if not name.strip():
            raise UserError(
                f"{path}: expected a name for each column, found none for column {position + 1} "
                f"(of {_listed(names)}); name it, or remove it where it only numbers the rows"
            )
        if name in names[:position]:
            raise UserError(
                f"{path}: expected each column once, found {name!r} in columns {names.index(name) + 1} "
                f"and {position + 1}; rename or remove one"
            )


def _numbers(column: pd.Series, table: object, fill_missing: FillMissing | None) -> FloatArray:
    """A column as finite float64 [T], missing numbers filled where that is asked for."""
    where = f"{table}: column {column.name!r}"
    if pd.api.types.is_bool_dtype(column):
        raise UserError(f"{where}, {row_text(0)}: expected a number, found {column.iloc[0]}; write 0 and 1")
    numbers = pd.to_numeric(column, errors="coerce")
    text = np.flatnonzero((numbers.isna() & column.notna()).to_numpy())
    if text.size:
        first = int(text[0])
        raise UserError(
            f"{where}, {row_text(first)}: expected a number, found {column.iloc[first]!r} "
            f"({text.size} such rows); correct it, or remove the column"
        )
    values: FloatArray = numbers.to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if not bad.size:
        return values
    first = int(bad[0])
    found = "nothing (or nan)" if np.isnan(values[first]) else str(values[first])
    problem = f"{where}, {row_text(first)}: expected a finite number, found {found} ({bad.size} such rows)"
    if bad.size == len(values):
        raise UserError(f"{problem}; the column has none: remove it")
    if fill_missing is None:
        raise UserError(f"{problem}; fill it with --fill_missing interpolate, or remove the column")
    if fill_missing == "ffill" and first == 0:
        raise UserError(f"{problem}, and no row before it for --fill_missing ffill; use interpolate")
    logger.warning("%s; filled with --fill_missing %s", problem, fill_missing)
    return _filled(values, fill_missing)


def _filled(values: FloatArray, how: FillMissing) -> FloatArray:
    """Numbers [T], those that are not finite replaced; for ``ffill`` the first is finite."""
    rows, known = np.arange(len(values)), np.flatnonzero(np.isfinite(values))
    if how == "interpolate":
        return np.interp(rows, known, values[known])
    before = np.searchsorted(known, rows, side="right") - 1
    return values[known[before]]
