"""What texts tell before its time: days after they were known, and values of the series not yet known.

A text that names a later day may announce it (a strike on Monday) or have been written after it: examples
are there to be read. Values are looked for as they are printed, against the count for shuffled dates.

Shape legend: K texts, T rows of the series, D numbers of all texts that stand in the series somewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from data_provider.series import FloatArray
from data_provider.text_dates import FORMS, Form, NamedDay, day_order, named_days
from data_provider.texts import IntArray, Lag, TextTable, first_rows, in_zone_of, passed

AHEAD = 4
"""Rows after a text was known among whose values its numbers are looked for."""
SHUFFLES = 200
DIGITS = 3
"""Digits that a number needs to be looked for: of two, any value is found somewhere."""
QUOTED = 60
"""Characters of a text before and behind what an example shows."""
_NUMBER = re.compile(
    r"(?<![\w.,/-])[-−+]?[$€£]?(?P<whole>\d{1,3}(?:,\d{3})+|\d+)(?P<rest>\.\d+)?(?![\w/]|[.,]\d|-\d)"
    r"(?:\s*(?P<unit>thousand|million|billion|trillion|percent|%))?",
    re.IGNORECASE,
)
_DAY = pd.Timedelta(days=1)


class Number(NamedTuple):
    """A number as a text prints it."""

    value: float
    """Without its sign."""
    half: float
    """Half of its last digit."""
    scales: tuple[float, ...]
    """What a value of the series may have been multiplied by."""
    begin: int
    end: int


class LagCount(NamedTuple):
    """What one lag leaves."""

    lag: Lag
    days: int
    """Texts that name a day later than the time at which they count as known."""
    days_before: int | None
    """Of these, those that a window sees whose last row is before that day; None without a series."""
    values: int | None
    """Texts that state a value of a row later than the time at which they count as known."""
    values_before: int | None
    """Of these, those that a window sees whose last row is before that row."""
    by_chance: float | None
    """Mean of ``values`` where the times of the texts are shuffled."""
    chance_high: float | None
    """What 95 of 100 shuffles do not exceed."""
    p_value: float | None
    """Share of the shuffles, and of what was found, with as many or more."""


class Example(NamedTuple):
    """A text that tells what was not yet known, at lag 0."""

    known: str
    told: str
    """The day that it names, or the row's time and value."""
    quote: str


@dataclass(frozen=True)
class TextAudit:
    """What was found in a table of texts."""

    name: str
    texts: int
    first: str
    last: str
    forms: Mapping[Form, tuple[int, int]]
    """Texts that name a day in this form, and a later one than the time at which they were known."""
    named: int
    """Texts that name a day or month."""
    shuffled_days: float
    """Mean of how many would name a later one if times were shuffled."""
    lateness: Mapping[int, int]
    """Days by which the latest day that a text names is later: how many texts."""
    lags: tuple[LagCount, ...]
    day_examples: tuple[Example, ...]
    value_examples: tuple[Example, ...]

    @property
    def gone(self) -> int:
        """The lag, in days, at which no text names a later day any more."""
        return max(self.lateness, default=0)

    @property
    def line(self) -> str:
        """The counts in one line, at the first of the lags."""
        at = self.lags[0]
        line = (
            f"{self.name}: {at.days} of {self.named} texts that name a day name a later one (lag: {at.lag})"
        )
        if at.days_before is not None:
            line += f" ({at.days_before} of them reach a window before it)"
        if at.values is not None:
            line += f"; {at.values} state a value that was not known (by chance {at.by_chance:.1f})"
        return line

    def as_json(self) -> dict[str, Any]:
        """Everything, for machines."""
        return {
            "name": self.name,
            "texts": self.texts,
            "first": self.first,
            "last": self.last,
            "named": self.named,
            "late": sum(self.lateness.values()),
            "forms": {form: {"named": n, "late": late} for form, (n, late) in self.forms.items()},
            "shuffled_days": self.shuffled_days,
            "lateness_days": {str(days): count for days, count in self.lateness.items()},
            "gone_at_days": self.gone,
            "lags": [{**at._asdict(), "lag": str(at.lag)} for at in self.lags],
            "examples": {
                "days": [one._asdict() for one in self.day_examples],
                "values": [one._asdict() for one in self.value_examples],
            },
        }


