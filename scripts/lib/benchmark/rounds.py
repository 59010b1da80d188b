"""Cases measured in rounds, and what a list of seconds amounts to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median, quantiles
from typing import Any

from scripts.lib.benchmark.client import Worker

Times = dict[str, list[float]]
"""Seconds of each case, one a round."""


def interleave(
    workers: Mapping[str, Worker], method: str, *, threads: int, rounds: int, budget: float | None = None
) -> Times:
    """One call for each case in turn, round after round, so that noise of the machine hits all alike.

    Args:
        workers: by case.
        method: of their subjects.
        threads: of each.
        rounds: how many, after one that warms up.
        budget: seconds after which no further round is begun; two are always made.
    """
    times: Times = {name: [] for name in workers}
    began = time.perf_counter()
    for turn in range(rounds + 1):
        if budget is not None and turn > 2 and time.perf_counter() - began > budget:
            break
        order = list(workers) if turn % 2 else list(workers)[::-1]  # no case always follows the same one
        for name in order:
            seconds = workers[name].seconds(method, threads)
            if turn:
                times[name].append(seconds)
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) < 2:
        return {"median": values[0], "q1": values[0], "q3": values[0], "n": 1}
    q1, _, q3 = quantiles(values, n=4, method="inclusive")
    return {"median": median(values), "q1": q1, "q3": q3, "n": len(values)}


def compared(times: Times, to: str) -> dict[str, Any]:
    """For each case its seconds and the ratio of ``to``'s in the same round, each as a spread."""
    return {
        name: {
            "seconds": spread(own),
            "ratio": spread([base / mine for base, mine in zip(times[to], own, strict=True)]),
            "rounds": own,
        }
        for name, own in times.items()
    }


def groups(names: Sequence[str], *, anchor: str, most: int) -> Iterator[list[str]]:
    """The names in groups of at most ``most``, ``anchor`` in each: what memory holds at once."""
    others = [name for name in names if name != anchor]
    size = max(1, most - 1)
    for begin in range(0, max(1, len(others)), size):
        yield [anchor, *others[begin : begin + size]]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and what it gave."""
    began = time.perf_counter()
    found = call()
    return time.perf_counter() - began, found
