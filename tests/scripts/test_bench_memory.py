"""The benchmark of memories of many rows."""

from __future__ import annotations

from scripts.bench_memory import measured, measured_format


def test_half_numbers_are_compared_with_the_exact_neighbours():
    """A recall against anything else would say nothing of what fp16 loses."""
    half, whole = measured(2000)
    assert (half["numbers"], whole["numbers"]) == ("fp16", "fp32")
    assert 0.9 < half["recall"] <= whole["recall"] == 1


def test_a_format_is_measured_on_a_training_step_and_a_forecast(tiny_llama):
    """Frozen weights that are mapped from a file are there once they are read."""
    sizes = {"d_model": 16, "d_ff": 16, "n_heads": 2, "num_tokens": 20, "llm_layers": 2}
    found = measured_format({**sizes, "llm_model_path": str(tiny_llama), "llm_weights": "bf16"})
    assert found["forecast"].shape == (1, 96, 1) and found["computing"] > 0
