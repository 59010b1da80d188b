"""Dated texts, and the one place that decides which of them a window may see.

A text is known from its publication on or, where that is not said, from a lag after its end. A window
whose last row is at time t may see the texts known at or before t; nothing known later can reach it,
since each text is read, ordered and judged by itself.

Shape legend: T rows, K texts, R rows asked for, C texts of a window.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_provider.text_dates import without_dates
from utils.errors import UserError

logger = logging.getLogger(__name__)

IntArray = NDArray[np.int64]
TextControl = Literal["none", "shuffled", "constant", "other_series", "undated"]
CONTROLS: tuple[TextControl, ...] = get_args(TextControl)

_LAG = re.compile(r"(\d+)(?:\s*(d|days?|rows?))?", re.IGNORECASE)
_DAY, _TICK = pd.Timedelta(days=1), pd.Timedelta(microseconds=1)


class Lag(NamedTuple):
    """How long after its end a text is known."""

    amount: int
    unit: Literal["rows", "days"]

    def __str__(self) -> str:
        """As it is said in words."""
        return f"{self.amount} {self.unit.removesuffix('s') if self.amount == 1 else self.unit}"


DEFAULT_LAG = Lag(1, "rows")


@dataclass(frozen=True, eq=False)
class TextTable:
    """Texts with their times, in the order in which they were known: of one time by end, start and text."""

    texts: tuple[str, ...]
    """[K], none empty."""
    start: pd.DatetimeIndex
    """[K]; NaT where it is not said."""
    end: pd.DatetimeIndex
    """[K]; NaT where only the publication is said."""
    published: pd.DatetimeIndex
    """[K]; NaT where it is not said."""
    series: tuple[str, ...]
    """[K] names of the series that they are about; empty: of each."""
    name: str = "texts"
    """What messages call it."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What to know of how it was read, by subject."""

    def __len__(self) -> int:
        """K."""
        return len(self.texts)

    @property
    def known(self) -> pd.DatetimeIndex:
        """[K]: the publication, else the end, without any lag."""
        return self.published.where(self.published.notna(), self.end)

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> TextTable:
        """The texts at these places."""
        places = np.arange(len(self))[index].tolist()
        return replace(
            self,
            texts=tuple(self.texts[i] for i in places),
            start=self.start[places],
            end=self.end[places],
            published=self.published[places],
            series=tuple(self.series[i] for i in places),
        )

    def of_series(self, names: Sequence[str]) -> tuple[TextTable, tuple[str, ...]]:
        """The texts of these series and of each, and the names of the others, whose texts are left out."""
        others = tuple(sorted({name for name in self.series if name and name not in names}))
        if others:
            logger.warning(
                "%s: texts of series that this run does not have are left out: %s", self.name, listed(others)
            )
        return self.take(np.array([not s or s in names for s in self.series], dtype=bool)), others


def text_lag(word: str) -> Lag:
    """A lag as it is written: ``2`` or ``2 rows``, ``7D`` or ``7 days``.

    Raises:
        UserError: it is none.
    """
    match = _LAG.fullmatch(word.strip())
    if match is None:
        raise UserError(
            f"--text_lag: expected a number of rows, such as 1, or of days, such as 7D, found {word!r}"
        )
    return Lag(int(match[1]), "days" if (match[2] or "").lower().startswith("d") else "rows")


class Seen(NamedTuple):
    """Which texts windows see, oldest to newest."""

    texts: IntArray
    """[R, C] places in the table; -1 before the first where there are fewer."""
    ages: IntArray
    """[R, C] rows since a window could first see them; -1 where there is none."""


@dataclass(frozen=True, eq=False)
class VisibleTexts:
    """Which texts of a table a window may see: the one place that decides it."""

    order: IntArray
    """[K] places in the table, in the order in which windows come to see them."""
    first_rows: IntArray
    """[K] the first row, along ``order``, whose windows may see the text; below 0 before the series."""
    count: int
    """How many a window sees at most, the latest ones."""

    def at(self, rows: Sequence[int] | IntArray) -> Seen:
        """What the windows see whose last rows are these [R], none beyond the series."""
        last = np.asarray(rows, dtype=np.int64)
        known = np.searchsorted(self.first_rows, last, side="right")
        places = known[:, None] + np.arange(-self.count, 0)  # [R, C]
        there = places >= 0
        places = np.maximum(places, 0)
        if not len(self.order):
            return Seen(*(np.full(places.shape, -1, dtype=np.int64) for _ in range(2)))
        places = np.minimum(places, len(self.order) - 1)
        ages = last[:, None] - self.first_rows[places]
        return Seen(np.where(there, self.order[places], -1), np.where(there, ages, -1))


