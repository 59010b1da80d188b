"""What dated texts tell before its time: ``python scripts/text_audit.py texts.csv --series series.csv``.

Counted are texts that name a day after they were known, and texts that state a value of the series that was
not known yet (as printed, against the count for shuffled dates); with examples, and what each lag leaves.
Exit status 2 where a user can mend what is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_provider.dates import DateRules
from data_provider.series import read_rows
from data_provider.text_files import read_texts
from data_provider.text_leaks import AHEAD, SHUFFLES, Example, LagCount, Rows, TextAudit, audit_texts
from data_provider.texts import Lag, text_lag
from utils.cli import PathFlag
from utils.config import DataConfig
from utils.ending import command
from utils.errors import UserError
from utils.reporting.text_tables import text_table

ROW_LAGS = tuple(Lag(rows, "rows") for rows in (0, 1, 2, 4))
DAY_LAGS = tuple(Lag(days, "days") for days in (0, 1, 3, 7, 14, 31))
FORM_NAMES = {
    "words": "a day in words (December 26, 2011)",
    "digits": "a day in digits (12/26/2011)",
    "month": "a month (December 2011)",
    "no_year": "a day without its year (December 26)",
}


@command(parser=lambda: _parser())
def main(argv: Sequence[str] | None = None) -> int:
    """Audit one file of texts; the exit status."""
    arguments = _parser().parse_args(argv)
    for flag, least in (("ahead", 1), ("shuffles", 1), ("examples", 0)):
        if getattr(arguments, flag) < least:
            raise UserError(f"--{flag}: expected {least} or more, found {getattr(arguments, flag)}")
    lags = [text_lag(word) for word in arguments.text_lag]
    table = read_texts(arguments.file, columns=arguments.text_columns)
    rows = None
    if arguments.series is not None:
        rules = DateRules(date_format=arguments.date_format, time_zone=arguments.time_zone)
        rows = Rows(*read_rows(arguments.series, target=arguments.target, rules=rules))
    elif any(lag.unit == "rows" and lag.amount for lag in lags):
        raise UserError(
            "--text_lag: expected days, such as 7D, or --series FILE to count rows of, found rows"
        )
    else:
        lags = [Lag(lag.amount, "days") for lag in lags]
    audit = audit_texts(
        table,
        rows,
        lags=lags or ([*ROW_LAGS, *DAY_LAGS[1:]] if rows else DAY_LAGS),
        ahead=arguments.ahead,
        shuffles=arguments.shuffles,
        examples=arguments.examples,
    )
    if arguments.json:
        print(json.dumps({**audit.as_json(), "notes": dict(table.notes)}, indent=2))
        return 0
    for note in table.notes.values():
        print(f"{arguments.file}: {note}")
    for line in report(audit, ahead=arguments.ahead):
        print(line)
    return 0


def report(audit: TextAudit, *, ahead: int) -> Iterator[str]:
    """The audit for a reader, line by line."""
    late = sum(audit.lateness.values())
    yield f"{audit.texts} texts, known from {audit.first} to {audit.last}"
    yield ""
    yield text_table(
        ("texts that name", "texts", "of these a later day"),
        [(FORM_NAMES[form], str(n), str(after)) for form, (n, after) in audit.forms.items()]
        + [("any of them", str(audit.named), str(late))],
    )
    yield f"(with shuffled dates {audit.shuffled_days:.1f} would name a later day)"
    yield ""
    yield gone_line(audit)
    yield ""
    yield lag_table(audit.lags)
    if audit.lags[0].values is not None:
        yield (
            "before: a window sees the text, and its last row is before that day or row. "
            f"states a value: of one of the {ahead} rows after, and of none of the {ahead} before; chance: "
            "mean (95%) of shuffled dates, with the share of shuffles that find as many"
        )
    for title, examples in (
        ("name a later day", audit.day_examples),
        ("state a value that is not known yet", audit.value_examples),
    ):
        if examples:
            yield ""
            yield f"texts that {title}, at lag 0:"
            yield from map(example_line, examples)


def gone_line(audit: TextAudit) -> str:
    """From which lag on no text names a later day."""
    late = sum(audit.lateness.values())
    if not late:
        return "no text names a day after it was known"
    days = sorted(audit.lateness)
    shown = days if len(days) <= 6 else [days[i * (len(days) - 1) // 5] for i in range(6)]
    left = [(sum(n for day, n in audit.lateness.items() if day > at), at) for at in shown[:-1]]
    counts = [f"{count} at {Lag(at, 'days')}" for count, at in [(late, 0), *left]]
    return f"texts that name a later day, by lag: {', '.join(counts)}, none at {Lag(audit.gone, 'days')}"


def lag_table(lags: Sequence[LagCount]) -> str:
    """What each lag leaves."""
    if lags[0].values is None:
        return text_table(("lag", "name a later day"), [(str(at.lag), str(at.days)) for at in lags])
    return text_table(
        ("lag", "name a later day", "before", "state a value", "before", "chance"),
        [
            (
                str(at.lag), str(at.days), str(at.days_before), str(at.values), str(at.values_before),
                f"{at.by_chance:.1f} ({at.chance_high:.0f}), p {at.p_value:.3f}",
            )
            for at in lags
        ],
    )  # fmt: skip


def example_line(one: Example) -> str:
    """An example in one line."""
    return f"  known {one.known}, tells {one.told}: {one.quote}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    default = DataConfig()
    add("file", action=PathFlag, kind=Path, metavar="FILE", help="table of texts with their times")
    add("--series", action=PathFlag, kind=Path, metavar="FILE", help="the series that they are about")
    add("--target", default=default.target[0], help="its column [%(default)s]")
    add("--text_columns", nargs="+", default=(), metavar="NAME", help="columns of the texts [text, or fact]")
    add("--text_lag", nargs="+", default=(), metavar="LAG", help="lags to count at: 2 (rows) or 7D [several]")
    add("--date_format", help="how the series' dates are written (default: found)")
    add("--time_zone", help="zone of the series' dates (default: the file's)")
    add("--ahead", type=int, default=AHEAD, help="rows among which values are looked for [%(default)s]")
    add("--shuffles", type=int, default=SHUFFLES, help="of the texts' times, for chance [%(default)s]")
    add("--examples", type=int, default=5, help="of each kind at most [%(default)s]")
    add("--json", action="store_true", help="everything, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