class Rows(NamedTuple):
    """A series to hold texts against."""

    dates: pd.DatetimeIndex
    """[T], which do not go back."""
    values: FloatArray
    """[T]; NaN where there is none."""


def audit_texts(
    table: TextTable,
    rows: Rows | None,
    *,
    lags: Sequence[Lag],
    ahead: int = AHEAD,
    shuffles: int = SHUFFLES,
    examples: int = 5,
    seed: int = 0,
) -> TextAudit:
    """Look for what the texts tell before its time.

    Args:
        table: of K texts.
        rows: the series; without one only days are looked for, and no lag may be of rows.
        lags: one or more, to count what each leaves.
        ahead: rows among whose values numbers are looked for.
        shuffles: of the texts' times, for what is found by chance.
        examples: of each kind at most.
        seed: of the shuffles.
    """
    assert lags and (rows is not None or all(lag.unit == "days" for lag in lags))
    known = table.known
    known = (known if rows is None else in_zone_of(known, rows.dates, table.name)).tz_localize(None)
    order = day_order(table.texts)
    days = known.normalize()
    named: list[list[NamedDay]] = []
    numbers: list[list[Number]] = []
    for text, day in tqdm(
        zip(table.texts, days, strict=True), total=len(table), desc="texts", unit="text", disable=None
    ):
        named.append(named_days(text, near=day.date(), order=order))
        numbers.append([] if rows is None else _numbers(text, named[-1]))
    latest = _days([max((one.day for one in own), default=None) for own in named])  # [K]
    there = latest > np.iinfo(np.int64).min
    day_numbers = _days([day.date() for day in days])
    forms = {form: _of_form(named, form, day_numbers) for form in FORMS}
    late = np.where(there, latest - day_numbers, 0)
    found = _Stated.of(numbers, rows) if rows is not None else None
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(len(table)) for _ in range(shuffles)]
    by_days, counts = np.unique(late[late > 0], return_counts=True)
    return TextAudit(
        name=table.name,
        texts=len(table),
        first=str(known[0]),
        last=str(known[-1]),
        forms=forms,
        named=int(there.sum()),
        shuffled_days=_mean([int((there & (latest > day_numbers[p])).sum()) for p in shuffled]),
        lateness=dict(zip(by_days.tolist(), counts.tolist(), strict=True)),
        lags=tuple(
            _at_lag(lag, table, rows, late=late, latest=latest, found=found, ahead=ahead, shuffled=shuffled)
            for lag in lags
        ),
        day_examples=_day_examples(table, known, named, examples),
        value_examples=_value_examples(table, known, rows, found, ahead, examples),
    )


def _of_form(named: Sequence[Sequence[NamedDay]], form: Form, days: IntArray) -> tuple[int, int]:
    """Texts that name a day in this form, and those that name a later one."""
    latest = _days([max((one.day for one in own if one.form == form), default=None) for own in named])
    return int((latest > np.iinfo(np.int64).min).sum()), int((latest > days).sum())