def visible_texts(
    table: TextTable,
    dates: pd.DatetimeIndex,
    *,
    lag: Lag = DEFAULT_LAG,
    count: int,
    series: str | None = None,
) -> VisibleTexts:
    """Which texts the windows of a series see.

    Published texts are seen from the first row at or after their publication on. Of the others, with a lag
    of days, from the first row at or after their end and the lag on; with a lag of k rows, by windows of
    which the row k before the last is at or after their end. Where rows are less than a day apart, a time
    at midnight is a day, which has passed a day later.

    Args:
        table: of K texts.
        dates: [T] of the rows, which do not go back.
        lag: of the texts without a publication.
        count: C, 1 or more.
        series: whose texts, beside those of each series; all texts where None.

    Raises:
        UserError: a count below 1, or times of a zone for rows without one.
    """
    if count < 1:
        raise UserError(f"text_count: expected 1 or more, found {count}")
    own = np.array([series is None or not s or s == series for s in table.series], dtype=bool)
    first = first_rows(table, dates, lag=lag)[own]
    places = np.flatnonzero(own)
    order = np.argsort(first, kind="stable")
    return VisibleTexts(places[order].astype(np.int64), first[order], count)


def first_rows(table: TextTable, dates: pd.DatetimeIndex, *, lag: Lag) -> IntArray:
    """[K] the first row of which a window may see each text, as `visible_texts` says."""
    rows = dates.as_unit("us").asi8
    assert len(rows) and (np.diff(rows) >= 0).all(), "rows in the order of time"
    step = _step(dates)
    is_published = table.published.notna()
    times = {
        name: passed(in_zone_of(getattr(table, name), dates, table.name), dates)
        for name in ("published", "end")
    }
    if lag.unit == "days":
        times["end"] = times["end"] + lag.amount * _DAY
    known = times["published"].where(is_published, times["end"]).as_unit("us").asi8
    first = np.searchsorted(rows, known, side="left").astype(np.int64)
    before = known < rows[0]
    first[before] = -((rows[0] - known[before]) // step)
    if lag.unit == "rows":
        first[~is_published] += lag.amount
    return first


def in_zone_of(times: pd.DatetimeIndex, dates: pd.DatetimeIndex, name: str) -> pd.DatetimeIndex:
    """Times in the zone of the rows' dates; an hour that comes twice is the later one.

    Raises:
        UserError: they have a zone, and the dates none.
    """
    if times.tz is None:
        return times if dates.tz is None else times.tz_localize(
            dates.tz, ambiguous=np.zeros(len(times), dtype=bool), nonexistent="shift_forward"
        )  # fmt: skip
    if dates.tz is None:
        raise UserError(
            f"{name}: expected times without a distance from UTC, as the series' are, found times of "
            f"{times.tz}; name the zone of the series' dates with --time_zone, such as --time_zone UTC"
        )
    return times.tz_convert(dates.tz)


def passed(times: pd.DatetimeIndex, dates: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """Days as the midnight after them, where rows are less than a day apart."""
    if _step(dates) >= _DAY // _TICK:
        return times
    return times.where(times != times.normalize(), times + _DAY)


def _step(dates: pd.DatetimeIndex) -> int:
    """Microseconds between rows, the middle one of all."""
    return int(np.median(np.diff(dates.as_unit("us").asi8))) if len(dates) > 1 else _DAY // _TICK


def controlled(table: TextTable, control: TextControl, *, seed: int) -> TextTable:
    """The table as a control has it: the same times, other texts.

    ``shuffled`` gives each text's place to another text of its series, ``constant`` gives all of them to the
    first, ``other_series`` gives each series another one's texts with their times, ``undated`` strikes
    from each text what tells its time.

    Raises:
        UserError: ``other_series`` where there are texts of one series only.
    """
    if control == "none":
        return table
    if control == "constant":
        return replace(table, texts=table.texts[:1] * len(table))
    if control == "undated":
        return replace(table, texts=tuple(without_dates(text) or "-" for text in table.texts))
    rng = np.random.default_rng(seed)
    names = sorted({name for name in table.series if name})
    if control == "shuffled":
        texts = np.array(table.texts, dtype=object)
        for name in ("", *names):
            own = np.array([i for i, s in enumerate(table.series) if s == name], dtype=np.int64)
            cycle = rng.permutation(own)
            texts[cycle] = texts[np.roll(cycle, 1)]  # one cycle: none keeps its place
        return replace(table, texts=tuple(texts))
    if len(names) < 2:
        raise UserError(
            "text_control other_series: expected texts of two series or more, told apart by a column "
            f"series, found {len(names)}; use shuffled"
        )
    order = rng.permutation(names)
    others = dict(zip(order, np.roll(order, 1), strict=True))
    return replace(table, series=tuple(str(others.get(s, s)) for s in table.series))


def listed(names: Sequence[object]) -> str:
    """The first names, for a message."""
    shown = ", ".join(str(n) or "''" for n in names[:12])
    return shown + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
