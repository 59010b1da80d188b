"""What followed the training windows most like a window: retrieval without a weight that is learned.

Neighbours weigh the same, and are those of the window's own variable. The shape compared is the raw one of
`layers.retrieval.keys.raw_key`; overlapping windows are never found (`layers.retrieval.search.admissible`).

Shape legend: S queries, M memory rows, K rows of a key, L lookback, H horizon, F kinds of neighbours,
E folds, k neighbours of all kinds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.retrieval.keys import raw_key, raw_width
from layers.retrieval.memory import make_room
from layers.retrieval.search import MemoryRows, Rows, admissible, random_scores, smallest
from utils.errors import UserError
from utils.types import WindowSource

MOST_ROWS = 100_000
"""More training rows are thinned evenly to so many."""
FILLED_AT_ONCE = 4096
COMPARED_AT_ONCE = 2**22
"""Distances that are there at once."""
POOL = 4
"""Times the neighbours asked for that are looked at first where folds bar some of the rows."""
COLUMNS = ("keys", "futures", "series", "variable", "start")
"""What a row of the memory is made of."""
DRAWS_APART = 7919
"""A prime: how far along the series one draw of random rows lies from the next."""


class Kind(NamedTuple):
    """Which neighbours are averaged."""

    neighbours: int
    same_phase: bool
    """Whether they begin at the query's place in the season; asked of windows with a known place alone."""


KINDS = (Kind(50, False), Kind(32, True))
"""Source: measured on ETTh1 and ETTh2, where the average of both needs no choice between them."""


class Fold(NamedTuple):
    """A held-out block of training windows: those that begin from ``begin`` up to before ``end``."""

    begin: int
    end: int

    def holds(self, start: Tensor) -> Tensor:
        """Which windows [R] are held out."""
        return (start >= self.begin) & (start < self.end)

    def leaves(self, start: Tensor, *, span: int) -> Tensor:
        """Which windows [R] share no row with a held-out one; each has ``span`` = L + H rows."""
        return (start <= self.begin - span) | (start >= self.end - 1 + span)


