"""Exact nearest-neighbour search over the memory, with the rows that must not be found masked.

Shape legend: S queries, M memory rows, K width of a key, k neighbours, H horizon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SEARCH_BLOCK = 32768
"""Memory rows compared at once."""
_HASH_PRIMES = (2654435761, 40503, 2246822519, 3266489917)
_HASH_MODULUS = 2**31 - 1


class Rows(NamedTuple):
    """Where rows come from: series, variable and absolute start, each [M] int64."""

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


class MemoryRows(NamedTuple):
    """What is searched."""

    keys: Tensor
    """[M, K]."""
    futures: Tensor
    """[M, H]."""
    places: Rows
    """[M] each."""


class Candidates(NamedTuple):
    """The best-scored rows of each query, in order; where there are too few -1, and zeros."""

    rows: Tensor
    """[S, k] int64."""
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
    same_series: bool = False
    apart: int = 0
    """Rows by which the starts of two windows of any series must differ; see `admissible`."""


def nearest_rows(
    memory: MemoryRows, queries: Queries, rule: SearchRule, *, centre: Tensor, weights: Tensor
) -> Candidates:
    """The ``top_k`` best admissible rows for each query; equal scores go by the lower row.

    Args:
        memory: of one row at least.
        queries: what is searched for.
        rule: of the search.
        centre: about what all keys have in common [K], which would drown their differences in
            float32's rounding; any other gives the same order but for rounding.
        weights: of a key's columns, [K].
    """
    shape = (len(queries.key), 0)
    best, rows = centre.new_empty(shape), memory.places.start.new_empty(shape)
    for begin in range(0, len(memory.keys), SEARCH_BLOCK):
        held = slice(begin, begin + SEARCH_BLOCK)
        block = MemoryRows(
            memory.keys[held], memory.futures[held], Rows(*(column[held] for column in memory.places))
        )
        scores = _scores(block, begin, queries, rule, centre=centre, weights=weights)
        found, column = smallest(scores, rule.top_k)
        best, order = torch.cat([best, found], dim=1).sort(dim=1, stable=True)
        rows = torch.cat([rows, column + begin], dim=1).gather(1, order[:, : rule.top_k])
        best = best[:, : rule.top_k]
    return _candidates(memory, best, rows, rule.top_k)


def _scores(
    block: MemoryRows, begin: int, queries: Queries, rule: SearchRule, *, centre: Tensor, weights: Tensor
) -> Tensor:
    """[S, rows of the block from ``begin`` on], the smaller the better; inf where a row is not admissible."""
    if rule.control == "none":
        scores = _euclidean(queries.key - centre, block.keys - centre, weights)
    elif rule.control == "oracle":
        futures = block.futures.float()
        scores = _euclidean(queries.future, futures, futures.new_ones(futures.shape[1]))
    else:
        numbers = torch.arange(begin, begin + len(block.keys), device=block.keys.device)
        scores = random_scores(queries.rows, numbers)
    allowed = admissible(
        queries.rows,
        block.places,
        span=rule.span,
        same_variable=rule.same_variable,
        same_series=rule.same_series,
        apart=rule.apart,
    )
    if rule.control == "same_phase":
        allowed &= (queries.rows.start[:, None] - block.places.start[None, :]) % rule.season == 0
    return scores.masked_fill_(allowed.logical_not_(), torch.inf)


def _euclidean(query: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
    """Weighted squared distance [S, M] less the query's own norm, which does not change the order."""
    norms = keys.square() @ weights
    return torch.addmm(norms[None, :], query * weights, keys.T, alpha=-2)


def _candidates(memory: MemoryRows, scores: Tensor, rows: Tensor, top_k: int) -> Candidates:
    """The rows that a search found, [S, k or fewer], with their keys and futures."""
    rows = F.pad(rows.masked_fill(torch.isinf(scores), -1), (0, top_k - rows.shape[1]), value=-1)
    missing, held = (rows < 0)[..., None], rows.clamp(min=0)
    keys, futures = (t[held].float().masked_fill(missing, 0.0) for t in (memory.keys, memory.futures))
    return Candidates(rows, keys, futures)


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


def query_rows(
    like: Tensor, *, start: Tensor | None, series_id: Tensor | None, variable: Tensor | None
) -> Rows:
    """Where each series of a batch [B, M] comes from, each [S] int64, on the device of ``like``."""
    n_windows, n_variables = like.shape
    if (start is None) != (series_id is None):
        raise ValueError("start and series_id: give both (windows of a known series) or neither")
    if variable is None:
        variable = torch.arange(n_variables, device=like.device).expand(n_windows, -1)
    if start is None or series_id is None:  # a series that no memory knows: nothing to mask
        start = torch.zeros(n_windows, dtype=torch.int64, device=like.device)
        series_id = torch.full_like(start, -1)
    columns = (
        series_id[:, None].expand(-1, n_variables).reshape(-1),
        variable.reshape(-1),
        start[:, None].expand(-1, n_variables).reshape(-1),
    )
    return Rows(*columns)


def admissible(
    query: Rows, memory: Rows, *, span: int, same_variable: bool, same_series: bool = False, apart: int = 0
) -> Tensor:
    """Which memory rows each query may see, [S, M] bool.

    A row of the query's own series is masked where the two windows (lookback and future,
    ``span`` = L + H rows each) share any row, whichever the variable: otherwise a training window
    would find its own answer, and learn to copy what the test cannot offer.

    Where the starts of all series are places in one calendar, a row of any series is masked that begins
    within ``apart`` = H rows: their futures overlap in time, and what befell all series is in both. A query
    that is in no series (its id is below 0) has no place, and nothing is masked.
    """
    start = query.start[:, None]
    allowed = (memory.start >= start + span) | (memory.start <= start - span)
    own = memory.series_id == query.series_id[:, None]
    allowed |= ~own
    if apart:
        near = (memory.start - start).abs() < apart
        allowed &= ~(near & (query.series_id >= 0)[:, None])
    if same_series:
        allowed &= own
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
