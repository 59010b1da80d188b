"""Long tables in files: what their columns are called, and one table of one file or of a folder of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from data_provider.long_format import panel_columns
from data_provider.panel import PanelColumns
from data_provider.series import check_separator, column_name, require_file
from data_provider.table_files import (
    ENDINGS,
    arrow_names,
    header_of,
    is_csv,
    open_csv,
    read_arrow,
    rows_of,
    table_file,
)
from utils.config import DataConfig
from utils.errors import UserError, using_file

EMPTY = ("", "#N/A", "N/A", "NA", "NULL", "NaN", "None", "nan", "null", "<NA>")
"""What stands for a number that is missing; an id may be called so."""


def table_paths(path: Path) -> list[Path]:
    """The files of a path: itself, or those of a folder whose ending is known, by name.

    Raises:
        UserError: the folder holds none.
    """
    if not path.is_dir():
        require_file(path)
        return [path]
    with using_file(path, "a folder that can be read"):
        found = sorted(p for p in path.iterdir() if p.is_file() and p.name.lower().endswith(ENDINGS))
    if not found:
        raise UserError(
            f"{path}: expected a folder with files that end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}, "
            "found none"
        )
    for one in found:
        table_file(one)
    return found


def columns_in_file(config: DataConfig, path: Path) -> PanelColumns | None:
    """The columns of the long table that a configuration names; None of a table of one series.

    Raises:
        UserError: as `panel_columns` and `table_paths`.
    """
    first = table_paths(path)[0]
    found = panel_columns(
        names_in(first),
        first,
        ids=[column_name(one) for one in config.id_column],
        date=None if config.date_column is None else column_name(config.date_column),
        target=column_name(config.target[0]),
    )
    if found is None and path.is_dir():
        raise UserError(
            f"{path}: expected files in long format in a folder, found none whose columns are known "
            f"({first.name}); name them with --id_column --date_column --target"
        )
    return found


def names_in(path: Path) -> list[str]:
    """The names of a file's columns."""
    ending = table_file(path).ending
    if not is_csv(ending):
        return [column_name(name) for name in arrow_names(path, ending)]
    with rows_of(path), open_csv(path, ending) as file:
        names = header_of(file)
    check_separator(names, path)
    return [column_name(name) for name in names]


def read_long_files(path: Path, columns: PanelColumns) -> pd.DataFrame:
    """The columns of a long table, all files of a folder below each other.

    Ids in text files are text, as they stand there.

    Raises:
        UserError: a file lacks one of them, or is none that can be read.
    """
    frames = [_read(one, columns) for one in table_paths(path)]
    return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)


def _read(path: Path, columns: PanelColumns) -> pd.DataFrame:
    """The columns of one file."""
    ending = table_file(path).ending
    wanted = [*columns.ids, columns.date, columns.target]
    if not is_csv(ending):
        frame = read_arrow(path, ending)
        frame = frame.set_axis([column_name(name) for name in frame.columns], axis=1)
        check_columns(list(frame.columns), wanted, path)
        return frame[wanted]
    names = names_in(path)
    check_columns(names, wanted, path)
    places = [names.index(name) for name in wanted]
    text = {place: "category" for place in places[:-1]}  # each id and time is kept once
    empty = {place: EMPTY if place == places[-1] else "" for place in places}
    with rows_of(path), open_csv(path, ending) as file:
        frame = pd.read_csv(
            file,
            header=0,
            names=list(range(len(names))),
            usecols=places,
            dtype=text,
            na_values=empty,
            keep_default_na=False,
            encoding="utf-8-sig",
            index_col=False,
        )
    if frame.empty:
        raise UserError(f"{path}: expected rows below the header, found none")
    return frame[places].set_axis(wanted, axis=1)


def check_columns(names: Sequence[str], wanted: Sequence[str], where: object) -> None:
    """Raise UserError where a column is not there, or there twice."""
    for name in wanted:
        if names.count(name) != 1:
            found = "it more than once" if name in names else f"none among {', '.join(names)}"
            raise UserError(f"{where}: expected the column {name!r} once, found {found}")
    if len(set(wanted)) < len(wanted):
        raise UserError(
            f"{where}: expected other columns for ids, times and values, found {', '.join(wanted)}; "
            f"name each "
            "once with --id_column, --date_column and --target"
        )
