"""Settings under which all pairs of choices, or all choices, are taken in few runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

import pytest

Row = dict[str, Any]
Choice = tuple[str, int]
"""A name and the number of one of its values."""


def pairwise(
    choices: Mapping[str, Sequence[Any]],
    *,
    count: int | None = None,
    accepted: Callable[[Row], bool] = lambda row: True,
) -> list[Row]:
    """Rows of one choice for each name in which any two choices meet; or ``count`` rows of as many as can.

    Those of a given number take all choices of a name equally often. A choice that makes a row which is not
    ``accepted`` is passed over; where all are, the row goes without this name.
    """
    draw = random.Random(0)
    times = {(name, i): 0 for name, values in choices.items() for i in range(len(values))}
    missing = {(a, b) for a, b in combinations(sorted(times), 2) if a[0] != b[0]}
    rows: list[Row] = []
    while missing if count is None else len(rows) < count:
        taken: list[Choice] = [] if count is not None else list(min(missing))
        row: Row = {name: choices[name][i] for name, i in taken}
        for name in draw.sample(sorted(choices.keys() - row.keys()), len(choices) - len(row)):
            values = choices[name]
            fitting = [(name, i) for i, value in enumerate(values) if accepted({**row, name: value})]
            if fitting:
                found = min(
                    fitting, key=lambda c: (times[c] if count else 0, -_new(c, taken, missing), times[c])
                )
                row[name] = values[found[1]]
                times[found] += 1
                taken.append(found)
        missing -= set(combinations(sorted(taken), 2))
        rows.append(row)
    return rows


def _new(choice: Choice, taken: list[Choice], missing: Collection[tuple[Choice, Choice]]) -> int:
    """How many pairs with those of the row are still missing."""
    return sum((min(choice, other), max(choice, other)) in missing for other in taken)


def each_pair(*, fixture: str | None = None, **choices: Sequence[Any]) -> pytest.MarkDecorator:
    """A test for rows in which any two choices meet; those of ``fixture`` are what it is asked with."""
    rows = [tuple(row[name] for name in choices) for row in pairwise(choices)]
    return pytest.mark.parametrize(tuple(choices), rows, indirect=[fixture] if fixture else [])
