"""The long format, series below each other told apart by a column: known, named, not read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from data_provider.table_files import table_file

REPEATED_WITH_TEXT, REPEATED_WITH_NUMBERS = 0.1, 0.3
"""Share of the rows whose time was there before, from which on a column is taken for the series' names."""
SHOWN = 3


def long_format_problem(frame: pd.DataFrame, where: object, *, wanted: str | None = None) -> str | None:
    """What to say of a table in long format, in one line; None of any other.

    Args:
        frame: with a ``date`` column.
        where: what messages call it; a path is named in the way out.
        wanted: the column of values to take, where the table has it.
    """
    others = [str(c) for c in frame.columns if c != "date"]
    text = [c for c in others if not _is_number_like(frame[c])]
    repeated = float(frame["date"].duplicated().mean())
    if not (text or repeated >= REPEATED_WITH_NUMBERS):
        return None
    counts = [c for c in others if c not in text and _counts(frame[c])]
    for keys in _candidates(text, counts if repeated >= REPEATED_WITH_NUMBERS else []):
        if _tell_series_apart(frame, keys, repeated, with_text=bool(set(keys) & set(text))):
            return _message(frame, keys, where, wanted)
    return None


def _is_number_like(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) or bool(pd.to_numeric(column, errors="coerce").notna().any())


def _counts(column: pd.Series) -> bool:
    """Whether a column holds few whole numbers, as ids of series are."""
    numbers = pd.to_numeric(column, errors="coerce")
    whole = bool(numbers.notna().all()) and bool((numbers % 1 == 0).all())
    return whole and 2 <= numbers.nunique() <= len(numbers) // 2


def _candidates(text: list[str], counts: list[str]) -> Iterator[list[str]]:
    """Columns that may name the series, alone or two together, those of text first."""
    yield from ([c] for c in text)
    yield from ([c] for c in counts)
    yield from (list(pair) for pair in combinations([*text, *counts][:6], 2))


def _tell_series_apart(frame: pd.DataFrame, keys: list[str], repeated: float, *, with_text: bool) -> bool:
    """Whether each time is there once for each value of ``keys``, and the whole is not one series."""
    groups = frame.groupby(keys, sort=False).ngroup().to_numpy()
    series = groups.max(initial=-1) + 1
    if (groups < 0).any() or not 2 <= series <= len(frame) // 2 or frame.duplicated([*keys, "date"]).any():
        return False
    if repeated >= (REPEATED_WITH_TEXT if with_text else REPEATED_WITH_NUMBERS):
        return True
    behind_each_other = int((np.diff(groups) != 0).sum()) == series - 1
    return (
        with_text and behind_each_other and not _increasing(frame["date"]) and _increasing_in(frame, groups)
    )


def _times(dates: pd.Series, *, dayfirst: bool = False) -> pd.Series:
    """Each different text read once."""
    known = pd.Series(dates.unique())
    read = pd.to_datetime(known, errors="coerce", format="mixed", dayfirst=dayfirst, utc=True)
    return dates.map(dict(zip(known, read, strict=True)))


def _increasing(dates: pd.Series) -> bool:
    return bool(_times(dates).is_monotonic_increasing)


def _increasing_in(frame: pd.DataFrame, groups: np.ndarray, *, dayfirst: bool = False) -> bool:
    """Whether the times of each series grow from row to row."""
    times = _times(frame["date"], dayfirst=dayfirst)
    steps = times.groupby(groups).diff().dropna()
    return bool(times.notna().all()) and bool((steps > pd.Timedelta(0)).all())


def _message(frame: pd.DataFrame, keys: list[str], where: object, wanted: str | None) -> str:
    names = frame[keys].astype(str).agg("_".join, axis=1).unique()
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    columns = " and ".join(repr(c) for c in keys)
    values = [str(c) for c in frame.columns if c not in ("date", *keys) and _is_number_like(frame[c])]
    value = wanted if wanted in values else next(iter(reversed(values)), "value")
    return (
        f"{where}: expected one row per time and a column per variable, found the long format: {len(names)} "
        f"series below each other, told apart by {columns} ({shown}); several series in one file are not "
        "read yet: give each a file of its own, or a column of its own, in Python: "
        + recipe(frame, keys, where, value)
    )


def recipe(frame: pd.DataFrame, keys: list[str], where: object, value: str) -> str:
    """One line of Python that writes the table with a column for each series."""
    path = where if isinstance(where, Path) else Path("table.csv")
    stem, ending = table_file(path)
    reader = {".parquet": "read_parquet", ".feather": "read_feather"}.get(ending, "read_csv")
    columns = repr(keys[0] if len(keys) == 1 else keys)
    joined = ".pipe(lambda t: t.set_axis(['_'.join(map(str, c)) for c in t.columns], axis=1))"
    return (
        f"import pandas; pandas.{reader}({str(path)!r}).pivot(index='date', columns={columns}, "
        f"values={value!r}){_sorting(frame, keys)}{joined if len(keys) > 1 else ''}"
        f".to_csv({str(path.with_name(f'{stem}_wide.csv'))!r})"
    )


def _sorting(frame: pd.DataFrame, keys: list[str]) -> str:
    """What puts the rows in order of time, where the order of their texts is another."""
    if _times(frame["date"].drop_duplicates().sort_values()).is_monotonic_increasing:
        return ""
    groups = frame.groupby(keys, sort=False).ngroup().to_numpy()
    dayfirst = not _increasing_in(frame, groups) and _increasing_in(frame, groups, dayfirst=True)
    return (
        ".sort_index(key=lambda d: pandas.to_datetime(d, format='mixed'" + ", dayfirst=True" * dayfirst + "))"
    )
