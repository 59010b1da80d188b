"""The days and months that a text names, in the forms in which English texts write them.

Read are ``December 26, 2011`` and its kin (abbreviated, day first, ranges), ``2011-12-26``, ``12/26/2011``
and ``26.12.2011``, ``December 2011``, and, by the year that is nearest to the text's own time,
``December 26``. Words such as Monday or next week are not.
"""

from __future__ import annotations

import calendar
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import date
from typing import Literal, NamedTuple, get_args

Form = Literal["words", "digits", "month", "no_year"]
"""December 26, 2011; 12/26/2011; December 2011; December 26."""
FORMS: tuple[Form, ...] = get_args(Form)
DayOrder = Literal["month_first", "day_first"]
"""How a text writes 4/5/2020: as 5 April or as 4 May."""

_MONTHS = {
    name.lower(): number
    for names in (calendar.month_name, calendar.month_abbr)
    for number, name in enumerate(names)
    if name
} | {"sept": 9}
_MONTH = "(?:" + "|".join(sorted({name.capitalize() for name in _MONTHS}, key=len, reverse=True)) + r")\b\.?"
_DAY = r"(?:0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?(?!\d)"
_YEAR = r"(?:1[89]|20|21)\d{2}\b(?![.,]?\d)"
_TO = r"\s*(?:-|–|—|to|through|until|and|&)\s*"
_WORDS = re.compile(
    rf"\b(?:(?P<month>{_MONTH})\s+(?P<day>{_DAY})"
    rf"(?:{_TO}(?P<month2>{_MONTH})?\s*(?P<day2>{_DAY}))?,?\s+(?P<year>{_YEAR})"
    rf"|(?P<day3>{_DAY})(?:{_TO}(?P<day4>{_DAY}))?\s+(?:of\s+)?(?P<month3>{_MONTH}),?\s+(?P<year3>{_YEAR}))"
)
_DIGITS = re.compile(
    r"(?<![\d/.-])(?:(?P<y>(?:19|20)\d{2})(?P<mark>[-/])(?P<m>\d{1,2})(?P=mark)(?P<d>\d{1,2})"
    r"|(?P<one>\d{1,2})(?P<other>[/.])(?P<two>\d{1,2})(?P=other)(?P<year>(?:19|20)\d{2}|(?<=/)\d{2}))"
    r"(?![\d/-]|\.\d)"
)
_MONTH_YEAR = re.compile(rf"\b(?:(?:mid|early|late)[- ])?(?P<month>{_MONTH}),?\s+(?:of\s+)?(?P<year>{_YEAR})")
_COUNTED = r"(?!\d|\s*(?:%|percent|per\s|cents?\b|inch|points?\b|million|billion|thousand|degrees?|[.,:]\d))"
_NO_YEAR = re.compile(
    rf"\b(?P<month>{_MONTH})\s+(?P<day>{_DAY})(?:{_TO}(?P<month2>{_MONTH})?\s*(?P<day2>{_DAY}))?{_COUNTED}"
)
_SEASON = (
    r"(?:(?:mid|early|late)[- ]?)?(?:spring|summer|autumn|winter)(?:time)?"
    r"|fall(?=\s+(?:of\s+\d|season|semester|\d{4}))"
    r"|(?<=\bthis )fall|(?<=\blast )fall|(?<=\bnext )fall|(?<=\bin the )fall|(?<=\bin )fall"
)
_STRUCK = re.compile(
    rf"\b(?:{_SEASON}|(?:first|second|third|fourth|last|next)\s+quarter|Q[1-4]|[1-4]Q|weeks?\s+\d{{1,2}}"
    r"|(?:mon|tues|wednes|thurs|fri|satur|sun)days?)\b"
    r"|(?<![\w.,$€£])(?:1[89]|20|21)\d{2}s?(?:\s*[-–/]\s*\d{2,4})?\b(?![.,]?\d)",
    re.IGNORECASE,
)
_BARE_MONTH = re.compile(
    r"\b(?:(?:mid|early|late)[- ])?(?:"
    + "|".join(n for n in calendar.month_name if n not in ("", "May", "March"))
    + r"|(?:Jan|Feb|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?|(?<![.!?]\s)(?<!^)(?:May|March))\b",
)
_BLANKS = re.compile(r"[ \t]{2,}")


