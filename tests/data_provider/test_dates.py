"""Times continued into the future, and frequencies known again under other names."""

from __future__ import annotations

import pandas as pd
import pytest

from data_provider.dates import date_column, dates_after, frequency_like


def test_weekly_rows_keep_their_own_weekday():
    """The alias says Sunday, the rows are Thursdays."""
    assert dates_after(pd.Timestamp("2020-01-02"), "W-SUN", 2).tolist() == [
        pd.Timestamp("2020-01-09"),
        pd.Timestamp("2020-01-16"),
    ]


@pytest.mark.parametrize(
    ("expected", "given"), [("h", "60min"), ("D", "24h"), ("W-SUN", "7D"), ("ME", "MS"), ("QE-DEC", "QS-JAN")]
)
def test_the_same_length_under_another_name_is_the_same_frequency(expected, given):
    for trained, found in ((expected, given), (given, expected)):
        dates = pd.date_range("2020-01-01", periods=12, freq=found)
        assert frequency_like(dates, trained, freq=None, where="t")


@pytest.mark.parametrize(
    ("expected", "given"), [("h", "30min"), ("D", "B"), ("ME", "QE"), ("h", "2h"), ("B", "D")]
)
def test_another_length_is_refused(expected, given):
    dates = pd.date_range("2020-01-01", periods=30, freq=given)
    with pytest.raises(ValueError, match=f"t: .*{expected}, which the model was trained on, found {given}"):
        frequency_like(dates, expected, freq=None, where="t")


def test_five_business_days_are_days_and_business_days():
    """Inferred alone they would be days: what was trained on decides."""
    dates = pd.date_range("2024-01-01", periods=5, freq="B")  # Monday to Friday
    assert frequency_like(dates, "B", freq=None, where="t") == "B"
    assert frequency_like(dates, "D", freq=None, where="t") == "D"


@pytest.mark.parametrize(
    "dates", [[20200101, 20200102], ["2020-01-01", None], [pd.Timestamp("2020-01-01"), "2020-01-02"]]
)
def test_dates_of_any_type_are_read_as_text_but_for_times(dates):
    """Whole numbers would be nanoseconds since 1970."""
    column = date_column(pd.DataFrame({"date": dates, "a": 1.0}), "t")
    assert column.notna().tolist() == [d is not None for d in dates]
    assert all(isinstance(d, str) for d in column[column.notna()])
