"""Attention by matrix products against torch's fused kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, LlamaConfig

from layers.llm import attention as llm_attention
from layers.llm.check import checked_pass
from layers.llm.forward import LLMPass

S, T, K, E = 5, 4, 7, 8
MODULE = nn.Identity()


def drawn(heads: int, shared: int, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Query, key, value, and a mask in which each series hides other keys."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(S, heads, T, E, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, S, shared, K, E, generator=generator, dtype=torch.float64)
    hidden = torch.rand(S, 1, T, K, generator=generator) < 0.3
    hidden[..., 0] = False
    mask = torch.zeros(S, 1, T, K, dtype=torch.float64).masked_fill(hidden, torch.finfo(dtype).min)
    return tuple(t.to(dtype) for t in (query, key, value, mask))


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (6, 2), (6, 1)])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_results_and_gradients_are_the_fused_kernel_s(
    heads: int, shared: int, masked: bool, scaling: float | None
) -> None:
    *tensors, mask = drawn(heads, shared)
    used = mask if masked else None
    found_of, wanted_of = ([t.clone().requires_grad_() for t in tensors] for _ in range(2))
    query, key, value = found_of
    found, no_map = llm_attention.attend(MODULE, query, key, value, used, scaling=scaling)
    query, key, value = wanted_of
    wanted = F.scaled_dot_product_attention(
        query, key, value, attn_mask=used, scale=scaling, enable_gqa=True
    ).transpose(1, 2)
    assert no_map is None and found.shape == (S, T, heads, E)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found * weights).sum().backward(), (wanted * weights).sum().backward()
    for own, other in zip(found_of, wanted_of, strict=True):
        torch.testing.assert_close(own.grad, other.grad)


def test_blocks_without_gradient_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value, mask = drawn(6, 2)
    whole = llm_attention._attend(query * E**-0.5, key, value, mask)
    for series in (1, 2, S, 2 * S):
        monkeypatch.setattr(llm_attention, "BLOCK_BYTES", series * 6 * T * K * query.element_size())
        with torch.no_grad():
            found, _ = llm_attention.attend(MODULE, query, key, value, mask)
        torch.testing.assert_close(found, whole, rtol=0, atol=0)


@pytest.mark.parametrize("asked", [{"dropout": 0.1}, {"softcap": 30.0}, {"s_aux": torch.zeros(6)}])
def test_what_it_does_not_know_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="attention"):
        query, key, value, mask = drawn(6, 2)
        llm_attention.attend(MODULE, query, key, value, mask, **asked)


def small_llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return AutoModel.from_config(config, attn_implementation="sdpa").eval().requires_grad_(False)


def test_a_pass_on_a_cpu_takes_it_and_the_plain_pass_does_not() -> None:
    llm = small_llama()
    short, plain = checked_pass(llm), LLMPass(llm)
    tokens, mask = torch.randn(2, 6, 16), torch.ones(2, 6, dtype=torch.int64)
    used = []
    for way in (short, plain, short):
        way(tokens[:, :2], tokens[:, 2:], mask=mask)
        used.append(llm.config._attn_implementation)
    assert used == [llm_attention.NAME, "sdpa", llm_attention.NAME]


def test_an_attention_that_is_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    right = llm_attention._attend
    monkeypatch.setattr(llm_attention, "_attend", lambda *a: 2 * right(*a))
    llm = small_llama()
    checked_pass(llm)(torch.randn(1, 2, 16), torch.randn(1, 3, 16), mask=torch.ones(1, 5, dtype=torch.int64))
    assert llm.config._attn_implementation == "sdpa"
