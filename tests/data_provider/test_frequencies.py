"""Frequencies found in dates with gaps, jitter and zones; every advice followed literally."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_provider.dates import (
    DateRules,
    DatesKept,
    date_column,
    frequency_alias,
    read_times,
    read_times_like,
)
from data_provider.frequencies import dates_after, find, irregular_steps
from data_provider.time_features import season_rows, time_marks
from utils.frequency import day_of_month, step_of

CALENDAR = [
    "B", "D", "W-MON", "W-SUN", "2W-WED", "MS", "ME", "BMS", "BME", "2MS", "3ME", "QS-JAN", "QE-FEB",
    "BQS-MAR", "BQE-NOV", "YS-JAN", "YE-JUN", "BYS-APR", "BYE-SEP", "WOM-3FRI", "LWOM-TUE", "SMS-15",
    "SME-15", "MS-15", "MS-30", "3MS-10", "12MS-4",
]  # fmt: skip
CLOCK = ["s", "30s", "min", "15min", "h", "6h"]
ZONES = [None, "UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "UTC+01:00"]


def own_range(first: str, rows: int, freq: str, tz: str | None = None) -> pd.DatetimeIndex:
    """pandas' own dates, also where the frequency is a day of the month."""
    step: Any = step_of(freq)
    if day_of_month(freq) is not None:
        step = pd.DateOffset(months=step.months, day=step.day)
        first = (pd.Timestamp(first) + pd.DateOffset(day=step.day)).isoformat()
    return pd.DatetimeIndex(pd.date_range(first, periods=rows, freq=step, tz=tz), freq=None)


def column(dates: Any) -> pd.Series:
    return date_column(pd.DataFrame({"date": dates, "a": 1.0}), "t")


def read(dates: Any, **rules: Any):
    return read_times(column(dates), "t", DateRules(**rules))


def followed(message: str) -> dict[str, Any]:
    """The settings that an error's advice names."""
    flags: dict[str, Any] = {}
    if "leave --freq out" not in message:
        advice = message.rsplit(";", 1)[1]
        flags |= {"freq": found[-1]} if (found := re.findall(r"--freq ([\w-]+)", advice)) else {}
        flags |= {"round_dates": True} if "--round_dates" in advice else {}
    return flags


@pytest.mark.parametrize("freq", [*CALENDAR, *CLOCK])
def test_each_frequency_is_found_and_continued(freq):
    whole = own_range("2010-01-01", 60, freq)
    found = read(whole.astype(str))
    assert not irregular_steps(whole, found.frequency).size
    assert dates_after(whole[39], found.frequency, 20).tolist() == whole[40:].tolist()
    assert time_marks(whole, found.frequency).shape[0] == 60 and season_rows(found.frequency) >= 1


@pytest.mark.parametrize("freq", [f for f in CALENDAR if f not in ("2W-WED", "3ME")])
def test_gaps_in_a_true_frequency_name_it_and_the_advice_is_accepted(freq):
    """Weekdays less holidays were told --freq D, which forecasts Saturdays with a season of 7."""
    whole = own_range("2000-01-01", 150, freq)
    dates = whole.delete([17, 40, 41, 77])
    with pytest.raises(
        ValueError, match=r"data row 18: expected steps of .* as in most rows.*\(3 such rows\)"
    ) as caught:
        read(dates.astype(str))
    found = read(dates.astype(str), **followed(str(caught.value)))
    assert dates_after(dates[-1], found.frequency, 3).tolist() == dates_after(whole[-1], freq, 3).tolist()
    assert season_rows(found.frequency) == season_rows(freq)
    assert "3 steps between rows are not" in found.notes["gaps"] and str(dates[17]) in found.notes["gaps"]


def test_weekdays_less_holidays_are_business_days_for_a_trained_run_too():
    """A run trained with B was told by predict that its rows were D."""
    dates = pd.bdate_range("2019-01-01", "2020-12-31").delete(range(0, 500, 30))
    with pytest.raises(ValueError, match="expected steps of B as in most rows.*accept them with --freq B"):
        read(dates.astype(str))
    with pytest.raises(ValueError, match="expected steps of B as in most rows.*accept them with --freq B"):
        read_times_like(column(dates.astype(str)), "t", DateRules(), expected="B", kept=DatesKept())
    like = read_times_like(column(dates), "t", DateRules(freq="B"), expected="B", kept=DatesKept())
    assert season_rows(like.frequency) == 5
    assert (dates_after(like.dates[-1], like.frequency, 90).day_of_week < 5).all()


