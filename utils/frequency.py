"""Frequencies of rows: the step from one to the next, its kind, and which calendar positions mark a row.

A frequency is a pandas alias, or ``MS-15`` (``3MS-15``, ...): the 15th of each month, the month's last day
where it has fewer. Source of the marks: GluonTS (Alexandrov et al. 2020), as Informer (Zhou et al. 2021)
uses its table.
"""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
from pandas.tseries.frequencies import to_offset

from utils.errors import UserError

_DAY_OF_MONTH = re.compile(r"(\d*)MS-(\d{1,2})")
_DAY = pd.Timedelta(days=1)
_DAILY = ("day_of_week", "day_of_month", "day_of_year")
_offsets = pd.offsets
_KINDS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("year", (_offsets.YearEnd, _offsets.YearBegin, _offsets.BYearEnd, _offsets.BYearBegin)),
    ("quarter", (_offsets.QuarterEnd, _offsets.QuarterBegin, _offsets.BQuarterEnd, _offsets.BQuarterBegin)),
    (
        "month",
        (
            _offsets.MonthEnd,
            _offsets.MonthBegin,
            _offsets.BusinessMonthEnd,
            _offsets.BusinessMonthBegin,
            _offsets.WeekOfMonth,
            _offsets.LastWeekOfMonth,
        ),
    ),
    ("half month", (_offsets.SemiMonthEnd, _offsets.SemiMonthBegin)),
    ("week", (_offsets.Week,)),
    ("day", (_offsets.Day,)),
    ("business day", (_offsets.BusinessDay,)),
    ("hour", (_offsets.Hour,)),
    ("minute", (_offsets.Minute,)),
    ("second", (_offsets.Second,)),
)
_MARKS: dict[str, tuple[str, ...]] = {
    "year": (),
    "quarter": ("month",),
    "month": ("month",),
    "half month": ("day_of_month", "week_of_year"),
    "week": ("day_of_month", "week_of_year"),
    "day": _DAILY,
    "business day": _DAILY,
    "hour": ("hour", *_DAILY),
    "minute": ("minute", "hour", *_DAILY),
    "second": ("second", "minute", "hour", *_DAILY),
}
_MONTHS = {"month": 1, "quarter": 3, "year": 12}


def step_of(frequency: str) -> Any:
    """What leads from one row to the next: a pandas offset; whole days are days of the calendar.

    Raises:
        UserError: there is no such frequency.
    """
    found = _DAY_OF_MONTH.fullmatch(frequency)
    if found:
        months, day = int(found[1] or 1), int(found[2])
        if not (1 <= day <= 31 and months):
            raise UserError(f"expected a day of the month from 1 to 31, found {frequency}")
        return pd.DateOffset(months=months, day=day)
    step: Any = to_offset(frequency)
    if isinstance(step, _offsets.Tick) and pd.Timedelta(step) % _DAY == pd.Timedelta(0):
        return _offsets.Day(pd.Timedelta(step) // _DAY)
    return step


def day_of_month(frequency: str) -> int | None:
    """The day of a frequency like ``MS-15``; None for any other."""
    found = _DAY_OF_MONTH.fullmatch(frequency)
    return int(found[2]) if found else None


def kind_of(frequency: str) -> tuple[str, int]:
    """The unit of a step, such as hour or business day, and how many of it a step takes.

    Raises:
        UserError: for a frequency that is in no table, such as milliseconds.
    """
    found = _DAY_OF_MONTH.fullmatch(frequency)
    if found:
        return "month", int(found[1] or 1)
    step = step_of(frequency)
    for name, classes in _KINDS:
        if isinstance(step, classes):
            return name, int(step.n)
    raise UserError(unsupported_frequency(frequency))


def length_of(frequency: str) -> tuple[str, int]:
    """What two frequencies of the same length have in common: 60min and h, or ME, MS and MS-15."""
    step = step_of(frequency)
    if isinstance(step, _offsets.Tick):
        return "ns", pd.Timedelta(step).value
    if isinstance(step, _offsets.Day | _offsets.Week):
        days = step.n * (7 if isinstance(step, _offsets.Week) else 1)
        return "ns", pd.Timedelta(days=days).value
    kind, count = kind_of(frequency)
    return ("month", count * _MONTHS[kind]) if kind in _MONTHS else (kind, count)


def mark_names(frequency: str) -> tuple[str, ...]:
    """Names of the time marks of rows of this frequency: one column each, in order.

    Raises:
        UserError: for a frequency that has no marks, such as milliseconds.
    """
    return _MARKS[kind_of(frequency)[0]]


def unsupported_frequency(frequency: str) -> str:
    """The message for a frequency that is in no table."""
    return (
        f"--freq: expected years, quarters, months, weeks, days, hours, minutes or seconds, found {frequency}"
    )
