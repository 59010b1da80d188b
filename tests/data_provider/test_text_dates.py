"""The days that texts name, in the forms that real ones have."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_provider.text_dates import day_order, named_days, without_dates

NEAR = date(2012, 1, 3)


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("$3.258 per gallon on December 26, 2011, $0.029 more", [(2011, 12, 26, "words")]),
        ("on Dec. 26th 2011 and 8 October 1918", [(2011, 12, 26, "words"), (1918, 10, 8, "words")]),
        ("the 31st of January, 2012", [(2012, 1, 31, "words")]),
        ("week 44 (October 28-November 3, 2007)", [(2007, 11, 3, "words")]),
        ("the week of April 17 - 23, 2015", [(2015, 4, 23, "words")]),
        ("From April 15 to May 18, 2009, 34 cases", [(2009, 5, 18, "words")]),
        ("as of 6/13/22 .", [(2022, 6, 13, "digits")]),
        ("2011-12-26, 26.12.2011 and 2011/12/27", [(2011, 12, d, "digits") for d in (26, 26, 27)]),
        ("dated 4/4/2020", [(2020, 4, 4, "digits")]),
        ("in January 2000, up from December of 1999", [(2000, 1, 1, "month"), (1999, 12, 1, "month")]),
        ("by January 1.", [(2012, 1, 1, "no_year")]),
        ("On October 24-26, but", [(2011, 10, 26, "no_year")]),
        ("according to the August 4th report", [(2011, 8, 4, "no_year")]),
        ("it may 3 times march 12 miles; in May 12 percent, 5/4/2020, 31/2/2001", []),
        ("1/2, 10.12 and 3.258; part 617-2011; Vol 60 No 7-8; a ratio of 12/31", []),
    ],
)
def test_days_are_named_in_many_forms(text, days):
    found = named_days(text, near=NEAR)
    assert [(*one.day.timetuple()[:3], one.form) for one in found] == days
    assert all(text[one.begin : one.end].strip() == text[one.begin : one.end].lstrip() for one in found)


@given(st.dates(date(1950, 1, 1), date(2060, 1, 1)), st.sampled_from(["%B %d, %Y", "%d %b %Y", "%Y-%m-%d"]))
def test_every_day_is_read_as_it_was_written(day, form):
    assert [one.day for one in named_days(f"It was on {day:{form}}, they said.", near=NEAR)] == [day]


def test_days_in_digits_are_read_as_the_other_texts_write_them():
    """07/12/18 is July or December: a wrong guess makes a text of the past one of the future."""
    assert day_order(["on 11/23/18", "on 12/07/18"]) == "month_first"
    assert day_order(["on 23/11/18"]) == "day_first"
    assert day_order(["on 4/5/18"]) is None is day_order(["11/23/18", "23/11/18"])
    assert named_days("12/07/18", near=NEAR) == []
    assert named_days("12/07/18", near=NEAR, order="day_first")[0].day == date(2018, 7, 12)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Prices rose 5.2% on Monday, March 3, 2020 to $3.258.", "Prices rose 5.2% on , to $3.258."),
        ("In mid-June 2014 and the summer of 2015", "In and the of"),
        ("In the first quarter of 2020, Q3 and week 44, sales fell", "In the of , and , sales fell"),
        ("demand may fall 3 percent; they march on", "demand may fall 3 percent; they march on"),
        ("the fall in sales last fall, and in the fall of 2020", "the fall in sales last , and in the of"),
        ("The 1970s were dry; the price was 1985.5", "The were dry; the price was 1985.5"),
    ],
)
def test_an_undated_text_keeps_everything_but_its_time(text, left):
    """With `may` and every number struck out, the control would lose the news with the calendar."""
    assert without_dates(text).replace("  ", " ") == left
