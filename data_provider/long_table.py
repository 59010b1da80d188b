"""A table in long format becomes a panel: ids told apart, rows in order, every series without a gap.

Shape legend: R rows of the table, S series, T rows of one of them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_provider.dates import (
    NOTHING_KEPT,
    DateRules,
    DatesKept,
    dates_after,
    frequency_alias,
    row_text,
    times_of_many,
)
from data_provider.frequencies import find, same_length
from data_provider.panel import FloatArray, IntArray, Panel, PanelColumns, named
from data_provider.series import FillMissing, filled, read_numbers
from utils.errors import UserError

logger = logging.getLogger(__name__)
JUDGED = 20
"""Series that are looked at, the longest first, for the frequency of all."""
SEPARATOR = "/"
"""Between the parts of an id of several columns."""


class _Rows(NamedTuple):
    """The rows of a table in order: by series, and by time in each."""

    series: IntArray
    """[R], ascending."""
    place: IntArray
    """[R], of each row's time among the times there are."""
    values: FloatArray
    """[R], NaN where there is none."""
    row: IntArray
    """[R], where it stood in the table."""

    def taken(self, chosen: NDArray[np.generic]) -> _Rows:
        """Those at ``chosen`` places, or where it is true."""
        return _Rows(self.series[chosen], self.place[chosen], self.values[chosen], self.row[chosen])


def read_long(
    frame: pd.DataFrame,
    where: object,
    columns: PanelColumns,
    *,
    name: str,
    rules: DateRules | None = None,
    kept: DatesKept = NOTHING_KEPT,
    expected: str | None = None,
    fill_missing: FillMissing | None = None,
) -> Panel:
    """The series of a long table, in the order in which their ids first appear.

    Args:
        frame: with ``columns``; others are passed over.
        where: what messages call it.
        columns: of ids, times and values.
        name: what to call the panel.
        rules: how dates are read. A frequency leaves out series of another one, which are named, and accepts
            times that no series has a row of.
        kept: how the dates that a model was trained on were written.
        expected: the frequency that a model was trained at, which these must have.
        fill_missing: missing and infinite numbers, and rows missing inside a series: series by series, as
            `data_provider.series.read_csv` fills a column. None: an error.

    Raises:
        UserError: for anything wrong; the message names the series, or the column and the row.
    """
    rules = rules or DateRules()
    codes, labels, ids = _series_of_rows(frame, where, columns)
    judged = np.flatnonzero(codes == int(np.bincount(codes).argmax()))
    times, place, date_kept = times_of_many(
        frame[columns.date], where, rules, kept, judged=judged, frequency=expected or rules.freq
    )
    values = read_numbers(frame[columns.target], f"{where}: column {columns.target!r}", needed=True)
    rows = _in_order(_Rows(codes, place, values, np.arange(len(codes))), times, ids, where, rules)
    frequency = _frequency(rows, times, ids, where, rules=rules, expected=expected)
    calendar, steps = _calendar(times, rows, frequency)
    rows, left_out = _on_calendar(rows, steps, times, ids, where, frequency=frequency, rules=rules)
    notes: dict[str, str] = {}
    if len(left_out):
        notes["left_out"] = f"series of another frequency than {frequency} left out: {named(ids, left_out)}"
    position = steps[rows.place]
    if rules.freq is not None:
        calendar, position, closed = _without_common_gaps(calendar, rows.series, position)
        if closed:
            notes["gaps"] = f"{closed} steps of {frequency} of which no series has a row: taken as none"
    panel_rows, first, begins = _complete(rows, position, calendar, ids, where, frequency, fill_missing)
    present = np.unique(rows.series)
    whole = _without_missing(panel_rows, begins, rows, ids, present, where, columns, fill_missing, notes)
    for note in notes.values():
        logger.warning("%s: %s", where, note)
    notes["panel"] = (
        f"{len(present)} series of {np.diff(begins).min()} to {np.diff(begins).max()} rows, told apart by "
        f"{' and '.join(map(repr, columns.ids))}"
    )
    return Panel(
        name=name,
        ids=tuple(ids[s] for s in present),
        values=whole,
        begins=begins,
        frequency=frequency,
        calendar=calendar,
        first=first,
        columns=columns,
        labels=labels.iloc[present].reset_index(drop=True),
        dates_kept=date_kept,
        notes=notes,
    )


