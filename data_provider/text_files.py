"""Files of dated texts are read and checked into a `TextTable`.

Shape legend: K texts.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_provider import date_formats
from data_provider.date_formats import row_text
from data_provider.series import column_name, require_file
from data_provider.table_files import (
    header_of,
    is_csv,
    named_as_in_file,
    open_csv,
    read_arrow,
    rows_of,
    table_file,
)
from data_provider.texts import TextTable, listed
from utils.errors import UserError

logger = logging.getLogger(__name__)

TIME_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "start": ("start", "start_date"),
    "end": ("end", "end_date", "date"),
    "published": ("published", "published_date", "publication_date", "publication"),
}
"""What the columns of times are called, in any case of letters; of several the first counts."""
SERIES_COLUMNS = ("series", "series_id", "unique_id")
TEXT_COLUMNS = ("text", "fact")
"""What the column of texts is called where it is not named; ``fact`` is Time-MMD's."""
LONGEST = 20_000
"""Characters of a text that are kept: several times what a prompt of 4,096 tokens holds."""
_ABSENT = re.compile(
    r"|n\.?/?a\.?(?:\s*\([^()]*\)|\s*\n.*)?|nan|none|null|[-.\s]+", re.IGNORECASE | re.DOTALL
)
"""What stands for no text: NA and its kin, alone or with a remark on why."""
_MARKED = re.compile(r"<[/!a-z]|&(?:[a-z]{2,8}|#\d{1,6}|#x[0-9a-f]{1,5});", re.IGNORECASE)
_BLANKS = re.compile(r"[ \t]+")
_MARKUP = re.compile(
    r"<!--.*?-->|<(script|style)\b.*?</\1\s*>|</?(?:a|abbr|b|big|blockquote|body|br|center|code|dd|div|dl|dt"
    r"|em|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|label|li|link|main|meta|nav|ol|p|pre|s"
    r"|section|small|span|strike|strong|sub|sup|svg|table|tbody|td|tfoot|th|thead|time|title|tr|u|ul)\b[^<>]*>",
    re.IGNORECASE | re.DOTALL,
)


def read_texts(path: str | Path, *, columns: Sequence[str] = ()) -> TextTable:
    """Read a file of dated texts.

    Its columns of times are found by their names (`TIME_COLUMNS`), an end or a publication is needed, and a
    column of `SERIES_COLUMNS` says whose texts they are.

    Args:
        path: of one of the kinds of `table_files`; CSV is UTF-8.
        columns: of the texts, joined by line ends; by default one of `TEXT_COLUMNS`, or the only other one.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: for anything wrong in it; the message names file, column and first row.
    """
    path = Path(path)
    return text_table(_read_file(path), path, columns=columns)


def text_table(frame: pd.DataFrame, where: object, *, columns: Sequence[str] = ()) -> TextTable:
    """As `read_texts`, of a table that ``where`` calls by its name.

    Raises:
        UserError: as `read_texts`.
    """
    frame = frame.set_axis([column_name(c) for c in frame.columns], axis=1)
    roles = _roles(frame, where)
    chosen = _text_columns(frame, where, columns, taken=set(roles.values()))
    texts, notes = _cleaned(frame[chosen])
    there = np.array([bool(text) for text in texts], dtype=bool)
    times = {
        role: _times(frame[roles[role]], where, there) if role in roles else pd.Series(pd.NaT, frame.index)
        for role in TIME_COLUMNS
    }
    _check_order(times, roles, where, there)
    dated = there & (times["end"].notna() | times["published"].notna()).to_numpy()
    if (count := int((there & ~dated).sum())) > 0:
        notes["undated"] = f"{count} texts have no time and are seen by no window"
    if not dated.any():
        raise UserError(
            f"{where}: expected texts in column {listed(chosen)}, with a time each, found none in "
            f"{len(frame)} rows"
        )
    series = frame[roles["series"]].astype(object) if "series" in roles else pd.Series("", frame.index)
    table = TextTable(
        texts=tuple(texts),
        start=_index(times["start"]),
        end=_index(times["end"]),
        published=_index(times["published"]),
        series=tuple("" if pd.isna(s) else column_name(s) for s in series),
        name=str(where),
    ).take(dated)
    table, further = _in_order(table)
    notes |= further
    for note in notes.values():
        logger.info("%s: %s", where, note)
    return replace(table, notes=notes)


