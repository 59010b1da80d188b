"""Exact nearest-neighbour search over the memory, with the rows that must not be found masked.

Shape legend: S queries, M memory rows, K width of a key, k neighbours, H horizon.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SEARCH_BLOCK = 32768
"""Memory rows compared at once."""
_HASH_PRIMES = (2654435761, 40503, 2246822519, 3266489917)
_HASH_MODULUS = 2**31 - 1


class Rows(NamedTuple):
    """Where rows come from: series, variable and absolute start, each [R] int64."""

    series_id: Tensor
    variable: Tensor
    start: Tensor


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


def euclidean_scores(query: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
    """Weighted squared distance [S, M] less the query's own norm, which does not change the order."""
    return torch.addmm((keys.square() @ weights)[None, :], query * weights, keys.T, alpha=-2)


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


def smallest_in_blocks(score_block, n_rows: int, k: int) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    """The ``k`` smallest scores of each query and their rows, each [S, min(k, M)].

    ``score_block(begin, end)`` gives [S, end - begin], inf where a row is not admissible.
    """
    best: Tensor | None = None
    rows: Tensor | None = None
    for begin in range(0, n_rows, SEARCH_BLOCK):
        end = min(begin + SEARCH_BLOCK, n_rows)
        scores = score_block(begin, end)
        found, column = scores.topk(min(k, end - begin), dim=1, largest=False)
        column = column + begin
        if best is not None and rows is not None:
            found, column = torch.cat([best, found], 1), torch.cat([rows, column], 1)
            found, order = found.topk(min(k, found.shape[1]), dim=1, largest=False)
            column = column.gather(1, order)
        best, rows = found, column
    assert best is not None and rows is not None
    return best, rows