def _at_lag(
    lag: Lag,
    table: TextTable,
    rows: Rows | None,
    *,
    late: IntArray,
    latest: IntArray,
    found: _Stated | None,
    ahead: int,
    shuffled: Sequence[IntArray],
) -> LagCount:
    """What this lag leaves."""
    if rows is None or found is None:
        wait = np.where(table.published.notna(), 0, lag.amount)
        return LagCount(lag, int((late > wait).sum()), None, None, None, None, None, None)
    known = _known_at(table, rows.dates, lag)
    is_late = latest > _days([day.date() for day in known.tz_localize(None).normalize()])
    first = first_rows(table, rows.dates, lag=lag)  # [K]
    row_days = _days([day.date() for day in rows.dates])
    seen = (first < len(row_days)) & (row_days[np.clip(first, 0, len(row_days) - 1)] < latest)
    after = _rows_after(rows.dates, known)
    stated = found.texts(after, ahead)
    chance = [int(found.texts(after[p], ahead).sum()) for p in shuffled]
    as_many = sum(count >= int(stated.sum()) for count in chance)
    return LagCount(
        lag,
        int(is_late.sum()),
        int((is_late & seen).sum()),
        int(stated.sum()),
        int((stated & found.texts(np.maximum(first, -1) + 1, ahead)).sum()),
        _mean(chance),
        float(np.quantile(chance, 0.95)) if chance else 0.0,
        (1 + as_many) / (1 + len(chance)),
    )


def _known_at(table: TextTable, dates: pd.DatetimeIndex, lag: Lag) -> pd.DatetimeIndex:
    """[K] when the texts count as known: of a lag of rows, as much later as those rows are apart there."""
    end, published = (in_zone_of(t, dates, table.name).as_unit("us") for t in (table.end, table.published))
    if lag.unit == "days":
        later = end + lag.amount * _DAY
    else:
        most = len(dates) - 1
        row = np.searchsorted(dates.as_unit("us").asi8, end.asi8)
        last = np.clip(row + lag.amount, min(lag.amount, most), most)
        later = end + (dates[last] - dates[np.maximum(last - lag.amount, 0)])
    return published.where(published.notna(), later)


def _rows_after(dates: pd.DatetimeIndex, known: pd.DatetimeIndex) -> IntArray:
    """[K] the first row later than each of these times; a day ends at its end."""
    times = passed(known, dates).as_unit("us").asi8
    return np.searchsorted(dates.as_unit("us").asi8, times, side="right").astype(np.int64)


class _Stated(NamedTuple):
    """Where in the series the numbers of the texts stand: D numbers, each in some rows."""

    owner: IntArray
    """[D] the text of each number."""
    keys: IntArray
    """Ascending: number * stride + row, of each row whose value it is."""
    stride: int
    numbers: tuple[Number, ...]
    """[D]."""
    of_texts: int
    """K."""

    @classmethod
    def of(cls, numbers: Sequence[Sequence[Number]], rows: Rows) -> _Stated:
        """The numbers that are a value of the series as printed."""
        size = np.abs(rows.values)
        order = np.argsort(size)
        ascending = size[order]  # NaN last
        owner: list[int] = []
        kept: list[Number] = []
        keys: list[IntArray] = []
        stride = 2 * len(size) + 2
        for text, own in enumerate(numbers):
            for number in own:
                at = [_between(ascending, number, scale) for scale in number.scales]
                places = np.unique(np.concatenate([order[low:high] for low, high in at]))
                if len(places):
                    keys.append(len(kept) * stride + places)
                    owner.append(text)
                    kept.append(number)
        flat = np.concatenate(keys) if keys else np.zeros(0, dtype=np.int64)
        return cls(np.array(owner, dtype=np.int64), flat, stride, tuple(kept), len(numbers))

    def texts(self, after: IntArray, ahead: int) -> NDArray[np.bool_]:
        """[K] whether a text states a value of the rows ``after`` [K] and on, and none of those before."""
        found = np.zeros(self.of_texts, dtype=bool)
        found[self.owner[self.hits(after, ahead)]] = True
        return found

    def hits(self, after: IntArray, ahead: int) -> NDArray[np.bool_]:
        """[D] of its numbers, whether it is a value of those rows and of none of as many before them."""
        row = after[self.owner]
        begin = np.arange(len(self.owner)) * self.stride
        low, middle, high = (
            np.searchsorted(self.keys, begin + np.clip(row + step, 0, self.stride - 1))
            for step in (-ahead, 0, ahead)
        )
        return (high > middle) & (middle == low)

    def row_of(self, number: int, after: int) -> int:
        """The first row from ``after`` on that is this number."""
        place = np.searchsorted(self.keys, number * self.stride + after)
        return int(self.keys[place]) - number * self.stride