class NamedDay(NamedTuple):
    """A day that a text names; of a range the last, of a month the first."""

    day: date
    form: Form
    begin: int
    """Where its words stand in the text."""
    end: int


def named_days(text: str, *, near: date, order: DayOrder | None = None) -> list[NamedDay]:
    """The days that a text names, in the order of the text; each piece of the text is read once.

    Args:
        text: in English.
        near: the text's own day, which decides on years that are not written or have two digits.
        order: how days in digits are read where both are possible; where None such days are passed over.
    """
    found: list[NamedDay] = []
    readers = (_in_words(text), _in_digits(text, near, order), _months(text), _without_year(text, near))
    for reader in readers:
        for one in reader:
            if all(one.end <= other.begin or one.begin >= other.end for other in found):
                found.append(one)
    return sorted(found, key=lambda one: one.begin)


def day_order(texts: Iterable[str]) -> DayOrder | None:
    """How these texts write days in digits, by those that can be read in one way; None where none can."""
    seen: Counter[DayOrder] = Counter()
    for text in texts:
        for match in _DIGITS.finditer(text):
            if match["one"]:
                one, two = int(match["one"]), int(match["two"])
                if one <= 12 < two <= 31:
                    seen["month_first"] += 1
                elif two <= 12 < one <= 31:
                    seen["day_first"] += 1
    return next(iter(seen)) if len(seen) == 1 else None


def without_dates(text: str) -> str:
    """The text without what tells its time: days, months, weekdays, seasons, quarters, weeks and years.

    Every other number stays.
    """
    for pattern in (_WORDS, _DIGITS, _MONTH_YEAR, _NO_YEAR, _STRUCK, _BARE_MONTH):
        text = pattern.sub(" ", text)
    return _BLANKS.sub(" ", text).strip()


def _in_words(text: str) -> Iterator[NamedDay]:
    for match in _WORDS.finditer(text):
        if match["year"]:
            month, day, year = match["month2"] or match["month"], match["day2"] or match["day"], match["year"]
        else:
            month, day, year = match["month3"], match["day4"] or match["day3"], match["year3"]
        yield from _made(match, "words", int(year), _month(month), _number(day))


def _in_digits(text: str, near: date, order: DayOrder | None) -> Iterator[NamedDay]:
    for match in _DIGITS.finditer(text):
        if match["y"]:
            yield from _made(match, "digits", int(match["y"]), int(match["m"]), int(match["d"]))
            continue
        one, two, year = int(match["one"]), int(match["two"]), int(match["year"])
        if year < 100:
            year += 100 * round((near.year - year) / 100)
        own: DayOrder | None = "day_first" if one > 12 or match["other"] == "." else None
        own = "month_first" if two > 12 else own
        if one == two:
            own = "month_first"
        if (own or order) is not None:
            month, day = (one, two) if (own or order) == "month_first" else (two, one)
            yield from _made(match, "digits", year, month, day)


def _months(text: str) -> Iterator[NamedDay]:
    for match in _MONTH_YEAR.finditer(text):
        yield from _made(match, "month", int(match["year"]), _month(match["month"]), 1)


def _without_year(text: str, near: date) -> Iterator[NamedDay]:
    for match in _NO_YEAR.finditer(text):
        month, day = _month(match["month2"] or match["month"]), _number(match["day2"] or match["day"])
        years = (near.year, near.year - 1, near.year + 1)
        around = [one for year in years for one in _made(match, "no_year", year, month, day)]
        if around:
            yield min(around, key=lambda one: abs(one.day - near))


def _made(match: re.Match[str], form: Form, year: int, month: int, day: int) -> Iterator[NamedDay]:
    """The day, where there is one."""
    if 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]:
        yield NamedDay(date(year, month, day), form, match.start(), match.end())


def _month(word: str) -> int:
    return _MONTHS[word.rstrip(".").lower()]


def _number(text: str) -> int:
    return int(text.rstrip("stndrh"))
