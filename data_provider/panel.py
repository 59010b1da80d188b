"""A panel: series of different lengths and starts, told apart by an id, at one frequency.

Ids are data: nothing here, or that reads it, makes a path of one.

Shape legend: S series, R rows of all series, C times of the calendar.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_provider.dates import NOTHING_KEPT, DatesKept

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
SHOWN = 3
"""Series named in a message, at most."""


class PanelColumns(NamedTuple):
    """What the columns of a long table are called."""

    ids: tuple[str, ...]
    """One, or several that name a series together."""
    date: str
    target: str

    @property
    def flags(self) -> str:
        """The flags that name them."""
        return f"--id_column {' '.join(self.ids)} --date_column {self.date} --target {self.target}"


@dataclass(frozen=True, eq=False)
class Panel:
    """Series behind each other, each without a gap in the calendar."""

    name: str
    ids: tuple[str, ...]
    """[S], each once."""
    values: FloatArray
    """[R], original units, finite."""
    begins: IntArray
    """[S + 1], the row where each begins, and the end of the last."""
    frequency: str
    """pandas offset alias."""
    calendar: pd.DatetimeIndex | None = None
    """[C], the times of all series, one step apart; None of series without dates."""
    first: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """[S], place in the calendar of each one's first row; none without dates."""
    columns: PanelColumns | None = None
    """None of a table that is not long."""
    labels: pd.DataFrame = field(default_factory=pd.DataFrame)
    """[S], the columns that name a series, as they came."""
    dates_kept: DatesKept = NOTHING_KEPT
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def lengths(self) -> IntArray:
        """[S], rows of each."""
        return np.diff(self.begins)

    def of(self, series: int) -> FloatArray:
        """The values of one series."""
        return self.values[self.begins[series] : self.begins[series + 1]]

    def content_hash(self) -> str:
        """sha256 of ids, values and dates, as the wall clock shows them."""
        content = hashlib.sha256(np.ascontiguousarray(self.values, dtype="<f8").data)
        content.update(np.ascontiguousarray(self.begins, dtype="<i8").data)
        content.update("\0".join(self.ids).encode())
        if self.calendar is not None:
            content.update(np.ascontiguousarray(self.first, dtype="<i8").data)
            content.update(self.calendar.tz_localize(None).as_unit("us").asi8.astype("<i8", copy=False).data)
        return content.hexdigest()


def series_numbers(ids: Sequence[str]) -> IntArray:
    """63 bits of the sha256 of each id, [S]; positive. Rows that are added leave a series its number."""
    digests = (hashlib.sha256(b"id\0" + name.encode()).digest() for name in ids)
    return np.array([max(1, int.from_bytes(digest[:8], "big") >> 1) for digest in digests], dtype=np.int64)


def named(ids: Sequence[str], series: Sequence[int] | IntArray) -> str:
    """Some series by their ids, for a message: the first few of them."""
    shown = ", ".join(repr(ids[int(s)]) for s in series[:SHOWN])
    return shown + (f", ... ({len(series)} in all)" if len(series) > SHOWN else "")
