"""Exact nearest-neighbour search over the memory, with the rows that must not be found masked.

Shape legend: S queries, M memory rows, R of them held by this process, K width of a key, k neighbours,
H horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SEARCH_BLOCK = 32768
"""Memory rows compared at once."""
NOWHERE = torch.iinfo(torch.int64).max
_HASH_PRIMES = (2654435761, 40503, 2246822519, 3266489917)
_HASH_MODULUS = 2**31 - 1


class Rows(NamedTuple):
    """Where rows come from: series, variable and absolute start, each [R] int64."""

    series_id: Tensor
    variable: Tensor
    start: Tensor


class Queries(NamedTuple):
    """What is searched for."""

    key: Tensor
    """[S, K]."""
    rows: Rows
    """[S] each."""
    future: Tensor
    """[S, H] less the lookback's last value, for the oracle control; [S, 0] for all others."""


class MemoryPart(NamedTuple):
    """The rows of a memory that this process holds: the ones from ``first`` on, of ``whole``."""

    keys: Tensor
    """[R, K]."""
    futures: Tensor
    """[R, H]."""
    places: Rows
    """[R] each."""
    first: int
    whole: int


class Candidates(NamedTuple):
    """The best-scored rows of each query, in order; where there are too few -1, score inf, and zeros."""

    scores: Tensor
    """[S, k]."""
    rows: Tensor
    """[S, k] int64, numbers in the whole memory."""
    keys: Tensor
    """[S, k, K] float32."""
    futures: Tensor
    """[S, k, H] float32."""


@dataclass(frozen=True)
class SearchRule:
    """What decides which rows are found; ``span`` = L + H."""

    top_k: int
    control: str
    same_variable: bool
    span: int
    season: int


def nearest_rows(
    part: MemoryPart, asked: Sequence[Queries], rule: SearchRule, *, centre: Tensor, weights: Tensor
) -> list[Candidates]:
    """The ``top_k`` best admissible rows of a part for each of several sets of queries.

    Blocks are those of the whole memory, zeros in place of the rows that others hold: so each score is
    to the bit what it is where one process holds all rows. Equal scores go by the lower row.

    Args:
        part: of the memory.
        asked: sets of queries, searched for one after the other.
        rule: of the search.
        centre: about what all keys have in common [K], which would drown their differences in
            float32's rounding; any other gives the same order but for rounding.
        weights: of a key's columns, [K].
    """
    best: list[list[tuple[Tensor, Tensor]]] = [[] for _ in asked]
    for begin in range(0, part.whole, SEARCH_BLOCK):
        block = _Block.of(part, begin, min(begin + SEARCH_BLOCK, part.whole), centre=centre, weights=weights)
        if block is None:
            continue
        for found, queries in zip(best, asked, strict=True):
            found.append(block.smallest(queries, rule))
            found[:] = [merged(found, rule.top_k)]
    return [_candidates(part, found, len(q.key), rule.top_k) for found, q in zip(best, asked, strict=True)]


class _Block(NamedTuple):
    """Some rows of a memory, those that other processes hold as zeros."""

    keys: Tensor
    """Less their centre."""
    norms: Tensor
    """Their weighted squares."""
    weights: Tensor
    centre: Tensor
    futures: Tensor
    """Of the rows held alone, and their places."""
    places: Rows
    begin: int
    held: slice
    """Which rows of the block this process holds."""

    @classmethod
    def of(cls, part: MemoryPart, begin: int, end: int, *, centre: Tensor, weights: Tensor) -> _Block | None:
        """Rows ``begin`` to ``end`` of the whole memory; None where this process holds none of them."""
        low, high = max(begin, part.first), min(end, part.first + len(part.keys))
        if low >= high:
            return None
        own, held = slice(low - part.first, high - part.first), slice(low - begin, high - begin)
        keys = _placed(part.keys[own], held, end - begin) - centre
        return cls(
            keys=keys,
            norms=keys.square() @ weights,
            weights=weights,
            centre=centre,
            futures=part.futures[own],
            places=Rows(*(column[own] for column in part.places)),
            begin=begin,
            held=held,
        )

    def smallest(self, queries: Queries, rule: SearchRule) -> tuple[Tensor, Tensor]:
        """The ``top_k`` smallest scores of the admissible rows that are held, and the rows: [S, k] each."""
        scores = self._scores(queries, rule.control)
        allowed = admissible(queries.rows, self.places, span=rule.span, same_variable=rule.same_variable)
        if rule.control == "same_phase":
            allowed &= (queries.rows.start[:, None] - self.places.start[None, :]) % rule.season == 0
        scores[:, : self.held.start] = torch.inf
        scores[:, self.held.stop :] = torch.inf
        scores[:, self.held].masked_fill_(allowed.logical_not_(), torch.inf)
        found, column = smallest(scores, rule.top_k)
        return found, column + self.begin

    def _scores(self, queries: Queries, control: str) -> Tensor:
        """[S, rows of the block], the smaller the better."""
        if control == "none":
            return _euclidean(queries.key - self.centre, self.keys, self.weights, self.norms)
        if control == "oracle":
            futures = _placed(self.futures, self.held, len(self.keys)).float()
            ones = futures.new_ones(futures.shape[1])
            return _euclidean(queries.future, futures, ones, futures.square() @ ones)
        numbers = torch.arange(self.begin, self.begin + len(self.keys), device=self.keys.device)
        return random_scores(queries.rows, numbers)


