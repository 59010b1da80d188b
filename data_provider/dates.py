"""The times of a table: read, checked, in one zone and at one frequency.

Shape legend: T rows.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_provider import date_formats
from data_provider.date_formats import ISO, Written
from data_provider.date_formats import row_text as row_text
from data_provider.frequencies import (
    Found,
    find,
    has_one_frequency,
    irregular_steps,
    jitter,
    rounded,
    same_length,
)
from data_provider.frequencies import dates_after as dates_after
from utils.errors import UserError
from utils.frequency import kind_of, step_of

logger = logging.getLogger(__name__)

_SHORT_ALIASES = {
    "s": "s", "t": "min", "min": "min", "h": "h", "d": "D", "b": "B", "w": "W", "m": "ME", "q": "QE",
    "y": "YE", "a": "YE",
}  # fmt: skip
"""The one-letter frequencies of the Informer family, in either case, as pandas writes them now."""


RepeatedTimes = Literal["first", "last"]


@dataclass(frozen=True)
class DateRules:
    """How dates are to be read; what is None is found."""

    freq: str | None = None
    """Frequency of the rows; given, it accepts gaps."""
    date_format: str | None = None
    """strptime's, ISO8601, or with the additions of `data_provider.date_formats`."""
    time_zone: str | None = None
    """The zone of times that have none, and the one into which others are brought."""
    round_dates: bool = False
    """Whether times that jitter are rounded."""
    repeated_times: RepeatedTimes | None = None
    """Which row of those of one time is kept."""
    flags: bool = True
    """Whether these are flags of the command line, to be named in advice."""


class DatesKept(NamedTuple):
    """How a run read its dates, so that it reads others alike."""

    date_format: str | None = None
    """None where they did not come as text."""
    time_zone: str | None = None
    """None where they have none."""


NOTHING_KEPT = DatesKept()
_REORDERED = "rows in the order of time"
_BELOW_A_DAY = ("hour", "minute", "second")


@dataclass(frozen=True)
class Times:
    """The times of a table's rows."""

    dates: pd.DatetimeIndex
    """[T]."""
    frequency: str
    kept: DatesKept = NOTHING_KEPT
    notes: Mapping[str, str] = field(default_factory=dict)
    """What to know of how they were read, by subject."""
    rows: NDArray[np.int64] | None = None
    """[T] which row of the table each is of; None where all rows are in the order of time."""


def read_times(column: pd.Series, where: object, rules: DateRules, *, as_published: bool = False) -> Times:
    """The times of a table to train on; with ``as_published`` they may repeat or go back.

    Raises:
        UserError: for what `parse_dates` and `check_frequency` refuse.
    """
    dates, written = _parsed(column, where, rules, NOTHING_KEPT, frequency=rules.freq)
    rows, order_notes = (
        _as_published(dates, where) if as_published else _in_order(dates, where, rules, frequency=None)
    )
    if rows is not None:
        dates, where = dates[rows], f"{where} ({_REORDERED})"
    dates, notes = _rounded(dates, where, rules, frequency=_given(rules, dates))
    frequency = check_frequency(dates, rules.freq, where, flags=rules.flags)
    return _times(dates, frequency, written, order_notes | notes, rows)


def times_as_written(
    column: pd.Series, where: object, rules: DateRules, *, kept: DatesKept = NOTHING_KEPT
) -> pd.DatetimeIndex:
    """The times of a table to look at [T]: in any order, with gaps, some repeated; written as ``kept``.

    Raises:
        UserError: for what `parse_dates` refuses.
    """
    return _parsed(column, where, rules, kept, frequency=rules.freq)[0]


def times_of_many(
    column: pd.Series,
    where: object,
    rules: DateRules,
    kept: DatesKept,
    *,
    judged: NDArray[np.int64],
    frequency: str | None,
) -> tuple[pd.DatetimeIndex, NDArray[np.int64], DatesKept]:
    """The times of a table of many series, each once, and which of them each of its rows [T] has.

    Which way of writing dates is meant is judged by the rows ``judged``, those of one series.

    Raises:
        UserError: for what `parse_dates` refuses.
    """
    codes, known = pd.factorize(column, sort=False)
    place = codes.astype(np.int64)
    try:
        different = _as_dates(pd.Series(known, name=column.name))
        dates, written = _parsed(different, where, rules, kept, frequency=frequency, judged=place[judged])
    except UserError:
        dates = None
    if dates is None or (place < 0).any():  # told of all rows, whose numbers a user knows
        dates, written = _parsed(_as_dates(column), where, rules, kept, frequency=frequency, judged=judged)
        place = np.arange(len(column))
    again, first = np.unique(dates.asi8, return_index=True)
    if len(again) < len(dates):  # one time, written in two ways
        place = np.searchsorted(again, dates.asi8)[place]
        dates = dates[first]
    return dates, place, _kept(dates, written)