def _series_of_rows(
    frame: pd.DataFrame, where: object, columns: PanelColumns
) -> tuple[IntArray, pd.DataFrame, list[str]]:
    """(number of each row's series [R], the labels [S], the ids [S]), in order of first appearance."""
    if not len(frame):
        raise UserError(f"{where}: expected rows, found none")
    parts, texts = [], []
    for name in columns.ids:
        codes, known = pd.factorize(frame[name], sort=False)
        if (codes < 0).any():
            row = row_text(int((codes < 0).argmax()))
            raise UserError(f"{where}: column {name!r}, {row}: expected an id, found nothing; remove the row")
        _refuse_mixed(codes, known, f"{where}: column {name!r}")
        parts.append(codes)
        texts.append(np.array([str(one) for one in known], dtype=object))
    whole = parts[0].astype(np.int64)
    for codes in parts[1:]:
        whole = whole * (int(codes.max()) + 1) + codes
    numbers, first = pd.factorize(whole, sort=False)[0].astype(np.int64), None
    first = np.unique(numbers, return_index=True)[1]
    labels = frame[list(columns.ids)].iloc[first].reset_index(drop=True)
    ids = [
        SEPARATOR.join(one)
        for one in zip(*(t[c[first]] for t, c in zip(texts, parts, strict=True)), strict=True)
    ]
    if len(set(ids)) < len(ids):
        raise UserError(
            f"{where}: columns {' and '.join(map(repr, columns.ids))}: expected ids that differ when joined "
            f"by {SEPARATOR!r}, found {Counter(ids).most_common(1)[0][0]!r} twice; rename one"
        )
    return numbers, labels, ids


def _refuse_mixed(codes: NDArray[np.intp], known: Iterable[object], where: str) -> None:
    """Raise UserError for ids of several types, such as 1 and '1'."""
    kinds: dict[str, int] = {}
    for number, one in enumerate(known):
        kind = (
            "text"
            if isinstance(one, str)
            else "numbers"
            if isinstance(one, int | float | np.number)
            else type(one).__name__
        )
        kinds.setdefault(kind, number)
        if len(kinds) > 1:
            row = row_text(int((codes == number).argmax()))
            raise UserError(
                f"{where}, {row}: expected ids of one type, found {one!r} among {' and '.join(kinds)}; write "
                "all of them as text, or all as numbers"
            )


def _in_order(rows: _Rows, times: pd.DatetimeIndex, ids: list[str], where: object, rules: DateRules) -> _Rows:
    """The rows by series and time, each time of a series once.

    Raises:
        UserError: a time is there twice, and which row is kept is not said.
    """
    ranks = np.argsort(np.argsort(times.asi8, kind="stable"), kind="stable")
    when = ranks[rows.place]
    if not _sorted(rows.series, when):
        order = np.lexsort((rows.row, when, rows.series))
        rows = rows.taken(order)
        when = when[order]
    again = np.r_[False, (np.diff(rows.series) == 0) & (np.diff(when) == 0)]
    if not again.any():
        return rows
    if rules.repeated_times is None:
        first = int(again.argmax())
        raise UserError(
            f"{where}: series {ids[rows.series[first]]!r}, {row_text(int(rows.row[first]))}: expected each "
            f"time of a series once, found {times[rows.place[first]]} again ({int(again.sum())} such rows); "
            "keep one row per id and time"
            + (", or say which with --repeated_times first or last" if rules.flags else "")
        )
    kept = ~again if rules.repeated_times == "first" else np.r_[~again[1:], True]
    logger.warning(
        "%s: %d rows of times that a series has already left out (--repeated_times %s)",
        where, int(again.sum()), rules.repeated_times,
    )  # fmt: skip
    return rows.taken(kept)


def _sorted(series: IntArray, when: IntArray) -> bool:
    step = np.diff(series)
    return bool(((step > 0) | ((step == 0) & (np.diff(when) >= 0))).all())


