"""Which texts a window may see: by the rule, whatever comes later."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_provider.text_files import text_table
from data_provider.texts import CONTROLS, Lag, TextTable, controlled, first_rows, text_lag, visible_texts
from utils.errors import UserError

DAYS = pd.date_range("2020-01-06", periods=40, freq="D").delete([7, 8, 20])  # with gaps
HOURS = pd.date_range("2020-01-06 00:00", periods=72, freq="h")
LAGS = [Lag(0, "rows"), Lag(1, "rows"), Lag(3, "rows"), Lag(0, "days"), Lag(2, "days")]


def table(rows: Sequence[Mapping[str, object]]) -> TextTable:
    return text_table(pd.DataFrame(rows), "t")


def quick_table(rows: list[dict[str, object]]) -> TextTable:
    """The same without a file's checks, which take their time."""
    ordered = sorted(rows, key=lambda row: (row["published"] or row["end"], row["end"], row["text"]))
    times = {name: pd.DatetimeIndex([row[name] for row in ordered]) for name in ("end", "published")}
    texts = tuple(str(row["text"]) for row in ordered)
    return TextTable(texts, start=times["end"], series=("",) * len(texts), **times)


@st.composite
def rows_of_texts(draw: st.DrawFn) -> list[dict[str, object]]:
    """Texts around and beyond the 37 rows, some of them published, with ties of time."""
    rows = []
    for number in range(draw(st.integers(1, 12))):
        end = pd.Timestamp("2020-01-06") + pd.Timedelta(hours=12 * draw(st.integers(-6, 90)))
        published = end + pd.Timedelta(hours=12 * draw(st.integers(0, 6))) if draw(st.booleans()) else None
        rows.append({"end": end, "published": published, "text": f"text {number}"})
    return rows


def known_at(row: dict[str, object], last: int, lag: Lag) -> bool:
    """The rule, said again: a window with this last row may see the text."""
    if row["published"] is not None:
        return pd.Timestamp(row["published"]) <= DAYS[last]
    end = pd.Timestamp(row["end"])
    if lag.unit == "days":
        return end + pd.Timedelta(days=lag.amount) <= DAYS[last]
    if last < lag.amount:
        return end + (DAYS[1] - DAYS[0]) * (lag.amount - last) <= DAYS[0]
    return end <= DAYS[last - lag.amount]