def read_times_like(
    column: pd.Series, where: object, rules: DateRules, *, expected: str, kept: DatesKept
) -> Times:
    """The times of a table for a model that was trained at the frequency ``expected``, on dates as ``kept``.

    Raises:
        UserError: for what `parse_dates` and `frequency_like` refuse.
    """
    dates, written = _parsed(column, where, rules, kept, frequency=expected)
    rows, order_notes = _in_order(dates, where, rules, frequency=expected)
    if rows is not None:
        dates, where = dates[rows], f"{where} ({_REORDERED})"
    dates, notes = _rounded(dates, where, rules, frequency=expected)
    frequency = frequency_like(dates, expected, freq=rules.freq, where=where)
    return _times(dates, frequency, written, order_notes | notes, rows)


def _times(
    dates: pd.DatetimeIndex,
    frequency: str,
    written: Written,
    notes: dict[str, str],
    rows: NDArray[np.int64] | None,
) -> Times:
    irregular = irregular_steps(dates, frequency)
    if irregular.size:
        notes["gaps"] = (
            f"{irregular.size} steps between rows are not {frequency}, the first before "
            f"{dates[irregular[0]]}; rows taken as evenly spaced"
        )
    if written.date_format not in (None, ISO):
        notes["dates"] = f"dates are read as {written.date_format}: the first is {dates[0]}"
    return Times(dates, frequency, _kept(dates, written), notes, rows)


def _kept(dates: pd.DatetimeIndex, written: Written) -> DatesKept:
    """How these dates were written."""
    zone = None if dates.tz is None else str(dates.tz)
    if zone is not None and not _is_zone(zone):  # an object of the caller's own, without a name
        zone = None
    return DatesKept(written.date_format, zone)


def date_column(frame: pd.DataFrame, where: object) -> pd.Series:
    """The times of a table: its ``date`` column, or an index of dates; numbers and objects as text.

    Raises:
        UserError: where it has neither, or both, or no row.
    """
    indexed = isinstance(frame.index, pd.DatetimeIndex)
    named = [str(c) for c in frame.columns].count("date")
    if named + indexed != 1:
        found = "both" if named == 1 else f"{named} such columns" if named else "neither"
        raise UserError(f"{where}: expected a column named 'date' or an index of dates, found {found}")
    if frame.empty:
        raise UserError(f"{where}: expected rows, found none")
    return _as_dates((frame.index.to_series() if indexed else frame["date"]).rename("date"))


def _as_dates(column: pd.Series) -> pd.Series:
    """A column of times, or as text where it holds anything else."""
    column = column.reset_index(drop=True)
    if _are_times(column):
        return column
    if column.dtype == object and all(isinstance(value, datetime) for value in column):
        zones = {value.tzinfo for value in column}
        if len(zones) == 1 and not column.isna().any():
            return pd.Series(pd.DatetimeIndex(column), name=column.name)
    return column.astype(object).where(column.isna(), column.astype(str))


def _are_times(column: pd.Series) -> bool:
    return isinstance(column.dtype, pd.DatetimeTZDtype) or pd.api.types.is_datetime64_dtype(column)


def _parsed(
    column: pd.Series,
    where: object,
    rules: DateRules,
    kept: DatesKept,
    *,
    frequency: str | None,
    judged: NDArray[np.int64] | None = None,
) -> tuple[pd.DatetimeIndex, Written]:
    """The column as times in their zone; its frequency is judged by the rows ``judged``, None for all."""
    if _are_times(column):
        written = Written(column, None)
        if column.isna().any():
            row = row_text(int(column.isna().to_numpy().argmax()))
            raise UserError(
                f"{where}: column {column.name!r}, {row}: expected a time, found nothing; remove the row"
            )
    else:
        cells = zip(column, column.notna(), strict=True)
        text = pd.Series([str(cell).strip() if known else None for cell, known in cells], dtype=object)
        alias = None if frequency is None else _understood(frequency)
        written = date_formats.read_text(
            text,
            where,
            date_format=rules.date_format,
            kept=kept.date_format,
            one_frequency=lambda dates: _has_one_frequency(
                dates if judged is None else dates[judged].sort_values(), alias
            ),
            flags=rules.flags,
            column=str(column.name),
        )
    return _in_zone(written, where, rules, kept), written


