"""The frequency of rows: found in their times, gaps and jitter told from it, and continued into the future.

Steps below a day are of time itself (in UTC), those of a day and longer of the wall clock.

Shape legend: T rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.tseries.frequencies import to_offset

from utils.frequency import day_of_month, length_of, step_of

_DAY = pd.Timedelta(days=1)
_TICK = pd.Timedelta(microseconds=1)
_ROUND_STEPS = (
    *(pd.Timedelta(seconds=n) for n in (1, 2, 3, 5, 6, 10, 12, 15, 20, 30)),
    *(pd.Timedelta(minutes=n) for n in (1, 2, 3, 5, 6, 10, 12, 15, 20, 30)),
    *(pd.Timedelta(hours=n) for n in (1, 2, 3, 4, 6, 8, 12)),
    _DAY,
)
"""Steps to whose multiples times that jitter are rounded: those that divide the next longer unit."""
_NEAR = 0.1
"""Share by which the middle step of times that jitter may differ from a round one."""


_STRAY = 0.02
"""Share of rows at weekends from which on rows are not of business days: there are special sessions."""


class Found(NamedTuple):
    """A frequency, and the rows that do not follow it."""

    alias: str
    irregular: NDArray[np.int64]
    """Rows whose distance from the row before is not one step, ascending."""


class Rounded(NamedTuple):
    """Times that jitter, on the grid that they jitter around."""

    dates: pd.DatetimeIndex
    moved: int
    """How many are not on it."""
    most: pd.Timedelta
    """How far off at most."""


def wall_clock(dates: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """The same times as a clock on the wall shows them, without a zone."""
    return dates.tz_localize(None)


def irregular_steps(dates: pd.DatetimeIndex, frequency: str) -> NDArray[np.int64]:
    """Rows whose distance from the row before is not one step of ``frequency``, ascending."""
    step = _step(frequency)
    if not isinstance(step, pd.offsets.Tick):
        dates = wall_clock(dates)
    with warnings.catch_warnings():  # some calendar offsets are added row by row: slow, but rare and short
        warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
        expected = dates[:-1] + step
    return np.flatnonzero(np.asarray(expected != dates[1:])) + 1


def has_one_frequency(dates: pd.DatetimeIndex, frequency: str | None = None) -> bool:
    """Whether times follow each other at one frequency, whichever or this one, without a gap."""
    if len(dates) < 2 or (np.diff(dates.asi8) <= 0).any():
        return False
    if frequency is not None:
        return not irregular_steps(dates, frequency).size
    return len(dates) > 2 and not find(dates).irregular.size


def find(dates: pd.DatetimeIndex) -> Found:
    """The frequency that fits all of these increasing dates [T], T > 2, or else most of them.

    Frequencies of the calendar (business days, months, quarters, years by any of their anchors) come
    before plain steps of time.
    """
    steps = np.unique(np.diff(dates.asi8))
    if len(steps) == 1 and (step := pd.Timedelta(int(steps[0]), unit=dates.unit)) < _DAY:
        return Found(str(to_offset(step).freqstr), np.zeros(0, dtype=np.int64))
    wall = wall_clock(dates)
    with warnings.catch_warnings():  # text in pandas 3, an offset later: both are understood below
        warnings.simplefilter("ignore", DeprecationWarning)
        alias = pd.infer_freq(wall) if (np.diff(wall.asi8) > 0).all() else None
    inferred = [] if alias is None else [str(to_offset(alias).freqstr)]
    best: Found | None = None
    for alias in chain(inferred, _candidates(dates)):
        found = Found(alias, irregular_steps(dates, alias))
        if not found.irregular.size:
            return found
        if best is None or len(found.irregular) < len(best.irregular):
            best = found
    assert best is not None
    return best


def _candidates(dates: pd.DatetimeIndex) -> Iterator[str]:
    """Frequencies that these dates may have with gaps, those of the calendar first."""
    wall = wall_clock(dates)
    commonest = _commonest(dates)
    days = float(np.median(np.diff(wall.as_unit("us").asi8))) / (_DAY // _TICK)
    if 0.5 < days < 4.5 and np.mean(wall.day_of_week >= 5) < _STRAY:
        yield "B"
    if days > 6:
        yield from _weeks(wall)
    if 12 < days < 18:
        yield from _half_months(wall)
    if days > 20:
        yield from _months(wall)
    if commonest < _DAY:
        yield str(to_offset(commonest).freqstr)
    elif commonest % _DAY == pd.Timedelta(0):
        yield f"{commonest.days}D" if commonest.days > 1 else "D"
    else:
        wall_step = _commonest(wall)
        yield "D" if wall_step == _DAY else str(to_offset(commonest).freqstr)


def _commonest(dates: pd.DatetimeIndex) -> pd.Timedelta:
    """The step that most rows are apart."""
    steps, counts = np.unique(np.diff(dates.asi8), return_counts=True)
    return pd.Timedelta(int(steps[counts.argmax()]), unit=dates.unit)


def _mode(values: Any) -> int:
    found, counts = np.unique(np.asarray(values), return_counts=True)
    return int(found[counts.argmax()])


def _weeks(wall: pd.DatetimeIndex) -> Iterator[str]:
    days = _mode(np.diff(wall.normalize().as_unit("s").asi8) // 86_400)
    if days > 0 and days % 7 == 0:
        weekday = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")[_mode(wall.day_of_week)]
        yield f"W-{weekday}" if days == 7 else f"{days // 7}W-{weekday}"


def _half_months(wall: pd.DatetimeIndex) -> Iterator[str]:
    days, counts = np.unique(wall.day, return_counts=True)
    for day in days[counts.argsort()[::-1]][:2]:
        if 1 < day < 28:
            yield f"SMS-{day}"
            yield f"SME-{day}"


def _months(wall: pd.DatetimeIndex) -> Iterator[str]:
    """Months, quarters and years by every anchor that the dates' commonest distance allows."""
    count = _mode(np.diff(np.asarray(wall.year) * 12 + np.asarray(wall.month)))
    if count < 1:
        return
    times = "" if count == 1 else str(count)
    month = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")[
        _mode(wall.month) - 1
    ]
    if count == 12:
        yield from (f"{kind}-{month}" for kind in ("YS", "YE", "BYS", "BYE"))
    elif count == 3:
        yield from (f"{kind}-{month}" for kind in ("QS", "QE", "BQS", "BQE"))
    yield from (f"{times}{kind}" for kind in ("MS", "ME", "BMS", "BME"))
    weekday = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")[_mode(wall.day_of_week)]
    yield f"{times}WOM-{min(4, _mode((wall.day - 1) // 7) + 1)}{weekday}"
    yield f"{times}LWOM-{weekday}"
    for day in sorted({_mode(wall.day), int(wall.day.max())}):
        if day > 1:
            yield f"{times}MS-{day}"


