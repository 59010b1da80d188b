"""Time marks by frequency, and the length of a season by frequency.

The marks are those of GluonTS (Alexandrov et al. 2020) as Informer (Zhou et al. 2021) uses them:
each is a calendar position scaled to [-0.5, 0.5].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.tseries.frequencies import to_offset

from utils.errors import UserError
from utils.frequency import mark_names, unsupported_frequency

_MARKS: dict[str, Callable[[pd.DatetimeIndex], NDArray[np.float64]]] = {
    "second": lambda t: np.asarray(t.second / 59 - 0.5),
    "minute": lambda t: np.asarray(t.minute / 59 - 0.5),
    "hour": lambda t: np.asarray(t.hour / 23 - 0.5),
    "day_of_week": lambda t: np.asarray(t.day_of_week / 6 - 0.5),
    "day_of_month": lambda t: np.asarray((t.day - 1) / 30 - 0.5),
    "day_of_year": lambda t: np.asarray((t.day_of_year - 1) / 365 - 0.5),
    "week_of_year": lambda t: np.asarray((t.isocalendar().week.to_numpy(dtype=float) - 1) / 52 - 0.5),
    "month": lambda t: np.asarray((t.month - 1) / 11 - 0.5),
}

_SEASONS: tuple[tuple[tuple[Any, ...], int], ...] = (
    ((pd.offsets.YearEnd, pd.offsets.YearBegin), 1),
    ((pd.offsets.QuarterEnd, pd.offsets.QuarterBegin), 4),
    ((pd.offsets.MonthEnd, pd.offsets.MonthBegin), 12),
    ((pd.offsets.Week,), 52),
    ((pd.offsets.BusinessDay,), 5),
    ((pd.offsets.Day,), 7),
    ((pd.offsets.Hour,), 24),
    ((pd.offsets.Minute,), 24 * 60),
    ((pd.offsets.Second,), 24 * 60 * 60),
)
"""Steps of one season: a day for hours and finer, a week of days, a year of anything coarser."""


def time_marks(dates: pd.DatetimeIndex, frequency: str) -> NDArray[np.float32]:
    """The time marks of ``dates`` [T] -> [T, F] float32 in [-0.5, 0.5]; F is 4 for hourly rows."""
    names = mark_names(frequency)
    if not names:
        return np.zeros((len(dates), 0), dtype=np.float32)
    return np.stack([_MARKS[name](dates) for name in names], axis=1).astype(np.float32)


def season_rows(frequency: str) -> int:
    """Rows of one season: 24 for h, 96 for 15min, 7 for D, 52 for W, 12 for ME, ...; 1 at least.

    Raises:
        ValueError: the frequency is none that has a season here.
    """
    offset: Any = to_offset(frequency)
    for kinds, steps in _SEASONS:
        if isinstance(offset, kinds):
            return max(1, round(steps / int(offset.n)))
    raise UserError(unsupported_frequency(frequency))
