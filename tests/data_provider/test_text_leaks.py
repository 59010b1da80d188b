"""What texts tell before its time is found where it was planted, and nowhere else."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from data_provider.text_files import text_table
from data_provider.text_leaks import Rows, TextAudit, audit_texts
from data_provider.texts import Lag, TextTable

DATES = pd.date_range("2018-01-01", periods=200, freq="W-MON")
VALUES = np.round(np.random.default_rng(0).uniform(2, 6, 200), 3)
ROWS = Rows(DATES, VALUES)
LAGS = [Lag(0, "rows"), Lag(1, "rows"), Lag(3, "days"), Lag(7, "days")]


def weekly(told: int, *, form: str = "%B %d, %Y", places: range = range(10, 190)) -> TextTable:
    """Reports of each Friday that name the row ``told`` rows after it and its value (0: the Monday after)."""
    rows = []
    for place in places:
        row = place + told
        text = f"The price was ${VALUES[row]:.3f} on {DATES[row]:{form}}, $0.029 more than in 2017."
        rows.append({"end": str((DATES[place] - pd.Timedelta(days=3)).date()), "text": text})
    return text_table(pd.DataFrame(rows), "weekly")


def audit(table: TextTable, rows: Rows | None = ROWS, lags: list[Lag] = LAGS) -> TextAudit:
    return audit_texts(table, rows, lags=lags, shuffles=50)


def test_reports_written_after_their_date_are_found_with_the_lag_that_ends_it():
    """Energy's reports of Fridays name the price of the Monday after."""
    found = audit(weekly(0))
    assert found.named == 180 and dict(found.lateness) == {3: 180} and found.gone == 3
    assert [at.days for at in found.lags] == [180, 0, 0, 0]
    assert [at.days_before for at in found.lags] == [0, 0, 0, 0], "no row lies between Friday and Monday"
    assert found.lags[0].values == 180 and found.lags[0].values_before == 0
    assert found.lags[0].by_chance < 10 and found.lags[0].p_value < 0.05  # type: ignore[operator]
    assert found.shuffled_days == pytest.approx(90, abs=12)


def test_what_a_window_sees_before_it_happened_is_counted_apart():
    found = audit(weekly(2))
    assert [(at.days, at.days_before) for at in found.lags] == [
        (180, 180),
        (180, 180),
        (180, 180),
        (180, 180),
    ]
    assert found.lags[0].values_before == 180 == found.lags[1].values_before
    later = audit(weekly(2), lags=[Lag(3, "rows")]).lags[0]
    assert (later.days, later.days_before, later.values_before) == (0, 0, 0)


def test_honest_reports_are_not_suspected():
    found = audit(weekly(-2))
    assert found.gone == 0 and not found.lateness and not found.day_examples
    at = found.lags[0]
    assert at.days == 0 and at.values <= at.chance_high + 2  # type: ignore[operator]


def test_numbers_by_chance_are_no_finding():
    """With values of two digits any text states one of the next rows."""
    rng = np.random.default_rng(1)
    texts = [
        {"end": str(d.date()), "text": f"up to {v:.2f}"}
        for d, v in zip(DATES, rng.uniform(2, 6, 200), strict=True)
    ]
    at = audit_texts(text_table(pd.DataFrame(texts), "t"), ROWS, lags=LAGS[:1], shuffles=99).lags[0]
    assert at.p_value > 0.02 and at.values == pytest.approx(at.by_chance, abs=3 * np.sqrt(at.by_chance) + 1)  # type: ignore[operator,arg-type]


@pytest.mark.parametrize(
    ("text", "value", "found"),
    [
        ("the deficit was $93.2 billion", -93221.5, 1),
        ("imports of 253.8 million", 253800.2, 1),
        ("the share is 2.53%", 0.0253, 1),
        ("1,234 cases", 1234.0, 1),
        ("1,234 cases", 1235.0, 0),
        ("in 2019 a rise of 4.1 and 12", 2019.0, 0),
        ("as of 3/12/2018 and 120.5/80", 3.12, 0),
    ],
)
def test_values_are_looked_for_as_they_are_printed(text, value, found):
    values = np.full(200, np.nan)
    values[20] = value
    table = text_table(pd.DataFrame({"end": [str(DATES[19].date())], "text": [text]}), "t")
    assert audit(table, Rows(DATES, values)).lags[0].values == found


def test_a_value_that_was_known_is_none_that_was_told():
    values = VALUES.copy()
    values[18] = values[20]
    table = text_table(pd.DataFrame({"end": [str(DATES[19].date())], "text": [f"at {values[20]:.3f}"]}), "t")
    assert audit(table, Rows(DATES, values)).lags[0].values == 0


def test_published_texts_need_no_lag():
    frame = pd.DataFrame(
        {"end": ["2018-02-01"], "published": ["2018-02-10"], "text": ["As of February 8, 2018"]}
    )
    assert not audit(text_table(frame, "t")).lateness
    early = audit(text_table(frame.assign(published="2018-02-05"), "t"))
    assert [at.days for at in early.lags] == [1, 1, 1, 1], "a lag is of texts without a publication"


def test_days_are_counted_without_a_series_and_all_is_json():
    found = audit(weekly(0), None, [Lag(0, "days"), Lag(3, "days")])
    assert [at.days for at in found.lags] == [180, 0] and found.lags[0].values is None
    assert "180 of 180 texts" in found.line and json.loads(json.dumps(found.as_json()))["gone_at_days"] == 3
    assert "180 state a value" in audit(weekly(0)).line
    assert found.day_examples[0].told == str(DATES[10].date())
