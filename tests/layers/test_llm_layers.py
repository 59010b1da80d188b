"""Layers computed a second time in the backward pass: the same states and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, DistilBertConfig

from layers.llm import layers as llm_layers
from layers.llm.check import checked_pass
from layers.llm.forward import LLMPass
from layers.llm.layers import HasKeys, PassCache, stack_of

S, PREFIX, FRONT, TAIL = 3, 4, 6, 5


def loaded(folder: Path) -> Any:
    return AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval().requires_grad_(False)


def states_and_gradients(way: LLMPass, *, train_front: bool, keep: bool) -> tuple[list[Tensor], int]:
    """States, the gradients of what is trained, and the bytes that autograd kept for them."""
    generator = torch.Generator().manual_seed(1)
    width = way.llm.config.hidden_size
    tail = torch.randn(S, TAIL, width, generator=generator).requires_grad_()
    front = torch.randn(S, FRONT, width, generator=generator).requires_grad_(train_front)
    before = torch.randn(1, PREFIX, width, generator=generator)
    mask = torch.ones(S, PREFIX + FRONT + TAIL, dtype=torch.int64)
    mask[1, PREFIX : PREFIX + 2] = 0
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if keep and way.reuses_prefix:
            states = way(front, tail, mask=mask, prefix=way.prefix(before))
        else:
            states = way(torch.cat([before.expand(S, -1, -1), front], dim=1), tail, mask=mask)
    weights = torch.randn(states.shape, generator=generator)
    inputs = [tail, front] if train_front else [tail]
    return [states, *torch.autograd.grad((states * weights).sum(), inputs)], sum(kept.values())


@pytest.mark.parametrize("train_front", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_recomputed_layers_give_the_same_to_the_bit_and_keep_less(
    folder: Path, train_front: bool, keep: bool
) -> None:
    usual, recomputed = checked_pass(loaded(folder)), checked_pass(loaded(folder))
    recomputed.recompute_layers()
    wanted, whole = states_and_gradients(usual, train_front=train_front, keep=keep)
    found, less = states_and_gradients(recomputed, train_front=train_front, keep=keep)
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)
    assert less < 0.8 * whole


def test_without_gradients_no_layer_is_computed_twice(tiny_llama: Path) -> None:
    way = checked_pass(loaded(tiny_llama))
    way.recompute_layers()
    calls: list[int] = []
    first: Any = stack_of(way.llm, way.n_layers)[0]
    first.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    tokens, mask = torch.randn(2, 6, 32), torch.ones(2, 6, dtype=torch.int64)
    with torch.no_grad():
        way(tokens[:, :2], tokens[:, 2:], mask=mask)
    assert len(calls) == 2  # once for the front, once for the tail
    way(tokens[:, :2], tokens[:, 2:].requires_grad_(), mask=mask).sum().backward()
    assert len(calls) == 5  # the tail's a second time


def test_a_cache_is_the_same_after_a_second_computation() -> None:
    keys, values, more = torch.zeros(1, 2, 3, 4), torch.ones(1, 2, 3, 4), torch.ones(1, 2, 1, 4)
    cache = PassCache({0: (keys, values)}, ends_at=1)
    first = cache.update(more, more, 0)
    second = cache.update(more, more, 0)
    assert first[0].shape == (1, 2, 4, 4) and torch.equal(first[0], second[0])
    assert cache.get_seq_length() == 3
    with pytest.raises(HasKeys):
        cache.update(more, more, 1)
    assert cache.kept[0][0] is first[0] and cache.kept[1][0] is more


def test_a_model_without_a_stack_of_layers_is_named() -> None:
    config = DistilBertConfig(vocab_size=50, dim=16, hidden_dim=32, n_layers=2, n_heads=2)
    llm = AutoModel.from_config(config)
    with pytest.raises(ValueError, match="DistilBertModel: no stack of 5 layers"):
        llm_layers.stack_of(llm, 5)
