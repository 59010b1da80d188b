"""Tables by the ending of their file's name: read and written whole, or refused with what to do."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_provider import table_files
from data_provider.data_factory import build_data
from data_provider.series import Series, read_csv
from data_provider.table_files import ENDINGS, table_file, write_table
from utils.config import Config

TEXT = [ending for ending in ENDINGS if ".csv" in ending]
ARROW = [ending for ending in ENDINGS if ".csv" not in ending]


def frame_of(rows: int = 120) -> pd.DataFrame:
    values = np.random.default_rng(0).normal(size=(rows, 2)).round(3)
    frame = pd.DataFrame(values, columns=["a", "OT"])
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=rows, freq="h"))
    return frame


def written(path: Path, frame: pd.DataFrame | None = None) -> Path:
    name = table_file(path)
    with path.open("w+b") as file:
        write_table(frame_of() if frame is None else frame, file, name.ending, name=name.stem)
    return path


def read(path: Path, **changes: object) -> Series:
    return read_csv(path, **{"features": "M", "target": "OT", **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", TEXT)
def test_a_table_comes_back_from_every_kind_of_text(tmp_path, ending):
    """.csv.gz was refused with the advice to save it as UTF-8; --output z.gz held plain text."""
    series = read(written(tmp_path / f"my.data{ending.upper()}"))
    assert series.name == "my.data" and series.content_hash == read(written(tmp_path / "x.csv")).content_hash
    pd.testing.assert_frame_equal(
        pd.read_csv(written(tmp_path / f"z{ending}"), parse_dates=["date"]), frame_of(), check_dtype=False
    )


def test_equal_tables_give_equal_bytes(tmp_path):
    """A time inside a .gz or .zip would make two forecasts differ."""
    for ending in TEXT:
        assert written(tmp_path / f"a{ending}").read_bytes() == written(tmp_path / f"a{ending}").read_bytes()


@pytest.mark.parametrize("ending", ARROW)
@pytest.mark.parametrize("how", ["column", "index", "text", "with a zoneless index of another name"])
def test_a_table_comes_back_from_arrow(tmp_path, ending, how):
    pytest.importorskip("pyarrow")
    frame, path = frame_of(), tmp_path / f"x{ending}"
    if how == "text":
        frame["date"] = frame["date"].astype(str)
    if "index" in how and ending == ".parquet":
        frame.set_index(frame.pop("date").rename("date" if how == "index" else "time")).to_parquet(path)
    else:
        written(path, frame)
    series = read(path)
    assert series.content_hash == read(written(tmp_path / "y.csv")).content_hash and series.name == "x"


@pytest.mark.parametrize("ending", ARROW)
def test_a_broken_or_gappy_arrow_file_is_one_clear_error(tmp_path, ending):
    pytest.importorskip("pyarrow")
    path = written(tmp_path / f"x{ending}", frame_of().assign(a=pd.array([1] * 119 + [None], dtype="Int64")))
    with pytest.raises(ValueError, match="'a', data row 120: .*cut the last row, or fill"):
        read(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"x{ending}: expected a {ending} file, found"):
        read(path)


@pytest.mark.parametrize("ending", ARROW)
def test_without_pyarrow_one_line_says_what_to_install(tmp_path, ending, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(
        table_files.importlib.util, "find_spec", lambda name: None if name == "pyarrow" else there(name)
    )
    (tmp_path / f"x{ending}").write_bytes(b"PAR1")
    config = Config.from_flat({"data": "custom", "root_path": str(tmp_path), "data_path": f"x{ending}"})
    with pytest.raises(
        ValueError, match=f"x{ending}: .*found none; pip install pyarrow, or use .csv"
    ) as refused:
        build_data(config)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("x.xlsx", "save the sheet as CSV"),
        ("x.json", r"read_json.*x\.csv"),
        ("x.tsv", r"sep='\\t'.*x\.csv"),
        ("x.npy", "as CSV"),
        ("x.txt", r"call it x\.csv"),
        ("x", r"call it x\.csv"),
        ("x.gz", r"call it x\.csv\.gz"),
        ("x.csv.zst", "name it so"),
        (".csv", r"call it \.csv\.csv"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path, name, advice):
    """An .xlsx was refused with the advice to save it as UTF-8."""
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=rf"expected a name that ends in .*\.feather, found .*{advice}"):
        read(tmp_path / name)


@pytest.mark.parametrize(("content", "said"), [
    (gzip.compress(b"date,a", mtime=0), r"found gzip data; call it x\.csv\.gz"),
    (b"PK\x03\x04...", "found a zip archive or a spreadsheet"),
    (b"PAR1....", r"found a Parquet file; call it x\.parquet"),
])  # fmt: skip
def test_a_csv_that_is_none_is_known_by_its_first_bytes(tmp_path, content, said):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"x.csv: expected CSV text, {said}"):
        read(tmp_path / "x.csv")


@pytest.mark.parametrize("ending", TEXT[1:])
@pytest.mark.parametrize("content", [b"", b"date,a\n", None], ids=["empty", "plain text", "cut off"])
def test_a_compressed_file_that_is_not_whole_is_one_clear_error(tmp_path, ending, content):
    path = written(tmp_path / f"x{ending}")
    path.write_bytes(path.read_bytes()[:-60] if content is None else content)
    with pytest.raises(ValueError, match=rf"x{ending}: expected .*, found"):
        read(path)
