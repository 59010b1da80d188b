"""Learned keys beside raw ones: what each retrieves, and how far that alone is from what came.

Training a key through the forecast has made it worse before: measured on ETTh1, the error of the retrieved
future alone was .4726 by raw keys, .4872 by untrained hybrid ones and .5012 by trained ones.

Shape legend: R windows asked, M memory rows, k neighbours, H horizon.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from layers.retrieval.keys import mean_key, raw_key
from layers.retrieval.search import Candidates, MemoryRows, Queries, Rows, SearchRule, nearest_rows
from utils.types import WindowRows, WindowSource

WINDOWS_ASKED = 512
ROWS_READ = 4096
"""Memory rows whose lookbacks are read at once."""


class KeyComparison(NamedTuple):
    """Over the same training windows, none of which may find itself."""

    learned: float
    """Squared error of the retrieved future alone, standardised units, by the learned keys."""
    raw: float
    """The same by raw keys, whose neighbours weigh the same."""
    common: float
    """Share of the learned keys' neighbours that are the raw ones' too."""

    @property
    def text(self) -> str:
        """For the log."""
        return (
            f"the retrieved future alone errs by {self.learned:.4f} (MSE) with learned keys, {self.raw:.4f} "
            f"with raw ones; {self.common:.0%} of the neighbours in common"
        )


def asked_windows(source: WindowSource) -> WindowRows:
    """At most `WINDOWS_ASKED` training rows, evenly spread."""
    count = min(WINDOWS_ASKED, source.num_rows)
    return source.rows(torch.arange(count) * source.num_rows // count)


def raw_neighbours(
    memory: MemoryRows, asked: WindowRows, source: WindowSource, rule: SearchRule, *, width: int
) -> Candidates:
    """What the memory's rows would give to the windows ``asked`` if raw keys were compared.

    ``width``: rows of a raw key, whose lookbacks are read from ``source``.
    """
    held = Rows(*(column.cpu() for column in memory.places))
    blocks = torch.arange(len(held.start)).split(ROWS_READ)
    lookbacks = (source.lookbacks(**Rows(*(c[rows] for c in held))._asdict()) for rows in blocks)
    keys = torch.cat([raw_key(lookback, width) for lookback in lookbacks]).to(memory.futures.device)
    places = Rows(*(column.to(keys.device) for column in (asked.series_id, asked.variable, asked.start)))
    queries = Queries(raw_key(asked.lookback, width).to(keys), places, asked.future[:, :0])
    memory = memory._replace(keys=keys)
    return nearest_rows(memory, queries, rule, centre=mean_key(keys).float(), weights=keys.new_ones(width))


def error_alone(values: Tensor, weights: Tensor, asked: WindowRows) -> float:
    """Squared error of the weighted mean [R, k] of neighbours' futures [R, k, H], of windows with any."""
    forecast = (weights[..., None] * values).sum(dim=1) + asked.lookback[:, -1:].to(values)
    found = weights.sum(dim=1) > 0
    return float((forecast - asked.future.to(forecast))[found].square().mean())


def shared(one: Tensor, other: Tensor) -> float:
    """Share of the rows [R, k] in ``one`` that are in ``other`` too; missing ones, -1, do not count."""
    present = one >= 0
    both = (one[:, :, None] == other[:, None, :]).any(dim=2) & present
    return float(both.sum() / present.sum().clamp(min=1))
