"""Settings under which every choice, and most pairs of choices, are taken in a few runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

Row = dict[str, Any]
Pair = frozenset[tuple[str, int]]


def pairwise(
    choices: Mapping[str, Sequence[Any]], count: int, *, accepted: Callable[[Row], bool] = lambda row: True
) -> list[Row]:
    """``count`` rows of one choice for each name, drawn so that choices are taken equally often.

    Among equally rare choices the one with most pairs that no earlier row has is taken; one that makes a row
    which is not ``accepted`` is passed over, and where all are, the row goes without this name.
    """
    draw = random.Random(0)
    times = {(name, i): 0 for name, values in choices.items() for i in range(len(values))}
    met: set[Pair] = set()
    rows = []
    for _ in range(count):
        row: Row = {}
        taken: list[tuple[str, int]] = []
        for name in draw.sample(sorted(choices), len(choices)):
            values = choices[name]
            fitting = [(name, i) for i, value in enumerate(values) if accepted({**row, name: value})]
            if fitting:
                new = {c: sum(frozenset((c, other)) not in met for other in taken) for c in fitting}
                best = min(fitting, key=lambda choice: (times[choice], -new[choice], draw.random()))
                row[name] = values[best[1]]
                times[best] += 1
                taken.append(best)
        met |= {frozenset(pair) for pair in combinations(taken, 2)}
        rows.append(row)
    return rows
