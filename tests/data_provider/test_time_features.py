from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest

from data_provider.time_features import season_rows, time_marks
from utils.frequency import mark_names


@pytest.mark.parametrize(
    ("frequency", "marks", "season"),
    [
        ("YE", 0, 1),
        ("QS", 1, 4),
        ("ME", 1, 12),
        ("MS", 1, 12),
        ("W-FRI", 2, 52),
        ("D", 3, 7),
        ("B", 3, 5),
        ("h", 4, 24),
        ("6h", 4, 4),
        ("15min", 5, 96),
        ("10min", 5, 144),
        ("s", 6, 86400),
    ],
)
def test_marks_and_season_by_frequency(frequency, marks, season):
    """The number of marks is that of the family's TimeFeatureEmbedding: h 4, t 5, s 6, m 1, w 2, d 3, b 3."""
    dates = pd.date_range("2016-01-01", periods=800, freq=frequency if frequency != "YE" else "D")
    found = time_marks(dates, frequency)
    assert found.shape == (800, marks) and len(mark_names(frequency)) == marks
    assert np.abs(found).max(initial=0.0) <= 0.5
    assert season_rows(frequency) == season


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
    ("frequency", "names"),
    [
        ("QE", ("month",)),
        ("ME", ("month",)),
        ("W", ("day", "week")),
        ("B", DAILY),
        ("D", DAILY),
        ("h", ("hour", *DAILY)),
        ("4h", ("hour", *DAILY)),
        ("15min", ("minute", "hour", *DAILY)),
        ("10min", ("minute", "hour", *DAILY)),
        ("30s", ("second", "minute", "hour", *DAILY)),
    ],
)
def test_every_mark_is_its_published_formula_in_the_published_order(frequency, names):
    dates = pd.date_range("2019-11-28 21:45:30", periods=700, freq=frequency)
    wanted = [[published(d)[name] - 0.5 for name in names] for d in dates.to_pydatetime()]
    np.testing.assert_allclose(time_marks(dates, frequency), np.array(wanted), atol=1e-6)
