"""Text becomes times: one format for a whole column, which is found, or given, and never guessed row by row.

A format is one of strptime's, or ``ISO8601`` (2016-07-01 00:00 and its kin, also with slashes), with two
additions: ``1949%y`` reads two digits as the year among the hundred from 1949 on, and ``%q`` is the quarter,
as in ``%YQ%q``.
"""

from __future__ import annotations

import calendar
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, NoReturn

import numpy as np
import pandas as pd

from utils.errors import UserError

ISO = "ISO8601"
EXAMPLE = "2016-07-01 00:00:00"
_CENTURY = re.compile(r"(\d{4})%y")
_BARE_YEAR = re.compile(r"(?<!\d{4})%y")
_QUARTER = re.compile(r"[Qq]([1-4])(?!\d)")
_OFFSET = r"\s*(?P<offset>Z|[+-]\d{2}(?::?\d{2})?)"
_TIME = re.compile(
    r"(?P<between>[T ,]\s*)(?P<hour>\d{1,2})(?::\d{2}(?P<second>:\d{2}(?P<fraction>\.\d{1,9})?)?)?"
    rf"(?P<half>\s*[AaPp][Mm])?(?:{_OFFSET})?$"
)
_ZONE_AT_END = re.compile(rf"(?:T\d{{2,6}}|:\d{{2}}(?:[.,]\d+)?){_OFFSET}$")
_WORDS = {
    "%B": {name.lower() for name in calendar.month_name[1:]},
    "%b": {name.lower() for name in calendar.month_abbr[1:]},
    "%A": {name.lower() for name in calendar.day_name},
    "%a": {name.lower() for name in calendar.day_abbr},
}
_SAMPLES = 3
"""Rows whose look proposes formats: the first, the middle and the last."""
Judge = Callable[[pd.DatetimeIndex], bool]


class Written(NamedTuple):
    """A column of times, and how they were written."""

    times: pd.Series
    """datetime64, with a time zone where the text has one; in UTC where it has several offsets."""
    date_format: str | None
    """None where they did not come as text."""
    offsets: Sequence[str] = ()
    """Two offsets from UTC that the text has, where it has several."""


def read_text(
    text: pd.Series,
    where: object,
    *,
    date_format: str | None = None,
    kept: str | None = None,
    one_frequency: Judge,
    flags: bool = True,
    column: str = "date",
) -> Written:
    """A column of text as times, by the one format that fits all rows.

    Where several fit, such as day first and month first, it is the only one whose times have one frequency.

    Args:
        text: the column; NaN where a row is empty.
        where: what messages call the table.
        date_format: the format, where it is given.
        kept: the format of the run that the table is for: no other is looked for.
        one_frequency: whether times follow each other at one frequency.
        flags: whether ``--date_format`` is there to be named in advice.
        column: what messages call the column.

    Raises:
        UserError: no format fits every row, or which one is meant cannot be told, or a year of two digits.
    """
    where = f"{where}: column {column!r}"
    if date_format is not None:
        _check_format(date_format)
        return _in_format(text, where, date_format, "named by --date_format", flags=flags)
    if kept is not None:
        return _in_format(text, where, kept, "with which the model was trained", flags=flags)
    iso = parsed(text, ISO)
    if not iso.times.isna().any() or "" in iso.offsets:
        return iso
    readings = [parsed(text, fmt) for fmt in _proposed(text)]
    whole = [one for one in readings if not one.times.isna().any()]
    if not whole:
        best = min([iso, *readings], key=lambda one: int(one.times.isna().sum()))
        example = EXAMPLE if best is iso else f"in the format {best.date_format}"
        _refuse_missing(
            best.times, text, where,
            f"expected a time such as {example}" if best is iso else f"expected a time {example}",
            "write all of them as in the example" if best is iso else "write all of them alike",
        )  # fmt: skip
    chosen = whole
    if _formats(whole) > 1:
        regular = [one for one in whole if one_frequency(pd.DatetimeIndex(one.times))]
        if _formats(regular) != 1:
            _refuse_several(text, where, regular or whole, regular=bool(regular), flags=flags)
        chosen = regular
    if _CENTURY.search(chosen[0].date_format or ""):
        _refuse_two_digits(text, where, chosen[0].date_format or "", flags=flags)
    return chosen[0]


def _in_format(text: pd.Series, where: object, date_format: str, whose: str, *, flags: bool) -> Written:
    """The column by this format; a ValueError that names formats which fit where this one does not."""
    found = parsed(text, date_format)
    if not found.times.isna().any():
        return found
    fitting = [fmt for fmt in (ISO, *_proposed(text)) if not parsed(text, fmt).times.isna().any()]
    fitting = [ISO] if ISO in fitting else fitting
    advice = (
        f", or say how this table's are written with {_alternatives(fitting)}" if fitting and flags else ""
    )
    expected = f"expected a time in the format {date_format}, {whose}"
    _refuse_missing(found.times, text, where, expected, f"write all of them so{advice}")
    return found