def test_a_week_that_begins_on_sunday_is_not_one_of_business_days():
    """B would forecast its Fridays and leave its Sundays out."""
    days = pd.date_range("2020-01-05", periods=140)
    with pytest.raises(ValueError, match="expected steps of D as in most rows"):
        read(days[days.day_of_week.isin([6, 0, 1, 2, 3])].astype(str))


def test_days_of_a_zone_written_in_utc_are_told_to_name_it():
    days = pd.date_range("2020-03-20", periods=60, tz="Europe/Berlin")
    with pytest.raises(ValueError, match="name the zone of these days, such as --time_zone Europe/Berlin"):
        read(days.tz_convert("UTC"))
    assert read(days.tz_convert("UTC"), time_zone="Europe/Berlin").dates.tolist() == days.tolist()


@pytest.mark.parametrize("letter", ["m", "M"])
def test_the_familys_month_has_the_anchor_of_the_dates(letter):
    for freq in ("MS", "ME", "BME", "MS-15"):
        assert read(own_range("2000-01-01", 40, freq).astype(str), freq=letter).frequency == freq
    assert frequency_alias("q") == "QE"


@pytest.mark.parametrize(
    ("freq", "late"), [("h", 19), ("15min", 20), ("min", 5), ("D", 100), ("B", 100), ("10s", 2)]
)
@pytest.mark.parametrize("phase", [0, 0.5])
def test_times_that_jitter_are_said_and_rounded_where_asked(freq, late, phase):
    """Hourly rows up to 19 s late were "steps of 3601s as in most rows", and that flag was refused."""
    whole = own_range("2020-01-01", 400, freq)
    unit = pd.Timedelta(step_of(freq)) if freq not in ("D", "B") else pd.Timedelta(days=1)
    whole = whole + unit * phase
    moved = whole + pd.to_timedelta(np.random.default_rng(0).integers(0, late + 1, 400), unit="s")
    with pytest.raises(
        ValueError, match=rf"the times jitter, by up to {late} s; round them with --round_dates"
    ) as caught:
        read(moved.astype(str))
    found = read(moved.astype(str), **followed(str(caught.value)))
    assert found.dates.tolist() == whole.tolist() and found.frequency == freq
    assert "rounded, by up to" in found.notes["round_dates"]


def test_jitter_with_gaps_is_one_advice():
    dates = pd.date_range("2020-01-01", periods=300, freq="h").delete([50, 51, 120])
    moved = dates + pd.to_timedelta(np.random.default_rng(0).integers(0, 9, len(dates)), unit="s")
    with pytest.raises(ValueError, match="round them with --round_dates --freq h") as caught:
        read(moved.astype(str))
    assert read(moved.astype(str), **followed(str(caught.value))).dates.tolist() == dates.tolist()


def test_rounding_regular_times_changes_nothing_and_irregular_ones_are_refused():
    whole = pd.date_range("2020-01-01 00:07:30", periods=50, freq="15min")
    assert read(whole.astype(str), round_dates=True).dates.tolist() == whole.tolist()
    wild = whole[0] + pd.to_timedelta(np.cumsum(np.random.default_rng(0).integers(1, 9000, 50)), unit="s")
    with pytest.raises(ValueError, match="--round_dates: expected times around a regular grid.*leave it out"):
        read(wild.astype(str), round_dates=True)
    with pytest.raises(ValueError, match="expected rows at one frequency.*resample"):
        read(wild.astype(str))


@pytest.mark.parametrize("given_freq", ["D", "h", "W", "15min", "MS"])
@pytest.mark.parametrize(
    "dates",
    [
        own_range("2020-01-06", 60, "B").delete([5, 30]),
        own_range("2020-01-06", 60, "h"),
        own_range("2000-01-15", 60, "MS-15"),
        own_range("2020-01-01", 60, "h") + pd.to_timedelta(np.arange(60) * 7 % 11, unit="s"),
    ],
    ids=["business days", "hours", "mid-month", "jitter"],
)  # fmt: skip
def test_what_a_wrong_freq_is_told_is_then_accepted(given_freq, dates):
    """The advice of one error was refused by the next."""
    try:
        series = read(dates.astype(str), freq=given_freq)
    except ValueError as error:
        series = read(dates.astype(str), **followed(str(error)))
    assert abs(series.dates - dates).max() < pd.Timedelta(minutes=1)  # as they were, or rounded


