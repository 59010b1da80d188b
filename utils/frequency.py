"""Which calendar positions mark a row, by the frequency of the rows.

Source: GluonTS (Alexandrov et al. 2020), as Informer (Zhou et al. 2021) uses its table.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from pandas.tseries.frequencies import to_offset

from utils.errors import UserError

_DAILY = ("day_of_week", "day_of_month", "day_of_year")
_BY_OFFSET: tuple[tuple[tuple[Any, ...], tuple[str, ...]], ...] = (
    ((pd.offsets.YearEnd, pd.offsets.YearBegin), ()),
    ((pd.offsets.QuarterEnd, pd.offsets.QuarterBegin), ("month",)),
    ((pd.offsets.MonthEnd, pd.offsets.MonthBegin), ("month",)),
    ((pd.offsets.Week,), ("day_of_month", "week_of_year")),
    ((pd.offsets.Day, pd.offsets.BusinessDay), _DAILY),
    ((pd.offsets.Hour,), ("hour", *_DAILY)),
    ((pd.offsets.Minute,), ("minute", "hour", *_DAILY)),
    ((pd.offsets.Second,), ("second", "minute", "hour", *_DAILY)),
)


def mark_names(frequency: str) -> tuple[str, ...]:
    """Names of the time marks of rows of this frequency, a pandas alias: one column each, in order.

    Raises:
        ValueError: for a frequency that has no marks, such as milliseconds.
    """
    offset: Any = to_offset(frequency)
    for kinds, names in _BY_OFFSET:
        if isinstance(offset, kinds):
            return names
    raise UserError(unsupported_frequency(frequency))


def unsupported_frequency(frequency: str) -> str:
    """The message for a frequency that is in no table."""
    return (
        f"--freq: expected years, quarters, months, weeks, days, hours, minutes or seconds, found {frequency}"
    )
