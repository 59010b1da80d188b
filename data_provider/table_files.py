"""Tables in files, by the ending of their names: CSV, plain or compressed, Parquet and Feather.

Parquet and Feather need the package pyarrow, which this project does without.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import importlib.util
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pandas as pd

from utils.errors import UserError

ENDINGS = (".csv", ".csv.gz", ".csv.bz2", ".csv.xz", ".csv.zip", ".parquet", ".feather")
"""What is read and written."""
_ARROW = (".parquet", ".feather")
_SAVE_SHEET = "save the sheet as CSV (with commas between columns and points in the numbers)"
_ADVICE: Mapping[str, str] = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), _SAVE_SHEET),
    **dict.fromkeys(
        (".json", ".jsonl"), "convert it: pandas.read_json(...).to_csv('{stem}.csv', index=False)"
    ),
    ".tsv": "convert it: pandas.read_csv(..., sep='\\t').to_csv('{stem}.csv', index=False)",
    **dict.fromkeys((".txt", ".dat", ".data", ""), "where it holds comma-separated text, call it {stem}.csv"),
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zip"), "where it holds CSV, call it {stem}.csv{ending}"),
    **dict.fromkeys(
        (".pkl", ".pickle"), "convert it: pandas.read_pickle(...).to_csv('{stem}.csv', index=False)"
    ),
    **dict.fromkeys((".npy", ".npz"), "write its columns under a header, with a column date, as CSV"),
}
_BEGINNINGS: Mapping[bytes, tuple[str, str]] = {
    b"\x1f\x8b": ("gzip data", "call it {stem}.csv.gz"),
    b"BZh": ("bzip2 data", "call it {stem}.csv.bz2"),
    b"\xfd7zXZ\x00": ("xz data", "call it {stem}.csv.xz"),
    b"PAR1": ("a Parquet file", "call it {stem}.parquet"),
    b"ARROW1": ("a Feather file", "call it {stem}.feather"),
    b"PK\x03\x04": (
        "a zip archive or a spreadsheet",
        "call an archive of one CSV file {stem}.csv.zip; of a spreadsheet " + _SAVE_SHEET,
    ),
    b"\xd0\xcf\x11\xe0": ("a spreadsheet of old", _SAVE_SHEET),
}
"""How files begin that are no text: what they are, and what to do."""
_OPENED: Mapping[str, Callable[[Path], Any]] = {
    ".csv": lambda path: path.open("rb"),
    ".csv.gz": gzip.open,
    ".csv.bz2": bz2.open,
    ".csv.xz": lzma.open,
}
BROKEN = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, zipfile.BadZipFile)
"""What Python raises for a compressed file that is cut off or something else (and OSError for bzip2)."""


class TableFile(NamedTuple):
    """The name of a file, taken apart."""

    stem: str
    ending: str
    """One of `ENDINGS`."""


def table_file(path: Path, *, flag: str | None = None) -> TableFile:
    """The name of a table's file, taken apart.

    Args:
        path: need not be there.
        flag: what named the file, for the message.

    Raises:
        UserError: the ending is none of `ENDINGS`, or its package is missing; the message says what to do.
    """
    where = str(path) if flag is None else f"{flag}: {path}"
    lower = path.name.lower()
    ending = max((e for e in ENDINGS if lower.endswith(e) and lower != e), key=len, default=None)
    if ending is None:
        found = path.suffix.lower()
        stem = path.name[: len(path.name) - len(found)]
        said = f"found {found}" if found else "found none"
        advice = _ADVICE.get(found, "name it so")
        if flag == "--output":
            advice = f"name it {stem}.csv"
        raise UserError(
            f"{where}: expected a name that ends in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}, {said}; "
            + advice.format(stem=stem, ending=found)
        )
    if ending in _ARROW and importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            f"{where}: expected the package pyarrow, which {ending} needs, found none; pip install pyarrow, "
            "or use .csv"
        )
    return TableFile(path.name[: -len(ending)], ending)


def is_csv(ending: str) -> bool:
    """Whether a file of this ending is text, whatever it is compressed by."""
    return ending not in _ARROW


@contextlib.contextmanager
def open_csv(path: Path, ending: str) -> Iterator[BinaryIO]:
    """The bytes of a CSV file, unpacked.

    Raises:
        UserError: it is not what its ending says, or not whole.
    """
    with contextlib.ExitStack() as closing:
        try:
            if ending == ".csv.zip":
                archive = closing.enter_context(zipfile.ZipFile(path))
                members = [member for member in archive.infolist() if not member.is_dir()]
                if len(members) != 1:
                    raise UserError(
                        f"{path}: expected an archive of one file, found {len(members)}; take it out"
                    )
                file: BinaryIO = closing.enter_context(archive.open(members[0]))  # type: ignore[assignment]
            else:
                file = closing.enter_context(_OPENED[ending](path))
            _refuse_other_content(file.read(8), path)
            file.seek(0)
            yield file
        except BROKEN as error:
            raise UserError(
                f"{path}: expected a whole {ending} file, found: {error or type(error).__name__}"
            ) from None
        except OSError as error:
            if ending != ".csv.bz2" or error.errno is not None:
                raise
            raise UserError(f"{path}: expected a whole {ending} file, found: {error}") from None


def _refuse_other_content(begins: bytes, path: Path) -> None:
    """Raise UserError where a file that is called CSV is known for something else by its first bytes."""
    for mark, (what, advice) in _BEGINNINGS.items():
        if begins.startswith(mark):
            stem = path.name.split(".csv")[0]
            raise UserError(f"{path}: expected CSV text, found {what}; {advice.format(stem=stem)}")


def read_arrow(path: Path, ending: str) -> pd.DataFrame:
    """A Parquet or Feather file as pandas has it, its index as columns unless that only counts the rows.

    Raises:
        UserError: it is no such file, or cannot be read.
    """
    import pyarrow

    try:
        frame = pd.read_parquet(path) if ending == ".parquet" else pd.read_feather(path)
    except (pyarrow.ArrowException, ImportError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: expected a {ending} file, found: {said}") from None
    names = list(frame.columns)
    indexed = isinstance(frame.index, pd.DatetimeIndex) and "date" not in names
    if indexed and frame.index.name not in names:
        frame = frame.rename_axis("date").reset_index()
    elif any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    return frame


def arrow_names(path: Path, ending: str) -> list[str]:
    """The names of the columns of a Parquet or Feather file.

    Raises:
        UserError: it is no such file.
    """
    import pyarrow
    from pyarrow import ipc, parquet

    try:
        if ending == ".parquet":
            return [str(name) for name in parquet.read_schema(path).names]
        with ipc.open_file(path) as file:
            return [str(name) for name in file.schema.names]
    except pyarrow.ArrowException as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: expected a {ending} file, found: {said}") from None


def write_table(frame: pd.DataFrame, file: BinaryIO, ending: str, *, name: str, digits: int = 9) -> None:
    """Write a table without its index; ``name`` is what an archive calls its only file.

    Numbers in CSV have so many ``digits``, by default what float32 needs. Equal tables give equal bytes.
    """
    if ending in _ARROW:
        buffer = io.BytesIO()  # pyarrow closes what it writes to
        whole = frame.reset_index(drop=True)
        whole.to_parquet(buffer) if ending == ".parquet" else whole.to_feather(buffer)
        file.write(buffer.getvalue())
        return
    text = frame.to_csv(index=False, float_format=f"%.{digits}g").encode()
    if ending == ".csv.zip":
        member = zipfile.ZipInfo(f"{name}.csv")
        member.compress_type = zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(member, text)
        return
    packed: dict[str, Callable[[bytes], bytes]] = {
        ".csv": bytes,
        ".csv.gz": lambda data: gzip.compress(data, mtime=0),
        ".csv.bz2": bz2.compress,
        ".csv.xz": lzma.compress,
    }
    file.write(packed[ending](text))


@contextlib.contextmanager
def rows_of(path: Path) -> Iterator[None]:
    """What pandas says of CSV text that it cannot read, in our words.

    Raises:
        UserError: in place of its errors.
    """
    try:
        yield
    except pd.errors.EmptyDataError:
        raise UserError(f"{path}: expected a header line and rows, found an empty file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text, found {error}; save the file as UTF-8") from None
    except (pd.errors.ParserError, csv.Error) as error:
        raise UserError(f"{path}: expected comma-separated rows of equal length, found: {error}") from None


def named_as_in_file(frame: pd.DataFrame, names: Sequence[str], path: Path) -> pd.DataFrame:
    """The table with its columns called as in the header: pandas renames some.

    Raises:
        UserError: rows have more fields than the header.
    """
    if not isinstance(frame.index, pd.RangeIndex) or len(frame.columns) != len(names):
        raise UserError(f"{path}: expected as many fields per row as in the header, found more")
    return frame.set_axis(names, axis=1)


def header_of(file: BinaryIO) -> list[str]:
    """The fields of the first row of CSV text that is not blank; none of an empty file."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        rows = csv.reader(text)
        return next((row for row in rows if any(field.strip() for field in row) or len(row) > 1), [])
    finally:
        text.detach()