def _placed(rows: Tensor, at: slice, length: int) -> Tensor:
    """``rows`` at these places among ``length``, zeros elsewhere."""
    if len(rows) == length:
        return rows
    whole = rows.new_zeros((length, *rows.shape[1:]))
    whole[at] = rows
    return whole


def _euclidean(query: Tensor, keys: Tensor, weights: Tensor, norms: Tensor) -> Tensor:
    """Weighted squared distance [S, M] less the query's own norm, which does not change the order."""
    return torch.addmm(norms[None, :], query * weights, keys.T, alpha=-2)


def _candidates(part: MemoryPart, found: list[tuple[Tensor, Tensor]], count: int, top_k: int) -> Candidates:
    """What a search found for ``count`` queries, with the keys and futures of the rows."""
    shape = (count, top_k)
    scores = part.keys.new_full(shape, torch.inf, dtype=torch.float32)
    rows = part.places.start.new_full(shape, -1)
    if not found:
        keys, futures = (t.new_zeros((*shape, t.shape[1])).float() for t in (part.keys, part.futures))
        return Candidates(scores, rows, keys, futures)
    ((best, numbers),) = found
    scores[:, : best.shape[1]] = best
    rows[:, : best.shape[1]] = numbers
    missing = torch.isinf(scores)
    rows.masked_fill_(missing, -1)
    own = (rows - part.first).clamp(min=0)
    keys, futures = (t[own].float().masked_fill(missing[..., None], 0.0) for t in (part.keys, part.futures))
    return Candidates(scores, rows, keys, futures)


def smallest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` smallest of each row of ``scores`` [S, M], rising, and their columns: [S, min(k, M)] each.

    Equal ones go by the lower column: `torch.topk` alone takes any of them.
    """
    width = scores.shape[1]
    found, column = scores.topk(min(k + 1, width), dim=1, largest=False)  # one more shows ties at the end
    if width > k:
        undecided = (found[:, k : k + 1] == found[:, k - 1 : k]) & torch.isfinite(found[:, k : k + 1])
        found, column = found[:, :k], column[:, :k]
        if scores.device.type != "cpu" or bool(undecided.any()):  # a look at a GPU's numbers waits for it
            column = torch.where(undecided, _lowest_of_equal(scores, found, column), column)
    column, order = column.sort(dim=1)
    found, order = found.gather(1, order).sort(dim=1, stable=True)
    return found, column.gather(1, order)


def _lowest_of_equal(scores: Tensor, found: Tensor, column: Tensor) -> Tensor:
    """Columns [S, k] of the ``found`` values, the lowest ones of those that equal the last."""
    width, k = scores.shape[1], found.shape[1]
    last = found[:, -1:]
    columns = torch.arange(width, device=scores.device, dtype=torch.int32)
    equal = torch.where(scores == last, columns, width).topk(k, dim=1, largest=False).values.long()
    smaller = found < last
    place = torch.arange(k, device=scores.device) - smaller.sum(dim=1, keepdim=True)
    return torch.where(smaller, column, equal.gather(1, place.clamp(min=0)))


def merged(found: Sequence[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` smallest of several rising lists of scores [S, any], and their rows.

    Equal scores stay in the order of the lists, and within each as they are.
    """
    if len(found) == 1:
        return found[0]
    scores, rows = (torch.cat(column, dim=1) for column in zip(*found, strict=True))
    scores, order = scores.sort(dim=1, stable=True)
    return scores[:, :k], rows.gather(1, order[:, :k])


def admissible(query: Rows, memory: Rows, *, span: int, same_variable: bool) -> Tensor:
    """Which memory rows each query may see, [S, M] bool.

    A row of the query's own series is masked where the two windows (lookback and future,
    ``span`` = L + H rows each) share any row, whichever the variable: otherwise a training window
    would find its own answer, and learn to copy what the test cannot offer.
    """
    start = query.start[:, None]
    allowed = (memory.start >= start + span) | (memory.start <= start - span)
    allowed |= memory.series_id != query.series_id[:, None]
    if same_variable:
        allowed &= memory.variable == query.variable[:, None]
    return allowed


def random_scores(query: Rows, memory_rows: Tensor) -> Tensor:
    """A fixed pseudo-random order of the memory for each query, [S, M].

    A hash of the query's place and the row's number: no random state is touched, so a forecast
    is repeatable and the control differs from window to window.
    """
    place = query.start * _HASH_PRIMES[0] + query.variable * _HASH_PRIMES[1]
    mixed = (place[:, None] % _HASH_MODULUS) * 69069 + memory_rows[None, :] * _HASH_PRIMES[2]
    mixed = (mixed % _HASH_MODULUS) * 48271 % _HASH_MODULUS
    mixed = (mixed ^ (mixed >> 15)) * _HASH_PRIMES[3] % _HASH_MODULUS
    return mixed.float() / _HASH_MODULUS


def extremes(places: Rows, n_variables: int) -> Tensor:
    """The lowest start of each of ``n_variables``, and the lowest series, [2, V + 1]; below them, of ``~``.

    The lowest ``~x`` is the highest ``x``. Where there is no row, `NOWHERE`.
    """
    found = places.start.new_full((2, n_variables + 1), NOWHERE)
    known = places.variable < n_variables
    for line, (start, series) in enumerate(
        ((places.start, places.series_id), (~places.start, ~places.series_id))
    ):
        found[line].scatter_reduce_(0, places.variable[known], start[known], "amin")
        if len(series):
            found[line, -1] = series.min()
    return found