def _has_one_frequency(dates: pd.DatetimeIndex, alias: str | None) -> bool:
    return has_one_frequency(dates[::-1] if dates.is_monotonic_decreasing else dates, alias)


def _in_zone(written: Written, where: object, rules: DateRules, kept: DatesKept) -> pd.DatetimeIndex:
    """Times in the zone asked for, the one that the run kept, or their own, if any."""
    dates = pd.DatetimeIndex(written.times)
    dates.name = None
    dates.freq = None
    zone = rules.time_zone or kept.time_zone
    if written.offsets and ("" in written.offsets or zone is None):
        found = " and ".join(offset or "none" for offset in written.offsets)
        advice = "name their zone with --time_zone, such as --time_zone Europe/Berlin (or UTC)"
        if "" in written.offsets or not rules.flags:
            advice = "write all of them with it, or none" if "" in written.offsets else "write them in UTC"
        raise UserError(
            f"{where}: column 'date': expected times of one distance from UTC, found {found}; {advice}"
        )
    if zone is None:
        return dates
    if not _is_zone(zone):
        raise UserError(f"--time_zone: expected a zone such as Europe/Berlin or UTC, found {zone}")
    if dates.tz is not None:
        if rules.time_zone is None and not written.offsets and str(dates.tz) != zone:
            logger.info("%s: times of %s, brought into %s, as in training", where, dates.tz, zone)
        return dates.tz_convert(zone)
    return _localized(dates, zone, where)


def time_like(text: str, kept: DatesKept, zone: Any) -> pd.Timestamp:
    """One time, written as a run's dates are or as ISO 8601, in the ``zone`` of its dates (None: without).

    Raises:
        UserError: it is neither, or has a zone where the dates have none.
    """
    for date_format in dict.fromkeys((kept.date_format or ISO, ISO)):
        time = pd.DatetimeIndex(date_formats.parsed(pd.Series([text]), date_format).times)[0]
        if time is pd.NaT or (zone is None and time.tz is not None):
            continue
        if zone is None:
            return time
        return time.tz_convert(zone) if time.tz is not None else time.tz_localize(zone, ambiguous=True)
    raise UserError(f"expected a time such as {date_formats.EXAMPLE}, found {text!r}")


def _localized(dates: pd.DatetimeIndex, zone: str, where: object) -> pd.DatetimeIndex:
    """Wall-clock times as times of a zone; an hour that comes twice is told by its order."""
    try:
        return dates.tz_localize(zone, ambiguous="infer", nonexistent="raise")
    except ValueError as error:
        raise UserError(
            f"{where}: column 'date': expected times of the zone {zone}, found: {error}; write them with "
            "their distance from UTC, such as 2020-03-29 03:00+02:00"
        ) from None


def _is_zone(name: str) -> bool:
    try:
        return pd.Timestamp(0, tz=name).tz is not None
    except (KeyError, ValueError, OSError):
        return False


def _in_order(
    dates: pd.DatetimeIndex, where: object, rules: DateRules, *, frequency: str | None
) -> tuple[NDArray[np.int64] | None, dict[str, str]]:
    """The rows [T] to take, in the order of time, and what is to be said of it; None for all as they are.

    Raises:
        UserError: times repeat, and which row is meant is not said; or times go back, and have gaps even
            where they are sorted: then one may be wrong.
    """
    steps = np.diff(dates.asi8)
    if (steps > 0).all():
        return None, {}
    rows = np.argsort(dates.asi8, kind="stable")
    again = np.diff(dates.asi8[rows]) == 0
    count = int(again.sum())
    if count and rules.repeated_times is None:
        raise UserError(_repeated(dates, rows[1:][again], where, rules))
    if count:
        rows = rows[np.r_[True, ~again] if rules.repeated_times == "first" else np.r_[~again, True]]
    notes = {}
    if (steps < 0).any():
        if not (rules.freq or rules.round_dates or has_one_frequency(dates[rows], frequency)):
            raise UserError(_going_back(dates, rows, where, rules))
        first = int(np.flatnonzero(steps < 0)[0]) + 1
        notes["order"] = (
            f"rows are not in the order of time ({row_text(first)} is of {dates[first]}, after "
            f"{dates[first - 1]}): sorted"
        )
    if count:
        notes["repeated_times"] = (
            f"{count} rows of times that repeat left out (--repeated_times {rules.repeated_times})"
        )
    for note in notes.values():
        logger.warning("%s: %s", where, note)
    return rows, notes