def _frequency(
    rows: _Rows,
    times: pd.DatetimeIndex,
    ids: list[str],
    where: object,
    *,
    rules: DateRules,
    expected: str | None,
) -> str:
    """The frequency of the panel: as given, as expected, or that of the longest series without a gap."""
    counts = np.bincount(rows.series, minlength=len(ids))
    begins = np.r_[0, np.cumsum(counts)]
    longest = np.argsort(-counts, kind="stable")[:JUDGED]
    dates = [times[rows.place[begins[s] : begins[s + 1]]] for s in longest if counts[s] > 2]
    if rules.freq is not None:
        given = frequency_alias(rules.freq, dates=dates[0] if dates else None)
        if expected is not None and not same_length(given, expected):
            raise UserError(
                f"{where}: --freq: expected {expected}, which the model was trained at, found {rules.freq}"
            )
        return given
    if expected is not None:
        return expected
    if not dates:
        raise UserError(
            f"{where}: expected a series of 3 rows or more, found {len(ids)} of at most {counts.max()}; "
            "where the ids number the rows, name another column with --id_column, or name the frequency "
            "with --freq"
        )
    best = None
    for own in dates:
        found = find(own)
        if not len(found.irregular):
            return found.alias
        if best is None or len(found.irregular) < len(best.irregular):
            best = found
    assert best is not None
    if 2 * len(best.irregular) >= len(dates[0]):
        raise UserError(
            f"{where}: series {ids[longest[0]]!r}: expected rows at one frequency, found steps from "
            f"{np.diff(dates[0]).min()} to {np.diff(dates[0]).max()}; resample the rows to one step, or name "
            "it with --freq"
        )
    return best.alias


def _calendar(times: pd.DatetimeIndex, rows: _Rows, frequency: str) -> tuple[pd.DatetimeIndex, IntArray]:
    """(all steps from the first time to the last, which of them each of ``times`` is; -1 for none)."""
    longest = int(np.bincount(rows.series).argmax())
    own = times[rows.place[rows.series == longest]]
    candidates = [times.min(), own[0]]
    best: tuple[pd.DatetimeIndex, IntArray] | None = None
    for start in candidates:
        calendar = _steps(start, times.max(), frequency, at_least=len(times))
        steps = calendar.get_indexer(times).astype(np.int64)
        if best is None or (steps >= 0).sum() > (best[1] >= 0).sum():
            best = calendar, steps
        if (calendar.get_indexer(own) >= 0).all():
            break
    assert best is not None
    return best


def _steps(start: pd.Timestamp, end: pd.Timestamp, frequency: str, *, at_least: int) -> pd.DatetimeIndex:
    """The times from ``start`` on, up to ``end``."""
    alias = frequency
    step = None if "MS-" in alias else pd.tseries.frequencies.to_offset(alias)
    if isinstance(step, pd.offsets.Tick) and pd.Timedelta(step) % pd.Timedelta(days=1) != pd.Timedelta(0):
        return pd.date_range(start, end, freq=step)
    count = max(8, at_least)
    while True:
        calendar = pd.DatetimeIndex([start]).append(dates_after(start, frequency, count))
        if calendar[-1] >= end:
            return calendar[calendar <= end].as_unit(start.unit)
        count *= 2


def _on_calendar(
    rows: _Rows,
    steps: IntArray,
    times: pd.DatetimeIndex,
    ids: list[str],
    where: object,
    *,
    frequency: str,
    rules: DateRules,
) -> tuple[_Rows, IntArray]:
    """The rows of the series whose times are all steps of the frequency, and the others' numbers.

    Raises:
        UserError: there are others, and the frequency was not given.
    """
    off = steps[rows.place] < 0
    if not off.any():
        return rows, np.zeros(0, dtype=np.int64)
    odd = np.unique(rows.series[off])
    first = int(off.argmax())
    if rules.freq is None or len(odd) == len(np.unique(rows.series)):
        raise UserError(
            f"{where}: series {ids[rows.series[first]]!r}, {row_text(int(rows.row[first]))}: expected "
            f"steps of "
            f"{frequency} as in most series, found {times[rows.place[first]]} ({int(off.sum())} such rows in "
            f"{len(odd)} of {len(ids)} series: {named(ids, odd)}); correct them, or leave series of another "
            f"frequency out with --freq {frequency}"
        )
    kept = ~np.isin(rows.series, odd)
    return rows.taken(kept), odd


