"""What followed the training windows most like a window: retrieval without a weight that is learned.

Neighbours weigh the same, and are those of the window's own variable. The shape compared is the raw one of
`layers.retrieval.keys.raw_key`; overlapping windows are never found (`layers.retrieval.search.admissible`).

Shape legend: S queries, M memory rows, K rows of a key, L lookback, H horizon, F kinds of neighbours.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from layers.retrieval.keys import raw_key, raw_width
from layers.retrieval.memory import make_room
from layers.retrieval.search import Rows, admissible
from utils.types import WindowSource

MOST_ROWS = 100_000
"""More training rows are thinned evenly to so many."""
FILLED_AT_ONCE = 4096
SEARCHED_AT_ONCE = 512
"""Queries whose distances to all rows of their variable are there at once."""
COLUMNS = ("keys", "futures", "series", "variable", "start")
"""What a row of the memory is made of."""


class Kind(NamedTuple):
    """Which neighbours are averaged."""

    neighbours: int
    same_phase: bool
    """Whether they begin at the query's place in the season; asked of windows of a known series alone."""


KINDS = (Kind(50, False), Kind(32, True))
"""Source: measured on ETTh1 and ETTh2, where the average of both needs no choice between them."""


class RetrievedFutures(nn.Module):
    """Lookbacks [S, L] to the mean of what followed their neighbours, [S, F, H], standardised units."""

    keys: Tensor
    futures: Tensor
    series: Tensor
    variable: Tensor
    start: Tensor
    squares: Tensor
    known: Tensor

    def __init__(self, *, seq_len: int, horizon: int, season: int) -> None:
        """An empty memory; `fill` fills it. The key spans seven seasons, or the lookback."""
        super().__init__()
        self.span, self.season = seq_len + horizon, season
        self.width = raw_width(season, seq_len)
        self.register_buffer("keys", torch.empty(0, self.width))
        self.register_buffer("futures", torch.empty(0, horizon))
        for name in COLUMNS[2:]:
            self.register_buffer(name, torch.empty(0, dtype=torch.int64))
        for name in ("squares", "known"):
            self.register_buffer(name, torch.empty(0), persistent=False)
        self._derive()

    @torch.no_grad()
    def fill(self, source: WindowSource) -> None:
        """Remember every training row, of more than `MOST_ROWS` so many at even distances."""
        count = min(source.num_rows, MOST_ROWS)
        chosen = torch.arange(count) * source.num_rows // count
        blocks = [source.rows(index) for index in chosen.split(FILLED_AT_ONCE)]
        order = torch.cat([block.variable for block in blocks]).argsort(stable=True)
        columns = (
            torch.cat([raw_key(block.lookback, self.width) for block in blocks]),
            torch.cat([block.future - block.lookback[:, -1:] for block in blocks]),
            *(torch.cat([getattr(b, name) for b in blocks]) for name in ("series_id", "variable", "start")),
        )
        for name, column in zip(COLUMNS, columns, strict=True):
            setattr(self, name, column[order].to(getattr(self, name).device))
        self._derive()

    @torch.no_grad()
    def forward(self, lookback: Tensor, query: Rows) -> Tensor:
        """The neighbours' mean future, moved to the lookback's last value; that value where there is none."""
        key, last = raw_key(lookback, self.width), lookback[:, -1:]
        found = key.new_zeros(len(key), len(KINDS), self.futures.shape[1])
        known = torch.isin(query.series_id, self.known)
        for variable, held in self.places.items():
            asked = (query.variable == variable).nonzero().squeeze(1)
            for part in asked.split(SEARCHED_AT_ONCE):
                rows = Rows(*(column[part] for column in query))
                found[part] = self._means(key[part], rows, known[part], held)
        return last[:, None] + found

    def _means(self, key: Tensor, query: Rows, known: Tensor, held: slice) -> Tensor:
        """Mean over the neighbours of each kind among the rows ``held``, less the last value: [S, F, H].

        ``known`` [S]: whether a query is of a series that the memory knows, whose phase it has.
        """
        keys, futures = self.keys[held], self.futures[held]
        places = Rows(self.series[held], self.variable[held], self.start[held])
        distance = torch.addmm(self.squares[held], key, keys.T, alpha=-2)  # less the query's own norm
        allowed = admissible(query, places, span=self.span, same_variable=False)
        distance.masked_fill_(~allowed, torch.inf)
        other_phase = (query.start[:, None] - places.start) % self.season != 0
        other_phase &= known[:, None]
        means = []
        for kind in KINDS:
            scores = distance.masked_fill(other_phase, torch.inf) if kind.same_phase else distance
            nearest, row = scores.topk(min(kind.neighbours, len(keys)), dim=1, largest=False)
            weight = nearest.isfinite().to(futures)
            total = (futures[row] * weight[..., None]).sum(dim=1)
            means.append(total / weight.sum(dim=1, keepdim=True).clamp(min=1))
        return torch.stack(means, dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take a memory of any number of rows."""
        make_room(self, COLUMNS, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._derive()

    def _derive(self) -> None:
        """What every search needs of the rows: squared keys, series, and where each variable's rows lie."""
        self.squares = self.keys.square().sum(dim=1)
        self.known = self.series.unique()
        variables, counts = self.variable.unique_consecutive(return_counts=True)
        ends = counts.cumsum(0).tolist()
        spans = zip([0, *ends], ends)  # noqa: B905  # the last end begins nothing
        self.places = {v: slice(*span) for v, span in zip(variables.tolist(), spans, strict=True)}
