"""The benchmark of memories of many rows."""

from __future__ import annotations

from scripts.bench_memory import measured


def test_half_numbers_are_compared_with_the_exact_neighbours():
    """A recall against anything else would say nothing of what fp16 loses."""
    half, whole = measured(2000)
    assert (half["numbers"], whole["numbers"]) == ("fp16", "fp32")
    assert 0.9 < half["recall"] <= whole["recall"] == 1
