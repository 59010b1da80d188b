"""Bad data: each fault is a clear error or a right result, never a NaN hours later."""

from __future__ import annotations

import csv
import logging
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_provider.data_factory import build_data
from data_provider.series import Series, column_name, read_csv
from utils.config import Config

ROWS = 8
HEADER = ["date", "a", "OT"]


def table() -> list[list[str]]:
    dates = pd.date_range("2020-01-01", periods=ROWS, freq="h").astype(str)
    return [[date, str(i), repr(i * 0.5 - 1)] for i, date in enumerate(dates)]


def write(path: Path, rows: list[list[str]], header: list[str] = HEADER) -> Path:
    path.write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n", encoding="utf-8")
    return path


def read(path: Path, **changes: object) -> Series:
    return read_csv(path, **{"features": "M", "target": "OT", **changes})  # type: ignore[arg-type]


def with_cell(row: int, column: int, text: str) -> list[list[str]]:
    rows = table()
    rows[row][column] = text
    return rows


# Missing numbers


@pytest.mark.parametrize("text", ["", "nan", "NA", "inf", "-inf", "1e400"])
def test_missing_and_infinite_numbers_are_errors_that_name_the_flag(tmp_path, text):
    with pytest.raises(ValueError, match="'a', data row 4: expected a finite.*--fill_missing interpolate"):
        read(write(tmp_path / "x.csv", with_cell(3, 1, text)))


def test_filling_equals_pandas(tmp_path, caplog):
    """An independent reference: pandas' interpolate and ffill."""
    rows = table()
    for row in (2, 3, 6):
        rows[row][1] = ""
    rows[7][2] = "inf"
    path = write(tmp_path / "x.csv", rows)
    frame = pd.read_csv(path).drop(columns="date").replace(np.inf, np.nan)
    for how, expected in {"interpolate": frame.interpolate(), "ffill": frame.ffill()}.items():
        with caplog.at_level(logging.WARNING):
            found = read(path, fill_missing=how)
        np.testing.assert_allclose(found.values, expected.to_numpy(), rtol=1e-15)
        assert (
            f"'a', data row 3: expected a finite number, found nothing (or nan) (3 such rows); filled "
            f"with --fill_missing {how}" in caplog.text
        )
        assert found.content_hash != read(write(tmp_path / "y.csv", table())).content_hash


def test_the_ends_are_filled_with_the_nearest_or_refused(tmp_path):
    path = write(tmp_path / "x.csv", with_cell(0, 1, ""))
    assert read(path, fill_missing="interpolate").values[0, 0] == 1
    with pytest.raises(ValueError, match="'a', data row 1.*no row before it for --fill_missing ffill"):
        read(path, fill_missing="ffill")


def test_a_column_without_a_number_cannot_be_filled(tmp_path):
    rows = [[date, "", value] for date, _, value in table()]
    for how in (None, "interpolate", "ffill"):
        with pytest.raises(ValueError, match="'a', data row 1.*the column has none: remove it"):
            read(write(tmp_path / "x.csv", rows), fill_missing=how)


def test_filling_touches_nothing_else(tmp_path):
    path = write(tmp_path / "x.csv", table())
    assert read(path, fill_missing="interpolate").content_hash == read(path).content_hash
    text = write(tmp_path / "y.csv", with_cell(3, 1, "n.v."))
    with pytest.raises(ValueError, match="expected a number, found 'n.v.'"):
        read(text, fill_missing="interpolate")


@pytest.mark.parametrize(("first", "last"), [(0, 3), (2, 0), (2, 3), (1, 1)])
def test_rows_missing_at_the_ends_are_to_be_cut_or_filled(tmp_path, first, last, caplog):
    """The advice was to remove the column; cutting the rows that it names, in all columns, is enough."""
    rows = table()
    for row in range(first):
        rows[row][1] = ""
    for row in range(ROWS - last, ROWS):
        rows[row][2] = "nan"
    path = write(tmp_path / "x.csv", rows)
    with pytest.raises(ValueError, match=r"cut the (first|last)") as refused:
        read(path)
    said = str(refused.value)
    for side, count in (("first", first), ("last", last)):
        assert (f"the {side} {count} rows" if count > 1 else f"the {side} row") in said or not count
    cut = read(write(tmp_path / "y.csv", rows[first : ROWS - last]))
    assert len(cut.values) == ROWS - first - last
    filled = read(path, fill_missing="interpolate")
    assert np.array_equal(filled.values[first : ROWS - last], cut.values)
    assert (filled.values[:first, 0] == cut.values[0, 0]).all()
    assert (filled.values[ROWS - last :, 1] == cut.values[-1, 1]).all()
    assert not last or "with the last number known" in caplog.text


