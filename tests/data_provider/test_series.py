from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_provider.dates import DateRules, frequency_alias
from data_provider.series import Series, read_csv

HOURS = [f"2020-01-01 0{h}:00:00" for h in range(6)]


def read(path: Path, **changes: object) -> Series:
    return read_csv(path, **{"features": "M", "target": "OT", **changes})  # type: ignore[arg-type]


def write_rows(path: Path, rows: list[str], header: str = "date,a,OT") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def good_rows() -> list[str]:
    return [f"{hour},{i},{i * 0.5}" for i, hour in enumerate(HOURS)]


def test_values_dates_and_columns_are_those_of_the_file(tmp_path):
    """Numbers read with the last digit rounded make hashes and scalers differ between machines."""
    series = read(write_rows(tmp_path / "x.csv", [f"{h},0.1,{0.1 + 0.2!r}" for h in HOURS]))
    assert series.name == "x" and series.columns == ("a", "OT") and series.frequency == "h"
    assert series.values.dtype == np.float64
    assert series.values.tolist() == [[0.1, 0.1 + 0.2]] * 6
    assert list(series.dates) == [pd.Timestamp(h) for h in HOURS]


def test_the_target_alone_is_kept_with_features_s(tmp_path):
    path = write_rows(tmp_path / "x.csv", good_rows())
    single = read(path, features="S", target="OT")
    assert single.columns == ("OT",)
    assert np.array_equal(single.values, read(path).values[:, 1:])
    assert single.series_id == read(path).select(["OT"]).series_id != read(path).series_id


def test_byte_order_mark_and_windows_line_endings_change_nothing(tmp_path):
    """A BOM makes the first column '\\ufeffdate', which then seems to be missing."""
    plain = write_rows(tmp_path / "x.csv", good_rows())
    other = tmp_path / "y.csv"
    other.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n"))
    assert read(other).content_hash == read(plain).content_hash


def test_hashes_follow_the_content_not_the_file(tmp_path):
    """An id that changes with the path, or not with the data, breaks the retrieval mask."""
    series = read(write_rows(tmp_path / "x.csv", good_rows()))
    same = read(write_rows(tmp_path / "y.csv", good_rows()))
    renamed = read(write_rows(tmp_path / "z.csv", good_rows(), header="date,c,OT"))
    later = read(write_rows(tmp_path / "w.csv", [r.replace("2020", "2021") for r in good_rows()]))
    assert (same.series_id, same.content_hash) == (series.series_id, series.content_hash)
    assert renamed.series_id != series.series_id and renamed.content_hash == series.content_hash
    assert later.series_id == series.series_id and later.content_hash != series.content_hash
    assert 0 < series.series_id < 2**63


def broken(row: int, text: str) -> list[str]:
    rows = good_rows()
    rows[row] = text
    return rows


FAULTS = {
    "text in a number column": (broken(2, f"{HOURS[2]},n.v.,1"), ["'a'", "data row 3", "'n.v.'"]),
    "missing date": (broken(4, ",1,1"), ["'date'", "data row 5", "nothing"]),
    "unparsable date": (broken(4, "soon,1,1"), ["'date'", "data row 5", "'soon'"]),
    "unsorted dates": (broken(4, "2019-01-01 00:00:00,1,1"), ["'date'", "data row 5", "sort"]),
    "duplicate date": (broken(4, f"{HOURS[3]},1,1"), ["'date'", "data row 5", "duplicate"]),
    "gap": (broken(5, "2020-01-01 07:00:00,1,1"), ["'date'", "data row 6", "steps of h", "--freq h"]),
    "two rows": (good_rows()[:2], ["3 rows"]),
    "no rows": ([], ["below the header"]),
    "ragged row": (broken(2, f"{HOURS[2]},1,2,3,4"), ["equal length"]),
    "extra field everywhere": ([r + ",1" for r in good_rows()], ["fields"]),
}


ORDERS = {
    "backwards": lambda rows: rows[::-1],
    "years backwards, months forwards": lambda rows: [
        r for year in (2, 1, 0) for r in rows[12 * year :][:12]
    ],
    "any": lambda rows: [rows[i] for i in np.random.default_rng(0).permutation(len(rows))],
}
MONTHS = [f"{2018 + i // 12}-{1 + i % 12:02d}-01,{i},{i * i}" for i in range(36)]


@pytest.mark.parametrize("order", ORDERS)
def test_rows_in_another_order_are_sorted_and_it_is_said(tmp_path, order, caplog):
    """Climate of Time-MMD runs backwards, Economy's years backwards and its months forwards."""
    whole = read(write_rows(tmp_path / "sorted.csv", MONTHS))
    found = read(write_rows(tmp_path / "x.csv", ORDERS[order](MONTHS)))
    assert found.content_hash == whole.content_hash and found.frequency == "MS"
    assert "not in the order of time" in found.notes["order"] and ": sorted" in caplog.text