@pytest.mark.parametrize(
    ("last", "freq", "after"),
    [
        ("2021-05-28", "BME", "2021-06-30"),  # the last trading day, the 31st being a holiday
        ("2020-01-30", "ME", "2020-02-29"),
        ("2020-01-02", "MS", "2020-02-01"),
        ("2020-01-31", "MS", "2020-03-01"),
        ("2021-01-03", "B", "2021-01-04"),
        ("2020-02-29", "MS-30", "2020-03-30"),
    ],
)
def test_a_last_row_beside_its_frequency_is_followed_by_the_next_date(last, freq, after):
    """The day after the last trading day was the month's end once more."""
    assert dates_after(pd.Timestamp(last), freq, 1)[0] == pd.Timestamp(after)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
def test_steps_below_a_day_pass_clock_changes_in_utc_and_days_by_the_wall_clock(zone):
    """A zone-aware table over a clock change was refused: "keep one row per time"."""
    for first in ("2020-03-07", "2020-03-28", "2020-04-04", "2020-10-03", "2020-10-24", "2020-10-31"):
        for freq in ("h", "15min", "D", "W-SAT", "B"):
            whole = pd.date_range(first, periods=60, freq=freq, tz=zone)
            found = read(whole)
            assert found.frequency == freq
            after = dates_after(whole[30], freq, 29)
            assert after.tolist() == whole[31:].tolist() and str(after.tz) == zone
    summer = pd.date_range("2020-07-01", periods=3, freq="h", tz=zone)
    np.testing.assert_array_equal(time_marks(summer, "h"), time_marks(summer.tz_localize(None), "h"))


def test_a_time_that_the_clock_skips_is_taken_when_it_goes_on():
    after = dates_after(pd.Timestamp("2020-03-28 02:30", tz="Europe/Berlin"), "D", 2)
    assert [t.isoformat() for t in after] == ["2020-03-29T03:00:00+02:00", "2020-03-30T02:30:00+02:00"]


@st.composite
def tables(draw: Any) -> tuple[str, pd.DatetimeIndex, list[int], str | None]:
    """A frequency, its dates by pandas itself, rows that are missing, and the format of the text."""
    freq = draw(st.sampled_from([*CALENDAR, *CLOCK]))
    rows = draw(st.integers(30, 80))
    zone = draw(st.sampled_from(ZONES))
    first = draw(st.dates(pd.Timestamp("1971-01-01").date(), pd.Timestamp("2030-01-01").date()))
    hour = draw(st.integers(4, 23))  # days whose hour is never skipped by a clock
    whole = own_range(f"{first} {hour:02d}:00", rows + 12, freq, zone)
    inner = st.integers(2, rows - 3)
    gone = draw(st.lists(inner, max_size=3, unique=True)) if draw(st.booleans()) else []
    text = draw(st.sampled_from([None, "%Y-%m-%d %H:%M:%S%z", "%d/%m/%Y %H:%M:%S%z", "%m/%d/%Y %H:%M:%S%z"]))
    return freq, whole, sorted(gone), text


@given(table=tables())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_forecast_dates_are_those_of_pandas_own_range(table):
    """Whatever frequency, zone, format, gaps and start: the rows read, and those that follow them."""
    freq, whole, gone, text = table
    known, ahead = whole[:-12], whole[-12:]
    seen = known.delete(gone)
    zone = None if whole.tz is None else str(whole.tz)
    cells: Any = seen if text is None else seen.strftime(text.replace("%z", "") if zone is None else text)
    rules = DateRules(
        freq=freq if gone else None,
        date_format=None
        if text is None or text.startswith("%Y")
        else text.replace("%z", "")
        if zone is None
        else text,
        time_zone=zone,
    )
    found = read_times(column(cells), "t", rules)
    assert found.dates.tolist() == seen.tolist()
    assert dates_after(found.dates[-1], found.frequency, 12).tolist() == ahead.tolist()
    like = read_times_like(column(cells[-20:]), "t", rules, expected=found.frequency, kept=found.kept)
    assert dates_after(like.dates[-1], like.frequency, 12).tolist() == ahead.tolist()
    assert find(known).alias and not irregular_steps(known, found.frequency).size