def _repeated(dates: pd.DatetimeIndex, again: NDArray[np.int64], where: object, rules: DateRules) -> str:
    """What is wrong with times that are there before, in these rows, and the ways out."""
    first = int(again.min())
    ways = ["keep one row per time"]
    if rules.flags:
        ways.append("say which with --repeated_times first or last")
    if rules.flags and dates.tz is None and not (dates == dates.normalize()).all():
        ways.append("where a clock was set back, name its zone, such as --time_zone Europe/Berlin")
    return (
        f"{where}: column 'date', {row_text(first)}: expected each time once, found {dates[first]}, a "
        f"duplicate ({len(again)} such rows); {', or '.join(ways)}"
    )


def _going_back(dates: pd.DatetimeIndex, rows: NDArray[np.int64], where: object, rules: DateRules) -> str:
    """What is wrong with times that go back and do not follow one frequency even in these ``rows``' order."""
    first = int(np.flatnonzero(np.diff(dates.asi8) < 0)[0]) + 1
    way = "correct it, or sort the rows by date"
    if rules.flags and len(rows) > 2 and 2 * len((found := find(dates[rows])).irregular) < len(rows) - 1:
        way = f"correct it, or have the rows sorted, with gaps, with --freq {found.alias}"
    return (
        f"{where}: column 'date', {row_text(first)}: expected increasing times, found {dates[first]}, an "
        f"earlier time than {dates[first - 1]} before it; {way}"
    )


def _as_published(dates: pd.DatetimeIndex, where: object) -> tuple[NDArray[np.int64] | None, dict[str, str]]:
    """All rows as they are, with a warning of the first date that does not follow the one before."""
    backward = np.flatnonzero(np.diff(dates.asi8) <= 0)
    if not backward.size:
        return None, {}
    first = int(backward[0]) + 1
    same = dates[first] == dates[first - 1]
    problem = "a duplicate" if same else f"an earlier time than {dates[first - 1]} before it"
    logger.warning(
        "%s: column 'date', %s: expected increasing times, found %s, %s (%d such rows); the published file "
        "is used as it is",
        where, row_text(first), dates[first], problem, backward.size,
    )  # fmt: skip
    return None, {}


def _rounded(
    dates: pd.DatetimeIndex, where: object, rules: DateRules, *, frequency: str | None
) -> tuple[pd.DatetimeIndex, dict[str, str]]:
    """Dates on their grid where that is asked for, and what is to be said of it."""
    if not rules.round_dates or len(dates) < 3:
        return dates, {}
    whole = rounded(dates, frequency)
    if whole is None:
        raise UserError(
            f"{where}: --round_dates: expected times around a regular grid, found steps from "
            f"{np.diff(dates).min()} to {np.diff(dates).max()}; leave it out"
        )
    if not whole.moved:
        return dates, {}
    said = f"{whole.moved} of {len(dates)} times rounded, by up to {_seconds(whole.most)} (--round_dates)"
    logger.info("%s: %s", where, said)
    return whole.dates, {"round_dates": said}


def _given(rules: DateRules, dates: pd.DatetimeIndex) -> str | None:
    return None if rules.freq is None else frequency_alias(rules.freq, dates=dates)


def _understood(freq: str) -> str | None:
    """A frequency for judging dates by; None where a letter leaves the anchor open."""
    alias = frequency_alias(freq)
    return None if freq.lower() in ("m", "q", "y", "a") else alias


def frequency_alias(
    freq: str, *, first: pd.Timestamp | None = None, dates: pd.DatetimeIndex | None = None
) -> str:
    """A frequency as a user wrote it, as a pandas alias (or ``MS-15`` and its kin, `utils.frequency`).

    The family's single letters (h, t, d, ...) are understood in either case; months begin on their
    first day if ``first``, the first date, does, and m, q and y have the anchor of ``dates``.

    Raises:
        UserError: there is no such frequency.
    """
    alias = _SHORT_ALIASES.get(freq.lower(), freq)
    try:
        step_of(alias)
    except ValueError:
        raise UserError(
            f"--freq: expected a pandas alias such as h, 15min, D, B, W, ME or MS-15, found {freq!r}"
        ) from None
    if alias in ("ME", "QE", "YE") and alias != freq:
        if dates is not None and len(dates) > 2 and same_length(found := find(dates).alias, alias):
            return found
        if alias == "ME" and first is not None and first.day == 1:
            return "MS"
    return alias


