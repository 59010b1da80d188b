"""Calendar columns of a window: what the time marks of its last known row say, for linear maps.

Shape legend: S windows, F time marks, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

YEARLY_HARMONICS = 4
"""Sines and cosines of the place in the year: as many as separate two months."""


def calendar_width(names: Sequence[str]) -> int:
    """C, the number of columns that marks of these names (`utils.frequency.mark_names`) give."""
    return sum(_WIDTHS[name] for name in names if name in _WIDTHS)


def calendar_columns(marks: Tensor, names: Sequence[str]) -> Tensor:
    """Marks [S, F] in [-0.5, 0.5] to columns [S, C] float32: hour, weekday, month or place in the year.

    Minutes, seconds and days of the month give none.
    """
    given = zip(names, marks.float().unbind(dim=1), strict=True)
    columns = [_COLUMNS[name](mark) for name, mark in given if name in _COLUMNS]
    return torch.cat(columns, dim=1) if columns else marks.new_zeros(len(marks), 0, dtype=torch.float32)


def _one_of(count: int) -> Callable[[Tensor], Tensor]:
    """A column for each of the values 0 to ``count`` - 1 that a mark takes."""

    def columns(mark: Tensor) -> Tensor:
        place = ((mark + 0.5) * (count - 1)).round().long().clamp(0, count - 1)
        return F.one_hot(place, count).float()

    return columns


def _of_year(mark: Tensor) -> Tensor:
    """Harmonics of the place in the year."""
    angles = 2 * math.pi * (mark[:, None] + 0.5) * torch.arange(1, YEARLY_HARMONICS + 1, device=mark.device)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


_WIDTHS = {
    "hour": 24,
    "day_of_week": 7,
    "month": 12,
    "day_of_year": 2 * YEARLY_HARMONICS,
    "week_of_year": 2 * YEARLY_HARMONICS,
}
_COLUMNS: dict[str, Callable[[Tensor], Tensor]] = {
    "hour": _one_of(24),
    "day_of_week": _one_of(7),
    "month": _one_of(12),
    "day_of_year": _of_year,
    "week_of_year": _of_year,
}
