"""Long tables become panels: what pandas' own grouping says of them, and one line for each fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_provider.dates import DateRules
from data_provider.long_files import columns_in_file, read_long_files
from data_provider.long_format import panel_columns
from data_provider.long_table import read_long
from data_provider.panel import Panel, PanelColumns
from utils.config import DataConfig
from utils.errors import UserError

NIXTLA = PanelColumns(("unique_id",), "ds", "y")
Change = Callable[[pd.DataFrame], pd.DataFrame]


def ragged(freq: str = "D", *, seed: int = 0, written: str | None = "%Y-%m-%d %H:%M:%S") -> pd.DataFrame:
    """Six series of other lengths and starts, rows in no order."""
    rng = np.random.default_rng(seed)
    calendar = pd.date_range("2020-01-31", periods=60, freq=freq)
    parts = []
    for place, name in enumerate(["b", "10", "a", "9", "../x", "007"]):
        begin, rows = int(rng.integers(0, 20)), int(rng.integers(12, 40))
        dates = calendar[begin : begin + rows]
        parts.append(
            pd.DataFrame(
                {
                    "unique_id": name,
                    "ds": dates.strftime(written) if written else dates,
                    "y": rng.normal(place, 1, rows),
                }
            )
        )
    return pd.concat(parts, ignore_index=True).sample(frac=1, random_state=seed, ignore_index=True)


def read(frame: pd.DataFrame, columns: PanelColumns = NIXTLA, **changes: object) -> Panel:
    rules = DateRules(**{k: changes.pop(k) for k in ("freq", "repeated_times") if k in changes})  # type: ignore[arg-type]
    return read_long(frame, "panel.csv", columns, name="panel", rules=rules, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("freq", ["D", "h", "15min", "W-SUN", "MS", "ME", "QS", "B", "YE"])
@pytest.mark.parametrize("written", ["%Y-%m-%d %H:%M:%S", None])
def test_series_are_what_pandas_groups_give(freq, written):
    """Ids, order of rows, starts and times, whatever the order of the file."""
    frame = ragged(freq, written=written)
    panel = read(frame)
    expected = frame.assign(ds=pd.to_datetime(frame["ds"])).sort_values("ds").groupby("unique_id", sort=False)
    assert panel.ids == tuple(frame["unique_id"].unique())
    assert panel.calendar is not None
    for place, name in enumerate(panel.ids):
        own = expected.get_group(name)
        np.testing.assert_array_equal(panel.of(place), own["y"])
        begin, rows = panel.first[place], panel.lengths[place]
        assert (panel.calendar[begin : begin + rows] == own["ds"]).all()


def test_the_order_of_rows_changes_nothing_but_that_of_the_series():
    frame = ragged()
    one, other = read(frame), read(frame[::-1])
    for place, name in enumerate(one.ids):
        np.testing.assert_array_equal(one.of(place), other.of(other.ids.index(name)))


@pytest.mark.parametrize(
    ("names", "given", "expected"),
    [
        (["unique_id", "ds", "y", "price"], {}, NIXTLA),
        (["item_id", "timestamp", "target"], {}, PanelColumns(("item_id",), "timestamp", "target")),
        (["unique_id", "date", "y"], {"target": "OT"}, PanelColumns(("unique_id",), "date", "y")),
        (["date", "OT", "y"], {"target": "OT"}, None),
        (["unique_id", "OT"], {}, None),
        (["shop", "day", "sold"], {"ids": ["shop"], "date": "day", "target": "sold"},
         PanelColumns(("shop",), "day", "sold")),
    ],
)  # fmt: skip
def test_columns_are_known_by_their_names_or_named(names, given, expected):
    assert panel_columns(names, "x.csv", **given) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ids": ["store"]}, "--id_column, 'store', found shop, day, sold"),
        ({"ids": ["shop"]}, "called ds or timestamp or date, or one named with --date_column"),
        ({"ids": ["shop"], "date": "day"}, "or one named with --target"),
        ({"date": "day"}, "--date_column: expected --id_column beside it"),
    ],
)
def test_a_column_that_is_not_there_is_named_with_its_flag(given, said):
    with pytest.raises(UserError, match=said):
        panel_columns(["shop", "day", "sold"], "x.csv", **given)


FILES = {".csv": None, ".csv.gz": None, ".parquet": "pyarrow", ".feather": "pyarrow"}


@pytest.mark.parametrize("ending", FILES)
def test_every_kind_of_file_and_a_folder_of_them_hold_the_same_panel(tmp_path, ending):
    """An id NA was read as missing, and 007 as 7."""
    if package := FILES[ending]:
        pytest.importorskip(package)
    frame = ragged().replace({"unique_id": {"a": "NA"}})
    folder = tmp_path / "parts"
    folder.mkdir()
    for path, part in (
        (tmp_path / f"one{ending}", frame),
        (folder / f"1{ending}", frame[:50]),
        (folder / f"2{ending}", frame[50:]),
    ):
        if ending == ".parquet":
            part.to_parquet(path)
        elif ending == ".feather":
            part.reset_index(drop=True).to_feather(path)
        else:
            part.to_csv(path, index=False)
    (folder / "notes.txt").write_text("not a table")
    expected = read(frame)
    for name in (f"one{ending}", "parts"):
        path = tmp_path / name
        columns = columns_in_file(DataConfig(data="custom"), path)
        assert columns == NIXTLA
        found = read(read_long_files(path, columns))
        assert found.ids == expected.ids and "007" in found.ids and "NA" in found.ids
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-12)


def without(name: str, rows: slice) -> Change:
    """Leave out rows inside a series."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        own = frame[frame["unique_id"] == name].sort_values("ds").index[rows]
        return frame.drop(own)

    return change


