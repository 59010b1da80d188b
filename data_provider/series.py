"""A table becomes a checked series: finite numbers at regular, increasing times.

Shape legend: T rows, N variables.
"""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_provider.covariates import CovariateColumns, CovariateValues, content_with
from data_provider.dates import (
    NOTHING_KEPT,
    DateRules,
    DatesKept,
    date_column,
    read_times,
    read_times_like,
    row_text,
    times_as_written,
)
from data_provider.long_format import long_format_problem
from data_provider.suspicious import sentinels
from data_provider.table_files import (
    header_of,
    is_csv,
    named_as_in_file,
    open_csv,
    read_arrow,
    rows_of,
    table_file,
)
from utils.errors import FileMissingError, UserError, using_file

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]
FillMissing = Literal["interpolate", "ffill"]
NO_COLUMNS = CovariateColumns()
DATA_ADVICE = (
    "put a CSV file with a 'date' column and numeric columns there, or name another with --root_path and "
    "--data_path"
)
"""What to do where a run's data file is not there."""


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
    """[T], strictly increasing (but where a published file is used as it is), in their time zone if any."""
    columns: tuple[str, ...]
    """[N] names of the variables."""
    frequency: str
    """pandas offset alias, e.g. h or 15min."""
    series_id: int
    """63 bits of the sha256 of values and columns; positive."""
    content_hash: str
    """sha256 of values and dates, as the wall clock shows them, hexadecimal."""
    dates_kept: DatesKept = NOTHING_KEPT
    """How its dates were written."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What to know of how its dates were read, by subject."""
    covariates: CovariateValues | None = None
    """What is known beside it, of which `content_hash` speaks too."""

    @classmethod
    def from_values(
        cls,
        name: str,
        *,
        values: FloatArray,
        dates: pd.DatetimeIndex,
        columns: Sequence[str],
        frequency: str,
        dates_kept: DatesKept = NOTHING_KEPT,
        notes: Mapping[str, str] | None = None,
        covariates: CovariateValues | None = None,
    ) -> Series:
        """A series of ``values`` [T, N] at ``dates`` [T], with its hashes."""
        assert values.shape == (len(dates), len(columns)), (values.shape, len(dates), len(columns))
        values = np.ascontiguousarray(values, dtype=np.float64)
        content = hashlib.sha256(values.astype("<f8", copy=False).data)
        content.update(dates.tz_localize(None).as_unit("us").asi8.astype("<i8", copy=False).data)
        content_hash = content.hexdigest()
        return cls(
            name=name,
            values=values,
            dates=dates,
            columns=tuple(columns),
            frequency=frequency,
            series_id=identity_of(values, columns),
            content_hash=content_hash if covariates is None else content_with(content_hash, covariates),
            dates_kept=dates_kept,
            notes=notes or {},
            covariates=covariates,
        )

    def with_covariates(self, covariates: CovariateValues | None) -> Series:
        """The same series with other things known beside it."""
        return Series.from_values(
            self.name,
            values=self.values,
            dates=self.dates,
            columns=self.columns,
            frequency=self.frequency,
            dates_kept=self.dates_kept,
            notes=self.notes,
            covariates=covariates,
        )

    def select(self, columns: Sequence[str]) -> Series:
        """The series of these columns, in this order.

        Raises:
            UserError: if one is not there.
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
            dates_kept=self.dates_kept,
            notes=self.notes,
            covariates=self.covariates,
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
    target: str | Sequence[str],
    freq: str | None = None,
    fill_missing: FillMissing | None = None,
    as_published: bool = False,
    rules: DateRules | None = None,
    covariates: CovariateColumns = NO_COLUMNS,
) -> Series:
    """Read a file with a ``date`` column and numeric columns into a `Series`.

    Args:
        path: the file, of one of the kinds of `table_files`; CSV is UTF-8, with or without a byte order
            mark, of any line ending.
        features: M keeps every variable, S the targets alone, MS every variable, the targets last.
        target: name of the target column, or several in order (looked at for S and MS).
        freq: pandas alias of the step between rows; inferred where None. Given, it also accepts
            gaps in the dates, with a warning, as long as most steps are of that length.
        fill_missing: what to do with missing and infinite numbers. None: an error. interpolate:
            linear between the rows before and after, the nearest at the ends. ffill: the number
            before. Interpolation looks at rows that come later. A warning counts what was filled.
        as_published: take the rows of a benchmark's file in their order, as every published result
            does; times that repeat or go back are a warning instead of an error.
        rules: how dates are read, in place of ``freq`` and what is found.
        covariates: columns that are no variables but known beside them.

    Raises:
        FileNotFoundError: where there is no such file.
        UserError: for anything wrong in the file; the message names file, column and first row.
    """
    path = Path(path)
    frame = read_table(path)
    targets = [column_name(name) for name in ([target] if isinstance(target, str) else target)]
    if not as_published:
        _refuse_long_format(frame, path, targets[-1])
    times = read_times(
        date_column(frame, path), path, rules or DateRules(freq=freq), as_published=as_published
    )
    columns = [str(c) for c in frame.columns if c != "date"]
    check_covariates(covariates, columns, path)
    columns = [c for c in columns if c not in (*covariates.known, *covariates.past)]
    if not columns:
        besides = " and the covariates" if covariates != NO_COLUMNS else ""
        raise UserError(f"{path}: expected numeric columns beside 'date'{besides}, found none")
    if features != "M":
        for name in targets:
            _check_target(name, columns, path)
        columns = [c for c in columns if c not in targets and features == "MS"] + targets
    needed = columns if len(columns) == 1 else targets if features != "M" else []
    values = _numbers([frame[c] for c in columns], path, fill_missing, needed=needed, rows=times.rows)
    beside = None
    if covariates != NO_COLUMNS:
        beside = covariates_in(frame, covariates, path, fill_missing, rows=times.rows)
    return Series.from_values(
        table_file(path).stem,
        values=values,
        dates=times.dates,
        columns=columns,
        frequency=times.frequency,
        dates_kept=times.kept,
        notes=times.notes,
        covariates=beside,
    )


def covariates_in(
    frame: pd.DataFrame,
    columns: CovariateColumns,
    table: object,
    fill_missing: FillMissing | None,
    *,
    rows: NDArray[np.int64] | None,
) -> CovariateValues:
    """The covariates of a table's rows, missing numbers filled as in its variables; raises as `read_csv`."""
    count = len(frame) if rows is None else len(rows)
    known, past = (
        _numbers([frame[c] for c in names], table, fill_missing, needed=names, rows=rows)
        if names
        else np.empty((count, 0))
        for names in columns
    )
    return CovariateValues(columns, known, past)