def _between(ascending: FloatArray, number: Number, scale: float) -> tuple[int, int]:
    """Where the values stand that are printed so."""
    reach = number.half * (1 + 1e-9)
    low = np.searchsorted(ascending, (number.value - reach) / scale, side="left")
    return int(low), int(np.searchsorted(ascending, (number.value + reach) / scale, side="right"))


def _numbers(text: str, days: Sequence[NamedDay]) -> list[Number]:
    """The numbers of a text with digits enough, those of its dates and years left out."""
    found = []
    for match in _NUMBER.finditer(text):
        if any(match.start() < day.end and match.end() > day.begin for day in days):
            continue
        whole, rest = match["whole"].replace(",", ""), match["rest"] or ""
        unit = (match["unit"] or "").lower()
        is_year = (
            not rest and not unit and len(whole) == 4 and 1800 <= int(whole) < 2200 and "," not in match[0]
        )
        digits = (whole + rest[1:]).lstrip("0") if rest else whole.lstrip("0").rstrip("0")
        if is_year or len(digits) < DIGITS:
            continue
        decimals = max(0, len(rest) - 1)
        scales: tuple[float, ...] = (1.0,)
        if unit in ("percent", "%"):
            scales = (1.0, 100.0)
        elif unit:
            scales = (1.0, 1e-3, 1e-6, 1e-9, 1e-12)
        found.append(Number(float(whole + rest), 0.5 * 10.0**-decimals, scales, match.start(), match.end()))
    return found


def _days(days: Sequence[date | None]) -> IntArray:
    """Days as numbers; the least one for none."""
    none = np.iinfo(np.int64).min
    return np.array([none if day is None else day.toordinal() for day in days], dtype=np.int64)


def _mean(counts: Sequence[int]) -> float:
    return float(np.mean(counts)) if counts else 0.0


def _spread(places: IntArray, count: int) -> list[int]:
    """So many of them at most, evenly."""
    if len(places) <= count:
        return [int(p) for p in places]
    return [int(places[i]) for i in np.linspace(0, len(places) - 1, count).round().astype(int)]


def _day_examples(
    table: TextTable, known: pd.DatetimeIndex, named: Sequence[Sequence[NamedDay]], count: int
) -> tuple[Example, ...]:
    late = [i for i, own in enumerate(named) if own and max(one.day for one in own) > known[i].date()]
    shown = []
    for i in _spread(np.array(late, dtype=np.int64), count):
        one = max(named[i], key=lambda day: day.day)
        shown.append(Example(_time_text(known[i]), str(one.day), _quote(table.texts[i], one.begin, one.end)))
    return tuple(shown)


def _value_examples(
    table: TextTable,
    known: pd.DatetimeIndex,
    rows: Rows | None,
    found: _Stated | None,
    ahead: int,
    count: int,
) -> tuple[Example, ...]:
    if rows is None or found is None:
        return ()
    after = _rows_after(rows.dates.tz_localize(None), known)
    shown = []
    for i in _spread(np.flatnonzero(found.hits(after, ahead)), count):
        text, number = int(found.owner[i]), found.numbers[i]
        row = found.row_of(i, int(after[text]))
        told = f"{rows.values[row]:.10g} at {_time_text(rows.dates[row])}"
        shown.append(
            Example(_time_text(known[text]), told, _quote(table.texts[text], number.begin, number.end))
        )
    return tuple(shown)


def _time_text(time: pd.Timestamp) -> str:
    return str(time.date() if time == time.normalize() else time)


def _quote(text: str, begin: int, end: int) -> str:
    """What stands around a place, in one line."""
    before, behind = max(0, begin - QUOTED), end + QUOTED
    quote = " ".join(text[before:behind].split())
    return ("..." if before else "") + quote + ("..." if behind < len(text) else "")