def zone_offsets(text: pd.Series) -> pd.Series:
    """By row, what the text says of its distance from UTC: ``+01:00``, ``Z``, or NaN for nothing."""
    return text.str.extract(_ZONE_AT_END, expand=False)


def format_problem(date_format: str) -> str | None:
    """What is wrong with ``--date_format``, or None."""
    expected = "--date_format: expected "
    if date_format == ISO:
        return None
    if _BARE_YEAR.search(date_format):
        return (
            f"{expected}the hundred years that %y lies in, as in {_BARE_YEAR.sub('1950%y', date_format)} "
            f"for 1950 to 2049, found {date_format}"
        )
    if not re.search(r"%Y|%G|%y", date_format):
        return f"{expected}a format with a year, such as %d/%m/%Y %H:%M, or {ISO}, found {date_format}"
    return None


def _check_format(date_format: str) -> None:
    problem = format_problem(date_format)
    if problem is None and date_format != ISO:
        try:
            parsed(pd.Series([EXAMPLE]), date_format)
        except ValueError as error:
            problem = f"--date_format: expected a format such as %d/%m/%Y %H:%M, found {date_format}: {error}"
    if problem is not None:
        raise UserError(problem)


def parsed(text: pd.Series, date_format: str) -> Written:
    """Times by one format, NaT where it does not fit."""
    plain, century = date_format, _CENTURY.search(date_format)
    if century:
        plain = _CENTURY.sub("%y", date_format)
    if "%q" in plain:
        plain = plain.replace("%q", "%m")
        text = text.str.replace(_QUARTER, lambda m: f"{m[0][0]}{3 * int(m[1]) - 2:02d}", regex=True)
    offsets: tuple[str, ...] = ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            times = pd.to_datetime(text, format=plain, errors="coerce")
        except ValueError as error:
            offsets = _several_offsets(text)
            if not offsets:
                raise UserError(str(error)) from None
            times = pd.to_datetime(text, format=plain, errors="coerce", utc=True)
            times = times.where(zone_offsets(text).notna())
    if date_format == ISO:  # which pandas also finds in "/1", as the year 0
        times = times.where(np.array([isinstance(cell, str) and cell[:4].isdigit() for cell in text]))
    if century:
        times = _in_century(times, int(century[1]))
    return Written(times, date_format, offsets)


def _several_offsets(text: pd.Series) -> tuple[str, ...]:
    """The first two distances from UTC in the text, an empty one among them; nothing where it has but one."""
    found = tuple(zone_offsets(text[text.notna()]).fillna("").unique()[:2])
    return found if len(found) > 1 else ()


def _in_century(times: pd.Series, first: int) -> pd.Series:
    """Times whose years of two digits lie in the hundred years from ``first`` on; NaT for no such day."""
    wanted = first + (times.dt.year - first) % 100
    away = (wanted - times.dt.year).fillna(0).astype(int)
    moved = times.copy()
    for years in away.unique():
        if years:
            moved[away == years] = times[away == years] + pd.DateOffset(years=int(years))
    return moved.where(moved.dt.day == times.dt.day)  # 29 February, where that year has none


def _proposed(text: pd.Series) -> list[str]:
    """Formats that the look of a few rows suggests, in no order of preference."""
    known = text[text.notna()]
    found: dict[str, None] = {}
    for place in np.unique(np.linspace(0, len(known) - 1, _SAMPLES).astype(int)) if len(known) else ():
        found.update(dict.fromkeys(_formats_like(str(known.iloc[place]).strip())))
    return _with_centuries(list(found), known)


def _with_centuries(formats: list[str], text: pd.Series) -> list[str]:
    """Each format with a year of two digits, as one of 1900 on and one of 2000 on, from the first row's."""
    found = []
    for fmt in formats:
        if "%y" not in fmt:
            found.append(fmt)
            continue
        first = pd.to_datetime(text.iloc[:1], format=fmt, errors="coerce").iloc[0]
        if not pd.isna(first):
            found += [fmt.replace("%y", f"{century + first.year % 100}%y") for century in (1900, 2000)]
    return found


def _formats_like(example: str) -> Iterator[str]:
    """Formats that may have written one text."""
    time = _TIME.search(example)
    day = example if time is None else example[: time.start()]
    behind = "" if time is None else _time_format(time)
    if not behind and re.fullmatch(r"\d{4}[- ]?[Qq][1-4]|[Qq][1-4][- /]?\d{4}", day):
        yield re.sub(r"(?<=[Qq])[1-4]", "%q", re.sub(r"\d{4}", "%Y", day))
        return
    parts = re.findall(r"\d+|[A-Za-z]+|[^\dA-Za-z]+", day)
    for i, part in enumerate(parts):
        if part.isalpha():
            known = next((code for code, words in _WORDS.items() if part.lower() in words), None)
            if known is None:
                return
            parts[i] = known
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    named = any(part in ("%b", "%B") for part in parts)
    for codes in _orders([len(parts[i]) for i in numbers], named=named):
        own = dict(zip(numbers, codes, strict=True))
        yield "".join(own.get(i, part) for i, part in enumerate(parts)) + behind


