"""The plain path: a model that computes as the published Time-LLM does, with every saving off.

Untouched transformers modules see the whole sequence ``[prompt, patches]`` in every pass, with eager
attention whose maps, like all hidden states, are kept and never read; gradients flow through all
tokens of all layers; the vocabulary is mapped in every pass, evaluation included; reprogramming
forms its attention matrix; Adam is neither fused nor grouped. Weights, prompts, forecasts and
gradients are those of the default. TAPR and GRA-M, which the published code does not have, are
computed as by default.
Source: the published code of Jin et al., ICLR 2024 (models/TimeLLM.py), rewritten.

Shape legend: S series, P patches, C source tokens, h heads, E width per head, d_llm LLM width.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def make_plain(model: Any) -> Any:
    """The same model, from now on computed the plain way."""
    model.use_reference_forward()
    model.llm_model.set_attn_implementation("eager")
    model.llm_model.config.output_attentions = True
    model.llm_model.config.output_hidden_states = True
    model.source_tokens = MethodType(lambda self, micro_step=None: self._map_words(self.mapping_layer), model)
    layer = model.reprogramming_layer
    layer.forward = MethodType(reprogram, layer)
    return model


def plain_optimizer(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """The published choice: `torch.optim.Adam`, one tensor after another."""
    return torch.optim.Adam(parameters, lr=learning_rate, foreach=False, fused=False)


def reprogram(self: Any, patches: Tensor, source: Tensor) -> Tensor:
    """`ReprogrammingLayer.forward` with its attention written out: [S, P, D] to [S, P, d_llm]."""
    n_series, n_patches, _ = patches.shape
    query = self.query_projection(patches).view(n_series, n_patches, self.n_heads, -1)
    key = self.key_projection(source).view(len(source), self.n_heads, -1)
    value = self.value_projection(source).view(len(source), self.n_heads, -1)
    scores = torch.einsum("sphe,che->shpc", query, key) / query.shape[-1] ** 0.5
    attention = nn.functional.dropout(scores.softmax(dim=-1), self.dropout, self.training)
    attended = torch.einsum("shpc,che->sphe", attention, value)
    return self.out_projection(attended.reshape(n_series, n_patches, -1))