def check_frequency(dates: pd.DatetimeIndex, freq: str | None, where: object, *, flags: bool = True) -> str:
    """The frequency of the rows, given or found, after checking each step.

    Args:
        dates: increasing.
        freq: given, it accepts gaps as long as most steps are of it.
        where: what messages call the table.
        flags: whether ``--freq`` and ``--round_dates`` are there to be named in advice.

    Raises:
        UserError: too few rows; no frequency that fits most of them; gaps or jitter that are not accepted.
    """
    if len(dates) < 3:
        raise UserError(f"{where}: expected 3 rows or more, found {len(dates)}")
    if freq is None:
        found = find(dates)
        if not found.irregular.size:
            return found.alias
        raise UserError(_irregular(dates, found, where, flags=flags))
    alias = frequency_alias(freq, dates=dates)
    irregular = irregular_steps(dates, alias)
    if not irregular.size:
        return alias
    if 2 * irregular.size >= len(dates) - 1:
        raise UserError(_not_the_one_given(dates, Found(alias, irregular), freq, where))
    better = find(dates)
    fits = f" (of {better.alias} all but {len(better.irregular)} are)"
    logger.warning(
        "%s: %d steps are not %s%s, the first at %s: found %s; rows are taken as if evenly spaced",
        where, irregular.size, alias, fits if len(better.irregular) < irregular.size else "",
        row_text(int(irregular[0])), _step_text(dates, irregular[0]),
    )  # fmt: skip
    return alias


def _irregular(dates: pd.DatetimeIndex, found: Found, where: object, *, flags: bool) -> str:
    """What is wrong with dates of no one frequency, and the way out."""
    row = int(found.irregular[0])
    place = f"{where}: column 'date', {row_text(row)}"
    text = f"{_step_text(dates, row)} ({len(found.irregular)} such rows)"
    shaking = jitter(dates, found)
    if shaking is not None:
        whole, after = shaking
        advice = f"round them with --round_dates{_gap_flag(after)}" if flags else "round them"
        if flags and dates.tz is not None and kind_of(after.alias)[0] not in _BELOW_A_DAY:
            advice = f"name the zone of these days, such as --time_zone Europe/Berlin, or {advice}"
        return (
            f"{place}: expected steps of {after.alias}, found {text}: the times jitter, by up to "
            f"{_seconds(whole.most)}; {advice}"
        )
    if 2 * len(found.irregular) >= len(dates) - 1:
        return (
            f"{place}: expected rows at one frequency, found steps from {np.diff(dates).min()} to "
            f"{np.diff(dates).max()}, none of which most rows have; resample the rows to one step"
        )
    accept = f", or accept them with --freq {found.alias}" if flags else ""
    return f"{place}: expected steps of {found.alias} as in most rows, found {text}; fill the gaps{accept}"


def _not_the_one_given(dates: pd.DatetimeIndex, given: Found, freq: str, where: object) -> str:
    """What is wrong with ``--freq``, and a way out that is then accepted."""
    text = (
        f"{where}: --freq {freq}: expected steps of {given.alias}, found "
        f"{_step_text(dates, given.irregular[0])} ({len(given.irregular)} such rows of {len(dates)})"
    )
    found = find(dates)
    if not found.irregular.size:
        return f"{text}; leave --freq out to have it inferred ({found.alias})"
    if shaking := jitter(dates, found):
        return f"{text}: the times jitter; round them with --round_dates --freq {shaking[1].alias}"
    if 2 * len(found.irregular) < len(dates) - 1:
        return f"{text}; most rows follow --freq {found.alias}, with {len(found.irregular)} gaps"
    return f"{text}; resample the rows to one step"


def _gap_flag(found: Found) -> str:
    return f" --freq {found.alias}" if found.irregular.size else ""


def _step_text(dates: pd.DatetimeIndex, row: int) -> str:
    return f"{dates[row]}, {dates[row] - dates[row - 1]} after the row before"


def _seconds(time: pd.Timedelta) -> str:
    """A short time, for a message."""
    seconds = time.total_seconds()
    return f"{seconds:g} s" if seconds < 120 else str(time.round("s")).removeprefix("0 days ")


def frequency_like(dates: pd.DatetimeIndex, expected: str, *, freq: str | None, where: object) -> str:
    """The frequency of ``dates``, which is ``expected`` or another alias of the same length.

    ``freq``, where given, accepts gaps.

    Raises:
        UserError: for dates of another frequency, or with gaps.
    """
    if len(dates) > 1 and freq is None:
        irregular = irregular_steps(dates, expected)
        if not irregular.size:
            return expected
        if len(dates) > 2:
            found = find(dates)
            if found.irregular.size and len(irregular) <= len(found.irregular):
                raise UserError(_irregular(dates, Found(expected, irregular), where, flags=True))
    alias = check_frequency(dates, freq, where)
    if not same_length(alias, expected):
        raise UserError(
            f"{where}: expected rows at the frequency {expected}, which the model was trained on, found "
            f"{alias}; resample the table"
        )
    return alias