@given(rows_of_texts(), st.sampled_from(LAGS), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_a_window_sees_the_latest_texts_that_are_known_and_no_other(rows, lag, count):
    found = quick_table(rows)
    seen = visible_texts(found, DAYS, lag=lag, count=count).at(np.arange(len(DAYS)))
    by_text = {str(row["text"]): row for row in rows}
    first = first_rows(found, DAYS, lag=lag)
    for last in range(len(DAYS)):
        known = {text for text, row in by_text.items() if known_at(row, last, lag)}
        shown = [found.texts[i] for i in seen.texts[last] if i >= 0]
        assert len(shown) == min(count, len(known)) and set(shown) <= known
        hidden = known - set(shown)
        when = dict(zip(found.texts, first, strict=True))
        assert all(when[other] <= when[one] for one in shown for other in hidden)
        ages = [age for i, age in zip(seen.texts[last], seen.ages[last], strict=True) if i >= 0]
        assert ages == sorted(ages, reverse=True) and ages == [last - when[text] for text in shown]


@given(rows_of_texts(), rows_of_texts(), st.sampled_from(LAGS), st.integers(0, len(DAYS) - 1))
@settings(max_examples=25, deadline=None)
def test_texts_known_later_change_nothing(rows, others, lag, last):
    """One row of the future in a lookback, or a choice that depends on the whole file, is a leak."""

    def view(rows):
        found = table(rows)
        seen = visible_texts(found, DAYS, lag=lag, count=3).at([last])
        return [(found.texts[i], age) for i, age in zip(seen.texts[0], seen.ages[0], strict=True) if i >= 0]

    now = [row for row in rows if known_at(row, last, lag)]
    later = [{**row, "text": f"other {i}"} for i, row in enumerate(others) if not known_at(row, last, lag)]
    assert not (now or later) or view(rows) == (view(now + later) if now + later else [])


@given(st.permutations(range(8)))
@settings(max_examples=8, deadline=None)
def test_the_order_of_the_file_s_rows_means_nothing(order):
    """Climate's run backwards, Economy's years backwards and months forwards."""
    rows = [{"end": f"2020-01-{7 + i // 3:02d}", "text": f"text {i}"} for i in range(8)]
    found, other = table(rows), table([rows[i] for i in order])
    assert found.texts == other.texts and (found.end == other.end).all()


def test_by_default_a_text_is_seen_one_row_after_its_end():
    found = table([{"end": str(DAYS[5]), "text": "news"}])
    seen = visible_texts(found, DAYS, count=2).at([5, 6, 9])
    assert seen.texts.tolist() == [[-1, -1], [-1, 0], [-1, 0]]
    assert seen.ages.tolist() == [[-1, -1], [-1, 0], [-1, 3]]


def test_a_day_has_passed_at_its_end_where_rows_are_hours():
    """What was written in the evening of a day was seen by windows of its morning."""
    found = table([{"end": "2020-01-06", "text": "a day"}, {"end": "2020-01-06 09:30", "text": "an hour"}])
    first = dict(zip(found.texts, first_rows(found, HOURS, lag=Lag(0, "rows")), strict=True))
    assert first == {"a day": 24, "an hour": 10}


def test_texts_from_before_the_series_have_their_age():
    found = table([{"end": "2019-12-30", "text": "old"}])
    assert visible_texts(found, DAYS, lag=Lag(0, "rows"), count=1).at([0]).ages.tolist() == [[7]]


def test_times_are_those_of_the_series_zone():
    rows = [{"end": "2020-01-06 09:30:00+00:00", "text": "news"}]
    berlin = HOURS.tz_localize("Europe/Berlin")
    assert first_rows(table(rows), berlin, lag=Lag(0, "rows")).tolist() == [11]
    naive = table([{"end": "2020-01-06 09:30", "text": "news"}])
    assert first_rows(naive, berlin, lag=Lag(0, "rows")).tolist() == [10]
    with pytest.raises(UserError, match="--time_zone UTC"):
        first_rows(table(rows), HOURS, lag=Lag(0, "rows"))


def test_texts_of_a_series_and_of_all_are_seen_and_those_of_unknown_ones_are_named(caplog):
    rows = [{"end": "2020-01-07", "text": f"about {s}", "series": s} for s in ("a", "b", "", "gone")]
    found, others = table(rows).of_series(["a", "b"])
    assert others == ("gone",) and "left out: gone" in caplog.text and len(found) == 3
    seen = visible_texts(found, DAYS, count=5, series="a").at([9]).texts[0]
    assert sorted(found.texts[i] for i in seen if i >= 0) == ["about", "about a"]
    none = visible_texts(found.take(np.zeros(3, dtype=bool)), DAYS, count=2).at([3])
    assert none.texts.tolist() == [[-1, -1]]


@pytest.mark.parametrize(
    ("word", "lag"),
    [("0", Lag(0, "rows")), ("2 rows", Lag(2, "rows")), ("7D", Lag(7, "days")), ("1 day", Lag(1, "days"))],
)
def test_a_lag_is_read_as_it_is_said(word, lag):
    assert text_lag(word) == lag == text_lag(str(lag))


@pytest.mark.parametrize("word", ["", "-1", "1.5", "2h", "soon"])
def test_what_is_no_lag_is_refused_with_examples(word):
    with pytest.raises(UserError, match="such as 7D"):
        text_lag(word)


def test_a_count_of_none_is_refused():
    with pytest.raises(UserError, match="text_count: expected 1 or more, found 0"):
        visible_texts(table([{"end": "2020-01-07", "text": "x"}]), DAYS, count=0)


PANEL = table(
    [
        {"end": f"2020-01-{day:02d}", "text": f"{s}{day}: up 3% in May 2019", "series": s}
        for s in ("a", "b", "c")
        for day in range(7, 14)
    ]
)


def test_controls_keep_every_time_and_are_the_same_for_a_seed():
    """Training and test must see one and the same shuffled table."""
    for control in CONTROLS:
        one, again = (controlled(PANEL, control, seed=3) for _ in range(2))
        assert one.texts == again.texts and one.series == again.series
        assert (one.end == PANEL.end).all()
    assert controlled(PANEL, "none", seed=0) is PANEL


def test_shuffled_gives_no_text_its_own_place_and_each_series_its_own_texts():
    """A text that keeps its place is read right: the control would gain."""
    found = controlled(PANEL, "shuffled", seed=0)
    assert all(one != other for one, other in zip(found.texts, PANEL.texts, strict=True))
    assert all(text.startswith(s) for text, s in zip(found.texts, found.series, strict=True))
    assert sorted(found.texts) == sorted(PANEL.texts)
    assert controlled(PANEL, "shuffled", seed=1).texts != found.texts


def test_constant_undated_and_other_series_say_what_they_are_called():
    assert set(controlled(PANEL, "constant", seed=0).texts) == {PANEL.texts[0]}
    assert controlled(PANEL, "undated", seed=0).texts[0] == "a7: up 3% in"
    other = controlled(PANEL, "other_series", seed=0)
    assert all(not text.startswith(s) for text, s in zip(other.texts, other.series, strict=True))
    alone = dataclasses.replace(PANEL, series=("a",) * len(PANEL))
    with pytest.raises(UserError, match="two series or more"):
        controlled(alone, "other_series", seed=0)