def test_gaps_in_the_middle_are_not_to_be_cut(tmp_path):
    rows = table()
    rows[3][1] = rows[7][1] = ""
    with pytest.raises(
        ValueError, match="data row 4: .*; fill it with --fill_missing interpolate, or remove the"
    ):
        read(write(tmp_path / "x.csv", rows))
    with pytest.raises(ValueError) as refused:
        read(write(tmp_path / "x.csv", rows), features="MS", target="a")
    assert "remove" not in str(refused.value)


def test_rows_of_commas_at_the_end_are_named(tmp_path):
    """Spreadsheets leave them; "write all of them as in the example" did not help."""
    with pytest.raises(ValueError, match="data row 9: .*nothing in the last 3 rows; remove these rows"):
        read(write(tmp_path / "x.csv", [*table(), *[["", "", ""]] * 3]))


# Headers and separators


def test_blanks_around_names_are_none_of_theirs(tmp_path):
    """ "date, a, OT" made a column ' OT', which --target OT did not find."""
    path = write(tmp_path / "x.csv", table(), header=["date", " a", " OT "])
    assert read(path, features="S", target="OT").columns == ("OT",)
    for header in (["date", "a", " a"], ["date", "é", "e\u0301"]):
        with pytest.raises(ValueError, match="each column once, found .* in columns 2 and 3"):
            read(write(tmp_path / "x.csv", table(), header=header))


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=9)


@given(st.lists(NAMES, min_size=1, max_size=5, unique_by=column_name))
@settings(max_examples=60, deadline=None)
def test_any_names_are_read_as_they_are_written(tmp_path_factory, names):
    """A row per variable, whatever it is called: pandas renames some, and reads others as dates."""
    names = [name for name in names if column_name(name) not in ("", "date")] or ["a"]
    frame = pd.DataFrame(np.arange(6.0 * len(names)).reshape(6, -1), columns=names)
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=6, freq="h"))
    path = tmp_path_factory.mktemp("names") / "x.csv"
    frame.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)
    series = read(path)
    assert series.columns == tuple(map(column_name, names))
    assert np.array_equal(series.values, frame[names].to_numpy())


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("date;a;OT", "separated by commas, found ';'"),
        ("date\ta\tOT", r"separated by commas, found '\\t'"),
        ("date,a,a", "each column once, found 'a' in columns 2 and 3"),
        ("date,date,OT", "each column once, found 'date'"),
        (",date,OT", "found none for column 1 .*numbers the rows"),
        ("Date,a,OT", "expected a column named 'date', found Date, a, OT"),
    ],
)
def test_a_header_that_cannot_be_right_is_an_error(tmp_path, header, said):
    """pandas renames the second a to a.1, and an unnamed index becomes a variable to forecast."""
    path = tmp_path / "x.csv"
    path.write_text(header + "\n" + "\n".join(",".join(row) for row in table()))
    with pytest.raises(ValueError, match=said):
        read(path)


