"""Tables of what is known beside a series: statics by variable, and covariates of the horizon.

Shape legend: M variables forecast, H horizon, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from data_provider.covariates import CovariateColumns, CovariateValues, FloatArray, Statics, require_finite
from data_provider.dates import DateRules, DatesKept, date_column, times_as_written
from data_provider.series import (
    FillMissing,
    Series,
    column_name,
    filled,
    read_numbers,
    read_table,
    require_file,
)
from data_provider.table_files import is_csv, open_csv, read_arrow, rows_of, table_file
from utils.config import DataConfig
from utils.errors import UserError

STATIC_ADVICE = "name a table whose first column has the variables' names with --static_path"


def named_statics(data: DataConfig, table: pd.DataFrame | Path, variables: Sequence[str]) -> Statics:
    """What a table, or a file of one, says of ``variables`` in the columns that a configuration names.

    Raises:
        FileNotFoundError, UserError: as `read_statics` does.
    """
    asked = {
        "categories": list(map(column_name, data.static)),
        "numbers": list(map(column_name, data.static_numbers)),
    }
    if isinstance(table, pd.DataFrame):
        return _statics_of(table, "the static table", variables, **asked)
    return read_statics(table, variables, **asked)


def read_statics(
    path: Path, variables: Sequence[str], *, categories: Sequence[str], numbers: Sequence[str]
) -> Statics:
    """What a table says of ``variables``, whose names are its first column.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it lacks a column or a variable, names one twice, or a number is none.
    """
    require_file(path, STATIC_ADVICE)
    ending = table_file(path).ending
    if is_csv(ending):
        with rows_of(path), open_csv(path, ending) as file:
            frame = pd.read_csv(file, dtype=str, encoding="utf-8-sig", keep_default_na=False)
    else:
        frame = read_arrow(path, ending)
    frame = frame.set_axis([column_name(c) for c in frame.columns], axis=1)
    return _statics_of(frame, path, variables, categories=categories, numbers=numbers)


def _statics_of(
    frame: pd.DataFrame,
    where: object,
    variables: Sequence[str],
    *,
    categories: Sequence[str],
    numbers: Sequence[str],
) -> Statics:
    """The same of a table that is read already; raises as `read_statics` does."""
    names = [str(c) for c in frame.columns]
    for flag, columns in (("static", categories), ("static_numbers", numbers)):
        missing = [c for c in columns if c not in names[1:]]
        if missing:
            raise UserError(
                f"{where}: expected the column of --{flag}, {missing[0]!r}, behind the variables' "
                f"names, found {', '.join(names)}"
            )
    if not names:
        raise UserError(f"{where}: expected a first column of the variables' names, found no column")
    keys = [column_name(key) for key in frame.iloc[:, 0]]
    twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
    if twice is not None:
        raise UserError(f"{where}: expected each variable once, found {twice!r} more than once; keep one row")
    lacking = [name for name in variables if column_name(name) not in keys]
    if lacking:
        raise UserError(
            f"{where}: expected a row for each variable that is forecast, found none for {lacking[0]!r} "
            f"({len(lacking)} such variables); add it"
        )
    rows = [keys.index(column_name(name)) for name in variables]

    def cell(column: str, row: int) -> str:
        value = frame[column].iloc[row]
        text = "" if pd.isna(value) else str(value).strip()
        if not text:
            raise UserError(
                f"{where}: column {column!r}, {keys[row]!r}: expected a value, found nothing; give it"
            )
        return text

    def number(column: str, row: int) -> float:
        text, place = cell(column, row), f"{where}: column {column!r}, {keys[row]!r}"
        try:
            return require_finite(float(text), place)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{place}: expected a number, found {text!r}; correct it, or name the column with --static"
            ) from None

    return Statics(
        {column: tuple(cell(column, row) for row in rows) for column in categories},
        {column: tuple(number(column, row) for row in rows) for column in numbers},
    )


def with_future(
    series: Series,
    table: pd.DataFrame | Path,
    dates: pd.DatetimeIndex,
    *,
    rules: DateRules,
    kept: DatesKept,
    fill_missing: FillMissing | None,
) -> Series:
    """The series with its known covariates at the ``dates`` [H] behind its end, as ``table`` has them.

    Rows of other times are passed over; numbers that are missing between known ones are filled where
    ``fill_missing`` says so.

    Raises:
        UserError: a covariate lacks a row of the horizon; the message names the first.
    """
    assert series.covariates is not None
    where: object = "the future" if isinstance(table, pd.DataFrame) else table
    frame = (
        table if isinstance(table, pd.DataFrame) else read_table(table, "name the covariates' with --future")
    )
    times = times_as_written(date_column(frame, where), where, rules, kept=kept)
    if times.tz is None and dates.tz is not None:
        times = times.tz_localize(dates.tz, ambiguous="infer")
    again = times.duplicated()
    if again.any():
        raise UserError(
            f"{where}: column 'date': expected each time once, found {times[again][0]} more than once; "
            "keep one"
        )
    rows = times.get_indexer(dates)
    columns = series.covariates.columns.known
    frame = frame.set_axis([column_name(c) for c in frame.columns], axis=1)
    found = np.empty((len(dates), len(columns)))
    for place, name in enumerate(columns):
        if name not in frame.columns:
            raise UserError(
                f"{where}: expected the column of --known_covariates, {name!r}, found "
                f"{', '.join(str(c) for c in frame.columns)}"
            )
        numbers = read_numbers(frame[name], f"{where}: column {name!r}", needed=True)
        found[:, place] = np.where(rows >= 0, numbers[rows], np.nan)
        _check_covered(found[:, place], rows >= 0, dates, f"{where}: column {name!r}", fill_missing)
        if fill_missing is not None:
            whole = np.concatenate([series.covariates.known[: len(series.values), place], found[:, place]])
            found[:, place] = filled(whole, fill_missing)[-len(dates) :]
    known = np.concatenate([series.covariates.known[: len(series.values)], found])
    return series.with_covariates(
        CovariateValues(series.covariates.columns, known, series.covariates.past, series.covariates.statics)
    )


def _check_covered(
    values: FloatArray,
    there: np.ndarray,
    dates: pd.DatetimeIndex,
    where: str,
    fill_missing: FillMissing | None,
) -> None:
    """Raise UserError at the first row of the horizon that has no number and is not to be filled."""
    bad = ~np.isfinite(values)
    inside = bad & there & (np.arange(len(bad)) < np.flatnonzero(~bad).max(initial=-1))
    lacks = bad & ~inside if fill_missing is not None else bad
    if not lacks.any():
        return
    first = int(np.flatnonzero(lacks)[0])
    found = "nothing (or no number)" if there[first] else "no such row"
    ways = "give it"
    if fill_missing is None and inside[first]:
        ways += ", or fill it with --fill_missing interpolate"
    raise UserError(
        f"{where}: expected a number for each of the {len(dates)} rows of the horizon, {dates[0]} to "
        f"{dates[-1]}, found {found} at {dates[first]} ({int(lacks.sum())} such rows); {ways}"
    )


def columns_of(known: Sequence[str], past: Sequence[str]) -> CovariateColumns:
    """The columns that flags name, as tables call them."""
    return CovariateColumns(*(tuple(column_name(name) for name in names) for names in (known, past)))