class RetrievedFutures(nn.Module):
    """Lookbacks [S, L] to the mean of what followed their neighbours, [S, F, H], standardised units."""

    keys: Tensor
    futures: Tensor
    series: Tensor
    variable: Tensor
    start: Tensor
    squares: Tensor
    known: Tensor

    def __init__(
        self,
        *,
        seq_len: int,
        horizon: int,
        season: int,
        kinds: Sequence[Kind] = KINDS,
        control: str = "none",
        draw: int = 0,
        one_calendar: bool = False,
        apart: int = 0,
    ) -> None:
        """An empty memory; `fill` fills it. The key spans seven seasons, or the lookback.

        Args:
            seq_len: L.
            horizon: H.
            season: rows of a season, whose place is a window's phase.
            kinds: which neighbours.
            control: as ``--retrieval_control``; random rows keep the number and the phase of each kind,
                ``same_phase`` gives all kinds the phase.
            draw: which of many draws of random rows.
            one_calendar: whether the starts of all series, known ones or not, are places in one calendar.
            apart: as in `layers.retrieval.search.admissible`.
        """
        super().__init__()
        self.one_calendar, self.apart = one_calendar, apart
        self.span, self.season = seq_len + horizon, season
        self.kinds = tuple(Kind(k.neighbours, k.same_phase or control == "same_phase") for k in kinds)
        self.control, self.draw = control, draw
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
        blocks = [source.rows(index) for index in thinned_rows(source).split(FILLED_AT_ONCE)]
        order = torch.cat([block.variable for block in blocks]).argsort(stable=True)
        columns = (
            torch.cat([raw_key(block.lookback, self.width) for block in blocks]),
            torch.cat([block.future - block.lookback[:, -1:] for block in blocks]),
            *(torch.cat([getattr(b, name) for b in blocks]) for name in ("series_id", "variable", "start")),
        )
        self._hold(*(column[order] for column in columns))

    @property
    def contents(self) -> MemoryRows:
        """All that is remembered."""
        return MemoryRows(self.keys, self.futures, Rows(self.series, self.variable, self.start))

    def clear(self) -> None:
        """Forget every row."""
        self._hold(*(getattr(self, name)[:0] for name in COLUMNS))

    def _hold(self, *columns: Tensor) -> None:
        for name, column in zip(COLUMNS, columns, strict=True):
            setattr(self, name, column.to(getattr(self, name).device))
        self._derive()

    def forward(self, lookback: Tensor, query: Rows) -> Tensor:
        """The neighbours' mean future, moved to the lookback's last value; that value where there is none."""
        return self.means(self.search(lookback, query)[:, 0]) + lookback[:, -1:, None].transpose(1, 2)

    @torch.no_grad()
    def search(
        self, lookback: Tensor, query: Rows, *, folds: Sequence[Fold] = (), target: Tensor | None = None
    ) -> Tensor:
        """Rows of the memory, kind after kind, for each lookback [S, L]: [S, 1 + E, k] int64.

        First among all rows, then with each fold's memory, which lacks the held-out windows and those that
        overlap them. -1 where there are too few. ``target`` [S, H] is read by the oracle alone.

        Raises:
            UserError: the oracle without a target.
        """
        if self.control == "oracle" and target is None:
            raise UserError("--retrieval_control oracle needs the target; it exists for studies only")
        key = raw_key(lookback, self.width)
        future = lookback[:, :0] if target is None else target - lookback[:, -1:]
        wanted = sum(kind.neighbours for kind in self.kinds)
        found = query.start.new_full((len(key), 1 + len(folds), wanted), -1)
        known = query.series_id >= 0 if self.one_calendar else torch.isin(query.series_id, self.known)
        for asked, held in self._groups(query.variable):
            for part in asked.split(max(1, COMPARED_AT_ONCE // max(1, held.stop - held.start))):
                rows = Rows(*(column[part] for column in query))
                column = self._nearest(key[part], future[part], rows, known[part], held, folds)
                found[part] = torch.where(column < 0, column, column + held.start)
        return found

    def _groups(self, variable: Tensor) -> Iterator[tuple[Tensor, slice]]:
        """Numbers of queries of ``variable`` [S], and the rows of the memory that are compared with them.

        On a CPU those of their variable; elsewhere all with all, which is more to compute and needs no look
        at the device.
        """
        if variable.device.type != "cpu":
            yield torch.arange(len(variable), device=variable.device), slice(0, len(self.keys))
            return
        for own, held in self.places.items():
            yield (variable == own).nonzero().squeeze(1), held

    def means(self, rows: Tensor) -> Tensor:
        """Mean over each kind's neighbours, ``rows`` [S, k], less their last value: [S, F, H]; 0 without."""
        means = []
        for own in rows.split([kind.neighbours for kind in self.kinds], dim=1):
            share = (own >= 0).to(self.futures)
            share = share / share.sum(dim=1, keepdim=True).clamp(min=1)
            if not len(self.futures):
                means.append(self.futures.new_zeros(len(own), self.futures.shape[1]))
                continue
            means.append(
                F.embedding_bag(own.clamp(min=0), self.futures, per_sample_weights=share, mode="sum")
            )
        return torch.stack(means, dim=1)

    def _nearest(
        self, key: Tensor, future: Tensor, query: Rows, known: Tensor, held: slice, folds: Sequence[Fold]
    ) -> Tensor:
        """Columns of the rows ``held``, as `search`; ``known`` [S]: the memory knows a query's series."""
        places = Rows(self.series[held], self.variable[held], self.start[held])
        scores = self._scores(key, future, query, held)
        allowed = admissible(query, places, span=self.span, same_variable=True, apart=self.apart)
        scores.masked_fill_(~allowed, torch.inf)
        other_phase = (query.start[:, None] - places.start) % self.season != 0
        other_phase &= known[:, None]
        barred = [~fold.leaves(places.start, span=self.span) for fold in folds]
        kinds = []
        for kind in self.kinds:
            own = scores.masked_fill(other_phase, torch.inf) if kind.same_phase else scores
            kinds.append(_nearest_of(own, kind.neighbours, barred))
        return torch.cat(kinds, dim=-1)

    def _scores(self, key: Tensor, future: Tensor, query: Rows, held: slice) -> Tensor:
        """[S, rows held], the smaller the better."""
        if self.control in ("random", "same_phase"):
            elsewhere = query._replace(start=query.start + DRAWS_APART * self.draw)
            return random_scores(elsewhere, torch.arange(held.start, held.stop, device=key.device))
        if self.control == "oracle":
            futures = self.futures[held]
            return torch.addmm(futures.square().sum(dim=1), future, futures.T, alpha=-2)
        return torch.addmm(self.squares[held], key, self.keys[held].T, alpha=-2)  # less the query's norm

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take a memory of any number of rows."""
        make_room(self, COLUMNS, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._derive()

    def _derive(self) -> None:
        """What every search needs of the rows: squared keys, series, and where each variable's rows lie."""
        self.squares = self.keys.square().sum(dim=1)
        self.mean_distance = float(2 * self.keys.var(dim=0, unbiased=False).sum()) if len(self.keys) else 1.0
        self.known = self.series.unique()
        variables, counts = self.variable.unique_consecutive(return_counts=True)
        ends = counts.cumsum(0).tolist()
        spans = zip([0, *ends], ends)  # noqa: B905  # the last end begins nothing
        self.places = {v: slice(*span) for v, span in zip(variables.tolist(), spans, strict=True)}


def thinned_rows(source: WindowSource) -> Tensor:
    """The numbers of all training rows, or of `MOST_ROWS` of them at even distances."""
    count = min(source.num_rows, MOST_ROWS)
    return torch.arange(count) * source.num_rows // count


def _nearest_of(scores: Tensor, k: int, barred: Sequence[Tensor]) -> Tensor:
    """The ``k`` columns of least score [S, M], of all and without each of the ``barred`` [M]: [S, 1 + E, k].

    -1 where there are too few; an infinite score is none.
    """
    value, column = smallest(scores, POOL * k if barred else k)
    there = value.isfinite()
    found = [_first(column, there, k)]
    for bar in barred:
        kept = there & ~bar[column]
        own = _first(column, kept, k)
        # the pool may lack some that lie behind it
        short = ((kept.sum(dim=1) < k) & there[:, -1]).nonzero().squeeze(1)
        if len(short) and column.shape[1] < scores.shape[1]:
            value_of_short, column_of_short = smallest(scores[short].masked_fill(bar, torch.inf), k)
            own[short] = _first(column_of_short, value_of_short.isfinite(), k)
        found.append(own)
    return torch.stack(found, dim=1)


def _first(column: Tensor, kept: Tensor, k: int) -> Tensor:
    """The first ``k`` of each row of ``column`` [S, n] that are ``kept`` [S, n], then -1: [S, k]."""
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :k]
    first = column.gather(1, order).masked_fill(~kept.gather(1, order), -1)
    return F.pad(first, (0, k - first.shape[1]), value=-1)
