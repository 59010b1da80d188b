"""Numbers that stand for something else, and columns that say nothing: told, never changed.

Shape legend: T rows, N variables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
_NINES = re.compile(r"-?9{2,}(\.9+)?")
FILL_VALUES = frozenset({-32768.0, 32767.0, 65535.0, -2147483648.0, 2147483647.0, 1e20, -1e20, 1e30, -1e30})
"""What formats of numbers have at their end, and what climate files fill gaps with."""
UNMISTAKABLE = 999.0
"""Nines from here on are told even where there is one of them."""
OUTERMOST = 3
"""Values on either side of a column that are looked at."""
OFTEN, APART, VARIED = 3, 3.0, 10
"""Any other value is told where it stands so often, so many times the others' whole range away from them, and
they take so many values: two levels of a switch are data."""


class Sentinel(NamedTuple):
    """A value that seems to mark missing numbers."""

    column: str
    value: float
    times: int
    """How often it stands there."""
    rows: int
    """Of the whole column."""
    low: float
    """The others lie from here."""
    high: float

    @property
    def text(self) -> str:
        """What there is to say of it, in a line."""
        stands = "stands in 1 row" if self.times == 1 else f"stands in {self.times} rows"
        return (
            f"column {self.column!r}: the value {self.value:.10g} {stands} of {self.rows}, far outside the "
            f"others ({self.low:g} to {self.high:g}), and is taken as it is; if it marks missing numbers, "
            "leave these cells empty and say --fill_missing interpolate"
        )


def sentinels(values: FloatArray, columns: Sequence[str]) -> list[Sentinel]:
    """The values of finite ``values`` [T, N] that seem to mark missing numbers, by column.

    A row of nines (-9999, 999.9, ...) or another usual fill value, or any value that is repeated exactly,
    which lies further from all others than these from each other.
    """
    return [found for place, name in enumerate(columns) for found in _of_column(values[:, place], name)]


def _of_column(values: FloatArray, name: str) -> Iterator[Sentinel]:
    different, counts = np.unique(values, return_counts=True)
    outer = sorted(
        {*range(min(OUTERMOST, len(different))), *range(max(0, len(different) - OUTERMOST), len(different))}
    )
    usual = {place: _is_usual(float(different[place]), int(counts[place])) for place in outer}
    suspects = [place for place in outer if usual[place] or counts[place] >= OFTEN]
    rest = np.delete(different, suspects)
    if not len(rest) or not suspects:
        return
    low, high = float(rest[0]), float(rest[-1])
    for place in suspects:
        value = float(different[place])
        away = max(low - value, value - high)
        enough = 1.0 if usual[place] else APART
        if away > enough * (high - low) and (usual[place] or len(rest) >= VARIED) and away > 0:
            yield Sentinel(name, value, int(counts[place]), len(values), low, high)


def _is_usual(value: float, count: int) -> bool:
    """Whether files are known to mark missing numbers so."""
    nines = bool(_NINES.fullmatch(f"{value:.10g}"))
    return value in FILL_VALUES or (nines and (abs(value) >= UNMISTAKABLE or count > 1))


class Constant(NamedTuple):
    """A column that does not change in the training part."""

    column: str
    value: float
    changes_at: int | None
    """The first row at which it is another, or None."""

    @property
    def text(self) -> str:
        """What there is to say of it, in a line."""
        same = f"column {self.column!r}: is {self.value:g} in every training row"
        if self.changes_at is None:
            return f"{same} and after: its forecast is trivial, and lowers the mean errors"
        return (
            f"{same} and changes from data row {self.changes_at + 1} on: nothing could be learnt of it, its "
            "errors are in its own units, and the mean errors may be its alone; leave the column out, or "
            "read by_variable in results.json"
        )


def constants(values: FloatArray, columns: Sequence[str], *, trained: int) -> list[Constant]:
    """The columns of ``values`` [T, N] that do not change in their first ``trained`` rows."""
    found = []
    for place, name in enumerate(columns):
        column = values[:, place]
        if (column[:trained] == column[0]).all():
            other = np.flatnonzero(column != column[0])
            found.append(Constant(name, float(column[0]), int(other[0]) if other.size else None))
    return found
