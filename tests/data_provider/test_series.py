from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_provider.dates import frequency_alias
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
