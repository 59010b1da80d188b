"""The long format, series below each other told apart by a column: known by its names, or by its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from data_provider.panel import PanelColumns
from utils.errors import UserError

ID_NAMES = ("unique_id", "item_id")
"""Of Nixtla's frames, and of those of Chronos and AutoGluon; known without a flag."""
DATE_NAMES = ("ds", "timestamp", "date")
TARGET_NAMES = ("y", "target", "value")

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


def _times(dates: pd.Series) -> pd.Series:
    """Each different text read once."""
    known = pd.Series(dates.unique())
    read = pd.to_datetime(known, errors="coerce", format="mixed", utc=True)
    return dates.map(dict(zip(known, read, strict=True)))


def _increasing(dates: pd.Series) -> bool:
    return bool(_times(dates).is_monotonic_increasing)


def _increasing_in(frame: pd.DataFrame, groups: np.ndarray) -> bool:
    """Whether the times of each series grow from row to row."""
    times = _times(frame["date"])
    steps = times.groupby(groups).diff().dropna()
    return bool(times.notna().all()) and bool((steps > pd.Timedelta(0)).all())


def _message(frame: pd.DataFrame, keys: list[str], where: object, wanted: str | None) -> str:
    names = frame[keys].astype(str).agg("_".join, axis=1).unique()
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    values = [str(c) for c in frame.columns if c not in ("date", *keys) and _is_number_like(frame[c])]
    value = wanted if wanted in values else next(iter(reversed(values)), "value")
    columns = PanelColumns(tuple(keys), "date", value)
    return (
        f"{where}: expected one row per time and a column per variable, found the long format: {len(names)} "
        f"series below each other, told apart by {' and '.join(map(repr, keys))} ({shown}); to read them as "
        f"many series, name its columns: {columns.flags}"
    )


def panel_columns(
    names: Sequence[str],
    where: object,
    *,
    ids: Sequence[str] = (),
    date: str | None = None,
    target: str | None = None,
) -> PanelColumns | None:
    """The columns of a long table by what they are called; None where it is not known for one.

    Args:
        names: of all its columns.
        where: what messages call it.
        ids: what was named with ``--id_column``.
        date: what was named with ``--date_column``.
        target: what was named with ``--target``; one that is not there is passed over where another is known.

    Raises:
        UserError: a column that was named is not there, or one that is needed is not known.
    """
    found_ids = tuple(ids) or tuple(name for name in ID_NAMES if name in names)[:1]
    if not found_ids:
        if date is None:
            return None
        raise UserError(
            f"{where}: --date_column: expected --id_column beside it, found none (a table of one series has "
            "its times in a column date)"
        )
    wanted = {"--id_column": found_ids, "--date_column": (date,) if date else ()}
    for flag, asked in wanted.items():
        for name in asked:
            if name not in names:
                raise UserError(
                    f"{where}: expected the column of {flag}, {name!r}, found {', '.join(names)}; name "
                    f"one of "
                    f"these with {flag}"
                )
    dates = [date] if date else [name for name in DATE_NAMES if name in names]
    targets = [target] if target in names else [name for name in TARGET_NAMES if name in names]
    for flag, found, known in (
        ("--date_column", dates, DATE_NAMES), ("--target", targets, TARGET_NAMES)
    ):  # fmt: skip
        if found:
            continue
        if not ids:  # the name of an id alone is no long table
            return None
        raise UserError(
            f"{where}: expected a column called {' or '.join(known)}, or one named with {flag}, found "
            f"{', '.join(names)}"
        )
    return PanelColumns(found_ids, str(dates[0]), str(targets[0]))
