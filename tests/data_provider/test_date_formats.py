"""One format for a column of dates: found, kept, or asked for, never guessed row by row."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from data_provider.dates import DateRules, DatesKept, date_column, read_times, read_times_like, time_like


def column(dates: list[str] | pd.DatetimeIndex) -> pd.Series:
    return date_column(pd.DataFrame({"date": dates, "a": 1.0}), "t")


def written(freq: str, date_format: str, *, first: str = "2020-01-20", rows: int = 40) -> list[str]:
    return pd.date_range(first, periods=rows, freq=freq).strftime(date_format).tolist()


def read(dates: list[str], **rules: object):
    return read_times(column(dates), "t", DateRules(**rules))  # type: ignore[arg-type]


def alternatives(message: str) -> list[str]:
    """The formats that an error names."""
    return re.findall(r"--date_format '([^']+)'", message)


@pytest.mark.parametrize(
    ("freq", "date_format"),
    [
        ("D", "%d/%m/%Y"), ("15min", "%m/%d/%Y %H:%M"), ("D", "%d.%m.%Y"), ("h", "%d-%m-%Y %H:%M:%S"),
        ("MS", "%b-%Y"), ("MS", "%B %Y"), ("MS", "%m/%Y"), ("MS", "%Y%m"), ("D", "%d-%b-%Y"),
        ("h", "%m/%d/%Y %I:%M:%S %p"), ("D", "%b %d, %Y"), ("D", "%a %d %b %Y"), ("D", "%d%m%Y"),
        ("D", "%Y-%d-%m"), ("h", "%d/%m/%YT%H:%M"), ("h", "%d/%m/%Y %H:%M:%S.%f"),
    ],
)  # fmt: skip
def test_a_format_is_found_and_the_same_times_are_read(freq, date_format):
    """Each row was guessed by itself, so that the 13th of a month changed the meaning of the 12th."""
    found = read(written(freq, date_format))
    assert found.dates.tolist() == pd.date_range("2020-01-20", periods=40, freq=freq).tolist()
    assert found.kept.date_format == date_format and date_format in found.notes["dates"]


@pytest.mark.parametrize("text", ["%YQ%q", "%Y-Q%q", "Q%q %Y"])
def test_quarters_are_read(text):
    days = pd.date_range("2015-01-01", periods=12, freq="QS")
    dates = [text.replace("%Y", str(d.year)).replace("%q", str(d.quarter)) for d in days]
    found = read(dates)
    assert found.dates.tolist() == days.tolist() and found.kept.date_format == text


def test_iso_stays_iso_also_without_midnights_and_with_slashes():
    for dates in (
        ["2020-01-01", "2020-01-01 01:00", "2020-01-01 02:00"],
        ["2016/7/1 0:00", "2016/7/1 1:00", "2016/7/1 2:00"],
    ):
        found = read(dates)
        assert found.frequency == "h" and found.kept.date_format == "ISO8601" and not found.notes


def test_where_one_reading_has_one_frequency_it_is_taken():
    """Months written 01/01/1990, 01/02/1990 were days of January in every year."""
    found = read(written("MS", "%d/%m/%Y", first="1990-01-01"))
    assert found.frequency == "MS" and found.dates[1] == pd.Timestamp("1990-02-01")


@pytest.mark.parametrize(
    ("dates", "why"),
    [
        (written("15min", "%d/%m/%Y %H:%M", first="2020-02-05", rows=96), "all of these"),
        (["01/02/2020", "03/02/2020", "04/02/2020", "08/02/2020"], "none of these"),
    ],
)  # fmt: skip
def test_where_both_readings_fit_or_neither_the_format_is_asked_for(dates, why):
    """The forecast of 6 February was dated 3 May, status 0."""
    with pytest.raises(ValueError, match=f"data row 1: expected dates that can be read.*{why}") as caught:
        read(dates)
    named = alternatives(str(caught.value))
    assert [fmt[:5] for fmt in named] == ["%d/%m", "%m/%d"]
    for fmt in named:
        freq = None if "all" in why else "D"
        try:
            found = read(dates, date_format=fmt, freq=freq)
        except ValueError as error:  # the reading has gaps in most places, which is another matter
            assert "date_format" not in str(error)
        else:
            assert found.dates[0] == pd.to_datetime(dates[0], format=fmt)


@pytest.mark.parametrize(
    ("freq", "date_format", "first"),
    [
        ("MS", "%b-%y", "1949-01-01"), ("D", "%d/%m/%y", "1999-12-20"), ("D", "%y/%m/%d", "2019-12-20"),
        ("D", "%d-%b-%y", "1968-02-01"),
    ],
)  # fmt: skip
def test_two_digit_years_are_refused_and_either_way_out_is_right(freq, date_format, first):
    """Jan-49 was read as 2049, and 1961 forecast as 2061."""
    dates = written(freq, date_format, first=first, rows=144)
    with pytest.raises(ValueError, match="expected years of four digits") as caught:
        read(dates)
    year = int(first[:4])
    assert f"{1900 + year % 100} or {2000 + year % 100}?" in str(caught.value)
    named = alternatives(str(caught.value))
    assert len(named) == 2
    wanted = pd.date_range(first, periods=144, freq=freq)
    right = next(fmt for fmt in named if f"{year}%y" in fmt)
    assert read(dates, date_format=right).dates.tolist() == wanted.tolist()
    kept = DatesKept(right)
    later = written(freq, date_format, first=str(wanted[100].date()), rows=30)
    like = read_times_like(column(later), "t", DateRules(), expected=freq, kept=kept)
    assert like.dates[0] == wanted[100]


def test_a_year_of_two_digits_that_has_no_such_day_is_no_date():
    with pytest.raises(ValueError, match="data row 2.*found '29-02-00'"):
        read(["28-02-00", "29-02-00", "01-03-00"], date_format="%d-%m-1900%y")
    assert read(["28-02-00", "29-02-00", "01-03-00"], date_format="%d-%m-2000%y").frequency == "D"


@pytest.mark.parametrize(
    ("date_format", "problem"),
    [
        ("%d/%m", "a format with a year"),
        ("%d/%m/%y", "hundred years.*1950%y"),
        ("%Y-%J", "bad directive|format"),
    ],
)
def test_a_format_that_leaves_the_year_open_is_refused(date_format, problem):
    with pytest.raises(ValueError, match=f"--date_format: expected.*{problem}.*found {date_format}"):
        read(["2020-01-01"] * 3, date_format=date_format)


def test_a_table_is_read_as_the_one_that_was_trained_on():
    day = written("15min", "%d/%m/%Y %H:%M", first="2020-02-05", rows=96)
    kept = DatesKept("%d/%m/%Y %H:%M")
    found = read_times_like(column(day), "t", DateRules(), expected="15min", kept=kept)
    assert found.dates[0] == pd.Timestamp("2020-02-05") and found.kept == kept


def test_a_table_in_another_format_is_one_error_whose_advice_is_accepted():
    for day, trained in (
        (written("15min", "%d/%m/%Y %H:%M", first="2020-02-05"), "ISO8601"),
        (written("15min", "%Y-%m-%d %H:%M"), "%d/%m/%Y %H:%M"),
        (written("15min", "%m/%d/%Y %H:%M"), "%d/%m/%Y %H:%M"),
    ):
        kept = DatesKept(trained)
        with pytest.raises(
            ValueError, match=f"data row 1: expected a time in the format {trained}"
        ) as caught:
            read_times_like(column(day), "t", DateRules(), expected="15min", kept=kept)
        for fmt in alternatives(str(caught.value)):
            read_times_like(column(day), "t", DateRules(date_format=fmt), expected="15min", kept=kept)
        assert alternatives(str(caught.value))


def test_the_kept_format_decides_for_no_cell_that_it_does_not_fit():
    dates = [*written("D", "%d/%m/%Y", rows=5), "soon", *written("D", "%d/%m/%Y", first="2020-01-26", rows=3)]
    with pytest.raises(
        ValueError, match=r"data row 6: .*%d/%m/%Y.*found 'soon' \(1 such rows\); write all of them"
    ):
        read_times_like(column(dates), "t", DateRules(), expected="D", kept=DatesKept("%d/%m/%Y"))


@pytest.mark.parametrize(
    ("text", "kept", "zone", "wanted"),
    [
        ("05/02/2020", DatesKept("%d/%m/%Y"), None, "2020-02-05T00:00:00"),
        ("2020-02-05", DatesKept("%d/%m/%Y"), None, "2020-02-05T00:00:00"),
        ("2020-02-05", DatesKept(), "Europe/Berlin", "2020-02-05T00:00:00+01:00"),
        ("2020-02-05 00:00+00:00", DatesKept(), "Europe/Berlin", "2020-02-05T01:00:00+01:00"),
    ],
)
def test_a_time_that_a_user_names_is_read_as_the_runs_dates_are(text, kept, zone, wanted):
    """``--window 05/02/2020`` was 2 May whatever the file meant."""
    assert time_like(text, kept, zone).isoformat() == wanted
    with pytest.raises(ValueError, match="expected a time such as"):
        time_like("05.02.20", kept, zone)


OFFSETS = [
    "2020-03-29 01:00+01:00",
    "2020-03-29 03:00+02:00",
    "2020-03-29 04:00+02:00",
    "2020-03-29 05:00+02:00",
]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "UTC"])
def test_mixed_offsets_name_a_flag_that_then_reads_them(zone):
    with pytest.raises(ValueError, match=r"found \+01:00 and \+02:00; name their zone with --time_zone"):
        read(OFFSETS)
    found = read(OFFSETS, time_zone=zone)
    assert found.frequency == "h" and found.kept.time_zone == zone
    assert (
        found.dates.tolist()
        == pd.date_range("2020-03-29T00:00Z", periods=4, freq="h").tz_convert(zone).tolist()
    )


def test_one_offset_is_kept_and_times_with_and_without_do_not_mix():
    """An offset was dropped, and the forecast had none."""
    found = read([f"2020-01-01 0{h}:00+01:00" for h in range(5)])
    assert found.dates[0].isoformat() == "2020-01-01T00:00:00+01:00" and found.kept.time_zone == "UTC+01:00"
    with pytest.raises(ValueError, match=r"found \+01:00 and none; write all of them with it"):
        read(["2020-01-01 00:00+01:00", "2020-01-01 01:00", "2020-01-01 02:00"])
    summer = [f"2020-07-01 0{h}:00+02:00" for h in range(5)]
    like = read_times_like(column(summer), "t", DateRules(), expected="h", kept=found.kept)
    assert like.dates[0].isoformat() == "2020-06-30T23:00:00+01:00"


def test_an_hour_that_comes_twice_is_told_by_its_zone():
    """Local time over the end of summer time was "keep one row per time"."""
    dates = pd.date_range("2020-10-24", periods=60, freq="h", tz="Europe/Berlin")
    local = dates.tz_localize(None).astype(str).tolist()
    with pytest.raises(ValueError, match="a duplicate.*such as --time_zone Europe/Berlin"):
        read(local)
    found = read(local, time_zone="Europe/Berlin")
    assert found.dates.tolist() == dates.tolist() and found.frequency == "h"


@pytest.mark.parametrize(
    ("zone", "problem"),
    [
        ("Mars", "--time_zone: expected a zone such as"),
        ("Europe/Berlin", "expected times of the zone Europe/Berlin"),
    ],
)
def test_a_zone_that_does_not_exist_or_has_no_such_time_is_one_error(zone, problem):
    with pytest.raises(ValueError, match=problem):
        read(["2020-03-29 01:00", "2020-03-29 02:00", "2020-03-29 03:00"], time_zone=zone)
