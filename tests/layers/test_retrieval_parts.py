"""A memory divided among processes: found, merged, saved and loaded as one that is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from layers import retrieval_parts, retrieval_search
from layers.retrieval_memory import COLUMNS
from layers.retrieval_parts import Division
from layers.retrieval_search import (
    NOWHERE,
    Candidates,
    MemoryPart,
    Queries,
    Rows,
    SearchRule,
    extremes,
    nearest_rows,
    smallest,
)
from tests.layers.test_gram import draw, queries, retriever_of
from utils.paths import PROJECT_ROOT

K, H, ROWS, ASKED = 6, 4, 53, 9
RULE = SearchRule(top_k=5, control="none", same_variable=True, span=10, season=4)
TIME_LIMIT = 240


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_parts_are_contiguous_cover_all_rows_and_differ_by_one_row_at_most(count, processes):
    parts = [Division(index, processes).part(count) for index in range(processes)]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(count))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def memory(keys: Tensor, borders: list[int]) -> list[MemoryPart]:
    """Rows of two variables, one after the other in time, held by parts with these borders."""
    count = len(keys)
    place = torch.arange(count)
    places = Rows(torch.ones(count, dtype=torch.int64), place % 2, place)
    futures = draw(count, H, seed=7)
    return [
        MemoryPart(keys[a:b], futures[a:b], Rows(*(column[a:b] for column in places)), a, count)
        for a, b in zip(borders, borders[1:], strict=False)
    ]


def asked_for(keys: Tensor, seed: int = 3) -> Queries:
    place = torch.arange(len(keys))
    rows = Rows(torch.ones(len(keys), dtype=torch.int64), place % 2, 5 * place)
    return Queries(keys, rows, draw(len(keys), 0, seed=seed))


def found_in(parts: list[MemoryPart], asked: Queries, centre: Tensor, weights: Tensor) -> Candidates:
    return retrieval_parts._best(
        [nearest_rows(part, [asked], RULE, centre=centre, weights=weights)[0] for part in parts]
    )


BORDERS = [[0, ROWS], [0, 26, ROWS], [0, 0, 1, 2, ROWS], [0, 17, 17, 34, ROWS], list(range(ROWS + 1))]


@pytest.mark.parametrize("borders", BORDERS)
@pytest.mark.parametrize("block", [4, 32768])
def test_the_merge_of_parts_is_the_exact_nearest_rows(borders, block, monkeypatch):
    """Against differences in float64, row by row; and to the bit what one part of all rows has."""
    monkeypatch.setattr(retrieval_search, "SEARCH_BLOCK", block)
    keys, asked = draw(ROWS, K) + 3, asked_for(draw(ASKED, K, seed=1) + 3)
    weights, centre = draw(K, seed=2).exp(), keys.mean(dim=0)
    found = found_in(memory(keys, borders), asked, centre, weights)
    (whole,) = memory(keys, [0, ROWS])
    for s in range(ASKED):
        distance = ((asked.key[s].double() - keys.double()) ** 2 * weights.double()).sum(-1)
        allowed = [
            m for m in range(ROWS) if abs(m - 5 * s) >= RULE.span and m % 2 == s % 2
        ]  # fmt: skip
        best = sorted(allowed, key=lambda m: distance[m].item())[: RULE.top_k]
        assert found.rows[s].tolist() == best
        assert torch.equal(found.keys[s], keys[best]) and torch.equal(found.futures[s], whole.futures[best])
    (wanted,) = nearest_rows(whole, [asked], RULE, centre=centre, weights=weights)
    for name, a, b in zip(Candidates._fields, found, wanted, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("borders", BORDERS)
@pytest.mark.parametrize("block", [4, 32768])
def test_equal_rows_are_found_in_the_order_of_their_numbers(borders, block, monkeypatch):
    """Windows that do not change have equal keys: which of them is found must not depend on the parts."""
    monkeypatch.setattr(retrieval_search, "SEARCH_BLOCK", block)
    keys, asked = torch.ones(ROWS, K), asked_for(torch.ones(ASKED, K))
    found = found_in(memory(keys, borders), asked, torch.zeros(K), torch.ones(K))
    for s in range(ASKED):
        allowed = [m for m in range(ROWS) if abs(m - 5 * s) >= RULE.span and m % 2 == s % 2]
        assert found.rows[s].tolist() == allowed[: RULE.top_k]


@pytest.mark.parametrize("k", [1, 3, 8, 40, 60])
@pytest.mark.parametrize("values", [1, 2, 5, 1000])
def test_the_smallest_are_those_of_a_stable_sort(k, values):
    scores = (draw(20, 40) * 1000).long().remainder(values).float()
    scores[draw(20, 40, seed=1) > 0.5] = torch.inf
    found, column = smallest(scores, k)
    wanted, order = scores.sort(dim=1, stable=True)
    assert torch.equal(found, wanted[:, :k])
    finite = torch.isfinite(found)  # what is not admissible has no order
    assert torch.equal(column[finite], order[:, :k][finite])


@pytest.mark.parametrize("count", [0, 1, 4])
@pytest.mark.parametrize(("k", "width", "horizon"), [(5, 7, 0), (1, 1, 3), (2, 8, 8)])
def test_records_travel_without_loss(count, k, width, horizon):
    """As bits, whatever the numbers: not a number, far rows, and odd widths before 64-bit numbers."""
    rows = Rows(*(torch.full((count,), 2**62 + i) for i in (1, 2, 3)))
    key = draw(count, width)
    key[:1] = torch.nan
    one = Queries(key, rows, draw(count, horizon))
    back = retrieval_parts._unpack_queries(retrieval_parts._pack_queries(one), like=one)
    for a, b in zip((back.key, *back.rows, back.future), (one.key, *one.rows, one.future), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
    numbers = torch.arange(count * k).view(count, k) - 1
    candidates = Candidates(draw(count, k), numbers, draw(count, k, width), draw(count, k, horizon))
    found = retrieval_parts._unpack_candidates(retrieval_parts._pack_candidates(candidates), like=candidates)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, candidates, strict=True))


def test_the_lowest_and_the_highest_place_of_each_variable():
    places = Rows(torch.tensor([5, 5, -9]), torch.tensor([2, 0, 2]), torch.tensor([30, 8, 10]))
    lowest, inverted = extremes(places, 4)
    assert lowest.tolist() == [8, NOWHERE, 10, NOWHERE, -9]
    assert [~x for x in inverted.tolist()] == [8, ~NOWHERE, 30, ~NOWHERE, 5]


@pytest.mark.parametrize("processes", [2, 3])
def test_each_process_takes_its_part_of_a_whole_memory(processes):
    """From a checkpoint, and of what it holds already."""
    whole = retriever_of(memory_size=50)
    for load in (True, False):
        parts = []
        for index in range(processes):
            part = retriever_of(build=not load, memory_size=50)
            part.divide(Division(index, processes))
            if load:
                part.load_state_dict(whole.state_dict())
            parts.append(part)
        for name in COLUMNS:
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
        assert all(torch.equal(part.key_centre, whole.key_centre) for part in parts)


def test_a_part_is_never_saved_as_if_it_were_the_whole():
    part = retriever_of(memory_size=50)
    part.divide(Division(0, 2))
    state = part.state_dict()
    assert not state.keys() & set(COLUMNS) and "distance_scale" in state
    with pytest.raises(RuntimeError, match="memory_keys"):
        retriever_of(build=False).load_state_dict(state)


def test_alone_a_process_searches_its_own_part():
    """For a look inside and for trials: nobody else takes part, also where the part has no row."""
    part, none = retriever_of(memory_size=50, top_k=7), retriever_of(memory_size=1, top_k=7)
    part.divide(Division(1, 2, together=False))
    none.divide(Division(0, 2, together=False))
    lookback, query, _ = queries()
    assert 0 <= part(lookback, query).rows.max() < 25
    found = none(lookback, query)
    assert found.rows.shape == (len(lookback), 7) and (found.rows == -1).all() and found.weights.sum() == 0


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_processes_find_together_what_one_finds(count, tmp_path, free_port):
    """Rows, distances, weights, futures and gradients, by every key, control and kind of number.

    To the bit, but where keys are learned: an encoder's last bits depend on the rows of its batch.
    """
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count)]
    address = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    environment = {"PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    script = Path(__file__).with_name("parts_process.py")
    done = subprocess.run(
        [*launch, *address, str(script), str(tmp_path)],
        cwd=PROJECT_ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts: list[dict[str, Any]] = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(count)]
    assert [one["processes"] for one in facts] == [count] * count
    assert {one["backend"] for one in facts} == {"gloo"}
    assert all(one["done"] == facts[0]["done"] for one in facts) and len(facts[0]["done"]) == 28
