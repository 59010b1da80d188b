from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest

from data_provider.time_features import season_rows, time_marks
from utils.frequency import mark_names


def test_an_unsupported_step_is_named():
    with pytest.raises(ValueError, match="--freq.*ms"):
        mark_names("ms")
    with pytest.raises(ValueError, match="--freq.*ms"):
        season_rows("ms")


def published(moment: datetime.datetime) -> dict[str, float]:
    """Each mark by its published formula, from a plain date alone."""
    return {
        "second": moment.second / 59,
        "minute": moment.minute / 59,
        "hour": moment.hour / 23,
        "weekday": moment.weekday() / 6,
        "day": (moment.day - 1) / 30,
        "yearday": (moment.timetuple().tm_yday - 1) / 365,
        "week": (moment.isocalendar().week - 1) / 52,
        "month": (moment.month - 1) / 11,
    }


DAILY = ("weekday", "day", "yearday")


@pytest.mark.parametrize(
    ("frequency", "names", "season"),
    [
        ("YE", (), 1),
        ("QE", ("month",), 4),
        ("MS", ("month",), 12),
        ("ME", ("month",), 12),
        ("W", ("day", "week"), 52),
        ("W-FRI", ("day", "week"), 52),
        ("B", DAILY, 5),
        ("D", DAILY, 7),
        ("h", ("hour", *DAILY), 24),
        ("6h", ("hour", *DAILY), 4),
        ("15min", ("minute", "hour", *DAILY), 96),
        ("10min", ("minute", "hour", *DAILY), 144),
        ("s", ("second", "minute", "hour", *DAILY), 86400),
    ],
)
def test_marks_are_their_published_formulas_in_the_published_order(frequency, names, season):
    """Their number is that of the family's TimeFeatureEmbedding: h 4, t 5, s 6, m 1, w 2, d 3, b 3."""
    dates = pd.date_range("2019-11-28 21:45:30", periods=200 if frequency == "YE" else 700, freq=frequency)
    wanted = [[published(d)[name] - 0.5 for name in names] for d in dates.to_pydatetime()]
    found = time_marks(dates, frequency)
    np.testing.assert_allclose(found, np.array(wanted).reshape(len(dates), len(names)), atol=1e-6)
    assert len(mark_names(frequency)) == len(names) and season_rows(frequency) == season
