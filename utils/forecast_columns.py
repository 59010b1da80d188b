"""What the columns of a forecast's table are called, and which variables' names would collide with them."""

from __future__ import annotations

import re
from collections.abc import Sequence

DATE, ORIGIN = "date", "origin"
"""The time of a row, and the last known one before its forecast."""
TRUE, WHAT_IF = "_true", "_what_if"
_BOUND = re.compile(r"(.*)_(?:(?:lo|hi)_|q)\d+(?:\.\d+)?", re.DOTALL)


def percent(level: float) -> str:
    """How columns name a level: 80, 97.5."""
    return f"{100 * level:g}"


def truth_column(name: str) -> str:
    """The column of what came true of a variable."""
    return f"{name}{TRUE}"


def what_if_column(name: str) -> str:
    """The column of a variable's forecast under other texts."""
    return f"{name}{WHAT_IF}"


def bound_column(name: str, side: str, level: float) -> str:
    """The column of a variable's interval; ``side`` is lo or hi."""
    return f"{name}_{side}_{percent(level)}"


def quantile_column(name: str, quantile: float) -> str:
    """The column of a variable's quantile."""
    return f"{name}_q{percent(quantile)}"


def reserved(targets: Sequence[str]) -> dict[str, str]:
    """Those of the variables' names that a forecast's own columns have, each with what that column holds."""
    names, found = set(targets), {}
    for name in targets:
        bound = _BOUND.fullmatch(name)
        if name in (DATE, ORIGIN):
            found[name] = "the times"
        elif name.endswith(TRUE) and name.removesuffix(TRUE) in names:
            found[name] = f"the truth of {name.removesuffix(TRUE)}"
        elif bound and bound[1] in names:
            found[name] = f"the intervals of {bound[1]}"
    return found