def _without_common_gaps(
    calendar: pd.DatetimeIndex, series: IntArray, position: IntArray
) -> tuple[pd.DatetimeIndex, IntArray, int]:
    """The calendar without the steps that no series has a row of though one spans them, and how many."""
    edges = np.flatnonzero(np.diff(series)) + 1
    begins, ends = position[np.r_[0, edges]], position[np.r_[edges - 1, len(series) - 1]]
    spans = np.zeros(len(calendar) + 1, dtype=np.int64)
    np.add.at(spans, begins, 1)
    np.add.at(spans, ends + 1, -1)
    there = np.zeros(len(calendar), dtype=bool)
    there[position] = True
    kept = there | (np.cumsum(spans[:-1]) == 0)
    return calendar[kept], (np.cumsum(kept) - 1)[position], int((~kept).sum())


def _complete(
    rows: _Rows,
    position: IntArray,
    calendar: pd.DatetimeIndex,
    ids: list[str],
    where: object,
    frequency: str,
    fill_missing: FillMissing | None,
) -> tuple[FloatArray, IntArray, IntArray]:
    """(values with NaN for rows that are missing, place of each series' first row, where each begins).

    Raises:
        UserError: a row is missing inside a series, and how it is filled is not said.
    """
    begin = np.r_[0, np.flatnonzero(np.diff(rows.series)) + 1]
    end = np.r_[begin[1:], len(rows.series)]
    first = position[begin]
    lengths = position[end - 1] - first + 1
    begins = np.r_[0, np.cumsum(lengths)].astype(np.int64)
    missing = lengths - (end - begin)
    if missing.any():
        holed = np.flatnonzero(missing)
        own = slice(begin[holed[0]], end[holed[0]])
        after = int((np.diff(position[own]) > 1).argmax())
        series = rows.series[begin[holed]]
        gap = (
            f"series {ids[series[0]]!r}: expected steps of {frequency}, found "
            f"{calendar[position[own][after + 1]]} after {calendar[position[own][after]]} "
            f"({missing.sum()} rows "
            f"missing in {len(holed)} of {len(begin)} series)"
        )
        if fill_missing is None:
            raise UserError(
                f"{where}: {gap}; insert the rows and fill them with --fill_missing interpolate, or, "
                f"where no "
                f"series has rows of these times, accept them with --freq {frequency}"
            )
        logger.warning("%s: %s; inserted", where, gap)
    if not missing.any():
        return rows.values.copy(), first, begins
    values = np.full(int(begins[-1]), np.nan)
    number = np.repeat(np.arange(len(begin)), end - begin)
    values[begins[number] + position - first[number]] = rows.values
    return values, first, begins


def _without_missing(
    values: FloatArray,
    begins: IntArray,
    rows: _Rows,
    ids: list[str],
    present: IntArray,
    where: object,
    columns: PanelColumns,
    fill_missing: FillMissing | None,
    notes: dict[str, str],
) -> FloatArray:
    """Values [R], what is missing filled series by series.

    Raises:
        UserError: it is not to be filled, or a series has no number at all, or none before a first gap.
    """
    bad = ~np.isfinite(values)
    if not bad.any():
        return values
    series = np.unique(np.searchsorted(begins, np.flatnonzero(bad), side="right") - 1)
    own_bad = np.flatnonzero(~np.isfinite(rows.values))
    if fill_missing is None:
        row = own_bad[0]
        found = "nothing (or nan)" if np.isnan(rows.values[row]) else rows.values[row]
        raise UserError(
            f"{where}: column {columns.target!r}, series {ids[rows.series[row]]!r}, "
            f"{row_text(int(rows.row[row]))}: expected a finite number, found {found} ({len(own_bad)} such "
            f"rows in {len(series)} series); fill it with --fill_missing interpolate, or leave out the rows "
            "before a series begins and after it ends"
        )
    for one in series:
        own = slice(begins[one], begins[one + 1])
        known = np.flatnonzero(~bad[own])
        problem = ""
        if not len(known):
            problem = "expected a finite number, found none; leave the series out"
        elif fill_missing == "ffill" and known[0] > 0:
            problem = (
                "expected a number in its first row, which --fill_missing ffill goes on from, found none; "
                "use interpolate, or cut that row"
            )
        if problem:
            raise UserError(f"{where}: column {columns.target!r}, series {ids[present[one]]!r}: {problem}")
        values[own] = filled(np.where(bad[own], np.nan, values[own]), fill_missing)
    notes["filled"] = (
        f"{int(bad.sum())} values in {len(series)} series filled (--fill_missing {fill_missing}): "
        + named(ids, present[series])
    )
    return values