def _read_file(path: Path) -> pd.DataFrame:
    """The file as a table with at least one row; all of CSV is text."""
    require_file(path, "name a table of texts with their times")
    ending = table_file(path).ending
    if is_csv(ending):
        with rows_of(path), open_csv(path, ending) as file:
            names = header_of(file)
            if not names:
                raise pd.errors.EmptyDataError
            mark = next((mark for mark in ";\t|" if len(names) == 1 and mark in names[0]), None)
            if mark is not None:
                raise UserError(
                    f"{path}: expected columns separated by commas, found {mark!r} between them; save the "
                    "file with commas"
                )
            file.seek(0)
            frame = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        frame = named_as_in_file(frame, names, path)
    else:
        frame = read_arrow(path, ending)
    if frame.empty:
        raise UserError(f"{path}: expected rows below the header, found none")
    return frame


def _roles(frame: pd.DataFrame, where: object) -> dict[str, str]:
    """Which column is what, of those with times and of the series' names."""
    by_name = {str(c).lower(): str(c) for c in reversed(list(frame.columns))}
    found = {}
    for role, names in (*TIME_COLUMNS.items(), ("series", SERIES_COLUMNS)):
        column = next((by_name[name] for name in names if name in by_name), None)
        if column is not None:
            found[role] = column
    if "end" not in found and "published" not in found:
        raise UserError(
            f"{where}: expected a column end (or end_date, date) or published, with the times of the texts, "
            f"found {listed(list(frame.columns))}; rename the column that holds them"
        )
    return found


def _text_columns(frame: pd.DataFrame, where: object, wanted: Sequence[str], *, taken: set[str]) -> list[str]:
    """The columns of the texts, checked."""
    names = [str(c) for c in frame.columns]
    texts = [c for c in dict.fromkeys(names) if c and c not in taken and _is_text(frame[c])]
    chosen = [column_name(c) for c in wanted]
    if not chosen:
        usual = [name for name in TEXT_COLUMNS if name in names]
        chosen = usual[:1] or (texts if len(texts) == 1 else [])
    missing = [c for c in chosen if c not in names]
    if missing:
        raise UserError(
            f"{where}: expected the column of --text_columns, {missing[0]!r}, found {listed(names)}; name "
            f"one of {listed(texts) or 'these'}"
        )
    if not chosen:
        raise UserError(
            f"{where}: expected a column called text, found {listed(names)}; say which hold the texts with "
            "--text_columns"
        )
    repeated = [c for c in (*chosen, *taken) if names.count(c) > 1]
    if repeated:
        raise UserError(
            f"{where}: expected each column once, found {repeated[0]!r} more than once; rename one"
        )
    return chosen


def _is_text(column: pd.Series) -> bool:
    """Whether a column holds anything but numbers; one that is there twice is not asked."""
    if isinstance(column, pd.DataFrame) or pd.api.types.is_numeric_dtype(column):
        return False
    filled = column[column.astype(str).str.strip() != ""]
    return bool(len(filled)) and not bool(pd.to_numeric(filled, errors="coerce").notna().all())


def _cleaned(columns: pd.DataFrame) -> tuple[list[str], dict[str, str]]:
    """The texts, "" where there is none, and what was done to them."""
    absent = marked = cut = 0
    texts = []
    for cells in columns.itertuples(index=False):
        parts = []
        for cell in cells:
            text = "" if cell is None or cell is pd.NA or cell != cell else str(cell)
            plain = _BLANKS.sub(" ", html.unescape(_MARKUP.sub(" ", text))) if _MARKED.search(text) else text
            marked += plain != text
            text = plain.strip()
            if not _ABSENT.fullmatch(text):
                parts.append(text)
        whole = "\n".join(parts)
        absent += not whole
        cut += len(whole) > LONGEST
        texts.append(whole[:LONGEST])
    counts = {
        "absent": (absent, "rows have no text (empty, NA) and are left out"),
        "markup": (marked, "texts hold HTML: its tags and escapes are taken out"),
        "long": (cut, f"texts are longer than {LONGEST:,} characters: their beginnings are kept"),
    }
    return texts, {subject: f"{count} {said}" for subject, (count, said) in counts.items() if count}


