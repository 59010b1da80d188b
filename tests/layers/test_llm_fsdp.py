"""An LLM whose layers are divided, on a process group of one: the same hooks, nothing to wait for.

Runs on two and on three processes: tests/utils/training/test_sharded.py.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from layers.llm import blocks as llm_fused
from layers.llm.check import checked_pass
from layers.llm.forward import LLMPass
from layers.llm.fsdp import shard_layers
from layers.llm.layers import stack_of
from layers.llm.lora import add_adapters
from models.TimeLLM_Enhanced import Model
from tests.layers.test_llm_forward import PREFIX, drawn, gradients, llm, loaded
from utils.config import Config, LLMConfig

__all__ = ["llm"]  # the fixture: GPT-2, Llama and BERT in turn
SEVERAL = 3
"""Passes in a row: what one leaves behind must not bind the next."""


@pytest.fixture
def alone() -> Iterator[DeviceMesh]:
    """A mesh of this process."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def is_divided(llm: nn.Module, *, layers: int) -> bool:
    """Whether every frozen weight of the layers is a share again, and no other weight is."""
    shares = {name for name, weight in llm.named_parameters() if isinstance(weight, DTensor)}
    stack = stack_of(llm, layers)
    (path,) = (name for name, part in llm.named_modules() if part is stack)
    frozen = {f"{path}.{name}" for name, weight in stack.named_parameters() if not weight.requires_grad}
    return bool(shares) and shares == frozen


def pair(
    llm: PreTrainedModel, mesh: DeviceMesh, *, again: bool = False, plain: bool = False
) -> tuple[LLMPass, LLMPass]:
    """The same pass through ``llm`` as it is, and through a copy whose layers are divided."""
    other = copy.deepcopy(llm)
    whole, divided = (LLMPass(one) if plain else checked_pass(one) for one in (llm, other))
    llm_fused.restore(stack_of(llm, whole.n_layers))  # divided layers run their own code: the same to the bit
    if again:
        for taken in (whole, divided):
            taken.recompute_layers()
    shard_layers(other, mesh)
    return whole, divided


def states_and_gradients(taken: LLMPass, *, front_learns: bool) -> list[Tensor]:
    before, front, tail, mask = drawn(taken.llm)
    width = next(taken.llm.parameters()).dtype
    front = torch.cat([before, front], dim=1).to(width).requires_grad_(front_learns)
    tail = tail.to(width).requires_grad_()
    states = taken(front, tail, mask=mask)
    return [states.detach(), *gradients(states, *([front, tail] if front_learns else [tail]))]