def check_covariates(covariates: CovariateColumns, columns: Sequence[str], where: object) -> None:
    """Raise UserError if a covariate is none of the columns."""
    for flag, names in (("known_covariates", covariates.known), ("past_covariates", covariates.past)):
        for name in names:
            if name not in columns:
                raise UserError(
                    f"{where}: expected the column of --{flag}, {name!r}, found {_listed(columns)}; name one "
                    f"of these with --{flag}"
                )


def read_rows(path: str | Path, *, target: str, rules: DateRules) -> tuple[pd.DatetimeIndex, FloatArray]:
    """One column of a file to look at: times [T] in their order and numbers [T].

    Gaps, repeated times and missing numbers (NaN) stay as they are, and no other column is read.

    Raises:
        FileNotFoundError: where there is no such file.
        UserError: it is no table with times and these numbers.
    """
    path = Path(path)
    frame = read_table(path, "name a table with a 'date' column and numbers")
    target = column_name(target)
    _check_target(target, [str(c) for c in frame.columns if c != "date"], path)
    dates = times_as_written(date_column(frame, path), path, rules)
    values = read_numbers(frame[target], f"{path}: column {target!r}", needed=True)
    order = np.argsort(dates.asi8, kind="stable")
    return dates[order], values[order]


def series_of(
    frame: pd.DataFrame,
    *,
    where: object,
    columns: Sequence[str],
    frequency: str,
    rules: DateRules | None = None,
    kept: DatesKept = NOTHING_KEPT,
    fill_missing: FillMissing | None = None,
    covariates: CovariateColumns = NO_COLUMNS,
) -> Series:
    """The series of these columns of a table, in this order, at this frequency.

    Args:
        frame: a ``date`` column, or dates as its index, and numeric columns; further ones are passed
            over, with a warning that names them.
        where: what messages call the table.
        columns: the variables.
        frequency: pandas alias that the dates must follow; months, quarters and years may begin where
            those of the alias end.
        rules: how dates are read, where that is said.
        kept: how the dates that the model was trained on were written: these are read alike.
        fill_missing: as in `read_csv`.
        covariates: as in `read_csv`.

    Raises:
        UserError: for anything wrong in the table; the message names it, the column and the first row.
    """
    text = date_column(frame, where)
    names = [column_name(c) for c in frame.columns]
    asked, columns = columns, [column_name(c) for c in columns]
    columns = [*columns, *covariates.known, *covariates.past]
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
    _refuse_long_format(
        frame.set_axis(names, axis=1).assign(date=text.to_numpy()), where, columns[len(asked) - 1]
    )
    times = read_times_like(text, where, rules or DateRules(), expected=frequency, kept=kept)
    if "dates" in times.notes:
        logger.info("%s: %s", where, times.notes["dates"])
    columns = columns[: len(asked)]
    own = [frame.iloc[:, names.index(c)].rename(c) for c in columns]
    values = _numbers(own, where, fill_missing, needed=columns, rows=times.rows)
    beside = None
    if covariates != NO_COLUMNS:
        named = frame.set_axis(names, axis=1)
        beside = covariates_in(named, covariates, where, fill_missing, rows=times.rows)
    for sentinel in sentinels(values, columns):
        logger.warning("%s: %s", where, sentinel.text)
    name = table_file(where).stem if isinstance(where, Path) else str(where)
    return Series.from_values(
        name,
        values=values,
        dates=times.dates,
        columns=asked,
        frequency=times.frequency,
        dates_kept=times.kept,
        notes=times.notes,
        covariates=beside,
    )


