"""The search in the memory, below the retriever: ties, and what is left of a list that is cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layers.retrieval import search as retrieval_search
from layers.retrieval.search import MemoryRows, Queries, Rows, SearchRule, nearest_rows, smallest

ROWS, ASKED, WIDTH, HORIZON = 53, 9, 6, 4
RULE = SearchRule(top_k=5, control="none", same_variable=True, span=10, season=4)


@pytest.mark.parametrize("block", [4, 32768])
def test_equal_rows_are_found_in_the_order_of_their_numbers(block, monkeypatch):
    """Windows that do not change have equal keys: which of them is found must not depend on the blocks."""
    monkeypatch.setattr(retrieval_search, "SEARCH_BLOCK", block)
    place, asked = torch.arange(ROWS), torch.arange(ASKED)
    memory = MemoryRows(
        torch.ones(ROWS, WIDTH), torch.zeros(ROWS, HORIZON), Rows(torch.ones_like(place), place % 2, place)
    )
    rows = Rows(torch.ones_like(asked), asked % 2, 5 * asked)
    queries = Queries(torch.ones(ASKED, WIDTH), rows, torch.zeros(ASKED, 0))
    found = nearest_rows(memory, queries, RULE, centre=torch.zeros(WIDTH), weights=torch.ones(WIDTH))
    for s in range(ASKED):
        allowed = [m for m in range(ROWS) if abs(m - 5 * s) >= RULE.span and m % 2 == s % 2]
        assert found.rows[s].tolist() == allowed[: RULE.top_k]


scores = st.lists(st.sampled_from([0.0, 1.0, 2.5, -3.0, float("inf")]), min_size=7, max_size=7)


@given(st.lists(scores, min_size=1, max_size=4), st.integers(1, 9))
def test_the_smallest_are_those_of_a_stable_sort(rows, k):
    """torch.topk takes any of equal ones."""
    values = torch.tensor(rows)
    found, column = smallest(values, k)
    wanted, order = values.sort(dim=1, stable=True)
    assert torch.equal(found, wanted[:, :k])
    finite = torch.isfinite(found)  # what is not admissible has no order
    assert torch.equal(column[finite], order[:, :k][finite])
