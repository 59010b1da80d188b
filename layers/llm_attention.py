"""Attention of a frozen LLM on a CPU, by two matrix products and a softmax.

There the fused kernel is several times slower than the matrix products it is made of, above all in
half precision and in its backward pass. The function is handed to transformers through its own
registry of attentions, so that no model's code is touched.

Shape legend: S series, h heads, g of them share one head of keys, T queries, K keys, E width per head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "matmul"
BLOCK_BYTES = 8 * 2**20
"""Of the scores that are held at once where no gradient keeps them."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention, as transformers calls it.

    Args:
        module: the attention that asks.
        query: [S, h, T, E].
        key: [S, h / g, K, E].
        value: like ``key``.
        attention_mask: added to the scores, [S, 1, T, K].
        scaling: of the scores; E ** -0.5 by default.
        dropout: must be 0; a frozen LLM has none.
        others: must not ask for anything that changes the result.

    Returns:
        [S, T, h, E], and no map.

    Raises:
        ValueError: dropout, or something that is not known here (soft caps, sinks, position biases).
    """
    asked = [n for n in ("softcap", "s_aux", "position_bias") if others.get(n) is not None]
    if dropout or asked:
        raise ValueError(f"{NAME} attention: expected no dropout and no {asked}, found dropout {dropout}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if torch.is_grad_enabled():
        return _attend(query, key, value, attention_mask, scale), None
    row = query.shape[1] * query.shape[2] * key.shape[2] * query.element_size()
    block = max(1, BLOCK_BYTES // row)
    masks = [None] * len(query) if attention_mask is None else attention_mask.split(block)
    parts = zip(query.split(block), key.split(block), value.split(block), masks, strict=False)
    return torch.cat([_attend(*part, scale) for part in parts]), None


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """[S, T, h, E]; heads that share their keys are one long query."""
    series, heads, queries, width = query.shape
    shared, keys = key.shape[1], key.shape[2]
    grouped = (query * scale).reshape(series, shared, -1, width)
    scores = grouped @ key.transpose(-1, -2)  # [S, h / g, g T, K]
    if mask is not None:
        scores.view(series, shared, -1, queries, keys).add_(mask[:, :, None])
    attended = scores.softmax(dim=-1) @ value
    return attended.view(series, heads, queries, width).transpose(1, 2)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, eager_mask)