def with_value(value: object, *rows: int) -> Change:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        own = frame[frame["unique_id"] == "a"].sort_values("ds").index[list(rows)]
        return frame.assign(y=frame["y"].astype(object).mask(frame.index.isin(own), value))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: pd.concat([f, f.iloc[[5]]]), r"series '.*', data row \d+: expected each time of a series "
         "once, found .* again .1 such rows.; .*--repeated_times first or last"),
        (lambda f: f.assign(unique_id=f["unique_id"].where(f.index != 3)), "'unique_id', data row 4: "
            "expected an "
         "id, found nothing"),
        (lambda f: f.assign(unique_id=np.where(f["unique_id"] == "9", 9, f["unique_id"].astype(object))),
         "expected ids of one type, found .* among .*text"),
        (lambda f: f.assign(unique_id=[f"row {i}" for i in f.index]), "expected a series of 3 rows or more, "
         "found .* where the ids number the rows, name another column with --id_column"),
        (without("a", slice(3, 5)), "series 'a': expected steps of D, found .* .2 rows missing in 1 of "
            "6 series.; "
         "insert the rows and fill them with --fill_missing interpolate"),
        (with_value(None, 4), r"column 'y', series 'a', data row \d+: expected a finite number, found "
            r"nothing"),
        (with_value("x", 4), r"column 'y', data row \d+: expected a number, found 'x'"),
        (lambda f: f.assign(ds=f["ds"].mask(f.index == 7)), "'ds', data row 8: expected a time.*found "
            "nothing"),
        (lambda f: f.assign(ds=f["ds"].mask(f.index == 7, "soon")), "column 'ds', data row 8: .*found "
            "'soon'"),
        (lambda f: f[:0], "expected rows, found none"),
    ],
)  # fmt: skip
def test_a_fault_is_one_line_that_names_series_and_row(change, said):
    with pytest.raises(UserError, match=said) as refused:
        read(change(ragged()))
    assert "\n" not in str(refused.value)


def test_series_of_another_frequency_are_named_and_left_out_where_one_is_said():
    frame = ragged("D")
    hourly = pd.DataFrame(
        {"unique_id": "fast", "ds": pd.date_range("2020-02-01", periods=9, freq="h").astype(str), "y": 1.0}
    )
    both = pd.concat([frame, hourly])
    with pytest.raises(UserError, match="series 'fast'.*in 1 of 7 series.*--freq D"):
        read(both)
    assert read(both, freq="D").ids == read(frame).ids
    assert "'fast'" in read(both, freq="D").notes["left_out"]


def test_days_on_which_no_series_has_a_row_are_none_where_the_frequency_is_said():
    """Exchanges are closed on the same days: the rows are neighbours all the same."""
    frame = ragged("B")
    closed = sorted(frame["ds"].unique())[25]
    frame = frame[frame["ds"] != closed]
    with pytest.raises(UserError, match="accept them with --freq B"):
        read(frame)
    panel = read(frame, freq="B")
    assert "1 steps of B of which no series has a row" in panel.notes["gaps"]
    assert panel.calendar is not None and pd.Timestamp(closed) not in panel.calendar
    assert panel.lengths.sum() == len(frame)