@pytest.mark.parametrize("front_learns", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("again", [False, True])
def test_states_and_gradients_are_those_of_the_whole_llm(llm, alone, front_learns, dtype, again):
    """To the bit, pass after pass; a layer left gathered by a pass that ends in it would be told here."""
    whole, divided = pair(llm.to(dtype), alone, again=again)
    wanted = states_and_gradients(whole, front_learns=front_learns)
    for _ in range(SEVERAL):
        found = states_and_gradients(divided, front_learns=front_learns)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        assert is_divided(divided.llm, layers=divided.n_layers)
        with torch.no_grad():
            before, front, tail, mask = (t.to(dtype) if t.is_floating_point() else t for t in drawn(llm))
            divided(torch.cat([before, front], 1), tail, mask=mask)
        assert is_divided(divided.llm, layers=divided.n_layers)


def test_so_are_those_of_the_plain_pass(llm, alone):
    whole, divided = pair(llm, alone, plain=True)
    for _ in range(SEVERAL):
        found, wanted = (states_and_gradients(taken, front_learns=True) for taken in (divided, whole))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        assert is_divided(divided.llm, layers=divided.n_layers)


def test_so_are_those_behind_a_prefix_that_is_kept(tiny_llama, alone):
    whole, divided = pair(loaded(tiny_llama), alone)
    before, front, tail, mask = drawn(whole.llm)
    kept = [taken.prefix(before[:1]) for taken in (whole, divided)]
    assert is_divided(divided.llm, layers=3)
    for a, b in zip(kept[0].keys + kept[0].values, kept[1].keys + kept[1].values, strict=True):
        assert torch.equal(a, b)
    for _ in range(SEVERAL):
        results = []
        for taken, prefix in zip((whole, divided), kept, strict=True):
            tail = tail.detach().requires_grad_()
            front = front.detach().requires_grad_()
            states = taken(front, tail, mask=mask, prefix=prefix)
            results.append([states.detach(), *gradients(states, front, tail)])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("again", [False, True])
def test_adapters_stay_whole_and_learn_the_same(tiny_llama, alone, again):
    """They are not divided: DistributedDataParallel averages their gradients, checkpoints hold them."""
    adapted = loaded(tiny_llama)
    add_adapters(adapted, LLMConfig(peft="lora", lora_rank=2), seed=3)
    other = copy.deepcopy(adapted)
    found = []
    for one in (adapted, other):
        taken = checked_pass(one)
        for name, weight in one.named_parameters():
            if "lora_B" in name:  # zero at first, with which the others learn nothing
                torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(5))
        if again:
            taken.recompute_layers()
        if one is other:
            shard_layers(one, alone)
            assert is_divided(one, layers=3)
        _, front, tail, mask = drawn(one)
        states = taken(front, tail, mask=mask, prefix=taken.prefix(drawn(one)[0][:1]))
        learned = [weight for weight in one.parameters() if weight.requires_grad]
        assert not any(isinstance(weight, DTensor) for weight in learned)
        found.append([states.detach(), *gradients(states, *learned)])
        assert all(gradient.abs().sum() > 0 for gradient in found[-1][1:])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert is_divided(other, layers=3)


def test_gathered_weights_are_freed_after_each_pass(llm, alone):
    """The size of what a layer was gathered into is 0 between passes, in whichever layer a pass ends."""
    divided = checked_pass(llm)
    shard_layers(llm, alone)
    states_and_gradients(divided, front_learns=True)
    with torch.no_grad():
        _, front, tail, mask = drawn(llm)
        divided(front, tail, mask=mask[:, PREFIX:])
    layer: Any
    for layer in stack_of(llm, divided.n_layers):
        (group,) = layer._get_fsdp_state()._fsdp_param_groups
        sizes = [t.untyped_storage().size() for p in group.fsdp_params for t in p.all_gather_outputs]
        assert sizes and set(sizes) == {0}


def test_nothing_is_said_of_views(llm, alone):
    """`fully_shard` warns of states and keys that are views, whose gradients it might miss."""
    divided = checked_pass(llm)
    shard_layers(llm, alone)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        states_and_gradients(divided, front_learns=True)
    assert not [str(one.message) for one in said if "view" in str(one.message)]


def test_a_kept_prefix_notices_that_a_share_has_changed(alone, tiny_settings, series_file, tmp_path):
    """Shares have no address of their own: by that alone every state of the weights would look the same."""
    config = Config.from_flat(tiny_settings(series_file, tmp_path))
    model = Model(config).eval()
    shard_layers(model.llm_model, alone)
    windows = torch.randn(2, 32, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first = model(windows)
        prefix = model._kept_prefix
        assert prefix is not None and torch.equal(model(windows), first) and model._kept_prefix is prefix
        weight = next(w for w in model.llm_model.parameters() if isinstance(w, DTensor) and w.dim() > 1)
        weight.to_local().mul_(1.5)
        changed = model(windows)
    assert model._kept_prefix is not prefix and not torch.equal(changed, first)
    model._kept_prefix = None
    with torch.no_grad():
        assert torch.equal(model(windows), changed)


def test_an_llm_without_layers_is_refused(tiny_bert, alone):
    llm = loaded(tiny_bert)
    llm.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match="no stack of 7 layers"):
        shard_layers(llm, alone)