def require_file(path: Path, advice: str = DATA_ADVICE) -> None:
    """Make sure that there is such a file, of a kind that is read; ``advice`` is for one that is not there.

    Raises:
        FileNotFoundError: there is none; the message says what to put there.
        UserError: its kind is not read, by its ending.
    """
    table_file(path)
    with using_file(path):
        if path.is_file():
            path.open("rb").close()
            return
    raise FileMissingError(f"{path}: no such file; {advice}")


def column_name(name: object) -> str:
    """What a column is called here: letters composed (NFC), no blanks around them."""
    return unicodedata.normalize("NFC", str(name)).strip()


def _refuse_long_format(frame: pd.DataFrame, where: object, wanted: str) -> None:
    """Raise UserError for series below each other, told apart by a column."""
    problem = long_format_problem(frame, where, wanted=wanted)
    if problem is not None:
        raise UserError(problem)


def _listed(columns: Sequence[object]) -> str:
    """The first column names, for a message."""
    shown = ", ".join(str(c) for c in columns[:12])
    return shown + (f", ... ({len(columns)} in all)" if len(columns) > 12 else "")


def _check_target(target: str, columns: Sequence[str], where: object) -> None:
    """Raise UserError if ``target`` is none of the columns."""
    if target not in columns:
        raise UserError(
            f"{where}: expected the column of --target, {target!r}, found {_listed(columns)}; "
            "name one of these with --target"
        )