@pytest.mark.parametrize("how", ["interpolate", "ffill"])
def test_gaps_and_missing_numbers_are_filled_series_by_series(how):
    """Filled across a border, one series ran into the next."""
    frame = with_value(None, 9, 10)(without("a", slice(3, 6))(ragged()))
    filled = read(frame, fill_missing=how)
    own = frame[frame["unique_id"] == "a"].assign(ds=lambda f: pd.to_datetime(f["ds"])).set_index("ds")["y"]
    expected = own.astype(float).sort_index().asfreq("D")
    expected = expected.interpolate() if how == "interpolate" else expected.ffill()
    np.testing.assert_allclose(filled.of(filled.ids.index("a")), expected, rtol=1e-12)
    whole = read(ragged())
    for name in set(whole.ids) - {"a"}:
        np.testing.assert_array_equal(filled.of(filled.ids.index(name)), whole.of(whole.ids.index(name)))


def test_a_series_that_begins_missing_is_named_under_ffill():
    with pytest.raises(UserError, match="series 'a': expected a number in its first row"):
        read(with_value(None, 0)(ragged()), fill_missing="ffill")
    with pytest.raises(UserError, match="series 'a': expected a finite number, found none"):
        read(
            with_value(None, *range(12))(without("a", slice(12, None))(ragged())), fill_missing="interpolate"
        )


@pytest.mark.parametrize("kept", ["first", "last"])
def test_of_rows_of_one_time_the_one_asked_for_is_kept(kept):
    frame = ragged()
    both = pd.concat([frame, frame.assign(y=-1.0)])
    expected = read(frame) if kept == "first" else read(frame.assign(y=-1.0))
    np.testing.assert_array_equal(read(both, repeated_times=kept).values, expected.values)


def test_which_number_is_the_day_is_judged_by_one_series_not_by_the_file():
    """Shuffled, no reading of a file's dates has one frequency."""
    frame = ragged(written="%d/%m/%Y")
    panel = read(frame)
    assert panel.dates_kept.date_format == "%d/%m/%Y"
    np.testing.assert_array_equal(panel.values, read(ragged()).values)


def test_several_columns_name_a_series_together_and_ids_that_join_alike_are_refused():
    frame = ragged().assign(shop="n", item=lambda f: f["unique_id"])
    columns = PanelColumns(("shop", "item"), "ds", "y")
    panel = read(frame, columns)
    assert panel.ids == tuple(f"n/{name}" for name in read(frame).ids)
    assert list(panel.labels.columns) == ["shop", "item"]
    twin = pd.concat([frame.assign(shop="a/b", item="c"), frame.assign(shop="a", item="b/c")])
    with pytest.raises(UserError, match="expected ids that differ when joined by '/', found 'a/b/c' twice"):
        read(twin, columns)


def test_zoned_times_keep_midnight_over_a_change_of_clocks():
    days = pd.date_range("2020-03-20", periods=20, freq="D", tz="Europe/Berlin")
    frame = pd.concat(
        [
            pd.DataFrame({"unique_id": name, "ds": days[b:], "y": np.arange(20.0 - b)})
            for name, b in (("a", 0), ("b", 5))
        ]
    )
    panel = read(frame)
    assert panel.frequency == "D" and panel.calendar is not None
    assert (panel.calendar == days).all() and panel.lengths.tolist() == [20, 15]


def test_a_series_of_one_row_is_read_beside_longer_ones():
    frame = pd.concat(
        [ragged(), pd.DataFrame({"unique_id": ["one"], "ds": ["2020-03-01 00:00:00"], "y": [4.0]})]
    )
    panel = read(frame)
    assert panel.of(panel.ids.index("one")).tolist() == [4.0]


def test_a_folder_without_a_table_or_of_wide_ones_is_refused(tmp_path: Path):
    config = DataConfig(data="custom")
    with pytest.raises(UserError, match="expected a folder with files that end in"):
        columns_in_file(config, tmp_path)
    (tmp_path / "x.csv").write_text("date,OT\n2020-01-01,1\n")
    with pytest.raises(UserError, match="expected files in long format in a folder"):
        columns_in_file(config, tmp_path)
