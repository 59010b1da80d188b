"""The layers of a frozen LLM: their keys and values, and another way to compute them.

A layer may be computed a second time in the backward pass; that acts on the model's own modules, in
place, and leaves states and gradients what they were.

Shape legend: S series, T_past and T tokens before and in a pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.pytorch_utils import Conv1D

from utils.errors import UserError

KeysValues = tuple[Tensor, Tensor]
"""Of one layer, each [S, heads, T, width]."""


class HasKeys(Exception):  # noqa: N818  it ends a pass; nothing went wrong
    """The last layer has handed over its keys and values."""

    def __init__(self, cache: PassCache | None = None) -> None:
        """``cache`` has them; None where the pass was made for something else."""
        super().__init__()
        self.cache = cache


class PassCache(DynamicCache):
    """Keys and values of one pass behind those of the tokens before it.

    It is not changed by a layer that is computed a second time: what was before stays what it was.
    """

    def __init__(self, past: Mapping[int, KeysValues], *, ends_at: int | None = None) -> None:
        """``past`` by layer; the pass is ended by `HasKeys` once layer ``ends_at`` has its own."""
        super().__init__()
        self.past = dict(past)
        self.ends_at = ends_at
        self.kept: dict[int, KeysValues] = {}
        """By layer, past and own ones, where the pass is to end early: what it is made for."""
        self.layers = [_filled(*self.past[i]) for i in sorted(self.past)]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> KeysValues:
        """Past and own keys and values [S, heads, T_past + T, width] of a layer."""
        own = key_states, value_states
        if layer_idx in self.past:
            keys, values = self.past[layer_idx]
            own = torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)
        if self.ends_at is not None:
            self.kept.setdefault(layer_idx, own)
        if self.ends_at == layer_idx:
            raise HasKeys(self)
        return own


def _filled(keys: Tensor, values: Tensor) -> DynamicLayer:
    """A layer's entry, from which a model reads how long the past is.

    Its own `lazy_initialization` would copy an empty tensor from the CPU for each of the two.
    """
    layer = DynamicLayer()
    layer.dtype, layer.device = keys.dtype, keys.device
    layer.keys, layer.values = keys, values
    layer.is_initialized = True
    return layer


def stack_of(llm: nn.Module, count: int) -> nn.ModuleList:
    """The stack of ``count`` layers.

    Raises:
        ValueError: there is none.
    """
    stacks = [m for m in llm.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not stacks:
        raise UserError(f"{type(llm).__name__}: no stack of {count} layers")
    return stacks[0]


def linear_maps(llm: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    """The maps of ``llm`` that are linear and nothing else, by dotted names; one that is shared by each."""
    parts: Any = llm.named_modules(remove_duplicate=False)
    return {name: part for name, part in parts if type(part) in (nn.Linear, Conv1D)}


def keep_first(llm: nn.Module, *, layers: int, stacks: list[str]) -> None:
    """Drop all but the first layers of the ``stacks`` of these names (`stack_names`), in place.

    A count of them that their owner keeps is cut too.
    """
    for name in stacks:
        path, _, last = name.rpartition(".")
        owner = llm.get_submodule(path)
        stack = owner.get_submodule(last)
        for key, value in vars(owner).items():
            if "layer" in key and type(value) is int and value == len(list(stack.children())):
                setattr(owner, key, layers)
        setattr(owner, last, nn.ModuleList(list(stack.children())[:layers]))


def stack_names(llm: Any, *, had: int) -> list[str]:
    """The dotted names of the lists that have an entry for each of ``had`` layers, the outermost alone.

    XLM keeps attentions, norms and feed-forward parts of its layers apart. Where lists of several owners
    are as long (a model that sees has layers for it), it is those that a shorter config makes shorter.
    """
    found = [name for name, m in llm.named_modules() if isinstance(m, nn.ModuleList) and len(m) == had]
    outer = [n for n in found if not any(n.startswith(f"{other}.") for other in found)]
    if len({n.rpartition(".")[0] for n in outer}) < 2:
        return outer
    architecture, settings = type(llm), copy.deepcopy(llm.config)
    cut_settings(settings, had=had, layers=had - 1)
    try:
        with torch.device("meta"):
            shorter = dict(architecture(settings).named_modules())
    except (ValueError, TypeError, RuntimeError, IndexError):
        return outer[:1]
    return [n for n in outer if len(list(shorter[n].children())) == had - 1]


def cut_settings(settings: Any, *, had: int, layers: int) -> None:
    """Let a transformers config of ``had`` layers tell of its first ``layers``, in place."""
    for key, value in list(vars(settings).items()):
        if isinstance(value, list) and len(value) == had:  # one entry per layer
            setattr(settings, key, value[:layers])
    own = getattr(vars(settings).get("_heterogeneity_spec"), "per_layer_overrides", {})
    for index in [i for i in own if i >= layers]:
        del own[index]
    settings.num_hidden_layers = layers


def recompute(layers: nn.ModuleList) -> None:
    """Keep only each layer's input for the backward pass, which computes the rest a second time.

    transformers' own switch works in training mode alone and drops the cache: a frozen LLM is in eval
    mode, and its shortened passes need theirs.
    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
    """
    for index, layer in enumerate(layers):
        layer.forward = _recomputing(layer.forward, index)


def _recomputing(forward: Callable[..., Any], index: int) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        ends_here = any(
            isinstance(value, PassCache) and value.ends_at == index for value in (*args, *kwargs.values())
        )
        if not torch.is_grad_enabled() or ends_here:  # a pass that ends within a layer keeps little of it
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