def read_table(path: Path, advice: str = DATA_ADVICE) -> pd.DataFrame:
    """The file as a table with a ``date`` column (of text, in CSV) and at least one row.

    ``advice`` is for a file that is not there.

    Raises:
        FileNotFoundError: where there is no such file.
        UserError: its kind is not read, or it is anything but rows under names that differ.
    """
    require_file(path, advice)
    ending = table_file(path).ending
    frame = _read_text(path, ending) if is_csv(ending) else read_arrow(path, ending)
    names = [column_name(c) for c in frame.columns]
    _check_names(names, path)
    frame = frame.set_axis(names, axis=1)
    if frame.empty:
        raise UserError(f"{path}: expected rows below the header, found none")
    if not is_csv(ending):
        frame["date"] = date_column(frame, path)
    if pd.isna(frame["date"].iloc[-1]):
        _refuse_empty_rows(frame, path)
    return frame


def _read_text(path: Path, ending: str) -> pd.DataFrame:
    """A CSV file as a table, its columns called as in the file."""
    with rows_of(path), open_csv(path, ending) as file:
        names = header_of(file)
        if not names:
            raise pd.errors.EmptyDataError
        check_separator(names, path)
        dates = {name: str for name in names if column_name(name) == "date"}
        _check_names([column_name(name) for name in names], path)
        file.seek(0)
        frame = pd.read_csv(file, dtype=dates, encoding="utf-8-sig", low_memory=False)
    return named_as_in_file(frame, names, path)


def check_separator(names: Sequence[str], path: Path) -> None:
    """Raise UserError where the header is one of other marks than commas."""
    line = ",".join(names).strip()
    other = next((mark for mark in ";\t|" if "date" in line.split(mark)), None)
    if "date" not in map(column_name, names) and other is not None:
        raise UserError(
            f"{path}: expected columns separated by commas, found {other!r} between them; save the file "
            "with commas (and points in the numbers)"
        )


def _check_names(names: Sequence[str], path: Path) -> None:
    """Raise UserError unless each column is named, none like another, and one is called date."""
    if "date" not in names:
        raise UserError(
            f"{path}: expected a column named 'date', found {_listed(names)}; "
            "rename the column that holds the times"
        )
    for position, name in enumerate(names):
        if not name:
            raise UserError(
                f"{path}: expected a name for each column, found none for column {position + 1} "
                f"(of {_listed(names)}); name it, or remove it where it only numbers the rows"
            )
        if name in names[:position]:
            raise UserError(
                f"{path}: expected each column once, found {name!r} in columns {names.index(name) + 1} "
                f"and {position + 1}; rename or remove one"
            )


def _refuse_empty_rows(frame: pd.DataFrame, path: Path) -> None:
    """Raise UserError for rows of nothing but commas at the end, as spreadsheets leave them."""
    used = np.flatnonzero(frame.notna().any(axis=1).to_numpy())
    first = int(used[-1]) + 1 if used.size else 0
    if first < len(frame):
        raise UserError(
            f"{path}: {row_text(first)}: expected a time and numbers, found nothing in the last "
            f"{len(frame) - first} rows; remove these rows"
        )