def _orders(widths: list[int], *, named: bool) -> Iterator[tuple[str, ...]]:
    """What numbers of these many digits may be, with or without a month that is written out."""
    if len(widths) == 1 and not named:
        yield from {8: [("%Y%m%d",), ("%d%m%Y",), ("%m%d%Y",)], 4: [("%Y",)],
                    6: [("%Y%m",), ("%y%m%d",), ("%d%m%y",), ("%m%d%y",)]}.get(widths[0], [])  # fmt: skip
        return
    others: dict[tuple[int, bool], list[tuple[str, ...]]] = {
        (1, True): [()],
        (2, True): [("%d",)],
        (2, False): [("%m",)],
        (3, False): [("%d", "%m"), ("%m", "%d")],
    }
    for rest in others.get((len(widths), named), []):
        for place in dict.fromkeys((len(widths) - 1, 0)):  # a year stands first or last
            year = "%Y" if widths[place] == 4 else "%y" if widths[place] == 2 and 4 not in widths else None
            if year and (year, place, *rest) != ("%y", 0, "%d", "%m"):  # 05/31/01 is no date of 2005
                yield (*rest[:place], year, *rest[place:])


def _time_format(time: re.Match[str]) -> str:
    half = "%p" if time["half"] else ""
    clock = "%I" if half else "%H"
    if ":" in time[0]:
        clock += ":%M" + (":%S" if time["second"] else "") + (".%f" if time["fraction"] else "")
    gap = " " if half and time["half"][0] == " " else ""
    before = re.search(r"\s*$", time[0][: time.start("offset") - time.start()]) if time["offset"] else None
    zone = (before[0] + "%z") if before else ""
    return time["between"] + clock + gap + half + zone


def _formats(readings: Sequence[Written]) -> int:
    """How many formats these are, whatever the century."""
    return len({_CENTURY.sub("%y", one.date_format or "") for one in readings})


def _refuse_missing(times: pd.Series, text: pd.Series, where: object, expected: str, advice: str) -> None:
    """Raise UserError where a row has no time."""
    missing = np.flatnonzero(times.isna().to_numpy())
    if not missing.size:
        return
    first = int(missing[0])
    found = "nothing" if pd.isna(text.iloc[first]) else repr(text.iloc[first])
    raise UserError(
        f"{where}, {row_text(first)}: {expected}, found {found} ({missing.size} such rows); {advice}"
    )


def _refuse_several(
    text: pd.Series, where: object, readings: list[Written], *, regular: bool, flags: bool
) -> NoReturn:
    """Raise UserError: which format is meant cannot be told."""
    unlike = (i for i in range(len(text)) if len({one.times.iloc[i] for one in readings}) > 1)
    first = next(unlike, 0)
    shown = " or ".join(f"{_time_text(one.times.iloc[first])} ({one.date_format})" for one in readings)
    raise UserError(
        f"{where}, {row_text(first)}: expected dates that can be read in one way, found "
        f"{text.iloc[first]!r}, which is {shown}; {'all' if regular else 'none'} of these leave the "
        f"rows with one frequency: {_way_out([one.date_format or '' for one in readings], flags=flags)}"
    )


def _refuse_two_digits(text: pd.Series, where: object, date_format: str, *, flags: bool) -> NoReturn:
    """Raise UserError: the century is nowhere said. The format has one, and the first row's year in it."""
    found = _CENTURY.search(date_format)
    assert found is not None
    years = [century + int(found[1]) % 100 for century in (1900, 2000)]
    formats = [_CENTURY.sub(f"{year}%y", date_format) for year in years]
    meaning = f" ({years[0]}%y: the hundred years from {years[0]} on)" if flags else ""
    raise UserError(
        f"{where}, {row_text(0)}: expected years of four digits, found {text.iloc[0]!r}: "
        f"{years[0]} or {years[1]}? "
        f"{_way_out(formats, flags=flags)}{meaning}"
    )


def _way_out(formats: Sequence[str], *, flags: bool) -> str:
    return f"say which with {_alternatives(formats)}" if flags else f"write them as {EXAMPLE}"


def _alternatives(formats: Sequence[str]) -> str:
    return " or ".join(f"--date_format '{fmt}'" for fmt in formats)


def _time_text(time: pd.Timestamp) -> str:
    return str(time.date() if time == time.normalize() else time)


def row_text(index: int) -> str:
    """How messages name the row with this 0-based index."""
    return f"data row {index + 1}"