def rounded(dates: pd.DatetimeIndex, frequency: str | None = None) -> Rounded | None:
    """Increasing dates [T] on the grid around which they jitter; None where they are around none.

    Args:
        dates: T > 2.
        frequency: whose step the grid has, where that is below a day; otherwise the round step next to
            the middle one, at most a day.
    """
    step = None if frequency is None else step_of(frequency)
    unit = pd.Timedelta(step) if isinstance(step, pd.offsets.Tick) else None
    if unit is None:
        middle = pd.Timedelta(int(np.median(np.diff(dates.asi8))), unit=dates.unit)
        near = [one for one in _ROUND_STEPS if abs(middle / one - 1) < _NEAR]
        if not near and middle < 0.9 * _DAY:
            return None
        unit = min(near, key=lambda one: abs(middle / one - 1)) if near else _DAY
    clock = wall_clock(dates) if unit == _DAY else dates
    times = clock.as_unit("us").asi8
    grid = _on_grid(times, unit)
    if grid is None or (np.diff(grid) <= 0).any():
        return None
    whole = pd.DatetimeIndex(grid.astype("datetime64[us]")).as_unit(dates.unit)
    if dates.tz is not None and unit == _DAY:
        moved_to = whole.tz_localize(
            dates.tz, ambiguous=np.ones(len(whole), dtype=bool), nonexistent="shift_forward"
        )
    else:
        moved_to = whole if dates.tz is None else whole.tz_localize("UTC").tz_convert(dates.tz)
    off = np.abs(grid - times)
    return Rounded(moved_to, int(np.count_nonzero(off)), pd.Timedelta(int(off.max()), unit="us"))


