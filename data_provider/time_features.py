"""Time marks by frequency, and the length of a season by frequency.

The marks are those of GluonTS (Alexandrov et al. 2020) as Informer (Zhou et al. 2021) uses them:
each is a calendar position scaled to [-0.5, 0.5].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from utils.frequency import kind_of, mark_names

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

_SEASONS: dict[str, int] = {
    "year": 1,
    "quarter": 4,
    "month": 12,
    "half month": 24,
    "week": 52,
    "business day": 5,
    "day": 7,
    "hour": 24,
    "minute": 24 * 60,
    "second": 24 * 60 * 60,
}
"""Steps of one season: a day for hours and finer, a week of days, a year of anything coarser."""


def time_marks(dates: pd.DatetimeIndex, frequency: str) -> NDArray[np.float32]:
    """The time marks of ``dates`` [T] -> [T, F] float32 in [-0.5, 0.5]; F is 4 for hourly rows.

    They are those of the wall clock where the dates have a zone.
    """
    names = mark_names(frequency)
    if not names:
        return np.zeros((len(dates), 0), dtype=np.float32)
    return np.stack([_MARKS[name](dates) for name in names], axis=1).astype(np.float32)


def season_rows(frequency: str) -> int:
    """Rows of one season: 24 for h, 96 for 15min, 7 for D, 52 for W, 12 for ME, ...; 1 at least.

    Raises:
        ValueError: the frequency is none that has a season here.
    """
    kind, count = kind_of(frequency)
    return max(1, round(_SEASONS[kind] / count))