@pytest.mark.parametrize("content", [b"", b"\n\n \n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
def test_a_file_of_nothing_is_called_empty(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(ValueError, match="x.csv: expected a header line and rows, found an empty file"):
        read(tmp_path / "x.csv")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-32", "cp1252"])
def test_other_encodings_are_named(tmp_path, encoding):
    (tmp_path / "x.csv").write_bytes("date,Temperatur °C\n2020-01-01,1\n".encode(encoding))
    with pytest.raises(ValueError, match="x.csv: expected UTF-8 text"):
        read(tmp_path / "x.csv")


# Values that are numbers and ruin a run


def bundle(path: Path, **changes: object):
    flags = {"data": "custom", "root_path": str(path.parent), "data_path": path.name}
    sizes = {"seq_len": 24, "pred_len": 8, "label_len": 0}
    return build_data(Config.from_flat({**flags, **sizes, **changes}))


def long_series(path: Path, change: dict[int, float] | None = None, *, scale: float = 1.0) -> Path:
    values = np.random.default_rng(0).normal(size=(300, 2)) * scale
    for row, value in (change or {}).items():
        values[row, 0] = value
    frame = pd.DataFrame(values, columns=["a", "OT"])
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=300, freq="h"))
    frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("value", [1e30, -1e30, 1e200, 1.7e308])
@pytest.mark.parametrize("row", [50, 220, 290], ids=["training", "validation", "test"])
def test_an_extreme_value_is_named_wherever_it_lies(tmp_path, value, row):
    """In the training part it makes all other values equal; in another part every score is infinite."""
    path = long_series(tmp_path / "x.csv", {row: value})
    with pytest.raises(
        ValueError, match=rf"x: column 'a', data row {row + 1}: .*found {value:g}".replace("+", r"\+")
    ):
        bundle(path)


def test_large_and_small_units_are_no_extremes(tmp_path):
    """A column of 1e30s, or of 1e-30s, is standardised like any other."""
    plain = bundle(long_series(tmp_path / "x.csv")).train[7].x
    for scale in (1e30, 1e-30):
        scaled = bundle(long_series(tmp_path / "y.csv", scale=scale)).train[7].x
        torch.testing.assert_close(scaled, plain, rtol=1e-5, atol=1e-6)


def test_outliers_that_real_data_have_are_kept(tmp_path):
    """A sensor's spike of a thousand deviations is data, whatever one thinks of it."""
    assert bundle(long_series(tmp_path / "x.csv", {50: 1e3, 290: -1e4})).train[7].x.isfinite().all()


# Any fault at all

CELLS = st.one_of(
    st.sampled_from([
        "", " ", "nan", "NaN", "None", "inf", "-inf", "1e30", "1e400", "0x1F", "1,5", "1.000,5", "½", "٣",
        "1_000", "true", "2020-13-01", "2020-01-01", "01/02/2020", "99999-01-01", "1577836800", '"', "'",
        "\0", "#", "\r",
    ]),
    st.text(max_size=6),
    st.floats().map(repr),
    st.integers().map(str),
)  # fmt: skip


@st.composite
def faulty_files(draw: st.DrawFn) -> bytes:
    """A good file with a few cells, rows, the header, the bytes or the encoding spoilt."""
    rows = [HEADER.copy(), *table()]
    for _ in range(draw(st.integers(0, 3))):
        row = draw(st.integers(0, len(rows) - 1))
        match draw(st.sampled_from(["cell", "cell", "drop", "copy", "swap", "shorten", "lengthen"])):
            case "cell":
                if rows[row]:
                    rows[row][draw(st.integers(0, len(rows[row]) - 1))] = draw(CELLS)
            case "drop":
                del rows[row]
            case "copy":
                rows.insert(row, rows[row].copy())
            case "swap":
                other = draw(st.integers(0, len(rows) - 1))
                rows[row], rows[other] = rows[other], rows[row]
            case "shorten":
                rows[row] = rows[row][:-1]
            case "lengthen":
                rows[row] = [*rows[row], draw(CELLS)]
        if not rows:
            break
    mark, end = draw(st.sampled_from([",", ",", ",", ";", "\t"])), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = end.join(mark.join(row) for row in rows) + draw(st.sampled_from(["", end, end + end]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    content = bytearray(text.encode(encoding, "replace"))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        if content:
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


@pytest.mark.parametrize("fill", [None, "interpolate", "ffill"])
@given(content=faulty_files())
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_faulty_file_is_a_clear_error_or_a_right_result(tmp_path, fill, content):
    """Right: finite numbers, one for each cell that reads as one, at increasing times. Clear: a
    ValueError that names the file, what was expected and what was found."""
    path = tmp_path / "faulty.csv"
    path.write_bytes(content)
    try:
        series = read(path, fill_missing=fill)
    except ValueError as error:
        said = str(error)
        assert said.startswith((str(path), "--freq")) and "expected" in said and "found" in said, said
        return
    assert np.isfinite(series.values).all() and series.values.shape == (
        len(series.dates),
        len(series.columns),
    )
    assert (np.diff(series.dates.asi8) > 0).all() and not series.dates.isna().any()
    text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    cells = [float_or_nan(cell) for line in text.split("\n") for cell in line.split(",")]
    for value in series.values.ravel() if fill is None else ():
        assert any(math.isclose(value, cell, rel_tol=1e-15) for cell in cells), (value, text)


def float_or_nan(cell: str) -> float:
    """Python's own reading of a cell."""
    try:
        return float(cell.strip().strip('"'))
    except ValueError:
        return math.nan