def _times(column: pd.Series, where: object, needed: NDArray[np.bool_]) -> pd.Series:
    """A column as times; NaT where it is empty, or not ``needed`` since there is no text.

    Raises:
        UserError: a cell that is needed cannot be read; its row is named.
    """
    column = column.reset_index(drop=True)
    if isinstance(column.dtype, pd.DatetimeTZDtype) or pd.api.types.is_datetime64_dtype(column):
        return column.where(needed)
    cells = column.astype(object).where(column.notna(), "").astype(str).str.strip()
    filled = (needed & (cells != "").to_numpy()).nonzero()[0]
    if not filled.size:
        return pd.Series(pd.NaT, column.index)
    text = pd.Series(cells.to_numpy(dtype=object), dtype=object)
    gaps = np.ones(len(text), dtype=bool)
    gaps[filled] = False
    text[gaps] = text[filled[0]]  # rows keep their numbers, for messages
    written = date_formats.read_text(
        text,
        where,
        one_frequency=lambda dates: dates.is_monotonic_increasing or dates.is_monotonic_decreasing,
        flags=False,
        column=str(column.name),
    )
    if written.offsets and "" in written.offsets:
        raise UserError(
            f"{where}: column {column.name!r}: expected times with their distance from UTC in each row or in "
            f"none, found {' and '.join(offset or 'none' for offset in written.offsets)}; write all alike"
        )
    return written.times.where(~gaps)


def _check_order(
    times: Mapping[str, pd.Series], roles: Mapping[str, str], where: object, there: NDArray[np.bool_]
) -> None:
    """Raise UserError where a text ends before it starts, or some times have a zone and others none."""
    zoned = {
        role: times[role].dt.tz is not None for role in roles if role in times and times[role].notna().any()
    }
    if len(set(zoned.values())) > 1:
        has = next(roles[role] for role, zone in zoned.items() if zone)
        lacks = next(roles[role] for role, zone in zoned.items() if not zone)
        raise UserError(
            f"{where}: expected a distance from UTC in all columns of times or in none, found one in {has!r} "
            f"and none in {lacks!r}; write them alike"
        )
    if not {"start", "end"} <= zoned.keys():
        return
    backward = np.flatnonzero(there & (times["end"] < times["start"]).to_numpy())
    if backward.size:
        row = int(backward[0])
        raise UserError(
            f"{where}: column {roles['end']!r}, {row_text(row)}: expected an end at or after the start, "
            f"{times['start'].iloc[row]}, found {times['end'].iloc[row]} ({backward.size} such rows); "
            "correct them, or remove the rows"
        )


def _index(times: pd.Series) -> pd.DatetimeIndex:
    """Times in microseconds, in UTC where they have zones."""
    index = pd.DatetimeIndex(times).as_unit("us")
    return index if index.tz is None else index.tz_convert("UTC")


def _in_order(table: TextTable) -> tuple[TextTable, dict[str, str]]:
    """The table in its order, whatever the file's, rows that stand there twice once; and what was done."""
    keys = pd.DataFrame(
        {
            "known": table.known, "end": table.end, "start": table.start, "published": table.published,
            "series": table.series, "text": table.texts,
        }
    )  # fmt: skip
    notes = {}
    if not table.known.is_monotonic_increasing:
        notes["order"] = "rows are not in the order of time: sorted"
    twice = keys.duplicated().to_numpy()
    if twice.any():
        notes["repeated"] = f"{int(twice.sum())} rows stand there twice and count once"
    order = keys[~twice].sort_values(list(keys.columns), kind="stable").index.to_numpy()
    return table.take(order), notes