def _numbers(
    columns: Sequence[pd.Series],
    table: object,
    fill_missing: FillMissing | None,
    *,
    needed: Sequence[str],
    rows: NDArray[np.int64] | None,
) -> FloatArray:
    """Columns as finite float64 [T, N], missing numbers filled where that is asked for.

    ``needed`` are those that cannot be left out; ``rows`` [T] are those of the table, None for all in order.
    """
    values = np.empty((len(columns[0]), len(columns)))
    for place, column in enumerate(columns):
        values[:, place] = read_numbers(
            column, f"{table}: column {column.name!r}", needed=column.name in needed
        )
    if rows is not None:
        values = values[rows]
    bad: NDArray[np.bool_] = ~np.isfinite(values)
    bad_rows = np.flatnonzero(bad.any(axis=1))
    for place in np.flatnonzero(bad.any(axis=0)).tolist():
        name = str(columns[place].name)
        problem = _missing_text(values[:, place], f"{table}: column {name!r}", rows)
        if bad[:, place].all():
            way = "the model reads it: give its numbers" if name in needed else "remove it"
            raise UserError(f"{problem}; the column has none: {way}")
        cut = "" if rows is not None else _cutting(_ends(bad_rows, len(values)), within=len(bad_rows))
        if fill_missing is None:
            ways = [
                cut,
                "fill it with --fill_missing interpolate",
                "" if name in needed else "remove the column",
            ]
            raise UserError(f"{problem}; {', or '.join(way for way in ways if way)}")
        if fill_missing == "ffill" and bad[0, place]:
            instead = f", or {cut}" if cut else ""
            raise UserError(
                f"{problem}, and no row before it for --fill_missing ffill; use interpolate{instead}"
            )
        logger.warning(
            "%s; filled with --fill_missing %s%s", problem, fill_missing, _ends_text(bad[:, place])
        )
        values[:, place] = filled(values[:, place], fill_missing)
    return values


def read_numbers(column: pd.Series, where: str, *, needed: bool) -> FloatArray:
    """A column as float64 [T]; NaN where there is none."""
    if pd.api.types.is_bool_dtype(column):
        raise UserError(f"{where}, {row_text(0)}: expected a number, found {column.iloc[0]}; write 0 and 1")
    numbers = pd.to_numeric(column, errors="coerce")
    text = np.flatnonzero((numbers.isna() & column.notna()).to_numpy())
    if text.size:
        first = int(text[0])
        raise UserError(
            f"{where}, {row_text(first)}: expected a number, found {column.iloc[first]!r} "
            f"({text.size} such rows); correct it" + ("" if needed else ", or remove the column")
        )
    values: FloatArray = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    return values


def _missing_text(values: FloatArray, where: str, rows: NDArray[np.int64] | None) -> str:
    """The first number that is not finite, and how many there are."""
    bad = np.flatnonzero(~np.isfinite(values))
    first = int(bad[0])
    found = "nothing (or nan)" if np.isnan(values[first]) else str(values[first])
    row = first if rows is None else int(rows[first])
    return f"{where}, {row_text(row)}: expected a finite number, found {found} ({bad.size} such rows)"


def _ends(bad: NDArray[np.int64], rows: int) -> tuple[int, int]:
    """How many of the ``bad`` rows (ascending numbers) lie together at the beginning and at the end."""
    first = int((bad == np.arange(len(bad))).sum())
    last = int((bad == np.arange(rows - len(bad), rows)).sum())
    return (first, last) if len(bad) < rows else (rows, 0)


def _cutting(ends: tuple[int, int], *, within: int) -> str:
    """Which rows to cut for a table without gaps; nothing where some of ``within`` lie elsewhere."""
    first, last = ends
    if first + last != within:
        return ""
    sides = {"first": first, "last": last}
    parts = [f"the {side} {f'{n} rows' if n > 1 else 'row'}" for side, n in sides.items() if n]
    return f"cut {' and '.join(parts)}"


def _ends_text(bad: NDArray[np.bool_]) -> str:
    """What stands at the ends of a column that was filled."""
    first, last = _ends(np.flatnonzero(bad), len(bad))
    parts = [f"the first {first} rows with the first number known"] if first else []
    parts += [f"the last {last} rows with the last number known"] if last else []
    return f" ({', '.join(parts)})" if parts else ""


def filled(values: FloatArray, how: FillMissing) -> FloatArray:
    """Numbers [T], those that are not finite replaced; for ``ffill`` the first is finite."""
    rows, known = np.arange(len(values)), np.flatnonzero(np.isfinite(values))
    if how == "interpolate":
        return np.interp(rows, known, values[known])
    before = np.searchsorted(known, rows, side="right") - 1
    return values[known[before]]