def _on_grid(times: NDArray[np.int64], unit: pd.Timedelta) -> NDArray[np.int64] | None:
    """Microseconds [T] moved onto multiples of ``unit`` from a round start; None where they are near none."""
    width = unit // _TICK
    angle = np.exp(2j * np.pi * (times % width) / width).mean()
    centre = int(np.angle(angle) / (2 * np.pi) * width)
    away = (times - centre + width // 2) % width - width // 2  # from the middle of their jitter
    spread = int(away.max() - away.min())
    if 2 * spread > width:
        return None
    low, high, slack = centre + int(away.min()), centre + int(away.max()), spread // 4
    middle = (low + high) // 2
    finer = [one // _TICK for one in reversed(_ROUND_STEPS) if unit % one == pd.Timedelta(0)]
    starts = [round(middle / step) * step for step in finer]
    # as round a start as lies where the times do, or but little beside: the earliest may all be late
    start = next((one for one in starts if low - slack <= one <= high + slack), middle)
    return start + (times - start + width // 2) // width * width


def jitter(dates: pd.DatetimeIndex, found: Found) -> tuple[Rounded, Found] | None:
    """Dates rounded and the frequency that is left, where that explains most rows that ``found`` leaves."""
    whole = rounded(dates)
    if whole is None or not whole.moved:
        return None
    after = find(whole.dates)
    return (whole, after) if 2 * len(after.irregular) < len(found.irregular) else None


def dates_after(last: pd.Timestamp, frequency: str, rows: int) -> pd.DatetimeIndex:
    """The ``rows`` times that follow ``last``, one step of ``frequency`` after the other, in its zone.

    Where ``last`` lies beside the frequency's dates, as a month's last trading day does at holidays, they
    follow the date that it stands for. A time that the clock skips is taken as late as it goes on.
    """
    step = _step(frequency)
    if isinstance(step, pd.offsets.Tick):
        return pd.DatetimeIndex([last + step * (i + 1) for i in range(rows)])
    zone, wall = last.tz, _nominal(last.tz_localize(None), frequency)
    dates = []
    for _ in range(rows):
        wall = wall + step
        dates.append(wall)
    found = pd.DatetimeIndex(dates)
    if zone is None:
        return found
    return found.tz_localize(zone, ambiguous=np.ones(rows, dtype=bool), nonexistent="shift_forward")


def _nominal(time: pd.Timestamp, frequency: str) -> pd.Timestamp:
    """The date of the frequency that a time stands for: itself, the nearest, or the business day before."""
    step = step_of(frequency)
    if isinstance(step, pd.offsets.Week | pd.offsets.Day) or day_of_month(frequency) is not None:
        return time
    if step.is_on_offset(time):
        return time
    before, after = step.rollback(time), step.rollforward(time)
    if isinstance(step, pd.offsets.BusinessDay):
        return before
    return before if time - before <= after - time else after


def _step(frequency: str) -> Any:
    """What leads from one row to the next; weekly rows need not fall on the alias's weekday."""
    step = step_of(frequency)
    return pd.offsets.Day(7 * step.n) if isinstance(step, pd.offsets.Week) else step


def same_length(one: str, other: str) -> bool:
    """Whether two frequencies have steps of the same length: 60min and h, or ME, MS and MS-15."""
    return length_of(one) == length_of(other)