def test_days_of_two_orders_are_told_backwards_too(tmp_path):
    """04/02 is told by what leaves the rows with one frequency, which backwards none did."""
    days = pd.date_range("2020-02-03", periods=9, freq="6h").strftime("%m/%d/%Y %H:%M")
    rows = [f"{day},{i},1" for i, day in enumerate(days)]
    found = [read(write_rows(tmp_path / "x.csv", r)).dates for r in (rows, rows[::-1])]
    assert (found[0] == found[1]).all()


def test_numbers_are_filled_in_the_order_of_time_and_named_by_their_rows(tmp_path):
    """The row of a sorted table is none of the user's."""
    rows = [f"{month.split(',')[0]},{'' if i == 10 else i},1" for i, month in enumerate(MONTHS)][::-1]
    path = write_rows(tmp_path / "x.csv", rows)
    with pytest.raises(ValueError, match="column 'a', data row 26: expected a finite number"):
        read(path)
    assert read(path, fill_missing="ffill").values[10, 0] == 9.0
    rows[3] = rows[3].replace(",1", ",one")
    with pytest.raises(ValueError, match="data row 4: expected a number, found 'one'"):
        read(write_rows(tmp_path / "y.csv", rows))


def test_a_row_of_each_repeated_time_is_kept_as_asked(tmp_path):
    """Health_US of Time-MMD has five weeks twice, and as many gaps: each error's own advice settles it."""
    rows = [f"2020-01-{day:02d},{i},1" for i, day in enumerate([1, 2, 2, 3, 5, 6, 7, 7, 8])]
    path = write_rows(tmp_path / "x.csv", rows)
    with pytest.raises(
        ValueError, match=r"data row 3: .*a duplicate \(2 such rows\).*--repeated_times first or last"
    ):
        read(path)
    with pytest.raises(ValueError, match="--freq D"):
        read(path, rules=DateRules(repeated_times="first"))
    first = read(path, rules=DateRules(repeated_times="first", freq="D"))
    last = read(path, rules=DateRules(repeated_times="last", freq="D"))
    assert first.values[:, 0].tolist() == [0, 1, 3, 4, 5, 6, 8] and "2 rows" in first.notes["repeated_times"]
    assert last.values[:, 0].tolist() == [0, 2, 3, 4, 5, 7, 8]


def test_one_time_that_goes_back_is_named_and_not_sorted_away(tmp_path):
    """A mistyped year, sorted to the front, would be a gap of a year elsewhere."""
    path = write_rows(tmp_path / "x.csv", broken(4, "2019-01-01 00:00:00,1,1"))
    with pytest.raises(ValueError, match="data row 5: .*an earlier time.*--freq h"):
        read(path)
    assert read(path, rules=DateRules(freq="h")).dates[0].year == 2019


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_file_column_and_first_row(tmp_path, fault):
    """A NaN or a text cell otherwise shows up as a NaN loss hours later, or a bare traceback."""
    rows, words = FAULTS[fault]
    path = write_rows(tmp_path / "faulty.csv", rows)
    with pytest.raises(ValueError) as caught:
        read(path)
    for word in ["faulty.csv", *words]:
        assert word in str(caught.value)


def test_a_missing_file_says_what_to_put_where(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.csv.*'date' column.*--data_path"):
        read(tmp_path / "absent.csv")


def test_numbers_are_not_taken_for_dates(tmp_path):
    """pandas reads bare integers as nanoseconds since 1970, an index as a date."""
    with pytest.raises(ValueError, match="'date', data row 1: expected a time"):
        read(write_rows(tmp_path / "x.csv", [f"{i},1,1" for i in range(6)]))


def test_an_unknown_target_lists_the_columns(tmp_path):
    path = write_rows(tmp_path / "x.csv", good_rows())
    with pytest.raises(ValueError, match="--target, 'load', found a, OT"):
        read(path, features="S", target="load")
    assert read(path, features="M", target="load").columns == ("a", "OT")
    with pytest.raises(ValueError, match="--target"):
        read(path).select(["load"])


def test_a_wrong_frequency_is_refused(tmp_path):
    """Hourly marks for daily rows would be silently wrong."""
    path = write_rows(tmp_path / "x.csv", good_rows())
    with pytest.raises(ValueError, match="--freq D: expected steps of D, found .*1:00:00"):
        read(path, freq="D")
    with pytest.raises(ValueError, match="--freq: expected a pandas alias.*'often'"):
        read(path, freq="often")


def test_the_familys_letters_are_understood():
    assert [frequency_alias(f) for f in ("h", "H", "t", "d", "15min", "m")] == [
        "h", "h", "min", "D", "15min", "ME",
    ]  # fmt: skip
    assert frequency_alias("m", first=pd.Timestamp("2020-01-01")) == "MS"
