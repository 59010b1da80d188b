"""A few layers of a frozen LLM in float32, to decide how its passes are computed.

Which way gives the LLM's own states is a property of its code. In half precision two right ways differ
by rounding, and the more the deeper: whether they agree would hang on a tolerance and on the processor.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from layers.llm.layers import stack_of

FEWEST = 2
"""Layers at least: the last one is computed otherwise than those before it."""
WORDS = 64
"""Word embeddings that are kept."""


def cut_settings(settings: Any, *, had: int, layers: int) -> None:
    """Let a transformers config of ``had`` layers tell of its first ``layers``, in place."""
    for key, value in list(vars(settings).items()):
        if "layer" in key and isinstance(value, list) and len(value) == had:  # one entry per layer
            setattr(settings, key, value[:layers])
    settings.num_hidden_layers = layers


def twin_of(llm: PreTrainedModel) -> PreTrainedModel:
    """The first layers of ``llm`` in float32, with one of each kind among them and a few of its words.

    Weights in 4 bits, and those that accelerate has spread over devices, can not be copied so: the twin
    of these has weights drawn at random, and the same code. ``llm`` and the random state stay as they are.
    """
    had = int(llm.config.num_hidden_layers)
    kept = min(had, max(FEWEST, _one_of_each(llm.config, had)))
    if getattr(llm, "is_quantized", False) or getattr(llm, "hf_device_map", None) is not None:
        return _drawn(llm, had=had, layers=kept)
    words = llm.get_input_embeddings()
    assert isinstance(words, nn.Embedding)
    few = nn.Embedding.from_pretrained(words.weight[:WORDS].detach().float())
    memo: dict[int, Any] = {id(words): few}
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


def _one_of_each(settings: Any, had: int) -> int:
    """How many of the first layers have one of each kind, where the config tells kinds apart."""
    kinds = getattr(settings, "layer_types", None)
    if not isinstance(kinds, list) or len(kinds) != had:
        return 0
    return 1 + max(kinds.index(kind) for kind in set(kinds))


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
