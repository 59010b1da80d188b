"""A few layers of a frozen LLM in float32, to decide how its passes are computed.

Which way gives the LLM's own states is a property of its code. In half precision two right ways differ
by rounding, and the more the deeper: whether they agree would hang on a tolerance and on the processor.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from layers.llm.layers import cut_settings, stack_of

FEWEST = 2
"""Layers at least: the last one is computed otherwise than those before it."""
WORDS = 64
"""Word embeddings that are kept."""


def twin_of(llm: PreTrainedModel, *, whole: bool = False) -> PreTrainedModel:
    """The first layers of ``llm`` in float32, with one of each kind among them and a few of its words.

    Weights in 4 bits, and those that accelerate has spread over devices, can not be copied so: the twin
    of these has weights drawn at random, and the same code. ``whole`` takes all layers. ``llm`` and the
    random state stay as they are.
    """
    had = int(llm.config.num_hidden_layers)
    kept = had if whole else min(had, max(FEWEST, _one_of_each(llm, had)))
    if getattr(llm, "is_quantized", False) or getattr(llm, "hf_device_map", None) is not None:
        return _drawn(llm, had=had, layers=kept)
    words = llm.get_input_embeddings()
    assert isinstance(words, nn.Embedding)
    memo: dict[int, Any] = {id(words): _few(words)}
    try:
        stack = stack_of(llm, had)
    except ValueError:  # an architecture of its own kind: whole
        kept = had
    else:
        memo[id(stack)] = nn.ModuleList(copy.deepcopy(layer, memo) for layer in stack[:kept])
    twin: PreTrainedModel = copy.deepcopy(llm, memo)
    vars(twin).pop("_apply", None)  # by which a spread LLM is pinned: it would answer for the copy
    cut_settings(twin.config, had=had, layers=kept)
    return twin.float().requires_grad_(False).eval()


def _few(words: nn.Embedding) -> nn.Embedding:
    """The first of the word embeddings, in float32, in a module of the same kind."""
    few = copy.copy(words)
    few._parameters = {"weight": nn.Parameter(words.weight[:WORDS].detach().float(), requires_grad=False)}
    few._buffers = {name: copy.deepcopy(value) for name, value in words._buffers.items()}
    few._modules = {name: copy.deepcopy(part) for name, part in words._modules.items()}
    few.num_embeddings = len(few.weight)
    if few.padding_idx is not None and few.padding_idx >= len(few.weight):
        few.padding_idx = None
    return few


def _one_of_each(llm: PreTrainedModel, had: int) -> int:
    """How many of the first layers have one of each kind: of the config's, and of those made alike."""
    kinds: list[Any] = []
    with suppress(ValueError):  # no stack
        kinds = [_kind(layer) for layer in stack_of(llm, had)]
    named = getattr(llm.config, "layer_types", None)
    if isinstance(named, list) and len(named) == len(kinds):
        kinds = list(zip(kinds, named, strict=True))
    return 1 + max((kinds.index(kind) for kind in kinds), default=-1)


def _kind(layer: nn.Module) -> Any:
    """What tells layers apart: their parts' classes, and what these are switched to."""
    return tuple(
        (name, type(part).__name__, *sorted((k, v) for k, v in vars(part).items() if _is_switch(k, v)))
        for name, part in layer.named_modules()
    )


def _is_switch(name: str, value: Any) -> bool:
    return isinstance(value, bool | str) or ("window" in name and isinstance(value, int))


def _drawn(llm: PreTrainedModel, *, had: int, layers: int) -> PreTrainedModel:
    """Layers of the same code and sizes with weights of their own."""
    settings = copy.deepcopy(llm.config)
    if hasattr(settings, "quantization_config"):
        del settings.quantization_config
    cut_settings(settings, had=had, layers=layers)
    settings.vocab_size, settings.pad_token_id = WORDS, None
    architecture: Any = type(llm)
    with torch.random.fork_rng(), torch.device("cpu"):
        torch.manual_seed(0)
        drawn: PreTrainedModel = architecture(settings)
    return drawn.float().requires_grad_(False).eval()
